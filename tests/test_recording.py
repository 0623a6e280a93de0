"""Packet recordings: what goes in comes out, and no damage to the file is worse than the records it hits."""

import errno
import os
import stat
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime.recording as recording
from protos import stream_pb2 as pb
from runtime.errors import OutputError, RecordingError
from runtime.packet import DECISIONS, CodecConfig, Decision, Packet, StreamInfo
from runtime.recording import FRAME, MAGIC, RecordingReader, RecordingWriter

VIDEO = CodecConfig(codec="h264", time_base=Fraction(1, 90_000), extradata=b"\0\0\0\1\x67", width=320, height=240)
AUDIO = CodecConfig(codec="aac", time_base=Fraction(1, 16_000), sample_rate=16_000, channels=1)
INFO = StreamInfo(name="kitchen", codecs={"video": VIDEO, "audio": AUDIO}, origin=Fraction(2, 5), labels={"a": "b"})


def video(seq: int, payload: bytes = b"picture", **fields: object) -> Packet:
    values = {"capture_time": 3600 * seq, "time_base": VIDEO.time_base, "arrival": 0.04 * seq, **fields}
    return Packet(modality="video", seq=seq, payload=payload, **values)  # type: ignore[arg-type]


def write(path: Path, items: list[Packet | Decision], info: StreamInfo = INFO, **options: object) -> Path:
    path.unlink(missing_ok=True)
    with RecordingWriter(path, info, **options) as writer:  # type: ignore[arg-type]
        for item in items:
            (writer.decision if isinstance(item, Decision) else writer.append)(item)  # type: ignore[operator]
    return path


def read(path: Path) -> list[Packet | Decision]:
    return list(RecordingReader(path).packets())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recordings")


def frames(data: bytes) -> list[int]:
    """Where each frame begins, and the end of the file."""
    offsets, at = [], len(MAGIC)
    while at < len(data):
        offsets.append(at)
        at += FRAME.size + FRAME.unpack_from(data, at)[1]
    return [*offsets, at]


# -- round trip -----------------------------------------------------------------------------------------------------

ticks = st.integers(-(2**63), 2**63 - 1)
seconds = st.floats(allow_nan=False, allow_infinity=False)
fractions = st.builds(Fraction, st.integers(-(2**62), 2**62), st.integers(1, 2**62))
positive = st.builds(Fraction, st.integers(1, 2**62), st.integers(1, 2**62))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
small = st.integers(0, 2**32 - 1)
modalities = st.sampled_from(["video", "audio"])
codecs = st.builds(
    CodecConfig,
    codec=names,
    time_base=positive,
    extradata=st.binary(max_size=8),
    sample_rate=small,
    channels=small,
    sample_format=names,
    width=small,
    height=small,
    pixel_format=names,
    frame_rate=st.none() | positive,
    rotation=st.sampled_from([0, 90, 180, 270]),
)
infos = st.builds(
    StreamInfo,
    name=names,
    codecs=st.dictionaries(modalities, codecs),
    origin=st.none() | fractions,
    duration=st.none() | seconds,
    labels=st.dictionaries(names, names, max_size=2),
    sequence_numbers=st.booleans(),
)
packets = st.builds(
    Packet,
    modality=modalities,
    seq=st.integers(0, 2**64 - 1),
    capture_time=ticks,
    time_base=positive,
    payload=st.binary(max_size=40),
    duration=st.integers(0, 2**64 - 1),
    keyframe=st.booleans(),
    disposable=st.booleans(),
    decode_time=st.none() | ticks,
    arrival=st.none() | seconds,
    corrupt=st.booleans(),
)
decisions = st.builds(
    Decision,
    kind=st.sampled_from(DECISIONS),
    modality=modalities,
    arrival=seconds,
    epoch=small,
    clip=st.none() | st.integers(0, 2**64 - 1),
    codec=st.none() | codecs,
    offset=fractions,
    drift_ppm=seconds,
    reason=names,
)


