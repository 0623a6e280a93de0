"""Stand-ins for clocks, sources, codecs: small, exact, without PyAV.

A fake frame's payload is one byte, its grey level; a fake block's payload is one byte too, its level in 1/128 of full
scale. What a fake decoder gives can so be read off a clip.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from encoders.clips import AudioSpec, ClipSpec, VideoSpec
from runtime.packet import CodecConfig, Decision, Gap, Packet, StreamInfo

FRAME = Fraction(1, 25)  # seconds
BLOCK = Fraction(1, 50)
SIZE = 8  # pixels, a fake picture's side
TICK = Fraction(1, 1000)

SPEC = ClipSpec(
    seconds=Fraction(2, 5),
    video=VideoSpec(frames=8, size=SIZE, region="face"),
    audio=AudioSpec(sample_rate=1000),
)
CODECS = {
    "video": CodecConfig(codec="mjpeg", time_base=TICK, frame_rate=Fraction(25)),
    "audio": CodecConfig(codec="pcm_s16le", time_base=TICK, sample_rate=1000, channels=1),
}
INFO = StreamInfo(name="fake", codecs=CODECS, origin=Fraction(0))


class FakeClock:
    """A clock that stands until it is moved; callable, and a ``Clock``."""

    def __init__(self, seconds: float = 0.0, step: float = 0.0) -> None:
        self.seconds = seconds
        self.step = step  # by which every reading moves it

    def __call__(self) -> float:
        self.seconds += self.step
        return self.seconds

    def now(self) -> float:
        return self()

    def sleep_until(self, seconds: float) -> None:
        self.seconds = max(self.seconds, seconds)

    def move(self, seconds: float) -> None:
        self.seconds += seconds


class ListSource:
    """A source that plays a list of packets and decisions."""

    def __init__(self, items: Iterable[Packet | Decision], info: StreamInfo = INFO) -> None:
        self.items = list(items)
        self.info = info
        self.closed = False

    def packets(self) -> Iterator[Packet | Decision]:
        yield from self.items

    def close(self) -> None:
        self.closed = True


def packet(
    modality: str = "video", seq: int = 0, ms: float | None = None, level: int | None = None, **fields: Any
) -> Packet:
    """A packet of a 25 fps track or of 20 ms blocks, in its place unless ``ms`` says another, of that ``level``."""
    step = FRAME if modality == "video" else BLOCK
    time = round(seq * step / TICK) if ms is None else round(ms)
    fields.setdefault("duration", round(step / TICK))
    fields.setdefault("keyframe", True)
    value = (10 + seq % 200 if modality == "video" else 1 + seq % 100) if level is None else level
    return Packet(modality=modality, seq=seq, capture_time=time, time_base=TICK, payload=bytes([value]), **fields)


def track(modality: str, seconds: float, *, start: float = 0.0, first_seq: int = 0, **fields: Any) -> list[Packet]:
    """A whole track from ``start`` on."""
    step = FRAME if modality == "video" else BLOCK
    count = round(Fraction(seconds).limit_denominator(1000) / step)
    return [
        packet(modality, first_seq + i, float((Fraction(start).limit_denominator(1000) + i * step) / TICK), **fields)
        for i in range(count)
    ]


def sent(packets: Iterable[Packet], delay: float | Callable[[Packet], float] = 0.0) -> list[Packet]:
    """The same packets in order of arrival: each at the end of what it shows, plus ``delay`` seconds."""
    wait = delay if callable(delay) else lambda _packet: delay
    timed = [p if p.arrival is not None else replace(p, arrival=p.end_seconds + wait(p)) for p in packets]
    return sorted(timed, key=lambda p: (p.arrival, p.modality, p.seq))


def stream(seconds: float, delay: float | Callable[[Packet], float] = 0.0) -> list[Packet]:
    """Both tracks, as they arrive."""
    return sent(track("video", seconds) + track("audio", seconds), delay)


@dataclass
class FakeDamage:
    """The verdict of a codec in which no packet needs another, or (``chained``) each needs all since a keyframe."""

    chained: bool = False
    damaged: bool = False
    reason: str = ""
    severity: float = 0.0
    broken: bool = False

    def push(self, item: Packet | Gap) -> "FakeDamage":
        if isinstance(item, Gap):
            self.broken = self.chained
            return FakeDamage(damaged=True, reason="lost", severity=1.0)
        self.broken = self.broken and not item.keyframe
        bad = self.broken or item.corrupt
        return FakeDamage(damaged=bad, reason="reference" if bad else "", severity=0.5 if bad else 0.0)

    def decode_error(self) -> None:
        self.broken = self.chained


@dataclass
class FakePiece:
    """A frame or a block, as the real decoders give them."""

    time: Fraction
    duration: Fraction | None
    seqs: tuple[int, ...]
    pixels: Any = None
    samples: Any = None
    damaged: bool = False
    reason: str = ""
    severity: float = 0.0
    corrupt: bool = False


class FakeDecoder:
    """One piece per packet at once, or ``hold`` pieces later in order of time, as with B frames."""

    def __init__(self, modality: str, spec: VideoSpec | AudioSpec, hold: int = 0) -> None:
        self.modality, self.spec, self.hold = modality, spec, hold
        self.errors = 0
        self._held: list[FakePiece] = []

    def decode(self, packet: Packet, damage: Any = None) -> list[FakePiece]:
        if packet.payload == b"\xff\xff":
            self.errors += 1
            return []
        self._held.append(self._piece(packet, damage))
        self._held.sort(key=lambda p: p.time)
        ready, self._held = self._held[: len(self._held) - self.hold], self._held[len(self._held) - self.hold :]
        return ready

    def flush(self) -> list[FakePiece]:
        ready, self._held = self._held, []
        return ready

    def _piece(self, packet: Packet, damage: Any) -> FakePiece:
        base = packet.time_base
        duration = packet.duration * base if packet.duration else None
        piece = FakePiece(packet.capture_time * base, duration, (packet.seq,))
        if damage is not None and damage.damaged:
            piece.damaged, piece.reason, piece.severity = True, damage.reason, damage.severity
        if self.modality == "video":
            piece.pixels = np.full((SIZE, SIZE), packet.payload[0], np.uint8)
            piece.pixels[SIZE // 2 :] = 250  # else every picture were blank
        else:
            count = int((duration or BLOCK) * self.spec.sample_rate)  # type: ignore[union-attr]
            piece.samples = np.full(count, packet.payload[0] / 128, np.float32)
        return piece


def fake_parts(chained: Sequence[str] = (), hold: int = 0) -> Callable[..., tuple[Any, Any]]:
    """What ``Receiver(parts=...)`` takes: modalities in ``chained`` need every packet since their last keyframe."""

    def parts(modality: str, config: CodecConfig, spec: Any, sequenced: bool) -> tuple[Any, Any]:
        return FakeDamage(modality in chained), FakeDecoder(modality, spec, hold if modality == "video" else 0)

    return parts
