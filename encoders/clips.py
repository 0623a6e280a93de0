"""What a clip looks like to an encoder: the grid, and how frames and samples are laid on it (numpy only)."""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, kw_only=True)
class VideoSpec:
    """The picture an encoder asks for.

    A clip arrives as uint8 ``(T, H, W)`` for gray, ``(T, H, W, 3)`` for rgb24. ``region`` says what is shown:
    ``frame`` (shorter side resized to ``size / crop_share``, centre crop) or ``face`` (the face box, cut out).
    """

    frames: int  # sampled by time: frame i is the one on screen at start + (i + 0.5) * seconds / frames
    size: int  # pixels, square
    pixel_format: str = "gray"  # gray, rgb24
    region: str = "frame"  # frame, face
    crop_share: float = 1.0
    max_side: int = 640  # decoded frames are scaled down so that no side exceeds this


@dataclass(frozen=True, kw_only=True)
class AudioSpec:
    """The sound an encoder asks for: float32 mono ``(S,)`` in [-1, 1]."""

    sample_rate: int = 16_000  # Hz


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """One cell of the capture grid, both modalities; None where the bundle does not use a modality."""

    seconds: Fraction = Fraction(2, 5)
    video: VideoSpec | None = None
    audio: AudioSpec | None = None

    @property
    def samples(self) -> int:
        """Audio samples in a clip; fails unless the rate divides exactly."""
        assert self.audio is not None, "this spec has no audio"
        exact = self.seconds * self.audio.sample_rate
        if exact.denominator != 1:
            from encoders.errors import ConfigError

            raise ConfigError(
                f"clip seconds {self.seconds} at {self.audio.sample_rate} Hz is {float(exact)} samples; "
                "choose a clip length that gives a whole number"
            )
        return int(exact)
