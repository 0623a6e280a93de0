"""Pictures as the public vision transformers see them: channels first, values from -1 to 1; or what moves in them."""

from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from encoders.clips import LUMA
from encoders.errors import ConfigError, DataError

__all__ = ["check_seen", "motion_of", "signed_pictures"]

STILL = 0.01  # of the range -1 to 1: movement that is taken for noise


def check_seen(clip_seconds: Fraction, crop_share: float) -> None:
    """Refuse what no encoder of pictures can be shown, with a ConfigError."""
    if clip_seconds <= 0 or not 0 < crop_share <= 1:
        raise ConfigError(f"clip_seconds {clip_seconds} must be > 0 and crop_share {crop_share} lie in (0, 1]")


def signed_pictures(clips: Tensor, channels: int = 3) -> Float[Tensor, "b c t h w"]:
    """uint8 clips, gray (B, T, H, W) or rgb (B, T, H, W, 3), as (B, C, T, H, W) in [-1, 1]: x / 127.5 - 1.

    Gray is repeated for a model of three ``channels``; colours are mixed for a model of one. Raises DataError on
    anything but such clips.
    """
    if clips.dtype != torch.uint8 or clips.ndim not in (4, 5) or (clips.ndim == 5 and clips.shape[-1] != 3):
        raise DataError(
            f"clips of {'x'.join(map(str, clips.shape))} {str(clips.dtype).removeprefix('torch.')} are no pictures; "
            "give uint8 (batch, frames, rows, columns), gray, or with a last axis of 3 colours"
        )
    x = clips.float() / 127.5 - 1
    if clips.ndim == 4:
        return x[:, None].expand(-1, channels, -1, -1, -1)
    return x.movedim(-1, 1) if channels == 3 else (x @ x.new_tensor(LUMA))[:, None]


def motion_of(pictures: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
    """Each pixel less its mean over the clip, and the clip of unit variance: what moves, however bright and strong.

    Ours. In small data of one scene, nearly all that pictures hold is the scene: a transformer that must find the rest
    by itself stays at chance for thousands of steps.
    """
    moving = pictures - pictures.mean(2, keepdim=True)
    return moving / (moving.std((1, 2, 3, 4), keepdim=True) + STILL)
