"""Microphone: sound of this machine as raw PCM, counted in samples of the device's own clock.

Capture time counts samples from an anchor on the runtime's clock; it is never nudged from block to block, so that
sound stays whole, and how fast the device's clock really runs shows in the arrivals, where the receiver measures it.
Only a hole moves it: the driver said that it lost input, or the stamps ran away from the count for good.

sounddevice is imported when a microphone is opened: without PortAudio that import raises OSError.
"""

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Any

from runtime.clock import Clock, SystemClock
from runtime.errors import SourceError
from runtime.jitter import TransitFloor
from runtime.packet import CodecConfig
from runtime.sources.device import DeviceSource, Session

PACKET_SECONDS = Fraction(1, 50)
SETTLING_SECONDS = 0.2  # of sound that is only measured: drivers start with a burst, microphones with a thump
LONGEST_SETTLING = 5.0  # seconds of sound, until a driver with a backlog is taken as it is
LIVELY = 0.75  # share of its length that sound must take to come; quicker, and it is a backlog
RUNAWAY_SECONDS = 0.1  # by which stamps must be ahead of the count, block after block, to be a hole nobody reported
RUNAWAY_BLOCKS = 25
STAMP_AGE = 5.0  # seconds; an older stamp is none
FORMATS = {"int16": ("pcm_s16le", "s16", 2), "float32": ("pcm_f32le", "flt", 4)}  # PortAudio's name: FFmpeg's, bytes
NO_PORTAUDIO = (
    "PortAudio, which sounddevice needs, is not installed; on Debian: apt install libportaudio2, "
    "on Fedora: dnf install portaudio"
)


class SampleClock:
    """Places blocks of samples on the capture clock. All times in seconds on one clock, all counts in samples.

    The anchor is the median over the first blocks that come at the pace of time, of what their stamps say; all blocks
    up to there are not delivered.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._settling: deque[tuple[float, float, int]] = deque()  # anchor, when it came, samples counted until then
        self._counted = 0  # samples since the first block
        self._next: int | None = None  # where the next block is expected, samples of the capture clock
        self._ahead: deque[float] = deque(maxlen=RUNAWAY_BLOCKS)

    def place(self, stamp: float, samples: int, now: float, overflow: bool = False) -> tuple[int, int] | None:
        """Where a block begins, and how many samples before it are lost; None while the anchor is being learned.

        ``stamp`` is when its first sample was captured, as far as the driver can tell; ``now`` when it came. Raises
        SourceError when blocks go on coming before they can have been captured: the anchor was wrong.
        """
        if self._next is None:
            self._learn(stamp, samples, now)
            return None
        ahead = stamp - self._next / self.rate
        self._ahead.append(ahead)
        lost = 0
        if overflow:
            lost = max(round(ahead * self.rate), 1)
        elif len(self._ahead) == RUNAWAY_BLOCKS and min(self._ahead) > RUNAWAY_SECONDS:
            lost = round(min(self._ahead) * self.rate)
        if len(self._ahead) == RUNAWAY_BLOCKS and max(self._ahead) < -RUNAWAY_SECONDS and self._next > now * self.rate:
            raise SourceError("it gave sound from the future; its clock is read anew")
        if lost:
            self._ahead.clear()
        start = self._next + lost
        self._next = start + samples
        return start, lost

    def _learn(self, stamp: float, samples: int, now: float) -> None:
        self._settling.append((stamp - self._counted / self.rate, now, self._counted))
        self._counted += samples
        while len(self._settling) > 1 and self._counted - self._settling[1][2] >= SETTLING_SECONDS * self.rate:
            self._settling.popleft()
        _, came, counted = self._settling[0]
        seconds = (self._counted - counted) / self.rate
        patience = self._counted < LONGEST_SETTLING * self.rate
        if seconds < SETTLING_SECONDS or (now - came < LIVELY * seconds and patience):
            return
        newest = list(self._settling)[len(self._settling) // 2 :]  # what a backlog left behind is in the older half
        self._next = round(median(anchor for anchor, _, _ in newest) * self.rate) + self._counted


class StreamTime:
    """PortAudio's stream time on the runtime's clock: they differ by the least difference that was seen."""

    def __init__(self) -> None:
        self._floor = TransitFloor()

    def stamp(self, adc: float, current: float, now: float, block: float) -> float:
        """When a block's first sample was captured. Host APIs that do not know say 0, or nonsense: then it is a block
        before ``now``, which is when the callback was called."""
        if not 0 < current < float("inf"):
            return now - block
        self._floor.update(current, now)
        if not 0 < adc <= current or current - adc > STAMP_AGE:
            return now - block
        return adc + self._floor.value


@dataclass(frozen=True, slots=True)
class Input:
    """An input of this machine."""

    number: int
    name: str
    host: str  # ALSA, Core Audio, WASAPI, ...
    channels: int
    rate: int  # Hz
    default: bool


class MicrophoneFeed:
    """A microphone by number, by a part of its name, or the system's default (None)."""

    def __init__(
        self, microphone: int | str | None = None, *, clock: Clock, offset_ms: float = 0.0, audio: Any = None
    ) -> None:
        self.microphone = microphone
        self.name = "microphone" if microphone is None else f"microphone {microphone}"
        self._clock, self._offset = clock, offset_ms / 1e3
        self._audio = audio or PORT_AUDIO

    sequenced = True

    @property
    def codecs(self) -> Mapping[str, CodecConfig]:
        return {"audio": _codec(48_000, 1, "int16")}

    def run(self, session: Session) -> None:
        """Open the device and stay until told to stop; sound comes in PortAudio's own thread."""
        with self._audio.opened(self.microphone) as (library, chosen):
            rate, channels, kind = _format(library, chosen)
            block = round(rate * PACKET_SECONDS)
            sound = _Delivery(session, rate, channels, FORMATS[kind][2], self._clock, self._offset)
            session.opened({"audio": _codec(rate, channels, kind)})
            failed: list[str] = []
            stream = _begin(
                library,
                samplerate=rate,
                blocksize=block,
                device=chosen.number,
                channels=channels,
                dtype=kind,
                callback=sound.callback,
                finished_callback=lambda: failed.append("it stopped giving sound; was it unplugged?"),
            )
            try:
                while not session.stopped.wait(0.05):
                    if failed:
                        raise SourceError(failed[0])
                    if sound.failure:
                        raise SourceError(sound.failure)
            finally:
                _end(stream)


