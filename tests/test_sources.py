"""Sources: a file, a folder or a recording becomes packets in order of time, with losses where asked."""

import shutil
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.clips import AudioSpec, ClipSpec, VideoSpec
from encoders.media import AudioTrack, VideoTrack, read_clip, write_media
from imputation.presence import PresenceRule
from runtime.errors import SourceError, UsageError
from runtime.packet import Decision, Packet
from runtime.receive import Receiver
from runtime.recording import RecordingWriter
from runtime.sources import open_source, open_sources
from runtime.sources.replay import in_order_of_time
from tests.fakes import INFO, SPEC, fake_parts, stream


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    pattern = np.random.default_rng(0).integers(0, 255, (32, 200), dtype=np.uint8)
    tracks = [
        VideoTrack(frames=[pattern[:, i : i + 48] for i in range(100)], gop=25),
        AudioTrack(samples=np.zeros(64_000, np.float32)),
    ]
    return write_media(tmp_path_factory.mktemp("movie") / "meeting.mp4", tracks)


def packets(target, *args, **options):
    with open_source(target, *args, **options) as source:
        return list(source.packets())


def sent(packet):
    ticks = packet.capture_time if packet.decode_time is None else packet.decode_time
    return float(ticks * packet.time_base)


def test_a_file_becomes_numbered_packets_in_order_of_time(movie):
    every = packets(movie)
    for modality, count in (("video", 100), ("audio", 64)):
        numbers = [p.seq for p in every if p.modality == modality]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) == pytest.approx(count, abs=2)
    assert [sent(p) for p in every] == sorted(sent(p) for p in every)
    assert all(isinstance(p, Packet) and p.arrival is None for p in every)


def test_what_is_known_before_the_first_packet(movie):
    with open_source(movie) as source:
        info = source.info
    assert info.name == "meeting"
    assert {m: c.codec for m, c in info.codecs.items()} == {"video": "h264", "audio": "aac"}
    assert info.origin == 0
    assert info.duration == pytest.approx(4.0, abs=0.1)
    assert not info.sequence_numbers  # a container leaves no numbers behind what it lost


def test_a_stream_can_be_named_and_a_track_left_out(movie):
    with open_source(movie, tracks={"audio": None}, name="left") as source:
        assert (source.info.name, list(source.info.codecs)) == ("left", ["video"])


def test_injected_loss_leaves_holes_in_the_numbers(movie):
    whole, lossy = packets(movie), packets(movie, "iid-30", 1)
    with open_source(movie, "iid-30") as source:
        assert source.info.sequence_numbers
    counts = Counter(p.modality for p in whole), Counter(p.modality for p in lossy)
    for modality in ("video", "audio"):
        assert 0.5 < counts[1][modality] / counts[0][modality] < 0.9
    assert [p.arrival for p in lossy] == sorted(p.arrival for p in lossy)


def test_the_same_seed_loses_the_same_packets(movie):
    def lost(seed):
        return [(p.modality, p.seq) for p in packets(movie, "iid-30", seed)]

    assert lost(1) == lost(1) != lost(2)


def test_a_clean_profile_loses_nothing(movie):
    assert len(packets(movie, "clean")) == len(packets(movie))


def test_an_unknown_profile_is_found_before_the_file_is_opened(tmp_path):
    with pytest.raises(UsageError, match="nonsense"):
        open_source(tmp_path / "missing.mp4", "nonsense")


def recorded(movie, path):
    with open_source(movie) as source, RecordingWriter(path, source.info) as writer:
        for packet in source.packets():
            writer.append(packet, arrival=packet.seconds + 0.1)
    return path


def test_a_recording_gives_the_packets_that_went_in(movie, tmp_path):
    path = recorded(movie, tmp_path / "a.legato")
    before, after = packets(movie), packets(path)
    assert [(p.modality, p.seq, p.capture_time, p.payload, p.skip, p.padding) for p in before] == [
        (p.modality, p.seq, p.capture_time, p.payload, p.skip, p.padding) for p in after
    ]
    assert all(p.arrival is not None for p in after)
    assert any(p.skip for p in after if p.modality == "audio")


def test_a_recording_can_be_impaired_once_more(movie, tmp_path):
    path = recorded(movie, tmp_path / "a.legato")
    assert 0 < len(packets(path, "iid-50", 3)) < len(packets(path))


def test_a_folder_gives_its_media_sorted_and_reports_the_rest(movie, tmp_path):
    for name in ("b.mp4", "a.mp4", ".hidden.mp4"):
        shutil.copy(movie, tmp_path / name)
    recorded(movie, tmp_path / "c.legato")
    (tmp_path / "broken.mkv").write_bytes(b"nonsense")
    (tmp_path / "notes.txt").write_text("not media")
    (tmp_path / "deeper").mkdir()
    reported = []
    sources = open_sources(tmp_path, report=reported.append)
    assert [s.info.name for s in sources] == ["a", "b", "meeting"]
    assert [str(e).split(" is ")[0] for e in reported] == [str(tmp_path / "broken.mkv")]
    for source in sources:
        with source:
            assert len(list(source.packets())) > 100


