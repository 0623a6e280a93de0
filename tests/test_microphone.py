"""Microphones: the sample count, stream time, formats, and what breaks; on a sound card made of a list."""

import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from runtime.errors import SourceError
from runtime.packet import Decision, Packet
from runtime.sources import microphone
from runtime.sources.microphone import Microphone, PortAudio, SampleClock, StreamTime, choose_input, inputs
from tests.devices import FakeSoundCard, sound_input
from tests.fakes import FakeClock

RATE, BLOCK = 48_000, 960


# -- the count ------------------------------------------------------------------------------------------------------


def settled(start: float = 10.0) -> tuple[SampleClock, float]:
    """A count whose anchor is learned, and where its next block is captured."""
    samples = SampleClock(RATE)
    at = start
    while samples.place(at, BLOCK, at + 0.03) is None:
        at += BLOCK / RATE
    return samples, at + BLOCK / RATE


def test_blocks_follow_each_other_whatever_their_stamps_say():
    samples, at = settled()
    rng = np.random.default_rng(0)
    starts = []
    for i in range(200):
        stamp = at + i * BLOCK / RATE
        starts.append(samples.place(stamp + rng.uniform(-0.02, 0.05), BLOCK, stamp + 0.06))
    assert all(lost == 0 for _, lost in starts)
    assert np.diff([start for start, _ in starts]).tolist() == [BLOCK] * 199
    assert starts[0][0] / RATE == pytest.approx(at, abs=1e-6)


def test_a_backlog_at_the_start_is_not_taken_for_live_sound():
    """Five seconds of sound that come at once, stamped as if captured one after the other from now on."""
    samples = SampleClock(RATE)
    for i in range(240):
        assert samples.place(10 + i * BLOCK / RATE, BLOCK, 10.0 + i * 1e-4) is None
    at = 10.1
    while (placed := samples.place(at, BLOCK, at + 0.02)) is None:
        at += BLOCK / RATE
    assert placed[0] / RATE == pytest.approx(at, abs=0.001)


def test_a_driver_that_only_ever_gives_backlog_is_taken_as_it_is():
    samples = SampleClock(RATE)
    placed = [samples.place(10.0, BLOCK, 10.0) for _ in range(260)]
    assert placed[-1] is not None and placed.index(next(p for p in placed if p)) <= 251


def test_an_overflow_is_a_hole_as_long_as_the_stamps_say_and_never_none():
    samples, at = settled()
    first, _ = samples.place(at, BLOCK, at)
    start, lost = samples.place(at + 0.02 + 0.1, BLOCK, at + 0.12, overflow=True)
    assert lost == pytest.approx(0.1 * RATE, abs=1) and start == first + BLOCK + lost
    _, lost = samples.place(at + 0.12, BLOCK, at + 0.12, overflow=True)
    assert lost == 1


def test_a_hole_that_nobody_reported_shows_after_half_a_second():
    samples, at = settled()
    lost = [samples.place(at + i * 0.02 + 0.3, BLOCK, at + i * 0.02 + 0.33)[1] for i in range(60)]
    assert [i for i, n in enumerate(lost) if n] == [24] and lost[24] == pytest.approx(0.3 * RATE, abs=2)


def test_sound_from_the_future_is_a_reason_to_open_anew():
    samples, at = settled()
    with pytest.raises(SourceError, match="sound from the future"):
        for _ in range(200):
            samples.place(at, BLOCK, at)


def test_the_devices_own_rate_shows_in_the_arrivals_only():
    """A sound card 300 ppm slow: its count is 20 ms to a block, the arrivals 20.006 ms apart."""
    samples, at = settled()
    pairs = []
    for i in range(3000):
        now = at + i * 0.02 * (1 + 300e-6)
        pairs.append((samples.place(now, BLOCK, now)[0] / RATE, now))
    (c0, a0), (c1, a1) = pairs[0], pairs[-1]
    assert ((a1 - a0) / (c1 - c0) - 1) * 1e6 == pytest.approx(300, rel=0.01)


def test_stream_time_is_mapped_by_the_least_difference_and_nonsense_by_the_block():
    stream = StreamTime()
    assert stream.stamp(999.97, 1000.0, 20.05, 0.02) == pytest.approx(20.02)
    assert stream.stamp(1000.97, 1001.0, 21.0, 0.02) == pytest.approx(20.97)
    assert stream.stamp(1001.97, 1002.0, 22.4, 0.02) == pytest.approx(
        21.97
    )  # the callback came late, the sound did not
    for adc, current in ((0.0, 1003.0), (1003.5, 1003.0), (900.0, 1003.0), (1.0, 0.0), (1.0, float("nan"))):
        assert stream.stamp(adc, current, 23.0, 0.02) == pytest.approx(22.98)


# -- the source -----------------------------------------------------------------------------------------------------


