"""An encoder with a head: what fine-tuning trains, and what of it an encoder keeps.

Encoders whose config has ``classes`` bring their own head, as their papers build it; any other gets a linear one.

Shapes: B batch, C channel, T frame, H W pixels, D width, K class.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from encoders.checkpoint import load_weights
from encoders.errors import ConfigError
from encoders.registry import build, config_of

__all__ = [
    "Classifier", "build_classifier", "encoder_file", "encoder_weights", "head_names", "load_encoder", "modalities_of",
    "start_from",
]  # fmt: skip


class Classifier(nn.Module):
    """An encoder without a head of its own, and a linear layer on its features (zero at the start)."""

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.dim, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.spec, self.config, self.dim = self.encoder.spec, self.encoder.config, self.encoder.dim
        self.modalities, self.clip_seconds = self.encoder.modalities, self.encoder.clip_seconds
        self.front = getattr(self.encoder, "front", None)  # of one that hears

    def prepare(self, clips: Tensor) -> Tensor:
        """uint8 clips to the encoder's input."""
        return cast(Tensor, self.encoder.prepare(clips))

    def heard(self, spectrograms: Tensor) -> Tensor:
        """Spectrograms to the encoder's input."""
        return cast(Tensor, self.encoder.heard(spectrograms)) if hasattr(self.encoder, "heard") else spectrograms

    def features(self, x: Tensor) -> Tensor:
        """The encoder's input to features (B, D)."""
        return cast(Tensor, self.encoder(x))

    def forward(self, x: Tensor) -> Tensor:
        """The encoder's input to logits (B, K)."""
        return cast(Tensor, self.head(self.encoder(x)))


def build_classifier(preset: str, classes: int, overrides: Mapping[str, Any] | None = None) -> Any:
    """The encoder of a preset with a head of ``classes`` outputs, freshly initialised."""
    overrides = dict(overrides or {})
    config = _without_head(preset, overrides)
    if _has_head(config):
        return build(preset, **{**overrides, "classes": classes})
    return Classifier(build(preset, **overrides), classes)


def encoder_weights(model: nn.Module, preset: str, overrides: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that the preset has when it is built as an encoder, without head."""
    weights = model.state_dict()
    if isinstance(model, Classifier):
        return {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
    return {k: weights[k] for k in _own(preset, overrides)}


def head_names(model: nn.Module, preset: str, overrides: Mapping[str, Any]) -> set[str]:
    """The weights of a classifier that its encoder by itself does not have."""
    within = "encoder." if isinstance(model, Classifier) else ""
    return set(model.state_dict()) - {within + name for name in _own(preset, overrides)}


def start_from(model: nn.Module, weights: Mapping[str, Tensor], preset: str, overrides: Mapping[str, Any]) -> bool:
    """Weights of an encoder, or of a whole classifier, into a new one; True where the head came along.

    A head of another size stays new. Raises DataError naming the first weight that does not fit otherwise.
    """
    own = model.state_dict()
    whole = weights if any(k in own for k in weights) else {f"encoder.{k}": v for k, v in weights.items()}
    head = head_names(model, preset, overrides)
    fits = all(k in whole and whole[k].shape == own[k].shape for k in head)
    chosen = {k: v for k, v in whole.items() if fits or k not in head}
    load_weights(model, {**({} if fits else {k: own[k] for k in head}), **chosen}, what="the weights to start from")
    return fits


def load_encoder(preset: str, overrides: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None) -> Any:
    """A frozen encoder with these weights, the head that comes with them left out; without any as it is built."""
    encoder = build(preset, **_headless(preset, dict(overrides)))
    if weights is not None:
        own = _own(preset, overrides)
        chosen = {k: v for k, v in weights.items() if k in own} if own <= set(weights) else weights
        load_weights(encoder, chosen, what=f"the weights of {preset}")
    return encoder.eval().requires_grad_(False)


def encoder_file(preset: str, overrides: Mapping[str, Any]) -> str:
    """What the weights of a run's encoder are called: after its one modality, or ``encoder`` where it has several."""
    modalities = modalities_of(preset, overrides)
    return f"{modalities[0] if len(modalities) == 1 else 'encoder'}.safetensors"


def modalities_of(preset: str, overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """What an encoder takes, without building its weights."""
    with torch.device("meta"):
        encoder: Any = build(preset, **_headless(preset, dict(overrides)))
    return tuple(encoder.modalities)


def _own(preset: str, overrides: Mapping[str, Any]) -> set[str]:
    """The names of the encoder's weights."""
    with torch.device("meta"):
        return set(build(preset, **_headless(preset, dict(overrides))).state_dict())


def _headless(preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    return {**overrides, "classes": 0} if _has_head(_without_head(preset, overrides)) else overrides


def _without_head(preset: str, overrides: Mapping[str, Any]) -> Any:
    if "classes" in overrides:
        raise ConfigError(f"classes {overrides['classes']} cannot be set; the head follows the dataset's classes")
    return config_of(preset, **overrides)


def _has_head(config: Any) -> bool:
    return any(f.name == "classes" for f in dataclasses.fields(config))


