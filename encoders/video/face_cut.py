"""The mouth region of a clip's pictures: where the face net sees it, and the square cut out of them.

A net is asked twice: about a whole picture, then about the neighbourhood of what it found there.
Boxes are (middle x, middle y, side) in pixels.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from encoders.clips import LUMA
from encoders.errors import DataError
from encoders.video.face_box import FaceBox, build

__all__ = ["AROUND", "SURE", "Box", "FaceCut", "cut", "gray", "picked"]

SURE = 0.5  # probability above which there is a face
AROUND = 2.6  # the second look shows this many mouth boxes, side by side
LOOKS = 2  # pictures of a clip that are looked at

Box = tuple[float, float, float]


class FaceCut:
    """Clips that know nothing of each other to their mouth regions, as a bundle's face finder shows them.

    ``margin``: mouth boxes from side to side of what is cut.
    """

    def __init__(self, model: FaceBox, margin: float = 1.0) -> None:
        self.model, self.margin = model.eval(), margin

    @classmethod
    def load(cls, weights: Path, margin: float = 1.0) -> "FaceCut":
        """The face net in a file of a bundle (``face.safetensors``). Raises DataError where it is none."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from encoders.checkpoint import load_weights

        model = build("face_box")
        try:
            load_weights(model, load_file(weights), what=f"the face net {weights}")
        except (OSError, SafetensorError) as error:
            why = "it is no safetensors file" if weights.is_file() else "there is no such file"
            raise DataError(f"the face net {weights} cannot be read ({why}); name a bundle's face net") from error
        return cls(model, margin)

    def __call__(self, frames: np.ndarray, size: int) -> np.ndarray:
        """uint8 (T, H, W) or (T, H, W, 3) -> (T, size, size) or (T, size, size, 3); raises DataError without a face."""
        light = gray(frames)
        height, width = light.shape[1:]
        box = self._look(light[len(light) // 2][None], (width / 2, height / 2, float(max(height, width))))
        if box is not None:
            box = self._look(light[picked(len(light))], (box[0], box[1], box[2] * AROUND))
        if box is None:
            raise DataError("no face is seen in it")
        return cut(frames, (box[0], box[1], box[2] * self.margin), size)

    @torch.inference_mode()
    def _look(self, frames: np.ndarray, square: Box) -> Box | None:
        found, sure = self.model.boxes(self.model(torch.from_numpy(cut(frames, square, self.model.config.size))))
        if float(sure.mean()) < SURE:
            return None
        x, y, side = found.mean(0).tolist()
        left, top = square[0] - square[2] / 2, square[1] - square[2] / 2
        return left + x * square[2], top + y * square[2], side * square[2]


def gray(frames: np.ndarray) -> np.ndarray:
    """uint8 pictures, gray (T, H, W) or rgb (T, H, W, 3), as gray ones."""
    return frames if frames.ndim == 3 else (frames @ LUMA).astype(np.uint8)


@lru_cache(maxsize=64)
def picked(frames: int) -> list[int]:
    """The pictures of a clip that are looked at."""
    return [int(at) for at in np.linspace(0, frames - 1, 2 * LOOKS + 1)[1::2]]


def cut(frames: np.ndarray, square: Box, size: int) -> np.ndarray:
    """The square (middle x, middle y, side in pixels) of each frame, edges repeated: uint8 (T, size, size[, 3])."""
    import cv2

    x, y, side = square
    scale = size / side
    if scale < 0.5 and max(frames.shape[1:]) > 1:  # bilinear reading would skip pixels: shrink the frames first
        shrink = 2.0 ** np.floor(np.log2(1 / scale))
        to = (max(1, round(frames.shape[2] / shrink)), max(1, round(frames.shape[1] / shrink)))
        small = np.stack([cv2.resize(f, to, interpolation=cv2.INTER_AREA) for f in frames])
        ratio = to[0] / frames.shape[2]
        return cut(small, (x * ratio, y * ratio, side * ratio), size)
    matrix = np.array([[scale, 0, size / 2 - 0.5 - scale * (x - 0.5)], [0, scale, size / 2 - 0.5 - scale * (y - 0.5)]])
    out = np.empty((len(frames), size, size, *frames.shape[3:]), frames.dtype)
    for frame, place in zip(frames, out, strict=True):
        cv2.warpAffine(frame, matrix, (size, size), place, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    return out