@settings(max_examples=60, deadline=None)
@given(info=infos, items=st.lists(packets | decisions, max_size=5))
def test_what_is_written_is_read(folder, info, items):
    path = write(folder / "round-trip.legato", items, info)
    reader = RecordingReader(path)
    assert reader.info == info
    assert list(reader.packets()) == items
    assert reader.note == ""


def test_a_recording_can_be_read_again(tmp_path):
    reader = RecordingReader(write(tmp_path / "a.legato", [video(0), video(1)]))
    assert list(reader.packets()) == list(reader.packets()) == [video(0), video(1)]


def test_a_time_base_is_stored_only_where_it_differs_from_the_codecs(tmp_path):
    own = video(1, time_base=Fraction(1, 1000))
    path = write(tmp_path / "a.legato", [video(0), own])
    assert read(path) == [video(0), own]
    stored = recording.packet_to_wire(video(0), VIDEO.time_base)
    assert not stored.HasField("time_base")


def test_packets_after_a_format_change_count_ticks_of_the_new_codec(tmp_path):
    other = replace(VIDEO, codec="vp8", time_base=Fraction(1, 1000))
    change = Decision(kind="format_change", modality="video", arrival=1.0, codec=other)
    items = [video(0), change, video(1, time_base=other.time_base)]
    assert read(write(tmp_path / "a.legato", items)) == items


def test_arrival_can_be_given_with_the_packet(tmp_path):
    with RecordingWriter(tmp_path / "a.legato", INFO) as writer:
        writer.append(video(0, arrival=None), 7.5)
    assert read(tmp_path / "a.legato") == [video(0, arrival=7.5)]


def test_the_first_bytes_of_the_format_never_change(tmp_path):
    """Golden bytes: a recording made today is read by every later version."""
    info = StreamInfo(name="n", codecs={"audio": CodecConfig(codec="opus", time_base=Fraction(1, 48_000))})
    tick = Fraction(1, 48_000)
    packet = Packet(modality="audio", seq=3, capture_time=-312, time_base=tick, payload=b"\xfc", arrival=1.5)
    data = write(tmp_path / "a.legato", [packet], info).read_bytes()
    header_at, packet_at, end = frames(data)
    body = data[packet_at + FRAME.size : end]
    assert data[:8].hex() == "894c454741544f0a"
    assert data[packet_at : packet_at + 4].hex() == "a74c721e"
    assert body.hex() == "12150a0a0802100318ef043a01fc11000000000000f83f"
    assert header_at == 8


# -- damage to the file ---------------------------------------------------------------------------------------------

ITEMS = [
    video(0, keyframe=True),
    video(1, b"x" * 70),
    Decision(kind="shed", modality="video", arrival=0.05, clip=3),
    video(2, recording.MARKER + b"no frame"),
    video(3),
]


