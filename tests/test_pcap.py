"""Captures: formats, link layers, fragments, which streams are played, and files that are cut, altered or hostile."""

import random
import struct
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.datagrams import Datagrams
from runtime.errors import MissingExtraError, SourceError
from runtime.packet import Packet, StreamInfo
from runtime.pipeline import receive
from runtime.receive import Receiver
from runtime.rtcp import SenderReport, pack_rtcp
from runtime.sources import open_source, open_sources
from runtime.sources.pcap import CaptureSource
from tests.fakes import SPEC, fake_parts
from tests.test_rtp_session import AUDIO_SSRC, VIDEO_SSRC, audio, av_offset, feed, frames, session, video

pytest.importorskip("dpkt")

A, B = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
SIX_A, SIX_B = bytes(15) + b"\1", bytes(15) + b"\2"
ETHERNET, RAW, COOKED, COOKED_2, NULL = 1, 101, 113, 276, 0


def udp(payload, target=5004, source=4000):
    return struct.pack(">HHHH", source, target, 8 + len(payload), 0) + payload


def ipv4(body, *, protocol=17, number=1, offset=0, more=False):
    flags = offset // 8 | more << 13
    return struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), number, flags, 64, protocol, 0) + A + B + body


def ipv6(body, following=17):
    return struct.pack(">IHBB", 6 << 28, len(body), following, 64) + SIX_A + SIX_B + body


def ethernet(packet, kind=0x0800, tags=()):
    return bytes(12) + b"".join(struct.pack(">HH", tag, 7) for tag in tags) + struct.pack(">H", kind) + packet


