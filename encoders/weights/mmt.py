"""What MMT starts from: MViTv2's public weights, of clips or of pictures, for either of its encoders.

Zhu, "Efficient Multiscale Multimodal Bottleneck Transformer for Audio-Video Classification" (2024): MAT starts from
MViTv2-B of pictures; of the video encoder the paper says only that it follows MViTv2-B, so both are taken, one trained
on clips (SlowFast's Kinetics-400, which contains Kinetics-Sounds) or one of pictures. One file, of pictures, starts
both encoders; of two the first starts the video encoder and the second MAT. Fusion and heads are new. Or each starts
from a run of ours, of its own kind: a MViTv2 that saw, a MAT that heard.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from encoders.audio.mat import MATConfig
from encoders.audiovisual.av_bottleneck import MODALITIES
from encoders.audiovisual.mmt import MMT
from encoders.checkpoint import load_weights
from encoders.errors import DataError, UsageError
from encoders.video.mvitv2 import MViTv2Config
from encoders.weights import mvitv2
from encoders.weights.rules import convert

__all__ = ["carry", "initialise", "read_start"]

PATCHES = "patch_embed.proj.weight"  # five axes in a model of clips


def read_start(source: Mapping[str, np.ndarray], *, what: str = "the MViTv2") -> Mapping[str, np.ndarray | Tensor]:
    """A MViTv2 of pictures under our names; one of clips as it is, since only the model knows its sizes."""
    if PATCHES in source and source[PATCHES].ndim == 5:
        return source
    return mvitv2.read_start(source, what=what)


@torch.no_grad()
def initialise(
    model: MMT, started: Sequence[Mapping[str, np.ndarray | Tensor]], *, inflation: str = "central",
    what: str = "the MViTv2",
) -> None:  # fmt: skip
    """Start both encoders from what `read_start` gives, one for both or video's and sound's; all else stays as it is.

    Raises UsageError on more, and on clips for sound; DataError naming the first parameter that does not fit, before
    anything is changed.
    """
    if len(started) not in (1, 2):
        raise UsageError(f"{len(started)} files are given; MMT starts from one, or video's and then sound's")
    seen, heard = started[0], started[-1]
    if PATCHES in heard:
        raise UsageError(f"sound cannot start from a MViTv2 of clips ({what}); give one of pictures as the second file")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        _start_video(model, seen, inflation, what)
        mvitv2.initialise(model.audio, _tensors(heard), what=f"{what}, for sound")
    except DataError:
        model.load_state_dict(before)
        raise


@torch.no_grad()
def carry(
    model: MMT, weights: Mapping[str, Tensor], config: MViTv2Config | MATConfig, *, what: str = "the encoder"
) -> None:
    """Start the encoder of its modality from one that was trained by itself (``legato train mvitv2_... | mat_...``).

    A classifier of as many classes that came along has its half of the new one's say: before it learns, the model
    answers about as the mean of two classifiers would. Raises DataError naming the first weight that does not fit,
    before anything is changed.
    """
    place = int(isinstance(config, MATConfig))
    head = {k.removeprefix("head."): v for k, v in weights.items() if k.startswith("head.")}
    load_weights((model.video, model.audio)[place], {k: v for k, v in weights.items() if not k.startswith("head.")},
                 what=what)  # fmt: skip
    if set(head) != {"weight", "bias"} or head["weight"].shape != (model.config.classes, model.config.dim):
        return
    if model.heads is not None:
        load_weights(model.heads[MODALITIES[place]], head, what=what)
    elif model.head is not None:
        model.head.weight[:, place * model.config.dim : (place + 1) * model.config.dim] = head["weight"] / 2
        model.head.bias.add_(head["bias"] / 2)


def _start_video(model: MMT, seen: Mapping[str, np.ndarray | Tensor], inflation: str, what: str) -> None:
    if PATCHES not in seen:
        mvitv2.initialise(model.video, _tensors(seen), inflation=inflation, what=f"{what}, for video")
        return
    arrays = {key: np.asarray(value) for key, value in seen.items()}
    own = model.video.state_dict()
    table = mvitv2.rules(model.video.config)
    model.video.load_state_dict({**own, **convert(arrays, table, own, what=what, keep=("no_face",))})


def _tensors(started: Mapping[str, np.ndarray | Tensor]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in started.items()}
