"""CrissCross's parameter names in the public code: two backbones by themselves, and a training state with everything.

Sarkar & Etemad (AAAI 2023). The released weights are one flat file per backbone, without any prefix; those of the video
are named as AVID-CMA's. A training state has each backbone and projector twice, by its own name and as a part of an
encoder (``video_encoder.0`` is ``video_backbone``, ``video_encoder.2`` the projector), with ``module.`` before all
where it was trained distributed. The files are pickles, which are not read: save what they hold (a state's ``model``)
as safetensors.
"""

from collections.abc import Iterable

from encoders.audio.resnet2d import ResNet2DConfig
from encoders.audiovisual.crisscross import CrissCrossConfig
from encoders.video.r2plus1d import R2Plus1DConfig
from encoders.weights.rules import Rule

__all__ = ["AUDIO_NET", "VIDEO_NET", "named", "recognises", "rules"]

# Names within a network; both depths of the video's, of which the shallow one has no number of the block.
VIDEO_NET = ("conv1.{i}.{part:s}", "conv{i}x.{j}.{name:s}.{part:s}", "conv{i}x.{name:s}.{part:s}")
AUDIO_NET = ("conv1.{i}.{part:s}", "block{i}.{j}.{name:s}.{part:s}", "block{i}.{j}.downsample.{k}.{part:s}")
PROJECTOR = ("layer{i}.{j}.{part:s}",)
PREDICTOR = ("layer1.{i}.{part:s}", "layer2.{part:s}")
NETS = {"video": VIDEO_NET, "audio": AUDIO_NET}


def recognises(names: Iterable[str]) -> bool:
    """Whether a file that could be of several layouts is of this one."""
    beginnings = ("conv1.", "video_backbone.", "audio_backbone.")
    return any(name.removeprefix("module.").startswith(beginnings) for name in names)


def rules(config: R2Plus1DConfig | ResNet2DConfig | CrissCrossConfig) -> list[Rule]:
    """Their names to those of one backbone, from either kind of file, or of the whole model."""
    if isinstance(config, CrissCrossConfig):
        return [rule for prefix in ("", "module.") for rule in _whole(config, prefix)]
    own, other = ("video", "audio") if isinstance(config, R2Plus1DConfig) else ("audio", "video")
    table = named("", NETS[own], "")
    for prefix in ("module.", ""):
        table += named(f"{prefix}{own}_backbone.", NETS[own], "")
        table += named(f"{prefix}{other}_backbone.", NETS[other], None)
        table += [rule for modality in NETS for rule in _beside(modality, prefix)]
    return table


def _whole(config: CrissCrossConfig, prefix: str) -> list[Rule]:
    table: list[Rule] = []
    for modality, layers in (("video", config.video_layers), ("audio", config.audio_layers)):
        table += named(f"{prefix}{modality}_backbone.", NETS[modality], f"{modality}_backbone.")
        table += named(f"{prefix}{modality}_predictor.", PREDICTOR, f"{modality}_predictor.")
        projector = f"{modality}_projector."
        if layers == 2:  # a middle layer is there nevertheless, untrained
            table.append(Rule(f"{prefix}{projector}layer2.{{j}}.{{part:s}}", None))
            table += [
                Rule(f"{prefix}{projector}layer{i}.{{j}}.{{part:s}}", f"{projector}layer{i}.{{j}}.{{part:s}}")
                for i in (1, 3)
            ]
        else:
            table += named(f"{prefix}{projector}", PROJECTOR, projector)
        table += _twins(modality, prefix)
    return table


def _beside(modality: str, prefix: str) -> list[Rule]:
    """What a training state has beside a backbone."""
    heads = [
        *named(f"{prefix}{modality}_projector.", PROJECTOR, None),
        *named(f"{prefix}{modality}_predictor.", PREDICTOR, None),
    ]
    return heads + _twins(modality, prefix)


def _twins(modality: str, prefix: str) -> list[Rule]:
    """The same tensors once more, as parts of an encoder."""
    return [
        *named(f"{prefix}{modality}_encoder.0.", NETS[modality], None),
        *named(f"{prefix}{modality}_encoder.2.", PROJECTOR, None),
    ]


def named(prefix: str, templates: Iterable[str], target: str | None) -> list[Rule]:
    """Names behind a prefix to the same behind another; dropped where there is no target."""
    return [Rule(prefix + template, None if target is None else target + template) for template in templates]
