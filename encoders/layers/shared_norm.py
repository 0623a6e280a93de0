"""Batch norm whose batch is that of all processes: a run is the same on however many, up to rounding.

torch's own works on accelerators only and says so by failing on a CPU; this one is the same arithmetic, on any device
and any number of axes. Alone it is torch's plain batch norm, to the bit.

Shapes: B batch, C channel.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from encoders.processes import world

__all__ = ["SharedBatchNorm", "share_batch_norm"]


class _Sum(torch.autograd.Function):
    """The sum over all processes; what it is followed by flows back from all of them."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        total: Tensor = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total


class SharedBatchNorm(_BatchNorm):
    """Normalised in training by the mean and variance over all processes, whose shares may differ in size."""

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2, f"batch norm needs (B, C, ...), not {tuple(input.shape)}"

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same; statistics in float32, whatever the precision of the input."""
        self._check_input_dim(input)
        if not self.training or world()[1] == 1:
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        x = input.float()
        # Mean first, then squares about it: as exact as one process, where a difference of squares is not.
        count = _Sum.apply(x.new_tensor([input.numel() / input.shape[1]]))
        mean = _Sum.apply(x.sum(axes)) / count
        shape = [1, -1] + [1] * (input.ndim - 2)
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach(), count)
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Running statistics; the variance is the unbiased one, as torch keeps it."""
        if not self.track_running_stats:
            return
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * count / (count - 1).clamp_min(1)).to(self.running_var), share)


def share_batch_norm(module: nn.Module) -> nn.Module:
    """Every batch norm within becomes a shared one, with its own parameters, buffers and names; gives the module."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, SharedBatchNorm):
            shared = SharedBatchNorm(child.num_features, child.eps, child.momentum, child.affine,
                                     child.track_running_stats)  # fmt: skip
            shared._parameters.update(child._parameters)
            shared._buffers.update(child._buffers)
            shared.train(child.training)
            setattr(module, name, shared)
        else:
            share_batch_norm(child)
    return module