class _Delivery:
    """PortAudio's callback: as little as can be, and it never raises."""

    def __init__(
        self, session: Session, rate: int, channels: int, sample_bytes: int, clock: Clock, offset: float
    ) -> None:
        self.failure = ""
        self._session, self._clock, self._offset = session, clock, offset
        self._rate, self._frame_bytes = rate, channels * sample_bytes
        self._samples, self._stream_time = SampleClock(rate), StreamTime()

    def callback(self, data: Any, frames: int, times: Any, status: Any) -> None:
        """``times`` has inputBufferAdcTime and currentTime, ``status`` input_overflow, as sounddevice gives them."""
        try:
            now = self._clock.now()
            seconds = frames / self._rate
            stamp = self._stream_time.stamp(times.inputBufferAdcTime, times.currentTime, now, seconds)
            overflow = bool(status and status.input_overflow)
            placed = self._samples.place(stamp - self._offset, frames, now - self._offset, overflow)
            if placed is None or frames == 0:
                return
            start, lost = placed
            payload = bytes(data)[: frames * self._frame_bytes]
            self._session.packet("audio", payload, start, missed=-(-lost // frames), duration=frames)
        except SourceError as error:
            self.failure = str(error)
        except Exception as error:  # PortAudio would print a traceback and go on
            self.failure = f"its sound could not be read ({error})"


class Microphone(DeviceSource):
    """One microphone as a live source; see ``MicrophoneFeed`` and ``DeviceSource`` for what may be said."""

    def __init__(
        self,
        microphone: int | str | None = None,
        *,
        clock: Clock | None = None,
        offset_ms: float = 0.0,
        audio: Any = None,
        **options: Any,
    ) -> None:
        clock = clock or SystemClock()
        feed = MicrophoneFeed(microphone, clock=clock, offset_ms=offset_ms, audio=audio)
        super().__init__([feed], clock=clock, **options)


class PortAudio:
    """PortAudio of this process. It lists devices once, when it starts: to see one that was plugged in later it must
    be started anew, which may only be done while no stream is open."""

    def __init__(self, load: Any = None) -> None:
        self._library = load  # a function that gives it, where a test brings its own
        self._lock = threading.Lock()
        self._open = 0

    @contextlib.contextmanager
    def opened(self, microphone: int | str | None) -> Iterator[tuple[Any, Input]]:
        """The library and the chosen input, while a stream is held open."""
        with self._lock:
            library = (self._library or _import)()
            if self._open == 0:
                _restart(library)
            chosen = choose_input(inputs(library), microphone)
            self._open += 1
        try:
            yield library, chosen
        finally:
            with self._lock:
                self._open -= 1

    def inputs(self) -> list[Input]:
        """Every input there is now. Raises SourceError without PortAudio."""
        with self._lock:
            library = (self._library or _import)()
            if self._open == 0:
                _restart(library)
            return inputs(library)


PORT_AUDIO = PortAudio()


def inputs(library: Any) -> list[Input]:
    """What PortAudio lists, inputs only."""
    hosts = [str(host["name"]) for host in library.query_hostapis()]
    try:
        default = int(library.query_devices(kind="input")["index"])
    except (ValueError, KeyError, library.PortAudioError):
        default = -1
    return [
        Input(
            number=number,
            name=str(device["name"]),
            host=hosts[device["hostapi"]] if device["hostapi"] < len(hosts) else "",
            channels=int(device["max_input_channels"]),
            rate=round(device["default_samplerate"]),
            default=number == default,
        )
        for number, device in enumerate(library.query_devices())
        if device["max_input_channels"] > 0
    ]


def choose_input(known: list[Input], wanted: int | str | None) -> Input:
    """By number, by a part of its name, or the default. Raises SourceError, in one sentence."""
    if not known:
        raise SourceError("there is no microphone; plug one in, or leave sound out with --mic none")
    if wanted is None:
        return next((i for i in known if i.default), known[0])
    text = str(wanted)
    matches = [i for i in known if (i.number == int(text) if text.isdecimal() else text.lower() in i.name.lower())]
    if not matches:
        there = ", ".join(f"{i.number} ({i.name})" for i in known)
        raise SourceError(f"there is no microphone {text!r}; there is {there}")
    return next((i for i in matches if i.name.lower() == text.lower()), matches[0])


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """ALSA writes its thoughts to the terminal while devices are looked for; what matters comes as an error too."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        sys.stderr.flush()
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _import() -> Any:
    try:
        with quiet_stderr():
            import sounddevice
    except OSError:
        raise SourceError(NO_PORTAUDIO) from None
    except ImportError:
        raise SourceError("sounddevice is not installed; install it with pip install sounddevice") from None
    return sounddevice


def _restart(library: Any) -> None:
    with quiet_stderr():
        with contextlib.suppress(library.PortAudioError):
            library._terminate()
        library._initialize()


def _format(library: Any, chosen: Input) -> tuple[int, int, str]:
    """Sample rate, channels and sample format that a device takes: its own rate, mono and 16 bits where it can."""
    error: Exception | None = None
    for rate in dict.fromkeys((chosen.rate, 48_000, 44_100, 16_000)):
        for kind in FORMATS:
            for channels in dict.fromkeys((1, min(2, chosen.channels), chosen.channels)):
                try:
                    with quiet_stderr():
                        library.check_input_settings(chosen.number, channels, kind, None, rate)
                    return rate, channels, kind
                except library.PortAudioError as problem:
                    error = error or problem
    raise SourceError(f"input {chosen.number} ({chosen.name}) cannot be opened: {plain(error)}")


def plain(error: Exception | None) -> str:
    """PortAudio's own words, without its numbers."""
    text = str(error.args[0]) if error is not None and error.args else "it gives no reason"
    return text.split("[PaErrorCode")[0].strip().rstrip(":.")


def _begin(library: Any, **settings: Any) -> Any:
    """A stream that runs. Raises SourceError in PortAudio's words."""
    with quiet_stderr():
        try:
            stream = library.RawInputStream(**settings)
        except library.PortAudioError as error:
            raise SourceError(plain(error)) from None
        try:
            stream.start()
        except library.PortAudioError as error:
            _end(stream)
            raise SourceError(plain(error)) from None
    return stream


def _end(stream: Any) -> None:
    """Close at once; a device that is gone may refuse, or hang, which only its own thread notices."""
    with contextlib.suppress(Exception), quiet_stderr():
        stream.abort(ignore_errors=True)
    with contextlib.suppress(Exception), quiet_stderr():
        stream.close(ignore_errors=True)


def _codec(rate: int, channels: int, kind: str) -> CodecConfig:
    name, sample_format, _ = FORMATS[kind]
    return CodecConfig(
        codec=name, time_base=Fraction(1, rate), sample_rate=rate, channels=channels, sample_format=sample_format
    )


__all__ = ["Input", "Microphone", "MicrophoneFeed", "PortAudio", "SampleClock", "StreamTime", "choose_input"]
