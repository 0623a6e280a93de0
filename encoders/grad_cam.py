"""Which tokens of a transformer speak for a class: Grad-CAM over its grid of pictures or sound.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-Based Localization" (ICCV 2017), on
tokens instead of a convolution's channels: the tokens before the last block's attention, each channel weighted by the
mean over the grid of the class score's gradient, what is negative cut off. MMT's paper shows its models so. Behind the
last attention only the class token is read, which is why the look is taken before it.

Shapes: B batch, N token, D width, G the grid (time, rows, columns) of a clip or (frequency, time) of sound, K class.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from encoders.errors import ConfigError

__all__ = ["Look", "grad_cam", "looks_of"]

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Look:
    """Where the tokens of a modality are seen: what the last block's attention is given."""

    block: nn.Module  # with norm1; its inputs are tokens, and of a pooled block their grid
    grid: Grid | None  # None: the block is told
    first: int  # tokens before those of the grid
    axes: tuple[str, ...]  # of the grid


def looks_of(model: Any) -> dict[str, Look]:
    """By modality, video first; raises ConfigError where a model's tokens lie on no grid."""
    from encoders.classifier import Classifier

    model = model.encoder if isinstance(model, Classifier) else model
    for kind, find in _FINDERS.items():
        if any(f"{base.__module__}:{base.__name__}" == kind for base in type(model).__mro__):
            found = find(model)
            if found:
                return found
    raise ConfigError(
        f"{type(model).__name__} has no tokens on one grid to look at; explain a run of MViTv2, MAT, MMT, MBT, AST or "
        "ViViT with joint attention"
    )


SEEN, HEARD = ("time", "rows", "columns"), ("frequency", "time")


def _multiscale(model: Any) -> dict[str, Look]:
    axes = HEARD if model.modalities == ("audio",) else SEEN[-len(model.config.stem_kernel) :]
    return {model.modalities[0]: Look(model.blocks[-1], None, int(model.cls is not None), axes)}


def _mmt(model: Any) -> dict[str, Look]:
    return {**_multiscale(model.video), **_multiscale(model.audio)}


def _mbt(model: Any) -> dict[str, Look]:
    if model.encoder.shared:  # one stack for both: its last block is met twice
        return {}
    first, blocks = int(model.config.pool == "token"), model.encoder.blocks
    grids = {m: tuple(part.grid) for m, part in model.config.inputs.items()}
    grids = {m: grid if m == "video" else grid[-2:] for m, grid in grids.items()}
    axes = {"video": SEEN, "audio": HEARD[::-1]}  # mel frames before mel bins
    return {m: Look(blocks[m][-1], grids[m], first, axes[m]) for m in model.modalities}


def _ast(model: Any) -> dict[str, Look]:
    return {"audio": Look(model.encoder.blocks[-1], model.config.grid, 2, HEARD)}


def _vivit(model: Any) -> dict[str, Look]:
    if model.config.attention != "joint":
        return {}
    grid = model.config.steps, *model.config.grid
    trunk = model.transformer
    return {"video": Look(trunk.encoder.blocks[-1], grid, int(trunk.cls is not None), SEEN)}


# Named, so that looking at one model imports no other.
_FINDERS: dict[str, Callable[[Any], dict[str, Look]]] = {
    "encoders.audiovisual.mmt:MMT": _mmt,
    "encoders.audiovisual.mbt:MBT": _mbt,
    "encoders.audio.spectrogram_transformer:AST": _ast,
    "encoders.video.vivit:ViViT": _vivit,
    "encoders.layers.multiscale:Multiscale": _multiscale,
}


def grad_cam(
    model: Any, answer: Callable[[], Float[Tensor, "b k"]], classes: Tensor
) -> dict[str, Float[Tensor, "b *grid"]]:
    """How much each token speaks for ``classes`` (B,), by modality: maps (B, time, rows, columns) of pictures,
    (B, frequency, time) of sound, none of it negative.

    ``answer`` runs the model and gives its logits. A modality that was not there is left out. The model's weights and
    their gradients stay as they were; it should be in eval mode, as rows must not depend on each other.
    """
    looks = looks_of(model)
    with torch.enable_grad(), _watched(looks) as seen:
        scores = answer().gather(1, classes[:, None]).sum()
        there = [m for m in looks if m in seen]
        gradients = torch.autograd.grad(scores, [seen[m][0] for m in there], allow_unused=True)
    maps = {}
    for modality, gradient in zip(there, gradients, strict=True):
        tokens, grid = seen[modality]
        first, count = looks[modality].first, prod(grid)
        gradient = torch.zeros_like(tokens) if gradient is None else gradient
        places, slopes = (x[:, first : first + count].detach() for x in (tokens, gradient))  # (B, N, D)
        strength = (places * slopes.mean(1, keepdim=True)).sum(-1).clamp_min(0)
        maps[modality] = _ordered(strength.unflatten(1, grid), looks[modality].axes)
    return maps


def _ordered(maps: Tensor, axes: tuple[str, ...]) -> Tensor:
    """With the axes in their usual order; a picture is a clip of one step."""
    if axes == SEEN[1:]:
        return maps[:, None]
    wanted = SEEN if "rows" in axes else HEARD
    return maps.permute(0, *(1 + axes.index(name) for name in wanted))


@contextmanager
def _watched(looks: Mapping[str, Look]) -> Iterator[dict[str, tuple[Tensor, Grid]]]:
    """The normed tokens of each modality, and their grid, of the forward pass made inside."""
    seen: dict[str, tuple[Tensor, Grid]] = {}
    hooks = []

    def watch(modality: str, look: Look) -> None:
        told: list[Grid] = []

        def before(block: nn.Module, given: tuple[Any, ...]) -> None:
            told[:] = [given[1] if look.grid is None else look.grid]

        def after(norm: nn.Module, given: tuple[Any, ...], tokens: Tensor) -> Tensor:
            tokens = tokens if tokens.requires_grad else tokens.requires_grad_()
            seen[modality] = tokens, told[0]
            return tokens

        hooks.append(look.block.register_forward_pre_hook(before))
        hooks.append(look.block.get_submodule("norm1").register_forward_hook(after))

    for modality, look in looks.items():
        watch(modality, look)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