class Card(FakeSoundCard):
    """A sound card on a clock that stands until it plays; it plays through the settling when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(100.0)

    def RawInputStream(self, **settings: Any) -> Any:
        stream = super().RawInputStream(**settings)
        stream.start = lambda: self.play(15)
        return stream

    def play(self, blocks: int = 1, overflow: bool = False, pause: float = 0.0) -> None:
        """Blocks of 20 ms, each given when its last sample was captured."""
        stream = self.streams[-1]
        settings = stream.settings
        kind = np.int16 if settings["dtype"] == "int16" else np.float32
        samples = np.zeros((settings["blocksize"], settings["channels"]), kind)
        self.clock.move(pause)
        for i in range(blocks):
            self.clock.move(0.02)
            stream.give(samples, self.clock.seconds - 0.02, self.clock.seconds, overflow=overflow and i == 0)


@pytest.fixture
def card():
    return Card()


def opened(card: Card, mic: int | str | None = None, **options: Any) -> Microphone:
    return Microphone(mic, clock=card.clock, audio=PortAudio(lambda: card), seed=1, **options)


def packets(source: Microphone, count: int) -> list[Packet]:
    out: list[Packet] = []
    until = time.monotonic() + 3
    while len(out) < count and time.monotonic() < until:
        item = source.read(0.01)
        out += [item] if isinstance(item, Packet) else []
    return out


def decision(source: Microphone) -> Decision:
    until = time.monotonic() + 3
    while time.monotonic() < until:
        item = source.read(0.01)
        if isinstance(item, Decision):
            return item
        source.clock.move(0.05)
    raise AssertionError("no decision came")


def test_sound_comes_in_packets_of_20_ms_counted_in_samples(card):
    with opened(card) as source:
        codec = source.info.codecs["audio"]
        assert (codec.codec, codec.sample_rate, codec.channels) == ("pcm_s16le", RATE, 1)
        assert codec.time_base == Fraction(1, RATE)
        source.read(0)
        card.play(3)
        got = packets(source, 3)
        assert [p.duration for p in got] == [BLOCK] * 3 and {len(p.payload) for p in got} == {2 * BLOCK}
        assert np.diff([p.capture_time for p in got]).tolist() == [BLOCK, BLOCK]
        assert np.diff([p.seq for p in got]).tolist() == [1, 1]
        assert card.streams[0].settings["blocksize"] == BLOCK


def test_an_overflow_is_a_hole_in_numbers_and_time(card):
    with opened(card) as source:
        source.read(0)
        card.play(1)
        card.play(1, overflow=True, pause=0.05)
        first, second = packets(source, 2)
        assert second.seq - first.seq == 4 and second.capture_time - first.capture_time == BLOCK + 0.05 * RATE


def test_the_offset_is_taken_off_capture_times(card):
    with opened(card, offset_ms=150) as source:
        source.read(0)
        card.play(1)
        (packet,) = packets(source, 1)
        assert packet.seconds == pytest.approx(card.clock.seconds - 0.02 - 0.15, abs=1e-4)


def test_a_microphone_that_is_unplugged_comes_back_after_portaudio_looked_again(card):
    with opened(card) as source:
        before = card.restarts
        card.devices = []
        card.streams[-1].vanish()
        lost = decision(source)
        assert lost.kind == "device_lost" and "it stopped giving sound; was it unplugged?" in lost.reason
        until = time.monotonic() + 2
        while "there is no microphone" not in source.states()[0].reason and time.monotonic() < until:
            source.read(0.01)
            card.clock.move(0.05)
        card.devices = [sound_input("Headset", 16_000, 1)]
        change = decision(source)
        assert change.kind == "format_change" and change.codec.sample_rate == 16_000
        assert change.reason == "pcm_s16le 16000 Hz, 1 channel"
        back = decision(source)
        assert back.kind == "device_back" and card.restarts > before


def test_a_device_that_takes_floats_in_stereo_only_is_taken_so(card):
    card.takes = lambda rate, kind, channels: (rate, kind, channels) == (44_100, "float32", 2)
    with opened(card) as source:
        codec = source.info.codecs["audio"]
        assert (codec.codec, codec.sample_rate, codec.channels) == ("pcm_f32le", 44_100, 2)
        assert card.streams[0].settings["blocksize"] == 882


def test_a_device_that_takes_nothing_is_one_sentence(card):
    card.takes = lambda rate, kind, channels: False
    with pytest.raises(SourceError, match=r"cannot be used: input 0 \(Built-in Audio\) cannot be opened: Invalid"):
        opened(card)


def test_what_portaudio_says_comes_without_its_numbers(card):
    card.refuse = "Error opening RawInputStream: Device unavailable [PaErrorCode -9985]"
    with pytest.raises(SourceError, match=r"cannot be used: Error opening RawInputStream: Device unavailable$"):
        opened(card)


def test_a_callback_that_fails_ends_the_life_not_the_program(card):
    with opened(card) as source:
        card.streams[-1].settings["callback"](None, BLOCK, None, None)
        assert "could not be read" in decision(source).reason


def test_microphones_are_chosen_by_number_name_or_default():
    card = FakeSoundCard([sound_input("HDMI", channels=0), sound_input("Built-in"), sound_input("USB Headset Mono")])
    known = inputs(card)
    assert [i.number for i in known] == [1, 2] and known[0].default
    assert choose_input(known, None).number == 1 and choose_input(known, 2).number == 2
    assert choose_input(known, "headset").number == 2 and choose_input(known, "1").number == 1
    with pytest.raises(SourceError, match=r"no microphone 'x9'; there is 1 \(Built-in\), 2 \(USB Headset Mono\)"):
        choose_input(known, "x9")
    with pytest.raises(SourceError, match="there is no microphone; plug one in"):
        choose_input([], None)


def test_without_portaudio_the_sentence_says_what_to_install(monkeypatch):
    def importer(name: str, *rest: Any) -> Any:
        if name == "sounddevice":
            raise OSError("PortAudio library not found")
        return real(name, *rest)

    import builtins

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", importer)
    with pytest.raises(
        SourceError, match=r"PortAudio, which sounddevice needs, is not installed.*apt install libportaudio2"
    ):
        microphone.PortAudio().inputs()
