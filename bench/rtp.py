"""How well damage is found in RTP from ffmpeg that lost packets on its way: ``python -m bench.rtp``.

ffmpeg sends H.264 and sound; a relay on 127.0.0.1 keeps what it sent. Each loss profile is applied to that log (and
once by the relay itself, on the way to real sockets; and, with root, by nft between two network namespaces), and what
comes through goes the way it goes in serving: session, damage tracker, decoder. Truth: mean absolute luma error above
0.5 grey levels against the decode of the whole log, or the frame is missing. Recall is the share of damaged frames
that were found, false alarms the share of all frames that were flagged although their error is smaller; of these,
``exact`` have no error at all.
"""

import argparse
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from bench.damage import GREY_LEVELS, Score, receive, score
from bench.record import write_results
from bench.rtp_link import CODINGS, Coding, Link, Sent, free_ports, lossy, namespaces, namespaces_missing, relay
from imputation.channel import open_profile
from runtime.decode import Frame
from runtime.packet import Decision, Gap, Packet, StreamInfo
from runtime.rtp import is_rtcp, parse_rtp
from runtime.rtp_session import RtpSession, choose_media
from runtime.sdp import parse_sdp
from runtime.sources.rtp_udp import RtpSource, open_rtp

SECONDS = 20.0  # of media in each log
SEEDS = 5
PROFILES = ("clean", "iid-1", "iid-5", "iid-10", "iid-20")
BURSTS = ("wifi-good", "wifi-burst", "wifi-poor", "congestion-severe", "ge:0.05,0.4", "iid-5+reorder", "iid-5+dup")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Played:
    """What came out of a session, in order."""

    items: list[Packet | Decision]
    session: RtpSession

    def packets(self, modality: str) -> list[Packet]:
        return [i for i in self.items if isinstance(i, Packet) and i.modality == modality]

    @property
    def info(self) -> StreamInfo:
        return StreamInfo(name="rtp", codecs=self.session.codecs)


def play(sdp: str, datagrams: Sequence[Sent]) -> Played:
    """Datagrams through a session, as the sources do it."""
    media = parse_sdp(sdp)
    formats = {m: (i, {f.payload_type: f for f in media[i].formats}) for m, i in choose_media(media).items()}
    session = RtpSession(formats)
    items: list[Packet | Decision] = []
    for one in datagrams:
        items += session.receive(one.data, one.at, one.channel)
    return Played(items + session.finish(datagrams[-1].at if datagrams else 0.0), session)


def decoded(played: Played) -> list[Frame]:
    """Frames with the verdicts on them; times count from the RTP timestamp 0, so that two runs can be compared."""
    items: list[Packet | Gap] = []
    last: int | None = None
    for packet in played.packets("video"):
        if last is not None and packet.seq > last + 1:
            items.append(Gap(modality="video", first_seq=last + 1, count=packet.seq - last - 1))
        items.append(packet)
        last = packet.seq
    sender = played.session.tracks["video"].sender
    offset = 0 if sender is None or sender.offset is None else sender.offset
    frames = receive(played.info, items)
    for frame in frames:
        frame.time -= Fraction(offset, 90_000)
    return frames


def sound_lost(sent: Sequence[Sent], passed: Sequence[Sent], played: Played) -> tuple[int, int]:
    """(sound packets that the link lost between the first and the last that came, frames that were found missing)."""
    numbers = [[parse_rtp(s.data).seq for s in log if s.channel == 1 and not is_rtcp(s.data)] for log in (sent, passed)]
    there = set(numbers[1])
    span = [n in there for n in numbers[0]]
    truth = len(span[span.index(True) : len(span) - span[::-1].index(True)]) - sum(span) if any(span) else 0
    found = [p.seq for p in played.packets("audio")]
    return truth, (max(found) - min(found) + 1 - len(set(found))) if found else 0


def compare(clean: Sequence[Frame], link: Link, played: Played) -> tuple[Score, dict[str, Any]]:
    """One run against the truth."""
    frames = decoded(played)
    result, got = score(clean, frames), {frame.time: frame for frame in frames}
    pairs = ((one, got[one.time]) for one in clean if one.time in got)
    exact = sum(other.damaged and bool((one.pixels == other.pixels).all()) for one, other in pairs)
    truth, found = sound_lost(link.sent, link.passed, played)
    video = [s for s in link.sent if s.channel == 0 and not s.control]
    came = sum(s.channel == 0 and not s.control for s in link.passed)
    return result, {"lost": 1 - came / max(1, len(video)), "sound_lost": truth, "sound_found": found, "exact": exact}


def row(name: str, coding: Coding, runs: Sequence[tuple[Score, dict[str, Any]]]) -> dict[str, Any]:
    """A line of the table: sums over the runs."""
    frames, damaged = sum(s.frames for s, _ in runs), sum(s.damaged for s, _ in runs)
    recall = sum(s.found for s, _ in runs) / max(1, damaged) if damaged else 1.0
    false_alarms = sum(s.false_alarms for s, _ in runs) / max(1, frames)
    sound = [sum(about[key] for _, about in runs) for key in ("sound_lost", "sound_found")]
    return {
        "coding": coding.name,
        "link": name,
        "lost": round(sum(about["lost"] for _, about in runs) / len(runs), 4),
        "frames": frames,
        "damaged": damaged,
        "recall": round(recall, 5),
        "false_alarms": round(false_alarms, 5),
        "exact_false_alarms": sum(about["exact"] for _, about in runs),
        "worst_false_alarms": round(max(s.false_alarms / max(1, s.frames) for s, _ in runs), 5),
        "ffmpeg_flag_recall": round(sum(s.found_by_flag for s, _ in runs) / max(1, damaged), 4),
        "sound_lost": sound[0],
        "sound_found": sound[1],
        "passes": recall == 1.0 and false_alarms <= 0.03 and sound[0] == sound[1],
    }


