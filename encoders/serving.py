"""Frozen networks, rearranged for a CPU: the same features, to rounding, in about half the time.

``served`` takes a trained encoder and gives one that does the same with fewer and faster steps; one it knows nothing
about is returned as it is. Batch norm disappears into the convolution before it. Activations lie with channels last,
so that a convolution over space and one over time are both plain 2-D convolutions of one memory layout:
(B T, H, W, C) and (B, T, H W, C) are the same numbers in the same places.

``dtype`` is what the network computes in (fp32, or bf16 where the processor has it): inputs are prepared and features
made to unit length in fp32 all the same.

Shapes: B batch, T frame or mel frame, H W pixels, F mel bin, C channel, D feature, G grid cells per side.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.adapters import Adapted
from encoders.audio import conv2d, resnet2d
from encoders.layers.steps import unit_steps
from encoders.video import face_box, r2plus1d

__all__ = ["served", "served_face"]

Folded = tuple[Tensor, Tensor]  # weight and bias of a convolution


def served(encoder: Any, *, dtype: torch.dtype = torch.float32, batched: bool = False) -> Any:
    """A frozen encoder in the form that serves fastest on a CPU.

    ``batched`` also prepares pictures in a way that pays in batches and rounds differently; without it a single clip
    gives the same bits as ever.
    """
    if type(encoder) is Adapted:
        return Adapted(served(encoder.encoder, dtype=dtype, batched=batched), encoder.modality, encoder.dim).eval()
    if type(encoder) is r2plus1d.R2Plus1D:
        return (BatchedR2Plus1D if batched else ServedR2Plus1D)(encoder, dtype).eval()
    if type(encoder) is resnet2d.ResNet2D:
        return ServedResNet2D(encoder, dtype).eval()
    return ServedConv2D(encoder, dtype).eval() if type(encoder) is conv2d.Conv2D else encoder


def served_face(finder: face_box.FaceBox) -> "ServedFaceBox":
    """The face finder in the form that serves fastest on a CPU: pictures to (boxes, how sure), to rounding."""
    return ServedFaceBox(finder).eval()


def fold(weight: Tensor, norm: Any) -> Folded:
    """A convolution without bias and the batch norm after it, as one convolution with bias."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    folded = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
    return folded.to(weight), (norm.bias.double() - norm.running_mean.double() * scale).to(weight)


def _last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


