"""Encoders by preset name. Looking a name up imports nothing heavy; building one imports its module.

A new encoder brings one line here: its preset name, and the module and class that hold it. The module's own
``PRESETS`` holds the config under the same name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from encoders.settings import override, pick

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ENCODERS", "build", "config_of"]

_R2PLUS1D = "encoders.video.r2plus1d:R2Plus1D"
_CONV2D = "encoders.audio.conv2d:Conv2D"

ENCODERS: dict[str, str] = {
    "r2plus1d_18": _R2PLUS1D,
    "r2plus1d_10": _R2PLUS1D,
    "r2plus1d_34": _R2PLUS1D,
    "r2plus1d_talk": _R2PLUS1D,
    "r2plus1d_tiny": _R2PLUS1D,
    "conv2d_10": _CONV2D,
    "conv2d_talk": _CONV2D,
    "conv2d_tiny": _CONV2D,
}


def config_of(name: str, **overrides: Any) -> Any:
    """The preset's config with ``overrides`` made; raises UsageError on an unknown name, key or wrong type."""
    module, _, _ = pick(ENCODERS, name, "encoder").partition(":")
    return override(import_module(module).PRESETS[name], overrides)


def build(name: str, **overrides: Any) -> "nn.Module":
    """The encoder of a preset, freshly initialised from torch's global generator."""
    config = config_of(name, **overrides)
    module, _, class_name = ENCODERS[name].partition(":")
    encoder: nn.Module = getattr(import_module(module), class_name)(config)
    return encoder
