"""Whatever a file holds: a result or one sentence, soon. Never a traceback, a hang, or an empty success."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoders.clips import AudioSpec, ClipSpec, VideoSpec
from encoders.errors import SourceError
from encoders.media import AudioTrack, MediaFile, VideoTrack, read_all, write_media
from runtime.decode import AudioDecoder, VideoDecoder
from runtime.sources import open_source

SPEC = ClipSpec(video=VideoSpec(frames=8, size=32), audio=AudioSpec())
DATA = os.environ.get("LEGATO_DATA")
TORTURE = Path(DATA) / "decoder-torture" if DATA else None
SECONDS = 20.0  # far above what any of the files takes; a hang is longer


def probed():
    """(file, frames, samples at the file's rate, rate) of probe.csv, by what another program got out of each file."""
    import csv

    if TORTURE is None or not (TORTURE / "probe.csv").exists():
        return []
    with (TORTURE / "probe.csv").open() as table:
        rows = list(csv.DictReader(table))
    return [
        pytest.param(r["file"], int(r["video_frames"] or 0), int(r["audio_samples"] or 0), id=r["file"]) for r in rows
    ]


def played(path):
    """(frames, samples) that a replay of the file gives, through source and decoders as in serving."""
    frames = samples = 0
    with open_source(path) as source:
        codecs = source.info.codecs
        decoders = {
            m: VideoDecoder(c, SPEC.video) if m == "video" else AudioDecoder(c, SPEC.audio) for m, c in codecs.items()
        }
        for packet in source.packets():
            for out in decoders[packet.modality].decode(packet):
                frames += packet.modality == "video"
                samples += len(out.samples) if packet.modality == "audio" else 0
        for modality, decoder in decoders.items():
            for out in decoder.flush():
                frames += modality == "video"
                samples += len(out.samples) if modality == "audio" else 0
    return frames, samples


def is_one_sentence(error, path):
    text = str(error.value)
    return str(path) in text and "\n" not in text and "Traceback" not in text and len(text) < 400


@pytest.mark.skipif(not probed(), reason="LEGATO_DATA does not name a folder with decoder-torture")
@pytest.mark.parametrize(("name", "frames", "samples"), probed() or [("", 0, 0)])
def test_each_torture_file_gives_a_result_or_one_sentence(name, frames, samples):
    path, began = TORTURE / name, time.monotonic()
    if frames or samples:
        reading = read_all(path, SPEC)
        assert len(reading.pictures) >= frames  # more, where we go on after an error
        assert bool(reading.sounds) == bool(samples)
        got = played(path)
        assert got == (len(reading.pictures), sum(len(s.samples) for s in reading.sounds))
    else:
        with pytest.raises(SourceError) as error:
            read_all(path, SPEC)
        assert is_one_sentence(error, path)
    assert time.monotonic() - began < SECONDS


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small file of each kind of container."""
    folder = tmp_path_factory.mktemp("good")
    pattern = np.random.default_rng(0).integers(0, 255, (40, 72), dtype=np.uint8)
    frames = [pattern[:32, i : i + 48] for i in range(12)]
    sound = np.random.default_rng(1).uniform(-0.3, 0.3, 8000).astype(np.float32)
    tracks = [VideoTrack(frames=frames, gop=6), AudioTrack(samples=sound)]
    old = [VideoTrack(frames=frames, codec="mpeg1video"), AudioTrack(samples=sound, codec="mp2")]
    written = [write_media(folder / f"good.{s}", tracks) for s in ("mp4", "mkv", "ts", "flv")]
    written += [write_media(folder / f"good.{s}", old) for s in ("mpg", "avi")]
    written += [write_media(folder / "good.wav", [AudioTrack(samples=sound, codec="pcm_s16le")])]
    written += [write_media(folder / "good.mp3", [AudioTrack(samples=sound, codec="libmp3lame")])]
    return {p.suffix[1:]: p for p in written}


def result_or_sentence(path):
    began = time.monotonic()
    try:
        reading = read_all(path, SPEC)
        assert reading.pictures or reading.sounds
    except SourceError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    assert time.monotonic() - began < SECONDS


SUFFIXES = ("mp4", "mkv", "ts", "flv", "mpg", "avi", "wav", "mp3")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_cut_anywhere_gives_a_result_or_one_sentence(good, tmp_path, suffix):
    data = good[suffix].read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for length in sorted({1, 3, 8, 44, 188, *range(0, len(data), len(data) // 12 + 1)} - {0}):
        path.write_bytes(data[:length])
        result_or_sentence(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=8)), min_size=1, max_size=12))
def test_bytes_overwritten_anywhere_give_a_result_or_one_sentence(good, tmp_path, suffix, damage):
    data = bytearray(good[suffix].read_bytes())
    for place, patch in damage:
        at = int(place * len(data))
        data[at : at + len(patch)] = patch
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(data)
    result_or_sentence(path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=2000), suffix=st.sampled_from(SUFFIXES))
def test_garbage_gives_a_result_or_one_sentence(tmp_path, data, suffix):
    path = tmp_path / f"garbage.{suffix}"
    path.write_bytes(data)
    result_or_sentence(path)


def test_an_empty_file_says_so(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(SourceError, match=r"a\.mp4 is empty"):
        MediaFile(tmp_path / "a.mp4")


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(SourceError, match=r"a\.mp4 does not exist"):
        MediaFile(tmp_path / "a.mp4")


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(SourceError, match="is a folder, not a media file"):
        MediaFile(tmp_path)


def test_a_fifo_is_refused_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(SourceError, match="not a regular file"):
        MediaFile(tmp_path / "a.mp4")


def test_a_device_is_refused():
    with pytest.raises(SourceError, match="not a regular file"):
        MediaFile("/dev/zero")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(good, tmp_path):
    path = Path(shutil.copy(good["mp4"], tmp_path / "a.mp4"))
    path.chmod(0)
    with pytest.raises(SourceError, match=r"cannot be opened .permission denied"):
        MediaFile(path)


def test_a_permission_error_is_one_sentence(good, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SourceError, match=r"good\.mp4 cannot be opened \(permission denied\)"):
        MediaFile(good["mp4"])


def test_a_loop_of_links_says_so(tmp_path):
    (tmp_path / "a.mp4").symlink_to(tmp_path / "b.mp4")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a.mp4")
    with pytest.raises(SourceError, match="cannot be opened"):
        MediaFile(tmp_path / "a.mp4")


def test_a_wrong_extension_does_not_matter(good, tmp_path):
    path = shutil.copy(good["mkv"], tmp_path / "a.mp3")
    assert len(read_all(path, SPEC).pictures) == 12


@pytest.mark.parametrize("name", ["a b.mp4", "a:b.mp4", "concat:x.mp4", "%03d.mp4", "-i.mp4", "ünï.mp4", "http:x.mp4"])
def test_any_file_name_means_that_file(good, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(good["mp4"], name)
    assert len(read_all(name, SPEC).pictures) == 12


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
    ids=["hls", "concat", "sdp"],
)
@pytest.mark.parametrize("suffix", ["m3u8", "txt", "sdp", "mp4"])
def test_a_file_that_only_names_other_files_is_refused(good, tmp_path, text, suffix):
    target = Path(shutil.copy(good["ts"], tmp_path / "good.ts"))
    path = tmp_path / f"list.{suffix}"
    path.write_text(text.format(target.name))
    with pytest.raises(SourceError, match="not a media file that can be read"):
        MediaFile(path)


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:9/a.mp4", "rtsp://127.0.0.1/a", "file:///etc/passwd", "pipe:0", ""]
)
def test_addresses_are_not_opened(target):
    with pytest.raises(SourceError):
        open_source(target)


def test_a_header_that_claims_gigabytes_is_not_believed(good, tmp_path):
    """The first box of an mp4, a RIFF size and a Matroska size, each as large as they can be."""
    for suffix, at, size in (
        ("mp4", 0, b"\x7f\xff\xff\xff"),
        ("wav", 4, b"\xff\xff\xff\x7f"),
        ("wav", 40, b"\xff" * 4),
    ):
        data = bytearray(good[suffix].read_bytes())
        data[at : at + 4] = size
        path = tmp_path / f"huge.{suffix}"
        path.write_bytes(data)
        result_or_sentence(path)


def test_a_picture_of_absurd_size_is_not_allocated(tmp_path):
    """60000 x 60000 pixels in the headers of a PNG-coded file: refused by the limit, not by the memory."""
    frames = [np.zeros((16, 16), np.uint8)] * 3
    path = write_media(tmp_path / "a.mov", [VideoTrack(frames=frames, codec="png", pixel_format="gray")])
    data = path.read_bytes().replace(b"IHDR" + (16).to_bytes(4, "big") * 2, b"IHDR" + (60_000).to_bytes(4, "big") * 2)
    path.write_bytes(data)
    with pytest.raises(SourceError, match="neither a picture nor a sound"):
        read_all(path, SPEC)


def test_a_file_of_undecodable_packets_is_an_error_that_says_so(good, tmp_path):
    data = good["mp4"].read_bytes()
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    path = tmp_path / "a.mp4"
    path.write_bytes(data[:start] + b"\xff" * (end - start) + data[end:])
    with pytest.raises(SourceError, match=r"neither a picture nor a sound \(\d+ packets could not be decoded\)"):
        read_all(path, SPEC)
