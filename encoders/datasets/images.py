"""Pictures that are no recordings: image files, folders of numbered frames, raw pictures inside a binary file.

They are laid on a clip's grid exactly like a recording's frames (`encoders.clips`): a still is on screen all the time,
a numbered frame from its own time to the next one's.
"""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoders.clips import FLICKS, ClipSpec, VideoSpec, lay_video, on_screen, resize, sample_points
from encoders.datasets.sample import PICTURES
from encoders.errors import SourceError

__all__ = ["frame_count", "read_frames", "read_picture", "read_raw", "still"]

Picture = NDArray[np.uint8]  # (H, W) gray or (H, W, 3) rgb24
RAW = (3, 32, 32)  # planes, rows, columns of a raw picture (CIFAR)
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}  # how JPEG and PNG begin and end
_NUMBER = re.compile(r"(\d+)$")


def read_picture(path: Path, pixel_format: str = "rgb24") -> Picture:
    """An image file, turned upright; raises SourceError where it cannot be read."""
    import cv2  # late: heavy

    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise SourceError(f"{path} cannot be opened ({error.strerror or error}); copy it again") from None
    try:
        found = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if pixel_format == "gray" else cv2.IMREAD_COLOR)
    except cv2.error:  # no bytes at all, or a header that claims too many pixels
        found = None
    if found is None:
        raise SourceError(f"{path} is no picture that can be read ({len(data)} bytes); copy it again")
    if _cut_short(data.tobytes()):  # OpenCV paints the rest gray and says nothing
        raise SourceError(f"{path} is a picture that is cut short ({len(data)} bytes); copy it again")
    return np.ascontiguousarray(found if found.ndim == 2 else found[..., ::-1], np.uint8)


def _cut_short(data: bytes) -> bool:
    """Whether the end mark is missing; it may be followed by other bytes, so the last half is searched."""
    mark = next((end for begin, end in _ENDS.items() if data.startswith(begin)), b"")
    return data.find(mark, len(data) // 2) < 0


def read_raw(path: Path, at: int, pixel_format: str = "rgb24") -> Picture:
    """A picture of 32 x 32 pixels, stored as planes of red, green and blue from byte ``at`` on."""
    try:
        data = np.fromfile(path, np.uint8, int(np.prod(RAW)), offset=at)
    except OSError as error:
        raise SourceError(f"{path} cannot be opened ({error.strerror or error}); unpack the archive again") from None
    if len(data) != int(np.prod(RAW)):
        raise SourceError(f"{path} ends before the picture at byte {at}; unpack the archive again")
    picture = np.ascontiguousarray(data.reshape(RAW).transpose(1, 2, 0))
    return _gray(picture) if pixel_format == "gray" else picture


def _gray(picture: Picture) -> Picture:
    import cv2  # late: heavy

    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)


def still(picture: Picture, spec: ClipSpec) -> Picture:
    """A picture as a clip, uint8 ``(T, H, W[, 3])``: every frame shows it."""
    assert spec.video is not None, "this spec has no video"
    return lay_video([_shrunk(picture, spec.video)], [(0, spec.flicks)], 0, spec.flicks, spec.video)


def _shrunk(picture: Picture, spec: VideoSpec) -> Picture:
    """No side longer than the spec's, as decoded frames are."""
    height, width = picture.shape[:2]
    share = min(1.0, spec.max_side / max(height, width))
    return resize(picture, max(1, round(height * share)), max(1, round(width * share)))


def read_frames(folder: Path, start: float, rate: float, spec: ClipSpec) -> Picture:
    """One clip of a folder of frames, uint8 ``(T, H, W[, 3])``; only the frames that it shows are read.

    start: seconds from frame 1 (or 0, where that is the first), rate: frames per second. Raises SourceError where the
    span holds no frame.
    """
    assert spec.video is not None, "this spec has no video"
    numbers, names = _frames(folder)
    begin, length = round(start * FLICKS), spec.flicks
    step = FLICKS / rate
    spans = [(round(n * step), round((n + 1) * step)) for n in numbers]
    shown = [i for i, (a, b) in enumerate(spans) if a < begin + length and b > begin]
    if not shown:
        raise SourceError(f"{folder} holds no frame at {start:.2f} s; its last is at {numbers[-1] / rate:.2f} s")
    near = [spans[i] for i in shown]
    chosen = sorted(set(on_screen(near, sample_points(begin, length, spec.video.frames))))
    pictures = [_shrunk(read_picture(folder / names[shown[i]], spec.video.pixel_format), spec.video) for i in chosen]
    return lay_video(pictures, [near[i] for i in chosen], begin, length, spec.video)


def frame_count(folder: Path) -> int:
    """Up to the last numbered frame; frames that are missing in between are counted too."""
    return _frames(folder)[0][-1] + 1


@lru_cache(maxsize=256)
def _frames(folder: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Numbers counted from the first, and file names; raises SourceError where there is none."""
    try:
        names = [p.name for p in folder.iterdir() if p.suffix.lower() in PICTURES]
    except OSError as error:
        raise SourceError(f"{folder} cannot be opened ({error.strerror}); unpack the frames again") from None
    numbered = sorted((int(match[1]), name) for name in names if (match := _NUMBER.search(Path(name).stem)))
    if not numbered:
        raise SourceError(f"{folder} holds no numbered picture such as frame_0000000001.jpg; unpack the frames again")
    first = min(1, numbered[0][0])
    return tuple(number - first for number, _ in numbered), tuple(name for _, name in numbered)
