"""Optical flow: how far every pixel moved since the picture before, by OpenCV, and a cache of it on disk.

Field t of a clip is the movement from picture t-1 to picture t, in pixels (right, down). Picture 0 has no picture
before it within the clip and takes the field of picture 1: nothing outside the clip is looked at. Movement is rounded
to 1/64 pixel and cut at ``bound``, so that a field read from the cache is bit for bit the field computed.

Methods: dense inverse search (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016) and
Farnebäck's ("Two-Frame Motion Estimation Based on Polynomial Expansion", SCIA 2003). TV-L1, in which EPIC-Kitchens
ships its flow, is in no OpenCV without its contributed modules.

Shapes: T picture, H W pixels, B clip.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from encoders.checkpoint import writing
from encoders.errors import ConfigError, DataError
from encoders.settings import to_dict

__all__ = ["FlowCache", "FlowConfig", "mirror_flow", "optical_flow", "resize_flow"]

Pictures = NDArray[np.uint8]  # (T, H, W) gray or (T, H, W, 3) RGB
Field = NDArray[np.float32]  # (T, H, W, 2), pixels to the right and down
STEPS = 64  # of a pixel: what movement is rounded to
SMALLEST = 16  # pixels; below, dense inverse search has no room for its patches
VERSION = 1  # of the cache; another one makes everything anew
# Whatever reading an npz of arbitrary bytes may raise; RuntimeError: a compression that no one uses, a password.
_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
_DIS = {"ultrafast": 0, "fast": 1, "medium": 2}


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """How movement is found; part of a cache entry's name."""

    method: Literal["dis", "farneback"] = "dis"
    effort: Literal["ultrafast", "fast", "medium"] = "medium"  # dis only
    bound: float = 20.0  # pixels per picture; faster movement is cut, as two-stream networks do

    def __post_init__(self) -> None:
        if self.method not in ("dis", "farneback"):
            raise ConfigError(f"flow method {self.method!r} is unknown; use 'dis' or 'farneback'")
        if self.effort not in _DIS:
            raise ConfigError(f"flow effort {self.effort!r} is unknown; use one of {', '.join(_DIS)}")
        if not 0 < self.bound <= 500:
            raise ConfigError(f"flow bound {self.bound} pixels must lie in (0, 500]; 20 is usual")


def optical_flow(pictures: Pictures, config: FlowConfig | None = None) -> Field:
    """The movement within a clip, (T, H, W, 2) float32; a clip of one picture stands still.

    Raises DataError where pictures are no uint8 clip, or too small to see movement in.
    """
    config = config or FlowConfig()
    gray = _gray(pictures)
    fields = np.zeros((*gray.shape, 2), np.float32)
    if len(gray) > 1:
        move = _mover(config)
        for t in range(1, len(gray)):
            fields[t] = move(gray[t - 1], gray[t])
        fields[0] = fields[1]
    fields = np.clip(np.nan_to_num(fields), -config.bound, config.bound)
    return np.round(fields * STEPS) / np.float32(STEPS)


def _gray(pictures: Pictures) -> Pictures:
    import cv2  # late: heavy

    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or (pictures.ndim == 4 and pictures.shape[3] != 3):
        raise DataError(
            f"flow of {pictures.dtype} pictures {pictures.shape} cannot be found; give uint8 (T, H, W) or (T, H, W, 3)"
        )
    if not len(pictures) or min(pictures.shape[1:3]) < SMALLEST:
        raise DataError(
            f"flow needs pictures of {SMALLEST} pixels or more and these are {pictures.shape[:3]} (T, H, W); "
            "give larger ones"
        )
    if pictures.ndim == 3:
        return np.ascontiguousarray(pictures)
    return np.stack([cv2.cvtColor(np.ascontiguousarray(p), cv2.COLOR_RGB2GRAY) for p in pictures])