def test_a_file_cut_at_any_byte_replays_up_to_its_last_whole_packet(folder):
    data = write(folder / "whole.legato", ITEMS).read_bytes()
    first, *ends = frames(data)[1:]
    path = folder / "cut.legato"
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        if cut < first:
            with pytest.raises(RecordingError):
                RecordingReader(path)
            continue
        reader = RecordingReader(path)
        whole = sum(end <= cut for end in ends)
        assert list(reader.packets()) == ITEMS[:whole]
        assert reader.truncated == (cut not in (first, *ends))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_costs_at_most_the_record_it_hits(folder, data):
    whole = bytearray(write(folder / "whole.legato", ITEMS).read_bytes())
    starts = frames(bytes(whole))
    bit = data.draw(st.integers(8 * starts[1], 8 * len(whole) - 1))
    hit = sum(start <= bit // 8 for start in starts[1:]) - 1
    whole[bit // 8] ^= 1 << bit % 8
    path = folder / "flipped.legato"
    path.write_bytes(whole)
    reader = RecordingReader(path)
    assert list(reader.packets()) == ITEMS[:hit] + ITEMS[hit + 1 :]
    assert reader.damaged + reader.truncated == 1
    assert reader.note


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_damage_is_worse_than_a_sentence(folder, data):
    whole = bytearray(write(folder / "whole.legato", ITEMS).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
        if not whole:
            break
    path = folder / "damaged.legato"
    path.write_bytes(whole)
    try:
        items = read(path)
    except RecordingError as error:
        assert str(path) in str(error)
    else:
        assert all(item in ITEMS for item in items)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_a_record_of_any_content_is_read_or_counted(folder, body):
    """The check passes, the content is anything: what a wrong writer could leave behind."""
    start = write(folder / "whole.legato", []).read_bytes()
    path = folder / "content.legato"
    path.write_bytes(start + FRAME.pack(recording.MARKER, len(body), recording._check(len(body), body)) + body)
    reader = RecordingReader(path)
    assert all(isinstance(item, Packet | Decision) for item in reader.packets())


@pytest.mark.parametrize("junk", [b"", b"\0", b"RIFF....AVI ", MAGIC, MAGIC + b"\0" * 64, os.urandom(300)])
def test_what_is_no_recording_is_refused_in_one_sentence(tmp_path, junk):
    path = tmp_path / "a.legato"
    path.write_bytes(junk)
    with pytest.raises(RecordingError, match=r"is not a packet recording|header is cut or damaged"):
        RecordingReader(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(RecordingError, match=r"none\.legato cannot be read: No such file"):
        RecordingReader(tmp_path / "none.legato")
    with pytest.raises(RecordingError, match="cannot be read: Is a directory"):
        RecordingReader(tmp_path)


def test_a_newer_format_asks_for_an_update(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "FORMAT_VERSION", 2)
    path = write(tmp_path / "a.legato", [])
    monkeypatch.undo()
    with pytest.raises(RecordingError, match="has format 2 and this Legato reads up to 1; update Legato"):
        RecordingReader(path)


def test_a_tail_of_zeros_as_a_power_failure_leaves_it_ends_the_recording(tmp_path):
    path = write(tmp_path / "a.legato", [video(0)])
    path.write_bytes(path.read_bytes() + bytes(4096))
    reader = RecordingReader(path)
    assert list(reader.packets()) == [video(0)]
    assert reader.note == "recording a.legato: the file ends inside a record"


def test_a_record_of_a_later_kind_is_passed_over(tmp_path):
    path = write(tmp_path / "a.legato", [video(0)])
    later = pb.RecordingRecord()
    later.MergeFromString(b"\xba\x06\x01\x00")  # field 103, length 1
    path.write_bytes(path.read_bytes() + recording._frame(later))
    reader = RecordingReader(path)
    assert list(reader.packets()) == [video(0)]
    assert reader.damaged == 0


def test_a_crafted_file_full_of_markers_does_not_hang_the_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "SEARCH", 1 << 20)
    path = write(tmp_path / "a.legato", [video(0)])
    path.write_bytes(path.read_bytes() + (recording.MARKER + b"\0\0\xff\0") * 50_000)
    reader = RecordingReader(path)
    assert list(reader.packets()) == [video(0)]
    assert reader.truncated


def test_a_marker_across_two_chunks_of_the_search_is_found(tmp_path, monkeypatch):
    path = write(tmp_path / "a.legato", [video(0, b"y" * 50), video(1)])
    data = bytearray(path.read_bytes())
    data[frames(bytes(data))[1]] ^= 1
    path.write_bytes(data)
    for size in range(8, 40):
        monkeypatch.setattr(recording, "SCAN", size)
        assert read(path) == [video(1)]


# -- writing --------------------------------------------------------------------------------------------------------


def test_only_the_owner_may_read_a_recording(tmp_path):
    path = write(tmp_path / "a.legato", [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_never_overwritten(tmp_path):
    path = write(tmp_path / "a.legato", [video(0)])
    with pytest.raises(OutputError, match="exists already; choose another name"):
        RecordingWriter(path, INFO)
    assert read(path) == [video(0)]


def test_a_folder_that_does_not_exist_is_a_sentence(tmp_path):
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        RecordingWriter(tmp_path / "none" / "a.legato", INFO)


def test_batches_reach_the_file_by_count_by_time_and_on_demand(tmp_path):
    path = tmp_path / "a.legato"
    writer = RecordingWriter(path, INFO, batch_records=3, batch_seconds=0.5)
    writer.append(video(0, arrival=10.0))
    assert read(path) == []
    writer.append(video(1, arrival=10.5))
    assert len(read(path)) == 2
    for seq in (2, 3, 4):
        writer.append(video(seq, arrival=11.0))
    assert len(read(path)) == 5
    writer.append(video(5, arrival=11.0))
    writer.flush()
    assert len(read(path)) == 6
    writer.close()
    writer.close()
    with pytest.raises(OutputError, match="is closed"):
        writer.append(video(6))


def test_a_full_recording_ends_and_does_not_thin_out(tmp_path):
    path = tmp_path / "a.legato"
    with RecordingWriter(path, INFO, max_bytes=600) as writer:
        taken = [writer.append(video(seq, b"x" * (200 if seq == 2 else 100))) for seq in range(6)]
    assert taken == [True, True, False, False, False, False]
    assert writer.full
    assert path.stat().st_size <= 600
    assert read(path) == [video(0, b"x" * 100), video(1, b"x" * 100)]


def test_a_full_disk_is_a_sentence_and_leaves_what_was_written(tmp_path, monkeypatch):
    path = tmp_path / "a.legato"
    writer = RecordingWriter(path, INFO, batch_records=1)
    writer.append(video(0))
    real, left = os.write, [20]

    def disk(fd: int, data: memoryview) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = real(fd, data[: left[0]])
        left[0] -= count
        return count

    monkeypatch.setattr(os, "write", disk)
    with pytest.raises(OutputError, match=r"stopped after \d+ bytes: No space left on device; what is there can be"):
        writer.append(video(1))
    monkeypatch.undo()
    writer.close()
    assert read(path) == [video(0)]


@pytest.mark.parametrize(
    ("packet", "sentence"),
    [
        (video(0, capture_time=2**63), "video packet 0 does not fit the wire"),
        (video(-1), "video packet -1 does not fit the wire"),
        (video(0, time_base=Fraction(1, 2**64)), "time 1/18446744073709551616 does not fit the wire"),
        (replace(video(0), modality="smell"), "modality 'smell' is unknown; known: video, audio"),
    ],
)
def test_a_value_that_does_not_fit_is_named(tmp_path, packet, sentence):
    with RecordingWriter(tmp_path / "a.legato", INFO) as writer, pytest.raises(OutputError, match=sentence):
        writer.append(packet)


def test_a_name_from_a_file_system_may_be_no_text(tmp_path):
    path = write(tmp_path / "a.legato", [], replace(INFO, name="caf\udce9.mkv"))
    assert RecordingReader(path).info.name == "caf?.mkv"


def test_what_a_killed_process_wrote_is_there(tmp_path):
    path = tmp_path / "a.legato"
    program = (
        "import os, sys; from fractions import Fraction\n"
        "from runtime.packet import *; from runtime.recording import RecordingWriter\n"
        "tick = Fraction(1, 25); info = StreamInfo(name='n', codecs={})\n"
        "writer = RecordingWriter(sys.argv[1], info, batch_records=4)\n"
        "for seq in range(10):\n"
        "    writer.append(Packet(modality='video', seq=seq, capture_time=seq, time_base=tick, payload=b''))\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program, path], cwd=Path(__file__).parent.parent)
    assert [packet.seq for packet in read(path)] == list(range(8))
