"""A video encoder made by hand: what a few principal components say of the face in a clip, and how they change.

Pictures are standardised clip by clip and halved, and projected to the components of faces of training speakers. Beside
encoders that learned what to see it shows how much of an experiment is the features' doing. A bundle takes it as
``--video external:bench.face_components:FaceComponents``.

Shapes: B clip, T picture, H W pixels, P pixel of a halved picture, C component, D feature.
"""

from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from encoders.clips import VideoSpec
from encoders.errors import DataError

__all__ = ["COMPONENTS", "FaceComponents", "fitted"]

COMPONENTS = 48
HALVED = 2  # pixels of a picture that become one


class FaceComponents(nn.Module):
    """Gray faces (B, T, H, W) to the mean, the deviation and the mean step of their components, (B, 3 C)."""

    modalities = ("video",)
    context_seconds = 0.0
    middle: Tensor
    basis: Tensor

    def __init__(
        self, components: int = COMPONENTS, size: int = 64, frames: int = 10, margin: float = 1.9, lift: float = 0.35
    ) -> None:
        super().__init__()
        self.dim, self.clip_seconds = 3 * components, Fraction(2, 5)
        self.spec = VideoSpec(frames=frames, size=size, region="face", margin=margin, lift=lift)
        pixels = (size // HALVED) ** 2
        self.register_buffer("middle", torch.zeros(pixels))  # (P,)
        self.register_buffer("basis", torch.zeros(pixels, components))  # (P, C), whitening

    def encode(self, clips: Tensor) -> Tensor:
        """uint8 (B, T, H, W) to (B, D); the step is the deviation of a component from picture to picture."""
        said = (self.pixels(clips) - self.middle) @ self.basis  # (B, T, C)
        return torch.cat([said.mean(1), said.std(1, unbiased=False), said.diff(dim=1).square().mean(1).sqrt()], 1)

    def pixels(self, clips: Tensor) -> Tensor:
        """(B, T, H, W) to (B, T, P), each clip at mean 0 and deviation 1, so that light says nothing."""
        small = avg_pool2d(clips.float() / 255, HALVED).flatten(2)
        whole = small.flatten(1)
        mean, std = whole.mean(1)[:, None, None], whole.std(1)[:, None, None]
        return (small - mean) / (std + 0.02)

    @property
    def no_face(self) -> Tensor:
        """The feature of a clip without a face: zeros."""
        return torch.zeros(self.dim)


def fitted(clips: Tensor, components: int = COMPONENTS) -> FaceComponents:
    """The encoder whose components explain most of these faces, uint8 (B, T, H, W). Raises DataError on too few."""
    if len(clips) * clips.shape[1] <= components:
        raise DataError(f"{len(clips)} clips are too few for {components} components; give more, or fewer components")
    encoder = FaceComponents(components, clips.shape[-1], clips.shape[1])
    x = encoder.pixels(clips).flatten(0, 1).double()  # (B T, P)
    encoder.middle.copy_(x.mean(0))
    centred = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))  # ascending
    scale = values[-components:].clamp_min(1e-9).rsqrt()
    encoder.basis.copy_((vectors[:, -components:] * scale).flip(1))
    return encoder
