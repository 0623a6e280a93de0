"""What a run will take, before it takes it: multiply-adds of one clip, counted without computing anything."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from encoders.clips import AudioSpec, VideoSpec
from encoders.readings import answered, is_joint, prepared

__all__ = ["clip_macs", "how_much"]

UNITS = ("", "k", "M", "G", "T", "P", "E", "Z")
BACKWARD = 3  # a training step costs about three forward passes


def clip_macs(model: Any, spec: VideoSpec | AudioSpec) -> int:
    """Multiply-adds of one clip through a copy of a model on the meta device (matrix products and convolutions)."""
    if isinstance(spec, AudioSpec):
        clip = torch.zeros(1, *model.front.shape(model.clip_seconds), device="meta")
    else:
        shape = (1, spec.frames, spec.size, spec.size, 3)
        clip = torch.zeros(shape[: 4 if spec.pixel_format == "gray" else 5], dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        seen = prepared(model, clip)
        if is_joint(model) and "audio" in model.modalities:
            seen["audio"] = torch.zeros(1, *model.front.shape(model.clip_seconds), device="meta")
        answered(model, seen)
    return int(counter.get_total_flops()) // 2


def how_much(macs: int, clips: int) -> str:
    """``clips`` training steps' clips of ``macs`` each, in words: "3.4 GMAC a clip, 12 PFLOP in all"."""
    flops = 2 * macs * BACKWARD * clips
    return f"{_short(macs)}MAC a clip, about {_short(flops)}FLOP in all"


def _short(number: float) -> str:
    power = 0
    while number >= 1000 and power < len(UNITS) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {UNITS[power]}"
