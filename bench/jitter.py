"""The jitter buffer beside an oracle and beside aiortc's: ``python -m bench.jitter``.

One seeded link for all: packets are lost (one by one or in bursts), delayed by a jitter of 20 ms standard deviation
that stays within the playout delay, and so reordered. The oracle knows every arrival in advance and delivers, with
the same delay, each packet that comes before its deadline. aiortc's JitterBuffer runs in its own environment on the
very same arrivals (bench/peers/README.md); it has no clock, so a packet counts for it whenever it comes out, and once
more within the playout delay. For ours the smallest delay is given that still delivers 99 % of what arrives.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.record import write_results
from imputation.channel import Channel, open_profile
from runtime.jitter import JitterBuffer
from runtime.packet import Packet

RESULTS = Path(__file__).parent / "results"
PEER = Path(__file__).parent / "peers" / "aiortc"
SECONDS = 120.0
DELAY = 0.12  # seconds of playout delay
JITTER = 0.02  # standard deviation, seconds
BURST = 4.0  # packets, mean, in the bursty links
LOSSES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.4)
ENOUGH = 0.99  # of what arrives

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Packets of one modality: when they are captured, and how aiortc is set up for them."""

    modality: str
    captures: Floats  # seconds; packets of one frame share it
    ticks_per_second: int
    capacity: int  # aiortc's own choice for the modality
    prefetch: int


@dataclass(frozen=True, kw_only=True)
class Link:
    """What the network did: arrival times in seconds, infinite where lost."""

    loss: float
    bursty: bool
    arrivals: Floats


def audio_traffic() -> Traffic:
    """A packet every 20 ms."""
    captures = np.arange(round(SECONDS / 0.02), dtype=np.float64) * 0.02
    return Traffic(modality="audio", captures=captures, ticks_per_second=48_000, capacity=16, prefetch=4)


def video_traffic() -> Traffic:
    """30 frames a second of 5 packets, every 60th of 38 (loss-model reference stream: 1.5 Mbit/s in 1200 bytes)."""
    frames = range(round(SECONDS * 30))
    captures = np.repeat([i / 30 for i in frames], [38 if i % 60 == 0 else 5 for i in frames])
    return Traffic(modality="video", captures=captures, ticks_per_second=90_000, capacity=128, prefetch=0)


def link(traffic: Traffic, loss: float, bursty: bool, seed: int) -> Link:
    """Loss from the one simulator, jitter on top: a Gaussian about the middle of the delay, cut off at its ends."""
    count = len(traffic.captures)
    profile = f"ge:{loss / BURST / (1 - loss)},{1 / BURST},0,1" if bursty else f"iid-{100 * loss:g}"
    sent = traffic.captures + np.arange(count) * 1e-7  # packets of one frame follow each other
    lost = Channel(open_profile(profile), seed).lost(traffic.modality, sent) if loss else np.zeros(count, bool)
    rng = np.random.default_rng(seed)
    transit = rng.normal(DELAY / 2, JITTER, count)
    while (outside := (transit < 0) | (transit >= DELAY)).any():
        transit[outside] = rng.normal(DELAY / 2, JITTER, int(outside.sum()))
    return Link(loss=loss, bursty=bursty, arrivals=np.where(lost, np.inf, sent + transit))


def oracle(captures: Floats, arrivals: Floats, delay: float) -> NDArray[np.bool_]:
    """Which packets one delivers who knows every arrival (n,): those that come before their deadline.

    A packet's deadline is the first moment at which some packet behind it has come and is itself due.
    """
    due = np.where(np.isfinite(arrivals), np.maximum(arrivals, captures + delay), np.inf)
    behind = np.append(np.minimum.accumulate(due[::-1])[::-1][1:], np.inf)
    out: NDArray[np.bool_] = arrivals < behind
    return out


def ours(traffic: Traffic, arrivals: Floats, delay: float) -> tuple[NDArray[np.bool_], Floats]:
    """Which packets our buffer delivers (n,), and when, in seconds; polled when a packet comes or a deadline is due."""
    buffer = JitterBuffer(traffic.modality, delay, first_seq=0)
    packets = [_packet(traffic, s) for s in range(len(arrivals))]
    out_at = np.full(len(arrivals), np.inf)
    for s in _order_of_arrival(arrivals):
        now = float(arrivals[s])
        while (due := buffer.next_deadline) is not None and due <= now:
            _note(out_at, buffer.poll(due), due)
        _note(out_at, buffer.push(packets[s], now), now)
    _note(out_at, buffer.flush(), float(arrivals[np.isfinite(arrivals)].max()))
    return np.isfinite(out_at), out_at


def _packet(traffic: Traffic, s: int) -> Packet:
    ticks = round(traffic.captures[s] * traffic.ticks_per_second)
    base = Fraction(1, traffic.ticks_per_second)
    return Packet(modality=traffic.modality, seq=s, capture_time=ticks, time_base=base, payload=b"")


def _note(out_at: Floats, items: Sequence[Any], now: float) -> None:
    for item in items:
        if isinstance(item, Packet):
            out_at[item.seq] = now


def _order_of_arrival(arrivals: Floats) -> list[int]:
    order = np.argsort(arrivals, kind="stable")
    return [int(s) for s in order if np.isfinite(arrivals[s])]


