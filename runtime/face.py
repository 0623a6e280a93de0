"""Where the face is: found by the bundle's own net, followed from observed clip to observed clip.

The state is a value held in ``Stream``; it comes from the past and from observed clips only, so a lost clip
neither moves the box nor forgets it at once.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from encoders.video.face_box import FaceBox
from encoders.video.face_cut import AROUND, SURE, Box, cut, gray, picked
from runtime.clip import Clip

__all__ = ["FaceState", "FaceTracker", "Located", "cut", "follow_all"]

FOLLOW = 0.6  # weight of the newest box against the one before
LARGEST = 2.0  # times the longer side of the frame


@dataclass(frozen=True)
class FaceState:
    """The last box, (x, y, side) in pixels of the frame; None before the first face or after it was lost."""

    box: tuple[float, float, float] | None = None


Seen = tuple[Tensor, Tensor]  # boxes (B, 3) and probabilities (B,) of the pictures that were looked at
Located = tuple[np.ndarray | None, FaceState, bool]  # crops uint8 (T, size, size[, 3]), state, found
Looking = Generator[np.ndarray, Seen, Located]  # gives pictures uint8 (B, H, W), is sent what the net saw


class FaceTracker:
    """Crops the mouth region of a clip's frames, or what ``margin`` and ``lift`` make of it (`VideoSpec`)."""

    def __init__(self, model: FaceBox, size: int, *, margin: float = 1.0, lift: float = 0.0):
        self.model = model.eval()
        self.size = size  # pixels, side of a crop
        self.margin, self.lift = margin, lift

    def initial_state(self) -> FaceState:
        """Nothing is known before the first clip."""
        return FaceState()

    def locate(self, clip: Clip, state: FaceState) -> Located:
        """An observed clip's frames uint8 (T, H, W[, 3]) -> crops uint8 (T, size, size[, 3]), new state, found.

        Without a face the crops are None and the next clip is searched as a whole again.
        """
        looking = self.looking(clip, state)
        try:
            pictures = next(looking)
            while True:
                pictures = looking.send(self.see(pictures))
        except StopIteration as done:
            located: Located = done.value
            return located

    @torch.inference_mode()
    def see(self, pictures: np.ndarray) -> Seen:
        """What the net says of pictures uint8 (B, H, W)."""
        found, sure = self.model.boxes(self.model(torch.from_numpy(pictures)))
        return found, sure

    def looking(self, clip: Clip, state: FaceState) -> Looking:
        """``locate`` without the net: gives the pictures to look at, so that many streams can look at once."""
        assert clip.video is not None, "a clip whose video was observed"
        frames = gray(clip.video)
        box = state.box
        if box is None:
            box = yield from self._search(frames[len(frames) // 2])
        found = None if box is None else (yield from self._refine(frames, box))
        if found is None and state.box is not None:  # it may have jumped: look everywhere once
            box = yield from self._search(frames[len(frames) // 2])
            found = None if box is None else (yield from self._refine(frames, box))
        if found is None:
            return None, replace(state, box=None), False
        box = found
        if state.box is not None and _near(found, state.box):
            x, y, side = (FOLLOW * new + (1 - FOLLOW) * old for new, old in zip(found, state.box, strict=True))
            box = (x, y, side)
        x, y, side = box
        shown = (x, y - self.lift * side, self.margin * side)
        return cut(clip.video, shown, self.size), FaceState(box), True

    def follow(self, clips: Sequence[Clip], state: FaceState) -> Generator[np.ndarray, Seen, list[Located]]:
        """One stream's clips in order, each from where the one before left off."""
        out: list[Located] = []
        for clip in clips:
            located = yield from self.looking(clip, state)
            if clip.version == 0:  # a repaired clip is older than what the box has followed since
                state = located[1]
            out.append(located)
        return out

    def _search(self, frame: np.ndarray) -> Generator[np.ndarray, Seen, Box | None]:
        """The whole frame, as a square."""
        height, width = frame.shape
        side = float(max(height, width))
        square = (width / 2, height / 2, side)
        return (yield from self._look(frame[None], square))

    def _refine(self, frames: np.ndarray, box: Box) -> Generator[np.ndarray, Seen, Box | None]:
        """A second look at the neighbourhood of a box, at a few pictures of the clip."""
        return (yield from self._look(frames[picked(len(frames))], (box[0], box[1], box[2] * AROUND)))

    def _look(self, frames: np.ndarray, square: Box) -> Generator[np.ndarray, Seen, Box | None]:
        found, sure = yield cut(frames, square, self.model.config.size)
        if float(sure.mean()) < SURE:
            return None
        x, y, side = found.mean(0).tolist()
        if side * square[2] > LARGEST * max(frames.shape[1:]):
            return None  # no mouth is larger than the picture it is in; boxes must not grow from clip to clip
        left, top = square[0] - square[2] / 2, square[1] - square[2] / 2
        return left + x * square[2], top + y * square[2], side * square[2]


def follow_all(
    chains: Sequence[Generator[np.ndarray, Seen, list[Located]]], see: Callable[[np.ndarray], Seen]
) -> list[list[Located] | Exception]:
    """Many streams' ``follow`` at once: all their pictures of one round in one batch.

    What goes wrong in one chain is its result, and no other's.
    """
    out: list[list[Located] | Exception] = [[] for _ in chains]
    waiting: dict[int, np.ndarray] = {}

    def step(i: int, seen: Seen | None) -> None:
        try:
            waiting[i] = next(chains[i]) if seen is None else chains[i].send(seen)
        except StopIteration as done:
            out[i] = done.value
        except Exception as error:
            out[i] = error

    for i in range(len(chains)):
        step(i, None)
    while waiting:
        rows, waiting = waiting, {}
        sizes = [len(pictures) for pictures in rows.values()]
        boxes, sure = see(np.concatenate(list(rows.values())))
        for i, box, how in zip(rows, boxes.split(sizes), sure.split(sizes), strict=True):
            step(i, (box, how))
    return out


def _near(a: tuple[float, ...], b: tuple[float, float, float]) -> bool:
    return abs(a[0] - b[0]) < b[2] / 2 and abs(a[1] - b[1]) < b[2] / 2 and 0.6 < a[2] / b[2] < 1.7
