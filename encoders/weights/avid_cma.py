"""AVID-CMA's parameter names in the public code: one file with both networks and their projections.

Morgado, Vasconcelos, Misra (CVPR 2021). Names begin with ``module.`` (DataParallel), then with ``video_model``,
``audio_model`` and their projections; each network is read from the whole file. The files are pickles, which are not
read: save what they hold under ``model`` as safetensors. The memory beside it is of the authors' own lists of videos.
"""

from collections.abc import Iterable

from encoders.audio.conv2d import Conv2DConfig
from encoders.video.r2plus1d import R2Plus1DConfig
from encoders.weights.crisscross import VIDEO_NET, named
from encoders.weights.rules import Rule

__all__ = ["recognises", "rules"]

AUDIO_NET = ("conv1.{i}.{part:s}", "block{i}.{name:s}.{part:s}")
NETS = {"video": VIDEO_NET, "audio": AUDIO_NET}


def recognises(names: Iterable[str]) -> bool:
    """Whether a file that could be of several layouts is of this one."""
    return any(name.removeprefix("module.").startswith(("video_model.", "audio_model.")) for name in names)


def rules(config: R2Plus1DConfig | Conv2DConfig) -> list[Rule]:
    """Their names to those of one network; the other, and the projections, are left out."""
    own, other = ("video", "audio") if isinstance(config, R2Plus1DConfig) else ("audio", "video")
    table: list[Rule] = []
    for prefix in ("module.", ""):
        table += named(f"{prefix}{own}_model.", NETS[own], "")
        table += named(f"{prefix}{other}_model.", NETS[other], None)
        table += [Rule(f"{prefix}{m}_proj.projection.{{i}}.{{part:s}}", None) for m in NETS]
    return table
