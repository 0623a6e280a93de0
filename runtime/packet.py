"""Packets, gaps, and what a stream says about its codecs; sequence arithmetic with wrap-around.

A packet is the unit on the wire and the thing that can be lost. Packets of one modality carry a
sequence number that grows by one each, in decode order; a missing number is a lost packet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

MODALITIES = ("video", "audio")  # the order on the M axis, everywhere


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Packet:
    """One unit on the wire. A value that nobody changes; frozen, it would take four times as long to make.

    ``capture_time`` counts ticks of ``time_base`` (seconds per tick) and is the *presentation* time of the
    frame, or of the first audible sample. ``arrival`` is in seconds on the receiver's clock, the same axis
    as capture time in a replay; None means that the packet arrives the moment it is sent.
    """

    modality: str
    seq: int
    capture_time: int
    time_base: Fraction
    payload: bytes
    duration: int = 0  # ticks; 0 = unknown
    keyframe: bool = False  # decoding may start here
    disposable: bool = False  # no other frame is decoded from it
    decode_time: int | None = None  # ticks; dts where the container has one
    arrival: float | None = None
    corrupt: bool = False  # the transport says that bytes are wrong
    skip: int = 0  # audio: decoded samples at the start that are codec priming; video: 1 = decoded, never shown
    padding: int = 0  # audio: decoded samples at the end that are no part of the recording

    @property
    def seconds(self) -> float:
        """Capture time in seconds (one rounding, as ``float`` of the exact fraction gives)."""
        return self.capture_time * self.time_base.numerator / self.time_base.denominator

    @property
    def end_seconds(self) -> float:
        """Capture time at the end of what the packet shows; its start where the duration is unknown."""
        return (self.capture_time + self.duration) * self.time_base.numerator / self.time_base.denominator

    @property
    def decode_seconds(self) -> float:
        """Decode time in seconds; capture time where the container has none."""
        ticks = self.capture_time if self.decode_time is None else self.decode_time
        return ticks * self.time_base.numerator / self.time_base.denominator


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Packets ``first_seq .. first_seq + count - 1`` of a modality that will not come in time.

    ``start`` and ``end`` bound the capture time they covered, in seconds, as far as the neighbours tell
    (None at an open end). ``reason`` is ``"lost"`` (never came) or ``"late"``; late packets may still arrive.
    """

    modality: str
    first_seq: int
    count: int
    start: float | None = None
    end: float | None = None
    reason: str = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecConfig:
    """What a decoder must know before the first packet of a modality."""

    codec: str  # FFmpeg's name: h264, hevc, vp8, mjpeg, aac, opus, pcm_s16le, ...
    time_base: Fraction
    extradata: bytes = b""
    sample_rate: int = 0  # Hz, audio
    channels: int = 0
    sample_format: str = ""  # FFmpeg's name, for raw audio
    width: int = 0
    height: int = 0
    pixel_format: str = ""  # FFmpeg's name, for raw video
    frame_rate: Fraction | None = None  # nominal
    rotation: int = 0  # degrees counter-clockwise that show the picture upright: 0, 90, 180, 270


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """What is known of a stream before its first packet."""

    name: str
    codecs: Mapping[str, CodecConfig]  # by modality; an absent modality has no track
    origin: Fraction | None = None  # capture time of the clip grid's zero, seconds
    duration: float | None = None  # seconds, where known
    labels: Mapping[str, str] = field(default_factory=dict)  # free notes that travel with a recording
    sequence_numbers: bool = True  # False: a container, whose losses leave no number behind


DECISIONS = ("shed", "device_lost", "device_back", "format_change", "clock_remap")
BACKLOG = "backlog"  # reason of a ``shed``: the clip's packets were not even decoded, and a replay does not either


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Something the runtime chose or noticed in a live stream; a recording keeps it and a replay obeys it.

    ``arrival`` is when, in seconds on the receiver's clock, so that decisions and packets sort on one axis.
    """

    kind: str  # one of DECISIONS
    modality: str
    arrival: float
    epoch: int = 0
    clip: int | None = None  # shed: the clip that was not encoded
    codec: CodecConfig | None = None  # format_change: what the packets after it are
    offset: Fraction = Fraction(0)  # clock_remap: seconds added to capture times from now on
    drift_ppm: float = 0.0  # clock_remap: what was measured against the other modality's clock
    reason: str = ""  # for people, but for BACKLOG


def newer(a: int, b: int, bits: int = 16) -> bool:
    """True if sequence number ``a`` comes after ``b`` on a circle of ``2**bits`` (RFC 3550, A.1)."""
    return 0 < (a - b) % (1 << bits) < 1 << (bits - 1)


def unwrap(seq: int, reference: int, bits: int = 16) -> int:
    """The number nearest to ``reference`` that equals ``seq`` modulo ``2**bits``."""
    size = 1 << bits
    step = (seq - reference) % size
    return reference + (step if step < size // 2 else step - size)


class ExtendedSequence:
    """16-bit sequence numbers as they come off the wire, unwrapped to a line (RFC 3550, appendix A.1).

    Numbers up to ``MAX_DROPOUT`` ahead are in order; up to ``MAX_MISORDER`` behind are reordered or duplicate; any
    other jump is believed only if the next packet follows it, and then the sender has restarted: the line goes on
    behind the highest number seen, so that numbers of two lives never meet.
    """

    MAX_DROPOUT = 3000
    MAX_MISORDER = 100
    SIZE = 1 << 16

    def __init__(self) -> None:
        self.highest: int | None = None  # extended
        self.restarts = 0
        self.refused = 0  # jumps not believed (yet)
        self._shift = 0  # extended number minus wire number, modulo SIZE
        self._expected: int | None = None  # wire number that would confirm a jump

    def extend(self, seq: int) -> int | None:
        """The extended number of wire number ``seq`` (0 to 65535); None while a jump is not confirmed."""
        if self.highest is None:
            self.highest = seq
            return seq
        ahead = (seq + self._shift - self.highest) % self.SIZE
        if 0 < ahead < self.MAX_DROPOUT:
            self.highest += ahead
        elif ahead >= self.SIZE - self.MAX_MISORDER:
            self._expected = None
            return self.highest + ahead - self.SIZE
        elif ahead != 0:
            return self._jump(seq)
        self._expected = None
        return self.highest

    def _jump(self, seq: int) -> int | None:
        assert self.highest is not None
        if seq != self._expected:
            self._expected = (seq + 1) % self.SIZE
            self.refused += 1
            return None
        self._expected = None
        self.restarts += 1
        self.highest += 1
        self._shift = self.highest - seq
        return self.highest