def run_log(coding: Coding, link: Link, profile: str, seeds: Sequence[int]) -> dict[str, Any]:
    """A profile applied to a log."""
    clean = decoded(play(link.sdp, link.sent))
    chosen = open_profile(profile)
    runs = []
    for seed in seeds:
        passed = lossy(link.sent, chosen, seed)
        runs.append(compare(clean, replace_passed(link, passed), play(link.sdp, passed)))
    return row(profile, coding, runs)


def replace_passed(link: Link, passed: list[Sent]) -> Link:
    return replace(link, passed=passed)


def run_live(coding: Coding, seconds: float, profile: str, seed: int) -> dict[str, Any]:
    """The relay loses packets between ffmpeg and the sockets of ``open_rtp``, in real time."""
    ports = free_ports()
    links: list[Link] = []
    source = open_rtp(_sdp_file(coding, ports))
    thread = threading.Thread(
        target=lambda: links.append(
            relay(coding, seconds, profile=open_profile(profile), seed=seed, speed=1.0, to=ports)
        )
    )
    thread.start()
    with source:
        played = _read(source, thread)
    thread.join()
    link = links[0]
    clean = decoded(play(link.sdp, link.sent))
    return row(f"{profile}, sockets", coding, [compare(clean, link, played)])


def _read(source: RtpSource, sender: threading.Thread) -> Played:
    items: list[Packet | Decision] = []
    while not source.ended:
        item = source.read(0.5)
        if item is not None:
            items.append(item)
        elif not sender.is_alive():
            break
    return Played(items + source.session.finish(float("inf")), source.session)


def _sdp_file(coding: Coding, ports: Sequence[int]) -> Path:
    """A description written by hand, as one that is used with ffmpeg."""
    import tempfile

    sound = {"libopus": (97, "opus/48000/2"), "pcm_mulaw": (0, "PCMU/8000"), "pcm_alaw": (8, "PCMA/8000")}
    number, name = sound[coding.audio[1]]
    lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=bench", "c=IN IP4 127.0.0.1", "t=0 0"]
    lines += [f"m=video {ports[0]} RTP/AVP 96", "a=rtpmap:96 H264/90000"]
    lines += [f"m=audio {ports[1]} RTP/AVP {number}", f"a=rtpmap:{number} {name}"]
    path = Path(tempfile.mkdtemp(prefix="legato-bench-")) / "x.sdp"
    path.write_text("\r\n".join(lines) + "\r\n")
    return path


def run_namespaces(coding: Coding, seconds: float, percent: int) -> dict[str, Any]:
    """nft loses packets between two network namespaces."""
    link = namespaces(coding, seconds, percent)
    clean = decoded(play(link.sdp, link.sent))
    return row(f"nft random {percent} %, namespaces", coding, [compare(clean, link, play(link.sdp, link.passed))])


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown."""
    lines = [
        "| coding | link | RTP lost | damaged frames | recall | false alarms | worst | FFmpeg's flag finds "
        "| flagged without any error | sound lost, found |  |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        shares = [f"{100 * r[key]:.1f} %" for key in SHARES]
        lines.append(
            f"| {r['coding']} | {r['link']} | {100 * r['lost']:.1f} % | {r['damaged']} of {r['frames']} | "
            f"{' | '.join(shares)} | {r['exact_false_alarms']} | {r['sound_lost']}, {r['sound_found']} | "
            f"{'' if r['passes'] else '**fails**'} |"
        )
    return lines


SHARES = ("recall", "false_alarms", "worst_false_alarms", "ffmpeg_flag_recall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--coding", default="", help="only codings whose name contains this")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of media in each log")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each profile; seeds count from 0")
    parser.add_argument("--no-links", action="store_true", help="logs only: no live relay, no namespaces")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for rtp.json and rtp.md")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for coding in CODINGS:
        if options.coding not in coding.name:
            continue
        link = relay(coding, options.seconds)
        for profile in (*PROFILES, *BURSTS):
            rows.append(run_log(coding, link, profile, range(1 if profile == "clean" else options.seeds)))
            print(table(rows)[-1], flush=True)
        if not options.no_links:
            rows.append(run_live(coding, options.seconds, "iid-5", 0))
            rows += [] if namespaces_missing() else [run_namespaces(coding, options.seconds, 5)]
            print("\n".join(table(rows)[-2:]), flush=True)
    lines = [
        "# RTP: which frames lost packets spoiled",
        "",
        f"ffmpeg sends {options.seconds:g} s of moving pictures and a tone; seeds 0 to {options.seeds - 1}. Truth: "
        f"mean absolute luma error above {GREY_LEVELS} grey levels against the decode of what was sent, or missing. "
        "Required: recall 100 %, false alarms <= 3 % of all frames, every lost packet of sound found.",
        "",
        *table(rows),
    ]
    if options.coding:
        print("\n".join(lines))
    else:
        write_results(options.out, "rtp", {"seeds": options.seeds, "seconds": options.seconds, "rows": rows}, lines)


if __name__ == "__main__":
    main()
