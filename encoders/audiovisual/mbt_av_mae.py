"""The MBTs that AV-MAE is fine-tuned as: no class tokens, means over tokens, and positions that are not learned.

Georgescu et al., "Audiovisual Masked Autoencoders" (ICCV 2023), and google-research/scenic (projects/av_mae/mbt.py).
Both modalities meet late, through four bottleneck tokens; with one modality alone it is a plain transformer. The
pictures are 32, every other one of 2.56 s, twice as many as in pre-training: positions simply go on.
"""

from dataclasses import replace
from fractions import Fraction
from typing import Any

from encoders.audiovisual.inputs import AudioInput, VideoInput
from encoders.audiovisual.mbt import MBT, MBTConfig
from encoders.audiovisual.mbt import PRESETS as PLAIN

__all__ = ["MBT", "PRESETS"]

_AV_MAE: dict[str, Any] = {"pool": "mean", "positions": "sinusoidal"}
_LONG = Fraction(248, 25)  # what patches of 16 mel frames cover of 10 s
_BASE = MBTConfig(**_AV_MAE, audio=AudioInput(front="scenic_raw"))
_LARGE = replace(_BASE, dim=1024, depth=24, heads=16, mlp_dim=4096, fusion_layer=16)
_AUDIOSET = replace(
    _LARGE,
    video=VideoInput(tubelet=(2, 16, 16), clip_seconds=_LONG),
    audio=AudioInput(frames=992, clip_seconds=_LONG, front="scenic"),
    spectrogram_channels=1,
    fusion_layer=18,
)

PRESETS = {
    "mbt_av_mae_base": _BASE,
    "mbt_av_mae_base_video": replace(_BASE, audio=None),
    "mbt_av_mae_base_audio": replace(_BASE, video=None),
    "mbt_av_mae_large": _LARGE,  # as released for VGGSound
    "mbt_av_mae_large_video": replace(_LARGE, audio=None),
    "mbt_av_mae_large_audio": replace(_LARGE, video=None),
    "mbt_av_mae_large_audioset": _AUDIOSET,
    "mbt_av_mae_large_audioset_video": replace(_AUDIOSET, audio=None),
    "mbt_av_mae_large_audioset_audio": replace(_AUDIOSET, video=None),
    "mbt_av_mae_tiny": replace(PLAIN["mbt_tiny"], **_AV_MAE),
}
