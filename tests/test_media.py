"""Files to packets to pictures and sound: every codec, odd timing, odd tracks. The files are built here."""

from fractions import Fraction

import av
import numpy as np
import pytest

from encoders.clips import AudioSpec, ClipSpec, VideoSpec
from encoders.errors import OutputError, SourceError, UsageError
from encoders.media import (
    AudioPacketDecoder,
    AudioTrack,
    MediaFile,
    VideoPacketDecoder,
    VideoTrack,
    read_all,
    read_clip,
    write_media,
)

SPEC = ClipSpec(video=VideoSpec(frames=8, size=32), audio=AudioSpec())
SOUND = ClipSpec(audio=AudioSpec())
PICTURE = ClipSpec(video=VideoSpec(frames=8, size=32))


def grays(count, width=64, height=48):
    """Pictures whose level says which they are: 40, 44, 48, ..."""
    return [np.full((height, width), 40 + 4 * i, np.uint8) for i in range(count)]


def moving(count, width=64, height=48):
    """A textured picture that drifts, so that codecs code differences."""
    pattern = np.random.default_rng(0).integers(0, 255, (height + count, width + count), dtype=np.uint8)
    return [pattern[i : i + height, i : i + width] for i in range(count)]


def click(rate, at=0.5, seconds=1.0):
    """A short tone burst whose middle is ``at`` seconds."""
    t = np.arange(round(rate * seconds)) / rate - at
    return (0.8 * np.sin(2 * np.pi * 1000 * t) * np.exp(-((t / 0.002) ** 2))).astype(np.float32)


def middle(reading, rate=16_000):
    """Where the energy of a reading's sound lies, in seconds."""
    index = np.concatenate([s.index + np.arange(len(s.samples)) for s in reading.sounds])
    energy = np.concatenate([s.samples for s in reading.sounds]).astype(np.float64) ** 2
    return float((index * energy).sum() / energy.sum()) / rate


def levels(reading):
    return [float(p.pixels.mean()) for p in reading.pictures]


VIDEO = [
    ("mp4", "libx264", {}),
    ("mkv", "libx264", {"bf": "0"}),
    ("ts", "libx264", {}),
    ("mp4", "libx265", {"x265-params": "log-level=none"}),
    ("webm", "libvpx", {}),
    ("webm", "libvpx-vp9", {"cpu-used": "8"}),
    ("webm", "libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}),
    ("mpg", "mpeg1video", {}),
    ("mpg", "mpeg2video", {"bf": "2"}),
    ("avi", "mjpeg", {}),
    ("avi", "mpeg4", {}),
    ("avi", "rawvideo", {}),
    ("nut", "rawvideo", {}),
    ("mkv", "ffv1", {}),
]


@pytest.mark.parametrize(("suffix", "codec", "options"), VIDEO, ids=[f"{c}-{s}" for s, c, _ in VIDEO])
def test_every_video_codec_gives_every_picture_at_its_time(tmp_path, suffix, codec, options):
    path = write_media(tmp_path / f"a.{suffix}", [VideoTrack(frames=grays(10), codec=codec, options=options)])
    reading = read_all(path, PICTURE)
    assert reading.errors == 0
    assert [p.time - reading.pictures[0].time for p in reading.pictures] == pytest.approx(
        [i / 25 for i in range(10)], abs=1e-3
    )
    assert levels(reading) == pytest.approx([40 + 4 * i for i in range(10)], abs=3)


AUDIO = [  # the last number: seconds of codec delay that the container has no place for
    ("mp4", "aac", 44_100, 0.0),
    ("mkv", "aac", 48_000, 0.0),
    ("aac", "aac", 44_100, 1024 / 44_100),
    ("ts", "aac", 44_100, 1024 / 44_100),
    ("webm", "libopus", 48_000, 0.0),
    ("ogg", "libopus", 48_000, 0.0),
    ("mp4", "libopus", 48_000, 0.0),
    ("mp3", "libmp3lame", 44_100, 1105 / 44_100),  # the file starts where the sound does, at its start_time
    ("mkv", "libmp3lame", 44_100, 0.0),
    ("mp2", "mp2", 44_100, 482 / 44_100),
    ("ogg", "vorbis", 44_100, 0.0),
    ("mkv", "ac3", 48_000, 0.0),
    ("flac", "flac", 44_100, 0.0),
    ("wav", "pcm_s16le", 16_000, 0.0),
    ("wav", "pcm_u8", 8_000, 0.0),
    ("wav", "pcm_s24le", 48_000, 0.0),
    ("wav", "pcm_f32le", 22_050, 0.0),
    ("mkv", "pcm_f64le", 44_100, 0.0),
    ("au", "pcm_mulaw", 8_000, 0.0),
]


@pytest.mark.parametrize(("suffix", "codec", "rate", "delay"), AUDIO, ids=[f"{c}-{s}" for s, c, _, _ in AUDIO])
def test_every_audio_codec_puts_a_click_where_it_was(tmp_path, suffix, codec, rate, delay):
    samples = click(rate) if codec != "vorbis" else np.stack([click(rate)] * 2)
    track = AudioTrack(samples=samples, sample_rate=rate, codec=codec, bit_rate=96_000 if "pcm" not in codec else 0)
    reading = read_all(write_media(tmp_path / f"a.{suffix}", [track]), SOUND)
    assert middle(reading) - delay == pytest.approx(0.5, abs=6e-4)  # half a millisecond is a tick of Matroska
    assert max(np.abs(s.samples).max() for s in reading.sounds) == pytest.approx(0.8, abs=0.15)


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "aac"), ("webm", "libopus"), ("mkv", "libmp3lame")])
def test_priming_is_not_heard_and_the_first_sample_is_at_the_start(tmp_path, suffix, codec):
    path = write_media(tmp_path / f"a.{suffix}", [AudioTrack(samples=click(48_000), sample_rate=48_000, codec=codec)])
    reading = read_all(path, SOUND)
    assert reading.sounds[0].index == 0
    assert reading.origin == 0
    assert sum(len(s.samples) for s in reading.sounds) == pytest.approx(16_000, abs=350)  # one AAC frame


