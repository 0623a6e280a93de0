"""Frozen networks, rearranged for a CPU: the same features, to rounding, in about half the time.

``served`` takes a trained encoder and gives one that does the same with fewer and faster steps; one it knows nothing
about is returned as it is. Batch norm disappears into the convolution before it. Activations lie with channels last,
so that a convolution over space and one over time are both plain 2-D convolutions of one memory layout:
(B T, H, W, C) and (B, T, H W, C) are the same numbers in the same places.

Shapes: B batch, T frame or mel frame, H W pixels, F mel bin, C channel, D feature.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.audio import conv2d
from encoders.layers.steps import unit_steps
from encoders.video import r2plus1d

__all__ = ["served"]

Folded = tuple[Tensor, Tensor]  # weight and bias of a convolution


def served(encoder: Any) -> Any:
    """A frozen encoder in the form that serves fastest on a CPU."""
    if type(encoder) is r2plus1d.R2Plus1D:
        return ServedR2Plus1D(encoder).eval()
    return ServedConv2D(encoder).eval() if type(encoder) is conv2d.Conv2D else encoder


def fold(weight: Tensor, norm: Any) -> Folded:
    """A convolution without bias and the batch norm after it, as one convolution with bias."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    folded = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
    return folded.to(weight), (norm.bias.double() - norm.running_mean.double() * scale).to(weight)


def _last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


class _Served(nn.Module):
    """An encoder in another form: what it promises is what the original promises."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.original = original.eval()
        for name in ("modalities", "dim", "clip_seconds", "context_seconds", "spec", "config"):
            if hasattr(original, name):
                setattr(self, name, getattr(original, name))

    @property
    def no_face(self) -> Tensor | None:
        return getattr(self.original, "no_face", None)

    def encode(self, clips: Tensor) -> Tensor:
        """Clips to features, as the original."""
        out: Tensor = self(self.original.prepare(clips))
        return out


class _Block:
    """A (2+1)D block on (B, T, H, W, C)."""

    def __init__(self, block: Any) -> None:
        def space(conv: Any, norm: Any) -> Folded:
            weight, bias = fold(conv.weight[:, :, 0], norm)
            return _last(weight), bias

        self.space1, self.space2 = space(block.spt_conv1, block.spt_bn1), space(block.spt_conv2, block.spt_bn2)
        weight, bias = fold(block.tmp_conv1.weight[..., 0], block.tmp_bn1)
        self.time1 = _last(weight), bias
        weight, bias = fold(block.tmp_conv2.weight[..., 0], block.out_bn)
        self.time2 = _last(weight), bias  # the norm after the sum is shared out to both sides of it
        self.steps = block.tmp_conv1.stride[0], block.spt_conv1.stride[1]
        conv = block.res_conv
        norm = block.out_bn
        self.scale = (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).to(norm.weight)
        self.shortcut = None if conv is None else (conv.weight.flatten(1) * self.scale[:, None]).t().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        steps, stride = self.steps
        y = _over_space(x, *self.space1, stride).relu_()
        y = _over_time(y, *self.time1, steps).relu_()
        y = _over_space(y, *self.space2, 1).relu_()
        y = _over_time(y, *self.time2, 1)
        if self.shortcut is None:
            return y.addcmul_(x, self.scale).relu_()
        return y.add_(x[:, ::steps, ::stride, ::stride] @ self.shortcut).relu_()


def _over_space(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """(B, T, H, W, C) through a convolution of every picture by itself."""
    batch, frames = x.shape[:2]
    y = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, bias, stride, weight.shape[-1] // 2)
    return y.permute(0, 2, 3, 1).contiguous().unflatten(0, (batch, frames))


def _over_time(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """(B, T, H, W, C) through a convolution of every pixel by itself."""
    height, width = x.shape[2:4]
    y = F.conv2d(x.flatten(2, 3).permute(0, 3, 1, 2), weight, bias, (stride, 1), (weight.shape[-2] // 2, 0))
    return y.permute(0, 2, 3, 1).contiguous().unflatten(2, (height, width))


class ServedR2Plus1D(_Served):
    """R(2+1)D with channels last."""

    def __init__(self, original: r2plus1d.R2Plus1D) -> None:
        super().__init__(original)
        conv: Any = original.conv1[0]
        self.stem = fold(conv.weight, original.conv1[1])
        self.stem_stride, self.stem_padding = conv.stride, conv.padding
        self.pool = original.conv1[3] if original.config.stem_pool else None
        stages: Iterable[Any] = (getattr(original, name) for name in original.stage_names)
        self.blocks = [_Block(b) for s in stages for b in (s if isinstance(s, nn.Sequential) else [s])]
        if original.step is not None:
            cells = original.config.cells
            weight = original.step.weight.unflatten(1, (-1, cells, cells))
            self.step = weight.permute(0, 2, 3, 1).flatten(1).contiguous(), original.step.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        x = F.conv3d(x, *self.stem, self.stem_stride, self.stem_padding).relu_()
        if self.pool is not None:
            x = self.pool(x)
        x = x.permute(0, 2, 3, 4, 1).contiguous()  # (B, T, H, W, C)
        for block in self.blocks:
            x = block(x)
        if self.original.step is None:
            return x.amax((1, 2, 3))
        return unit_steps(F.linear(x.flatten(2), *self.step))  # (B, T'*step_dim)


class ServedConv2D(_Served):
    """The spectrogram network with channels last."""

    def __init__(self, original: conv2d.Conv2D) -> None:
        super().__init__(original)
        layers: list[tuple[Any, Any]] = [(original.conv1[0], original.conv1[1])]
        for name in original.block_names:
            block: Any = getattr(original, name)
            layers += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        self.layers = _stack(layers)
        if original.step is not None:
            weight = original.step.weight.unflatten(1, (-1, original.config.grid()[1]))  # (step_dim, C, F')
            self.step = weight.transpose(1, 2).flatten(1).contiguous(), original.step.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, T, F) -> (B, D)."""
        x = _through(self.layers, x)  # (B, C, T', F')
        if self.original.step is None:
            return x.amax((2, 3))
        return unit_steps(F.linear(x.permute(0, 2, 3, 1).flatten(2), *self.step))


def _stack(layers: Iterable[tuple[Any, Any]]) -> list[tuple[Tensor, Tensor, Any, Any]]:
    """Convolutions and the norms after them: weight, bias, stride, padding of each."""
    made = []
    for conv, norm in layers:
        weight, bias = fold(conv.weight, norm)
        made.append((_last(weight), bias, conv.stride, conv.padding))
    return made


def _through(layers: list[tuple[Tensor, Tensor, Any, Any]], x: Tensor) -> Tensor:
    """Every convolution with its ReLU."""
    x = x.contiguous(memory_format=torch.channels_last)
    for weight, bias, stride, padding in layers:
        x = F.conv2d(x, weight, bias, stride, padding).relu_()
    return x