def _mover(config: FlowConfig) -> Callable[[Pictures, Pictures], Field]:
    import cv2  # late: heavy

    if config.method == "farneback":
        options: Any = dict(
            pyr_scale=0.5, levels=3, winsize=15, iterations=3, poly_n=5, poly_sigma=1.2, flags=0, flow=None
        )
        return lambda before, after: np.asarray(cv2.calcOpticalFlowFarneback(before, after, **options), np.float32)
    search = cv2.DISOpticalFlow.create(_DIS[config.effort])
    return lambda before, after: np.asarray(search.calc(before, after, None), np.float32)  # type: ignore[call-overload]


def mirror_flow(flow: Field) -> Field:
    """The flow of the clip seen in a mirror: what moved right moves left."""
    mirrored = flow[..., ::-1, :].copy()
    mirrored[..., 0] *= -1
    return mirrored


def resize_flow(flow: Field, height: int, width: int) -> Field:
    """The flow of the clip at another size: fields resized, movement in pixels of the new size."""
    import cv2  # late: heavy

    scale = np.array([width / flow.shape[2], height / flow.shape[1]], np.float32)
    how = cv2.INTER_AREA if height < flow.shape[1] else cv2.INTER_LINEAR
    return np.stack([cv2.resize(np.ascontiguousarray(f), (width, height), interpolation=how) for f in flow]) * scale


class FlowCache:
    """Flow of spans of recordings, kept in a folder of the caller's choice; nothing is written beside a dataset.

    An entry's name is a digest of the recording's path, size and time of change, the span, the pictures' shape and the
    config, so that another recording under the same name, or another setting, never finds it. Entries appear whole or
    not at all; one that is damaged is made anew. Several processes may share a folder.
    """

    def __init__(self, folder: str | Path, config: FlowConfig | None = None) -> None:
        self.folder, self.config = Path(folder), config or FlowConfig()

    def flow(
        self,
        path: str | Path,
        start: Fraction | float,
        seconds: Fraction | float,
        pictures: Callable[[], Pictures],
        shape: tuple[int, int, int],
    ) -> Field:
        """The flow of a clip that shows ``seconds`` of a recording from ``start`` on.

        ``pictures()`` gives the clip, of ``shape`` (T, H, W); it is called only where the flow is not kept. Raises
        DataError where it gives another shape, OutputError where the folder cannot be written.
        """
        facts = self._facts(Path(path), start, seconds, shape)
        entry = self._entry(facts)
        found = _read(entry, facts, shape)
        if found is not None:
            return found
        clip = pictures()
        if clip.shape[:3] != shape:
            raise DataError(f"pictures of {path} are {clip.shape[:3]} and {shape} (T, H, W) was said; make them one")
        flow = optical_flow(clip, self.config)
        _write(entry, facts, flow)
        return flow

    def _facts(
        self, path: Path, start: Fraction | float, seconds: Fraction | float, shape: tuple[int, int, int]
    ) -> str:
        """Everything that the flow depends on, as JSON."""
        path = path.resolve()
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); flow is kept by recording") from None
        span = [str(Fraction(x).limit_denominator(1_000_000)) for x in (start, seconds)]
        values = [VERSION, str(path), state.st_size, state.st_mtime_ns, span, shape, to_dict(self.config)]
        return json.dumps(values)

    def _entry(self, facts: str) -> Path:
        digest = hashlib.sha256(facts.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:]}.npz"


def _read(entry: Path, facts: str, shape: tuple[int, int, int]) -> Field | None:
    """What an entry holds; None where there is none, or it is damaged."""
    try:
        with np.load(entry, allow_pickle=False) as file:
            said, steps = str(file["facts"]), file["steps"]
    except _DAMAGED:
        return None
    if said != facts or steps.dtype != np.int16 or steps.shape != (*shape, 2):
        return None
    return steps.astype(np.float32) / np.float32(STEPS)


def _write(entry: Path, facts: str, flow: Field) -> None:
    with writing(entry) as partial, partial.open("wb") as file:
        np.savez_compressed(file, facts=np.array(facts), steps=np.round(flow * STEPS).astype(np.int16))
