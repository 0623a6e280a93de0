"""Encoders made to stand side by side: one modality each, all of one width.

A window of features is (B, W, M, D), so every modality's feature is D wide: a narrower one ends in zeros, which
standardising, filling and heads leave at zero. An encoder that is joint over audio and video (PolyViT, multimodal MTV)
is one network with an ``encode(clips, modality)`` and a spec for each modality in ``specs``; it stands once per
modality, over the same weights, so that either feature exists without the other and can be filled.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from encoders.errors import ConfigError

__all__ = ["Adapted", "adapted", "spec_of"]


def spec_of(encoder: Any, modality: str) -> Any:
    """The clip that an encoder asks for in one modality; raises ConfigError where it has no such modality."""
    if modality not in encoder.modalities:
        raise ConfigError(f"an encoder of {', '.join(encoder.modalities)} has no {modality}; name another preset")
    return encoder.specs[modality] if hasattr(encoder, "specs") else encoder.spec


def adapted(encoder: Any, modality: str, dim: int) -> Any:
    """An encoder as it stands for ``modality`` with features ``dim`` wide; itself where it does so already."""
    if not hasattr(encoder, "specs") and encoder.dim == dim:
        return encoder
    return Adapted(encoder, modality, dim)


class Adapted(nn.Module):
    """One modality of an encoder, its features filled up with zeros to ``dim``."""

    def __init__(self, encoder: Any, modality: str, dim: int) -> None:
        super().__init__()
        if encoder.dim > dim:
            raise ConfigError(f"a feature of width {encoder.dim} does not fit into {dim}; give dim >= {encoder.dim}")
        self.encoder, self.modality, self.dim = encoder, modality, dim
        self.spec = spec_of(encoder, modality)
        self.modalities = (modality,)
        self.clip_seconds, self.context_seconds = encoder.clip_seconds, encoder.context_seconds
        self.config = encoder.config
        if hasattr(encoder, "dtype"):  # it computes in a precision of its own choice (encoders.serving)
            self.dtype = encoder.dtype
        self.on_device = getattr(encoder, "on_device", True)  # False: it computes on the CPU, whatever the device

    @property
    def no_face(self) -> Tensor | None:
        """The feature of a clip without a face, where the encoder has one and looks at pictures."""
        feature = getattr(self.encoder, "no_face", None) if self.modality == "video" else None
        return None if feature is None else self._widened(feature)

    def encode(self, clips: Tensor) -> Tensor:
        """Clips as ``spec`` says, to (B, dim)."""
        joint = hasattr(self.encoder, "specs")
        features = self.encoder.encode(clips, self.modality) if joint else self.encoder.encode(clips)
        return self._widened(features)

    def _widened(self, features: Tensor) -> Tensor:
        return pad(features, (0, self.dim - features.shape[-1]))