def test_sound_of_rounded_times_is_one_run_without_holes(tmp_path):
    rate = 44_100
    samples = np.sin(2 * np.pi * 440 * np.arange(3 * rate) / rate).astype(np.float32)
    path = write_media(tmp_path / "a.mkv", [AudioTrack(samples=samples, sample_rate=rate, codec="pcm_s16le")])
    reading = read_all(path, SOUND)
    ends = [s.index + len(s.samples) for s in reading.sounds]
    assert [s.index for s in reading.sounds[1:]] == ends[:-1]
    whole = np.concatenate([s.samples for s in reading.sounds])
    assert np.abs(whole - np.sin(2 * np.pi * 440 * np.arange(len(whole)) / 16_000))[100:-100].max() < 1e-3


def test_full_range_gray_reaches_black_and_white(tmp_path):
    frames = [np.full((32, 32), level, np.uint8) for level in (0, 255, 0, 255)]
    path = write_media(tmp_path / "a.mkv", [VideoTrack(frames=frames, codec="ffv1", pixel_format="yuv420p")])
    assert levels(read_all(path, PICTURE)) == [0, 255, 0, 255]


@pytest.mark.parametrize("suffix", ["avi", "mov", "nut"])
def test_rgb_pictures_keep_their_colours_and_stand_upright(tmp_path, suffix):
    """AVI stores raw pictures bottom up."""
    scene = np.zeros((34, 50, 3), np.uint8)
    scene[:17, :, 0], scene[17:, :, 2], scene[:, 25:, 1] = 200, 100, 90
    layout = "bgr24" if suffix == "avi" else "rgb24"
    path = write_media(
        tmp_path / f"a.{suffix}", [VideoTrack(frames=[scene] * 3, codec="rawvideo", pixel_format=layout)]
    )
    spec = ClipSpec(video=VideoSpec(frames=3, size=32, pixel_format="rgb24"))
    assert all(np.array_equal(p.pixels, scene) for p in read_all(path, spec).pictures)


@pytest.mark.parametrize(("width", "height"), [(65, 49), (2, 2), (33, 17), (16, 240)])
def test_odd_sizes_come_out_as_they_went_in(tmp_path, width, height):
    frames = grays(3, width, height)
    path = write_media(tmp_path / "a.mkv", [VideoTrack(frames=frames, codec="ffv1", pixel_format="gray")])
    reading = read_all(path, PICTURE)
    assert [p.pixels.shape for p in reading.pictures] == [(height, width)] * 3
    assert levels(reading) == [40, 44, 48]


def test_large_pictures_are_scaled_down_to_the_longest_side(tmp_path):
    path = write_media(tmp_path / "a.mkv", [VideoTrack(frames=grays(2, 400, 201), codec="mjpeg")])
    spec = ClipSpec(video=VideoSpec(frames=2, size=32, max_side=100))
    assert read_all(path, spec).pictures[0].pixels.shape == (50, 100)


