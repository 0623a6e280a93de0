"""Packets to frames and blocks of samples, each with what damage tracking said of its packet.

The work is done by ``encoders.media``, the decoders that training and feature extraction use too. A decode error is a
count here and never an exception; what it means for later frames is for ``runtime.damage`` to say.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from encoders.clips import AudioSpec, VideoSpec
from encoders.media import AudioPacketDecoder, Picture, Sound, VideoPacketDecoder
from runtime.packet import CodecConfig, Packet

if TYPE_CHECKING:
    from runtime.damage import Damage


@dataclass(slots=True, eq=False)
class Frame:
    """One image: ``pixels`` uint8 (H, W) for gray, (H, W, 3) for rgb24, upright."""

    time: Fraction  # presentation time, seconds
    duration: Fraction | None  # seconds; None where the container does not say
    pixels: np.ndarray
    damaged: bool = False
    reason: str = ""  # lost, corrupt, reference
    severity: float = 0.0  # 0..1, estimated
    seqs: tuple[int, ...] = ()  # packets it was coded in
    corrupt: bool = False  # the decoder itself says that it is not whole


@dataclass(slots=True, eq=False)
class Block:
    """A run of sound: float32 mono ``samples`` (S,); ``time`` is a whole multiple of 1 / sample rate."""

    time: Fraction  # of the first sample, seconds
    samples: np.ndarray
    sample_rate: int
    damaged: bool = False
    reason: str = ""
    severity: float = 0.0
    seqs: tuple[int, ...] = ()

    @property
    def duration(self) -> Fraction:
        """Seconds."""
        return Fraction(len(self.samples), self.sample_rate)


class VideoDecoder:
    """Video packets of one track, in decode order, to frames in presentation order.

    Raises SourceError, in one sentence, for a codec that cannot be decoded here; nothing later on.
    """

    def __init__(self, config: CodecConfig, spec: VideoSpec) -> None:
        self._decoder = VideoPacketDecoder(config, spec)

    @property
    def errors(self) -> int:
        """Packets that the codec refused so far."""
        return self._decoder.errors

    def limit_pixels(self, pixels: int) -> None:
        """Refuse pictures of more pixels, whatever the bitstream says; before the first packet."""
        self._decoder.limit_pixels(pixels)

    def decode(self, packet: Packet, damage: "Damage | None" = None) -> list[Frame]:
        """The frames that became ready, which may be those of earlier packets."""
        return [_frame(p) for p in self._decoder.decode(packet, damage)]

    def flush(self) -> list[Frame]:
        """The frames still inside; afterwards the decoder is as new."""
        return [_frame(p) for p in self._decoder.flush()]


class AudioDecoder:
    """Audio packets of one track to blocks of mono samples at the spec's rate.

    A packet's last millisecond may come with the next packet, or with ``flush``. Raises SourceError, in one sentence,
    for a codec that cannot be decoded here; nothing later on.
    """

    def __init__(self, config: CodecConfig, spec: AudioSpec) -> None:
        self._decoder = AudioPacketDecoder(config, spec)
        self._rate = spec.sample_rate

    @property
    def errors(self) -> int:
        """Packets that the codec refused so far."""
        return self._decoder.errors

    def decode(self, packet: Packet, damage: "Damage | None" = None) -> list[Block]:
        """The blocks that became ready; cut where sound from damaged and from intact packets meet."""
        return [self._block(s) for s in self._decoder.decode(packet, damage)]

    def flush(self) -> list[Block]:
        """The sound that waited for a next packet; afterwards the decoder is as new."""
        return [self._block(s) for s in self._decoder.flush()]

    def _block(self, sound: Sound) -> Block:
        time = Fraction(sound.index, self._rate)
        damage = sound.note
        if damage is None or not damage.damaged:
            return Block(time, sound.samples, self._rate, seqs=sound.seqs)
        return Block(time, sound.samples, self._rate, True, damage.reason, damage.severity, sound.seqs)


@lru_cache(maxsize=64)
def _seconds(ticks: int, time_base: Fraction) -> Fraction:
    """Durations are few, and exact fractions take long to make."""
    return ticks * time_base


def _frame(picture: Picture) -> Frame:
    packet, damage = picture.packet, picture.note
    duration = _seconds(packet.duration, packet.time_base) if packet.duration else None
    if damage is None or not damage.damaged:
        return Frame(picture.time, duration, picture.pixels, seqs=(packet.seq,), corrupt=picture.corrupt)
    return Frame(
        picture.time,
        duration,
        picture.pixels,
        True,
        damage.reason,
        damage.severity,
        (packet.seq,),
        picture.corrupt,
    )