def pcap(records, link=ETHERNET, *, magic=0xA1B2C3D4, order="<", start=1_700_000_000):
    """(seconds, frame) pairs as a capture file."""
    scale = 10**9 if magic == 0xA1B23C4D else 10**6
    out = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for at, frame in records:
        ticks = round(at * scale)
        out += struct.pack(f"{order}IIII", start + ticks // scale, ticks % scale, len(frame), len(frame)) + frame
    return out


def pcapng(records, link=ETHERNET):
    def block(kind, body):
        body += bytes(-len(body) % 4)
        return struct.pack("<II", kind, 12 + len(body)) + body + struct.pack("<I", 12 + len(body))

    out = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(1, struct.pack("<HHI", link, 0, 0))
    for at, frame in records:
        ticks = 1_700_000_000 * 10**6 + round(at * 1e6)
        head = struct.pack("<IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame))
        out += block(6, head + frame)
    return out


def call(seconds=2.0, lost=()):
    """Pictures to port 5004 and sound to 5006, with reports; (at, payload, port)."""
    rows = [(n / 25 + 0.01, video(n, ticks=500), 5004) for n in range(int(25 * seconds)) if n not in lost]
    rows += [(n / 50, audio(n, ticks=900), 5006) for n in range(int(50 * seconds))]
    return sorted(rows)


def frames_of(rows, wrap=ethernet):
    return [(at, wrap(ipv4(udp(data, port)))) for at, data, port in rows]


def capture(tmp_path, data, name="call.pcap"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def played(path, **options):
    with CaptureSource(path, **options) as source:
        return list(source.packets()), source


@pytest.mark.parametrize(
    "data",
    [
        pcap(frames_of(call())),
        pcap(frames_of(call()), order=">"),
        pcap(frames_of(call()), magic=0xA1B23C4D),
        pcapng(frames_of(call())),
        pcap([(at, ethernet(ipv4(udp(d, p)), tags=(0x8100,))) for at, d, p in call()]),
        pcap([(at, ethernet(ipv4(udp(d, p)), tags=(0x88A8, 0x8100))) for at, d, p in call()]),
        pcap([(at, ethernet(ipv6(udp(d, p)), 0x86DD)) for at, d, p in call()]),
        pcap([(at, ipv4(udp(d, p))) for at, d, p in call()], RAW),
        pcap([(at, ipv6(udp(d, p))) for at, d, p in call()], RAW),
        pcap([(at, bytes(14) + b"\x08\0" + ipv4(udp(d, p))) for at, d, p in call()], COOKED),
        pcap([(at, b"\x08\0" + bytes(18) + ipv4(udp(d, p))) for at, d, p in call()], COOKED_2),
        pcap([(at, b"\2\0\0\0" + ipv4(udp(d, p))) for at, d, p in call()], NULL),
    ],
    ids=["little", "big", "nano", "pcapng", "vlan", "qinq", "ipv6", "raw4", "raw6", "cooked", "cooked2", "loopback"],
)
def test_a_call_is_found_and_played_from_every_kind_of_capture(tmp_path, data):
    items, source = played(capture(tmp_path, data))
    assert {m: c.codec for m, c in source.info.codecs.items()} == {"video": "h264", "audio": "opus"}
    assert [p.seq for p in frames(items)] == list(range(50))
    assert [p.seq for p in frames(items, "audio")] == list(range(100))
    assert frames(items)[4].arrival == pytest.approx(4 / 25 + 0.01, abs=1e-5)
    assert source.info.sequence_numbers and not source.info.labels


def test_a_replay_repeats_itself(tmp_path):
    path = capture(tmp_path, pcap(frames_of(call(lost=(7, 8, 30)))))
    first, second = played(path)[0], played(path)[0]
    assert first == second
    assert [p.seq for p in frames(first)] == [n for n in range(50) if n not in (7, 8, 30)]


def test_a_source_may_be_played_again(tmp_path):
    with CaptureSource(capture(tmp_path, pcap(frames_of(call())))) as source:
        assert list(source.packets()) == list(source.packets())


def test_open_source_takes_captures_and_loses_more_where_asked(tmp_path):
    for name, data in (("a.pcap", pcap(frames_of(call()))), ("b.pcapng", pcapng(frames_of(call())))):
        path = capture(tmp_path, data, name)
        with open_source(path) as source:
            assert source.info.name == name[0]
            whole = sum(isinstance(i, Packet) for i in source.packets())
        with open_source(path, "iid-30", 1) as source:
            assert 0 < sum(isinstance(i, Packet) for i in source.packets()) < whole
        (alone,) = open_sources(path)
        alone.close()


def test_a_folder_of_captures_is_played_and_live_streams_are_not_replayed(tmp_path):
    for name in ("a.pcap", "b.cap"):
        capture(tmp_path, pcap(frames_of(call(1.0))), name)
    assert [s.info.name for s in open_sources(tmp_path)] == ["a", "b"]
    for target in ("rtp://127.0.0.1:5004", "call.sdp"):
        with pytest.raises(SourceError) as caught:
            open_source(target)
        assert str(caught.value) == (f"{target} is a live stream, not a recording; use legato live --camera {target}")


def test_reports_in_the_capture_align_sound_and_pictures(tmp_path):
    rows = [(at + (0.3 if port == 5004 else 0), data, port) for at, data, port in call()]
    for ssrc, ticks, port in ((VIDEO_SSRC, 500, 5005), (AUDIO_SSRC, 900, 5007)):
        rows.append((0.0, pack_rtcp(SenderReport(ssrc=ssrc, ntp=int(Fraction(1000) * 2**32), timestamp=ticks)), port))
    items, source = played(capture(tmp_path, pcap(frames_of(sorted(rows)))))
    assert source.session.reports == 2
    assert av_offset(items) == pytest.approx(0, abs=1e-3)


def test_a_description_beside_the_capture_says_which_streams(tmp_path):
    path = capture(tmp_path, pcap(frames_of(call())))
    path.with_suffix(".sdp").write_text("v=0\nm=audio 5006 RTP/AVP 97\na=rtpmap:97 opus/48000/2\n")
    items, source = played(path)
    assert list(source.info.codecs) == ["audio"] and len(frames(items, "audio")) == 100
    other = tmp_path / "other.sdp"
    other.write_text("v=0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n")
    assert list(played(path, sdp=other)[1].info.codecs) == ["video"]
    other.write_text("v=0\nm=video 9999 RTP/AVP 96\na=rtpmap:96 H264/90000\n")
    with pytest.raises(SourceError) as caught:
        CaptureSource(path, sdp=other)
    assert str(caught.value) == (
        f"{path} holds no RTP to the ports that other.sdp names; correct their m= lines or remove it"
    )


def test_of_two_calls_the_longer_is_played_and_the_other_mentioned(tmp_path):
    rows = call(2.0) + [(n / 50, audio(n, ssrc=5), 6006) for n in range(20)]
    rows += [(n / 100, random.Random(n).randbytes(50), 53) for n in range(300)]  # name lookups, say
    items, source = played(capture(tmp_path, pcap(frames_of(sorted(rows)))))
    assert len(frames(items, "audio")) == 100
    assert source.info.labels == {"note": "1 more RTP stream left out; the ones with the most packets are played"}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_fragments_are_joined_in_any_order(version, order):
    body = udp(bytes(range(256)) * 8)
    pieces = [(0, body[:800], True), (800, body[800:1600], True), (1600, body[1600:], False)]
    reader = Datagrams(RAW)
    got = []
    for offset, part, more in (pieces[i] for i in order):
        if version == 4:
            got.append(reader.read(ipv4(part, offset=offset, more=more)))
        else:
            got.append(reader.read(ipv6(struct.pack(">BBHI", 17, 0, offset | more, 9) + part, 44)))
    assert got[:2] == [None, None] and got[2].payload == bytes(range(256)) * 8
    assert (reader.unread, reader.fragments_lost) == (0, 0)


def test_fragments_that_never_become_whole_are_counted_and_forgotten():
    reader = Datagrams(RAW)
    for number in range(1000):
        assert reader.read(ipv4(bytes(64), number=number, more=True)) is None
    assert len(reader._pending) <= 64
    reader.finish()
    assert reader.fragments_lost == 1000


def test_headers_of_ipv6_are_walked():
    hop = struct.pack(">BB6x", 60, 0) + struct.pack(">BB14x", 17, 1)
    assert Datagrams(RAW).read(ipv6(hop + udp(b"x"), 0)).payload == b"x"


def test_frames_that_hold_no_udp_are_nothing_and_broken_ones_are_counted():
    reader = Datagrams(ETHERNET)
    assert reader.read(ethernet(ipv4(b"tcp", protocol=6))) is None
    assert reader.read(ethernet(b"arp", 0x0806)) is None
    assert reader.unread == 0
    broken = [b"", b"\0" * 13, ethernet(b""), ethernet(ipv4(udp(b"xyz"))[:-1]), ethernet(b"\x45"), ethernet(b"\x99")]
    for frame in broken:
        assert reader.read(frame) is None
    assert reader.unread == len(broken)


@given(st.sampled_from([0, 1, 12, 101, 108, 113, 276, 228, 229]), st.binary(max_size=120))
def test_any_frame_is_a_datagram_or_nothing(link, frame):
    Datagrams(link).read(frame)


@pytest.mark.parametrize("make", [pcap, pcapng])
def test_a_capture_cut_anywhere_plays_up_to_its_last_whole_record(tmp_path, make):
    whole = make(frames_of(call(1.0)))
    path = capture(tmp_path, whole)
    every = played(path)[0]
    rng = random.Random(1)
    for cut in sorted(rng.sample(range(len(whole) // 2, len(whole)), 12)):
        path.write_bytes(whole[:cut])
        items, _ = played(path)
        assert 0 < len(items) <= len(every)
        assert [(i.modality, i.seq, i.payload) for i in items] == [
            (i.modality, i.seq, i.payload) for i in every if (i.modality, i.seq) in {(j.modality, j.seq) for j in items}
        ]
    path.write_bytes(whole[:-5])
    note = played(path)[1].info.labels["note"]
    assert note == f"the capture is cut off or damaged after {len(call(1.0)) - 1} records"


def test_records_of_absurd_length_end_the_capture(tmp_path):
    lying = pcap(frames_of(call(1.0))) + struct.pack("<IIII", 0, 0, 2**32 - 1, 2**32 - 1)
    items, source = played(capture(tmp_path, lying))
    assert len(items) == 75
    assert source.info.labels["note"] == "the capture is cut off or damaged after 75 records"


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_an_altered_capture_is_played_or_refused_in_a_sentence(seed):
    import tempfile
    from pathlib import Path

    rng = random.Random(seed)
    data = bytearray(rng.choice((pcap, pcapng))(frames_of(call(0.4))))
    for _ in range(rng.choice((1, 10, 200))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    with tempfile.TemporaryDirectory() as folder:
        path = capture(Path(folder), bytes(data))
        try:
            items, _ = played(path)
        except SourceError as error:
            assert "\n" not in str(error)
        else:
            arrivals = [item.arrival for item in items]
            assert arrivals == sorted(arrivals)


def test_a_record_from_another_century_does_not_hold_a_receiver_up(tmp_path):
    rows = frames_of(call(2.0))
    rows = rows[:100] + [(3e9, frame) for _, frame in rows[100:]]
    with CaptureSource(capture(tmp_path, pcap(rows, start=0))) as source:
        receiver = Receiver(source.info, SPEC, delay=0.1, parts=fake_parts())
        clips = list(receive(source.packets(), receiver))
    receiver.ledger.check()
    assert len(clips) == 5
    assert source.info.labels["note"] == ("the capture's clock jumps once by more than 600 s; jumps are left out")


@given(st.floats(0, 0.4), st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_what_a_receiver_makes_of_lost_rtp_adds_up(loss, seed):
    """Conservation from RTP to clips: expected = received + lost, and each that was received has one fate."""
    rng, target = random.Random(seed), session()
    rows = [(at + rng.random() * 0.05, data) for at, data, _ in call(3.0) if rng.random() > loss]
    items = feed(target, rows) + target.finish(5.0)
    info = StreamInfo(name="rtp", codecs=target.codecs)
    receiver = Receiver(info, SPEC, delay=0.1, parts=fake_parts(chained=("video",)))
    list(receive(items, receiver))
    receiver.ledger.check()
    for modality, track in target.tracks.items():
        counts = receiver.ledger[modality].counts
        assert counts.received == sum(i.modality == modality for i in items)
        if modality == "audio":
            assert counts.lost == track.stats.lost


def test_what_is_no_capture_says_so(tmp_path):
    for data in (b"", b"nonsense" * 100, pcap([])[:10]):
        path = capture(tmp_path, data)
        with pytest.raises(SourceError) as caught:
            open_source(path)
        assert str(caught.value) == f"{path} is no capture of pcap or pcapng, or its head is damaged"


def test_a_capture_without_rtp_says_what_it_holds(tmp_path):
    rows = [(n / 10, b"hello" * 5, 53) for n in range(9)]
    path = capture(tmp_path, pcap(frames_of(rows)))
    with pytest.raises(SourceError) as caught:
        open_source(path)
    assert str(caught.value) == (
        f"{path} holds no RTP that is recognised (9 UDP datagrams in 1 flows); "
        "describe it in call.sdp beside it, H.264, Opus, PCMU and PCMA are played"
    )


def test_other_links_files_that_are_not_there_and_a_missing_package(tmp_path, monkeypatch):
    path = capture(tmp_path, pcap(frames_of(call()), link=189))
    with pytest.raises(SourceError) as caught:
        open_source(path)
    assert str(caught.value) == (
        f"{path} was captured on a link of type 189, which is not read; capture on Ethernet, loopback or any (Linux)"
    )
    with pytest.raises(SourceError, match=r"capture .*no\.pcap cannot be read \(No such file or directory\)"):
        open_source(tmp_path / "no.pcap")
    monkeypatch.setitem(__import__("sys").modules, "dpkt.pcap", None)
    with pytest.raises(MissingExtraError) as missing:
        open_source(path)
    assert str(missing.value) == (
        "reading call.pcap takes the package dpkt, which is not installed; pip install 'legato[pcap]'"
    )