def smallest_delay(traffic: Traffic, arrivals: Floats) -> float:
    """The least playout delay, to the millisecond, with which ours delivers 99 % of what arrives; seconds."""
    wanted = ENOUGH * np.isfinite(arrivals).sum()
    low, high = 0, round(DELAY * 1000)  # a longer delay delivers no less
    while low < high:
        middle = (low + high) // 2
        if ours(traffic, arrivals, middle / 1000)[0].sum() >= wanted:
            high = middle
        else:
            low = middle + 1
    return low / 1000


def aiortc(runs: Sequence[tuple[Traffic, Link]]) -> list[list[list[int]]] | None:
    """What aiortc's buffer delivers in each run, or None without its environment."""
    python = os.environ.get("AIORTC_PYTHON") or str(PEER / ".venv" / "bin" / "python")
    request = []
    for traffic, link_ in runs:
        numbers = _order_of_arrival(link_.arrivals)
        stamps = [round(traffic.captures[s] * traffic.ticks_per_second) for s in numbers]
        request.append(
            {
                "capacity": traffic.capacity,
                "prefetch": traffic.prefetch,
                "is_video": traffic.modality == "video",
                "packets": list(zip(numbers, stamps, strict=True)),
            }
        )
    try:
        done = subprocess.run(
            [python, str(PEER / "jitter.py")], input=json.dumps(request), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        print(f"aiortc is left out ({detail.strip().splitlines()[-1]}); bench/peers/README.md says how to install it")
        return None
    answer: list[list[list[int]]] = json.loads(done.stdout)
    return answer


def measure(traffic: Traffic, link_: Link, peer: list[list[int]] | None) -> dict[str, Any]:
    """One row: shares of what the oracle delivers, and how long packets stay in the buffers."""
    arrivals, captures = link_.arrivals, traffic.captures
    wanted = oracle(captures, arrivals, DELAY)
    got, out_at = ours(traffic, arrivals, DELAY)
    row: dict[str, Any] = {
        "modality": traffic.modality,
        "loss": link_.loss,
        "bursty": link_.bursty,
        "packets": len(arrivals),
        "arrived": int(np.isfinite(arrivals).sum()),
        "overtaken": _overtaken(arrivals),
        "oracle": int(wanted.sum()),
        "ours": int(got.sum()),
        "same_packets": bool((wanted == got).all()),
        "our_wait_ms": _wait_ms(arrivals, out_at),
        "smallest_delay_ms": round(1000 * smallest_delay(traffic, arrivals)),
    }
    if peer is not None:
        moments = np.sort(arrivals[np.isfinite(arrivals)])
        peer_at = np.full(len(arrivals), np.inf)
        for number, arrival in peer:
            peer_at[number] = moments[arrival]
        row["aiortc"] = int(np.isfinite(peer_at).sum())
        row["aiortc_in_time"] = int((peer_at <= captures + DELAY).sum())
        row["aiortc_wait_ms"] = _wait_ms(arrivals, peer_at)
    return row


def _overtaken(arrivals: Floats) -> float:
    """Share of packets that came after one sent later."""
    came = arrivals[np.isfinite(arrivals)]
    return round(float((came > np.minimum.accumulate(came[::-1])[::-1]).mean()), 3)


def _wait_ms(arrivals: Floats, out_at: Floats) -> float:
    """Mean time in the buffer of what came out, milliseconds."""
    out = np.isfinite(out_at)
    return round(1000 * float((out_at[out] - arrivals[out]).mean()), 1) if out.any() else 0.0


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown."""
    lines = [
        "| traffic | loss | ours / oracle | same packets | wait | least for 99 % | aiortc / oracle | in time | wait |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        most = max(row["oracle"], 1)
        peer = "- | - | -"
        if "aiortc" in row:
            peer = f"{row['aiortc'] / most:.1%} | {row['aiortc_in_time'] / most:.1%} | {row['aiortc_wait_ms']:.0f} ms"
        lines.append(
            f"| {row['modality']} | {row['loss']:.0%}{', bursts' if row['bursty'] else ''} "
            f"| {row['ours'] / most:.1%} | {'yes' if row['same_packets'] else '**no**'} | {row['our_wait_ms']:.0f} ms "
            f"| {row['smallest_delay_ms']} ms | {peer} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for jitter.json and jitter.md")
    options = parser.parse_args()
    kinds = [(loss, bursty) for loss in LOSSES for bursty in (False, True) if loss or not bursty]
    runs = [
        (t, link(t, loss, bursty, options.seed)) for t in (audio_traffic(), video_traffic()) for loss, bursty in kinds
    ]
    peers = aiortc(runs)
    rows = [measure(t, link_, peers[i] if peers else None) for i, (t, link_) in enumerate(runs)]
    lines = [
        "# Jitter buffer: ours, an oracle with the same delay, and aiortc's",
        "",
        f"{SECONDS:g} s of packets, playout delay {1000 * DELAY:g} ms, jitter of {1000 * JITTER:g} ms standard "
        f"deviation within that delay (it reorders), bursts of {BURST:g} packets on average, seed {options.seed}. "
        "Shares are of the packets that the oracle delivers; *in time* counts what aiortc hands out within the playout "
        "delay.",
        "",
        *table(rows),
    ]
    write_results(options.out, "jitter", {"seed": options.seed, "delay_ms": 1000 * DELAY, "rows": rows}, lines)


if __name__ == "__main__":
    main()