def test_every_file_of_a_folder_loses_other_packets(movie, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(movie, tmp_path / name)
    kept = [[(p.modality, p.seq) for p in s.packets()] for s in open_sources(tmp_path, "iid-30", 1)]
    assert kept[0] != kept[1]


def test_a_folder_without_media_says_so(tmp_path):
    (tmp_path / "notes.txt").write_text("not media")
    with pytest.raises(SourceError, match="holds no media file and no"):
        open_sources(tmp_path)


def test_a_folder_of_broken_files_says_so_once(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(SourceError, match=r"none of the 2 media files .* can be read; the first: .*a\.mp4"):
        open_sources(tmp_path)


def test_one_source_of_a_folder_is_asked_for_by_name(tmp_path):
    with pytest.raises(SourceError, match="is a folder"):
        open_source(tmp_path)


def test_a_broken_recording_is_one_sentence(tmp_path):
    (tmp_path / "a.legato").write_bytes(b"nonsense")
    with pytest.raises(SourceError, match="is not a packet recording"):
        open_source(tmp_path / "a.legato")


def test_closing_twice_is_fine(movie):
    source = open_source(movie, "iid-10")
    source.close()
    source.close()


def packet(modality, seq, at):
    return Packet(modality=modality, seq=seq, capture_time=at, time_base=Fraction(1, 1000), payload=b"x")


@given(st.lists(st.sampled_from(["video", "audio"]), max_size=60), st.data())
def test_merging_keeps_every_packet_and_each_modality_in_order(order, data):
    counts, every = Counter(), []
    for modality in order:
        every.append(packet(modality, counts[modality], 40 * counts[modality] + data.draw(st.integers(-5000, 5000))))
        counts[modality] += 1
    merged = list(in_order_of_time(every, ("video", "audio")))
    for modality in ("video", "audio"):
        assert [p.seq for p in merged if p.modality == modality] == list(range(counts[modality]))


def test_loose_interleaving_is_put_in_order_of_time():
    video = [packet("video", i, 40 * i) for i in range(50)]
    audio = [packet("audio", i, 20 * i) for i in range(100)]
    loose = [p for i in range(5) for p in video[10 * i : 10 * i + 10] + audio[20 * i : 20 * i + 20]]
    merged = list(in_order_of_time(loose, ("video", "audio")))
    assert [p.capture_time for p in merged] == sorted(p.capture_time for p in merged)


def test_a_silent_modality_is_waited_for_only_so_long():
    """Ten seconds of video before the first sound: video must come out all the same, three seconds behind."""
    taken = []

    def video():
        for i in range(250):
            taken.append(i)
            yield packet("video", i, 40 * i)

    merged = in_order_of_time(video(), ("video", "audio"))
    next(merged)
    assert len(taken) < 80


@pytest.mark.parametrize("suffix", ["mp4", "ts", "mpg"])
def test_training_reads_the_very_clips_that_serving_sees(tmp_path, suffix):
    """One decode path: a span read from a file equals the clip that the receiver assembles, bit for bit."""
    pattern = np.random.default_rng(0).integers(0, 255, (32, 200), dtype=np.uint8)
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 88_200).astype(np.float32)
    tracks = [
        VideoTrack(frames=[pattern[:, i : i + 48] for i in range(50)], codec="mpeg1video", gop=12),
        AudioTrack(samples=noise, sample_rate=44_100, codec="mp2"),
    ]
    path = write_media(tmp_path / f"a.{suffix}", tracks)
    spec = ClipSpec(video=VideoSpec(frames=8, size=32), audio=AudioSpec())
    with open_source(path) as source:
        receiver = Receiver(source.info, spec, PresenceRule())
        served = [clip for p in source.packets() for clip in receiver.push(p, p.seconds)] + receiver.finish()
    whole = [clip for clip in served if all(v == 1 for v in clip.coverage.values())]
    assert len(whole) >= 4
    for clip in whole:
        read = read_clip(path, clip.index * spec.seconds, spec.seconds, spec)
        assert np.array_equal(read.video, clip.video)
        assert np.array_equal(read.audio, clip.audio)


def test_what_a_live_run_did_not_encode_is_known_before_a_replay_begins(tmp_path):
    items: list[Packet | Decision] = [*stream(1.2)]
    later = Decision(kind="shed", modality="video", arrival=1.15, clip=1, reason="overload")
    back = Decision(kind="device_back", modality="audio", arrival=1.16)
    place = next(i for i, item in enumerate(items) if item.arrival > 1.16)
    with RecordingWriter(tmp_path / "live.legato", INFO) as writer:
        for item in [*items[:place], later, back, *items[place:]]:
            (writer.decision if isinstance(item, Decision) else writer.append)(item)
    found = packets(tmp_path / "live.legato")
    assert found[0] == replace(later, arrival=items[0].arrival) and found[1:3] == items[:2]
    assert [x for x in found if isinstance(x, Decision)] == [found[0], back]
    receiver = Receiver(INFO, SPEC, parts=fake_parts(), delay=0.05)
    clips = [c for item in found for c in receiver.push(item, item.arrival)] + receiver.finish()
    assert [(c.version, c.state["video"]) for c in clips] == [(0, "observed"), (0, "shed"), (0, "observed")]