def test_variable_frame_rate_keeps_every_time(tmp_path):
    ticks = [0, 1000, 1500, 6000, 6100, 9000]
    path = write_media(tmp_path / "a.mp4", [VideoTrack(frames=grays(6), ticks=ticks)])
    assert [float(p.time) for p in read_all(path, PICTURE).pictures] == pytest.approx(
        [t / 25_000 for t in ticks], abs=1e-4
    )


@pytest.mark.parametrize("bframes", ["0", "2"])
def test_decode_times_without_presentation_times_are_dealt_out_in_order(tmp_path, bframes):
    """AVI has no presentation times; with B frames the packets' own times are in the wrong order."""
    track = VideoTrack(frames=moving(30), options={"bf": bframes, "b-pyramid": "none"}, gop=30)
    path = write_media(tmp_path / "a.avi", [track])
    reading = read_all(path, PICTURE)
    times = [float(p.time) for p in reading.pictures]
    assert len(times) == 30
    assert np.all(np.diff(times) > 0)
    assert np.diff(times)[6:] == pytest.approx(0.04, abs=1e-6)


def rotated_mp4(tmp_path, degrees):
    """An mp4 whose display matrix turns the picture, by patching the matrix in its track header."""
    wide = np.zeros((32, 64), np.uint8)
    wide[:, :32] = 220  # the left half is bright
    path = write_media(tmp_path / "a.mp4", [VideoTrack(frames=[wide] * 3)])
    data = bytearray(path.read_bytes())
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = (cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    at = data.index(b"tkhd") + 4 + 40
    for i, value in enumerate(matrix):
        data[at + 4 * i : at + 4 * i + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("degrees", "bright"), [(90, np.s_[:16]), (180, np.s_[:, 48:]), (270, np.s_[48:])])
def test_rotation_metadata_turns_the_picture_upright(tmp_path, degrees, bright):
    """A matrix of 90 degrees means: turn clockwise by 90 to show. The left edge comes to the top."""
    pixels = read_all(rotated_mp4(tmp_path, degrees), PICTURE).pictures[0].pixels
    assert pixels.shape == ((32, 64) if degrees == 180 else (64, 32))
    assert pixels[bright].mean() > 200 > 60 > pixels.mean() - pixels[bright].mean() / 2


def test_a_file_without_sound_has_no_audio_track(tmp_path):
    path = write_media(tmp_path / "a.mp4", [VideoTrack(frames=grays(3))])
    with MediaFile(path) as file:
        assert list(file.tracks) == ["video"]
    clip = read_clip(path, 0, 0.1, SPEC)
    assert clip.audio is None and clip.video is not None


def test_a_file_without_picture_has_no_video_track(tmp_path):
    path = write_media(tmp_path / "a.mp4", [AudioTrack(samples=click(16_000))])
    with MediaFile(path) as file:
        assert list(file.tracks) == ["audio"]
    clip = read_clip(path, 0.4, 0.2, SPEC)
    assert clip.video is None and clip.audio is not None and clip.audio.shape == (3200,)


def two_of_each(tmp_path):
    tracks = [
        VideoTrack(frames=grays(5, 32, 32), codec="mpeg4"),
        VideoTrack(frames=grays(5, 64, 64), codec="mpeg4"),
        AudioTrack(samples=click(16_000, 0.2, 0.5), sample_rate=16_000, codec="pcm_s16le"),
        AudioTrack(samples=click(8_000, 0.2, 0.5), sample_rate=8_000, codec="pcm_s16le"),
    ]
    return write_media(tmp_path / "a.mkv", tracks)


def test_a_track_can_be_chosen_by_number(tmp_path):
    path = two_of_each(tmp_path)
    with MediaFile(path, tracks={"video": 0, "audio": 1}) as file:
        assert (file.tracks["video"].width, file.tracks["audio"].sample_rate) == (32, 8000)
    with MediaFile(path, tracks={"video": 1, "audio": None}) as file:
        assert file.tracks["video"].width == 64
        assert "audio" not in file.tracks
        assert {p.modality for p in file.demux()} == {"video"}


def test_a_track_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"audio track 2 is not in .* which has 2"):
        MediaFile(two_of_each(tmp_path), tracks={"audio": 2})


def test_an_announced_track_without_packets_is_passed_over(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        empty = file.add_stream("pcm_s16le", rate=16_000, layout="mono")
        video = file.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        empty.codec_context.open()
        for pixels in grays(4):
            file.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "gray").reformat(format="yuv420p")))
        file.mux(video.encode(None))
    with MediaFile(path) as media:
        assert list(media.tracks) == ["video"]
        assert media.notes == ["its audio track is announced but has no packets"]