class _Served(nn.Module):
    """An encoder in another form: what it promises is what the original promises."""

    def __init__(self, original: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.original, self.dtype = original.eval(), dtype
        for name in ("modalities", "dim", "clip_seconds", "context_seconds", "spec", "config"):
            if hasattr(original, name):
                setattr(self, name, getattr(original, name))

    @property
    def no_face(self) -> Tensor | None:
        return getattr(self.original, "no_face", None)

    def encode(self, clips: Tensor) -> Tensor:
        """Clips to features, as the original."""
        out: Tensor = self(self.prepare(clips))
        return out

    def prepare(self, clips: Tensor) -> Tensor:
        """Clips to the network's input."""
        prepared: Tensor = self.original.prepare(clips)
        return prepared

    def _cast(self, folded: Folded) -> Folded:
        return folded[0].to(self.dtype), folded[1].to(self.dtype)


class _Block:
    """A (2+1)D block on (B, T, H, W, C)."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        def folded(weight: Tensor, norm: Any) -> Folded:
            weight, bias = fold(weight, norm)
            return _last(weight.to(dtype)), bias.to(dtype)

        self.space1 = folded(block.spt_conv1.weight[:, :, 0], block.spt_bn1)
        self.space2 = folded(block.spt_conv2.weight[:, :, 0], block.spt_bn2)
        self.time1 = folded(block.tmp_conv1.weight[..., 0], block.tmp_bn1)
        # the norm after the sum is shared out to both sides of it
        self.time2 = folded(block.tmp_conv2.weight[..., 0], block.out_bn)
        self.steps = block.tmp_conv1.stride[0], block.spt_conv1.stride[1]
        conv = block.res_conv
        norm = block.out_bn
        self.scale = (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).to(norm.weight)
        self.shortcut: Tensor | None = None
        if conv is not None:
            self.shortcut = (conv.weight.flatten(1) * self.scale[:, None]).t().contiguous().to(dtype)
        self.scale = self.scale.to(dtype)

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

    def __init__(self, original: r2plus1d.R2Plus1D, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(original, dtype)
        conv: Any = original.conv1[0]
        self.stem = self._cast(fold(conv.weight, original.conv1[1]))
        self.stem_stride, self.stem_padding = conv.stride, conv.padding
        self.pool = original.conv1[3] if original.config.stem_pool else None
        stages: Iterable[Any] = (getattr(original, name) for name in original.stage_names)
        self.blocks = [_Block(b, dtype) for s in stages for b in (s if isinstance(s, nn.Sequential) else [s])]
        if original.step is not None:
            cells = original.config.cells
            weight = original.step.weight.unflatten(1, (-1, cells, cells))
            self.step = self._cast((weight.permute(0, 2, 3, 1).flatten(1).contiguous(), original.step.bias))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, D)."""
        x = F.conv3d(x.to(self.dtype), *self.stem, self.stem_stride, self.stem_padding).relu_()
        if self.pool is not None:
            x = self.pool(x)
        x = x.permute(0, 2, 3, 4, 1).contiguous()  # (B, T, H, W, C)
        for block in self.blocks:
            x = block(x)
        if self.original.config.pool == "average":
            return x.float().mean((1, 2, 3))
        if self.original.step is None:
            return x.amax((1, 2, 3)).float()
        return unit_steps(F.linear(x.flatten(2), *self.step).float())  # (B, T'*step_dim)


class BatchedR2Plus1D(ServedR2Plus1D):
    """The same for batches: the mean around each pixel is two products with a band matrix, fifteen times as fast."""

    def __init__(self, original: r2plus1d.R2Plus1D, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(original, dtype)
        self.around = _band(original.config.size, r2plus1d.AROUND)

    def prepare(self, clips: Tensor) -> Tensor:
        if self.original.config.front != "local_motion":
            return super().prepare(clips)
        x = _standard(clips.float().mul_(1 / 255), 0.02)
        prepared = torch.zeros(len(x), 2, *x.shape[1:])
        still, change = prepared.unbind(1)
        torch.sub(x, self.around @ x @ self.around.t(), out=still)
        torch.sub(still[:, 1:], still[:, :-1], out=change[:, 1:]).mul_(3)
        return prepared


def _standard(x: Tensor, floor: float) -> Tensor:
    """Each row less its mean, over its deviation plus ``floor``; torch's own deviation takes six times as long."""
    rows = x.flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    deviation = torch.linalg.vector_norm(rows, dim=1, keepdim=True) / (rows.shape[1] - 1) ** 0.5
    return rows.div_(deviation + floor).view_as(x)


def _band(size: int, width: int) -> Tensor:
    """(size, size): a row averages the ``width`` numbers around its place, fewer at the edges."""
    place = torch.arange(size)
    near = ((place[:, None] - place[None]).abs() <= width // 2).float()
    return near / near.sum(1, keepdim=True)


class ServedConv2D(_Served):
    """The spectrogram network with channels last."""

    def __init__(self, original: conv2d.Conv2D, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(original, dtype)
        layers: list[tuple[Any, Any]] = [(original.conv1[0], original.conv1[1])]
        for name in original.block_names:
            block: Any = getattr(original, name)
            layers += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        self.layers = _stack(layers, dtype)
        if original.step is not None:
            weight = original.step.weight.unflatten(1, (-1, original.config.grid()[1]))  # (step_dim, C, F')
            self.step = self._cast((weight.transpose(1, 2).flatten(1).contiguous(), original.step.bias))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, T, F) -> (B, D)."""
        x = _through(self.layers, x.to(self.dtype))  # (B, C, T', F')
        if self.original.step is None:
            return x.amax((2, 3)).float()
        return unit_steps(F.linear(x.permute(0, 2, 3, 1).flatten(2), *self.step).float())


class ServedResNet2D(_Served):
    """The residual spectrogram network with channels last."""

    def __init__(self, original: resnet2d.ResNet2D, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(original, dtype)
        conv, norm, _, self.pool = original.conv1
        self.stem = _stack([(conv, norm)], dtype)
        self.blocks = [
            (
                _stack([(block.conv1, block.bn1), (block.conv2, block.bn2)], dtype),
                _stack([tuple(block.downsample)], dtype) if block.downsample is not None else [],
            )
            for name in original.stage_names
            for block in getattr(original, name)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, F, T) -> (B, D)."""
        x = self.pool(_through(self.stem, x.to(self.dtype)))
        for (first, last), shortcut in self.blocks:
            y = _convolved(last, _through([first], x))
            x = y.add_(_convolved(shortcut[0], x) if shortcut else x).relu_()
        return x.float().mean((2, 3)) if self.original.config.pool == "average" else x.amax((2, 3)).float()


class ServedFaceBox(nn.Module):
    """The face finder with channels last; always fp32, for a box is read to a fraction of a pixel."""

    def __init__(self, original: face_box.FaceBox) -> None:
        super().__init__()
        self.original, self.config = original.eval(), original.config
        trunk = list(original.trunk)
        self.layers = _stack(zip(trunk[::3], trunk[1::3], strict=True), torch.float32)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, H, W) -> boxes (B, 3) and the probabilities of a face (B,)."""
        x = _standard(pictures.float(), 4.0)
        x = _through(self.layers, x[:, None])
        around: Any = self.original.around
        return self.original.boxes(self.original.out((x + around(x)).relu_()))


def _stack(layers: Iterable[tuple[Any, Any]], dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Any, Any]]:
    """Convolutions and the norms after them: weight, bias, stride, padding of each."""
    made = []
    for conv, norm in layers:
        weight, bias = fold(conv.weight, norm)
        made.append((_last(weight.to(dtype)), bias.to(dtype), conv.stride, conv.padding))
    return made


def _through(layers: list[tuple[Tensor, Tensor, Any, Any]], x: Tensor) -> Tensor:
    """Every convolution with its ReLU."""
    x = x.contiguous(memory_format=torch.channels_last)
    for layer in layers:
        x = _convolved(layer, x).relu_()
    return x


def _convolved(layer: tuple[Tensor, Tensor, Any, Any], x: Tensor) -> Tensor:
    weight, bias, stride, padding = layer
    return F.conv2d(x, weight, bias, stride, padding)