def test_of_several_tracks_the_one_with_packets_is_taken(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        empty = file.add_stream("pcm_s16le", rate=48_000, layout="stereo")
        real = file.add_stream("pcm_s16le", rate=16_000, layout="mono")
        empty.codec_context.open()
        frame = av.AudioFrame.from_ndarray(np.full((1, 800), 99, np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        file.mux(real.encode(frame))
        file.mux(real.encode(None))
    with MediaFile(path) as media:
        assert media.tracks["audio"].sample_rate == 16_000


def test_tracks_may_begin_late_and_end_early(tmp_path):
    late = AudioTrack(samples=click(16_000, 0.3, 0.5), codec="pcm_s16le", start=Fraction(1))
    path = write_media(tmp_path / "a.mkv", [VideoTrack(frames=moving(50), codec="mpeg4"), late])
    reading = read_all(path, SPEC)
    assert reading.origin == 0
    assert middle(reading) == pytest.approx(1.3, abs=1e-3)
    assert len(reading.pictures) == 50
    assert read_clip(path, 0, 0.4, SPEC).audio is None
    assert read_clip(path, 1.2, 0.4, SPEC).audio is not None


def test_what_an_edit_list_cuts_off_is_decoded_and_not_shown(tmp_path):
    """Pictures before time 0 of an mp4: later ones are decoded from them, nobody sees them."""
    ticks = [1000 * (i - 10) for i in range(30)]
    path = write_media(tmp_path / "a.mp4", [VideoTrack(frames=moving(30), ticks=ticks, gop=30)])
    reading = read_all(path, PICTURE)
    assert [float(p.time) for p in reading.pictures] == pytest.approx([i / 25 for i in range(20)])
    shown = np.stack([p.pixels for p in reading.pictures]).astype(int)
    assert np.abs(shown - np.stack(moving(30)[10:])).mean() < 12  # and not the grey of missing references
    assert reading.origin == 0


def test_a_picture_that_changes_its_size_midway_goes_on(tmp_path):
    small = write_media(tmp_path / "1.ts", [VideoTrack(frames=moving(10), gop=10)])
    large = write_media(tmp_path / "2.ts", [VideoTrack(frames=moving(10, 96, 64), gop=10)])
    both = tmp_path / "a.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    shapes = [p.pixels.shape for p in read_all(both, PICTURE).pictures]
    assert shapes == [(48, 64)] * 10 + [(64, 96)] * 10


def test_negative_times_are_kept(tmp_path):
    path = write_media(tmp_path / "a.mkv", [VideoTrack(frames=grays(5)), AudioTrack(samples=click(16_000))])
    with MediaFile(path) as file:
        video = VideoPacketDecoder(file.tracks["video"], SPEC.video)
        audio = AudioPacketDecoder(file.tracks["audio"], SPEC.audio)
        pictures, sounds = [], []
        for packet in file.demux():
            packet.capture_time -= 2000  # Matroska counts milliseconds
            if packet.modality == "video":
                pictures += video.decode(packet)
            else:
                sounds += audio.decode(packet)
        pictures += video.flush()
    assert [float(p.time) for p in pictures] == pytest.approx([-2, -1.96, -1.92, -1.88, -1.84])
    assert sounds[0].index == -32_000
    loudest = max(sounds, key=lambda s: np.abs(s.samples).max())
    assert (loudest.index + np.abs(loudest.samples).argmax()) / 16_000 == pytest.approx(-1.5, abs=0.002)


def test_a_wrap_of_33_bits_in_a_transport_stream_is_no_jump(tmp_path):
    offset = str((2**33 - 90_000) / 90_000)
    tracks = [VideoTrack(frames=moving(50), gop=10), AudioTrack(samples=click(16_000, 1.0, 2.0), codec="mp2")]
    path = write_media(tmp_path / "a.ts", tracks, options={"output_ts_offset": offset})
    with MediaFile(path) as file:
        times = {"video": [], "audio": []}
        for packet in file.demux():
            times[packet.modality].append(float(packet.capture_time * packet.time_base))
    assert max(times["video"]) - min(times["video"]) == pytest.approx(1.96, abs=1e-3)
    assert max(times["audio"]) - min(times["audio"]) == pytest.approx(1.96, abs=0.1)


def test_a_sample_rate_that_changes_midway_begins_a_new_run(tmp_path):
    """Two ADTS files in a row are one valid file whose rate changes."""
    first = write_media(tmp_path / "1.aac", [AudioTrack(samples=click(44_100, 0.5), sample_rate=44_100)])
    second = write_media(tmp_path / "2.aac", [AudioTrack(samples=click(22_050, 0.5), sample_rate=22_050)])
    both = tmp_path / "a.aac"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    reading = read_all(both, SOUND)
    sound = np.concatenate([s.samples for s in reading.sounds])
    assert len(sound) / 16_000 == pytest.approx(2.1, abs=0.1)
    loud = np.flatnonzero(np.abs(sound) > 0.4) / 16_000
    assert loud.min() == pytest.approx(0.52, abs=0.01)
    assert loud.max() == pytest.approx(1.59, abs=0.05)


def test_packets_carry_what_a_fresh_decoder_needs(tmp_path):
    path = write_media(tmp_path / "a.mp4", [VideoTrack(frames=moving(12), gop=6), AudioTrack(samples=click(16_000))])
    with MediaFile(path) as file:
        tracks, packets = file.tracks, list(file.demux())
    video = [p for p in packets if p.modality == "video"]
    assert [p.seq for p in video] == list(range(12))
    assert [p.keyframe for p in video] == [i % 6 == 0 for i in range(12)]
    assert [p.decode_time for p in video] == sorted(p.decode_time for p in video)
    decoder = VideoPacketDecoder(tracks["video"], SPEC.video)
    pictures = [q for p in video for q in decoder.decode(p, p.seq)] + decoder.flush()
    assert [q.note for q in pictures] == [q.packet.seq for q in pictures]
    assert sorted(q.note for q in pictures) == list(range(12))
    assert len(tracks["audio"].extradata) >= 2


def test_two_readings_are_bit_equal_and_a_span_equals_the_whole(tmp_path):
    rate = 44_100
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 4 * rate).astype(np.float32)
    tracks = [VideoTrack(frames=moving(100), gop=12), AudioTrack(samples=noise, sample_rate=rate, codec="mp2")]
    path = write_media(tmp_path / "a.ts", tracks)  # 90 kHz: times are exact to the sample
    one, two = read_all(path, SPEC), read_all(path, SPEC)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(one.pictures, two.pictures, strict=True))
    for start in (Fraction(0), Fraction(6, 5), Fraction(14, 5)):
        whole, part = one.clip(one.origin + start, SPEC), read_clip(path, start, Fraction(2, 5), SPEC)
        assert np.array_equal(whole.video, part.video)
        assert np.array_equal(whole.audio, part.audio)


def test_a_span_beyond_the_end_is_an_error(tmp_path):
    path = write_media(tmp_path / "a.mp4", [VideoTrack(frames=grays(5))])
    with pytest.raises(SourceError, match=r"neither a picture nor a sound at 100\.00 s"):
        read_clip(path, 100, 0.4, SPEC)


def test_broken_packets_are_counted_and_the_rest_is_decoded(tmp_path):
    path = write_media(tmp_path / "a.avi", [VideoTrack(frames=moving(20), codec="mjpeg")])
    with MediaFile(path) as file:
        decoder = VideoPacketDecoder(file.tracks["video"], SPEC.video)
        pictures = []
        for packet in file.demux():
            if packet.seq % 4 == 1:
                packet.payload = (b"", b"\0", b"\xff" * 300)[packet.seq % 3]
            pictures += decoder.decode(packet)
    assert len(pictures) == 15
    assert decoder.errors == 5


def test_thousands_of_broken_packets_end_and_give_nothing(tmp_path):
    path = write_media(tmp_path / "a.mp4", [AudioTrack(samples=click(16_000))])
    with MediaFile(path) as file:
        decoder = AudioPacketDecoder(file.tracks["audio"], SPEC.audio)
        packet = next(iter(file.demux()))
    random = np.random.default_rng(0)
    for _ in range(2000):
        packet.payload = random.bytes(50)
        for sound in decoder.decode(packet):
            assert np.isfinite(sound.samples).all() and np.abs(sound.samples).max(initial=0) <= 1
    assert decoder.errors > 500


def test_an_unknown_codec_is_one_sentence(tmp_path):
    path = write_media(tmp_path / "a.mp4", [AudioTrack(samples=click(16_000))])
    with MediaFile(path) as file:
        track = file.tracks["audio"]
    with pytest.raises(SourceError, match="codec 'aac' is not a video codec"):
        VideoPacketDecoder(track, SPEC.video)


def test_a_codec_that_the_container_does_not_take_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        write_media(tmp_path / "a.wav", [VideoTrack(frames=grays(1), codec="libvpx")])
