"""Small datasets in their true layout: real media of a few frames, written once and copied."""

import json
import shutil
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np

from encoders.clips import AudioSpec, ClipSpec, VideoSpec
from encoders.media import AudioTrack, VideoTrack, write_media

CLIP = ClipSpec(seconds=Fraction(2, 5), video=VideoSpec(frames=4, size=16, pixel_format="rgb24"), audio=AudioSpec())
CODECS = {".mp4": "libx264", ".webm": "libvpx", ".mkv": "libx264"}


def gradient(height: int = 32, width: int = 48, level: int = 0) -> np.ndarray:
    """A picture whose red grows to the right and whose green grows downwards; ``level`` is its blue."""
    red, green = np.linspace(0, 255, width), np.linspace(0, 255, height)
    picture = np.full((height, width, 3), level, np.uint8)
    picture[..., 0], picture[..., 1] = red[None], green[:, None]
    return picture


@cache
def _recorded(kind: str, folder: Path) -> Path:
    frames = [gradient(level=8 * i) for i in range(10)]
    tracks = [] if kind == ".wav" else [VideoTrack(frames=frames, rate=10, codec=CODECS[kind])]
    if kind in (".wav", ".mp4"):
        sound = np.sin(np.arange(16_000) * 0.1).astype(np.float32)
        tracks.append(AudioTrack(samples=sound, codec="pcm_s16le" if kind == ".wav" else "aac"))
    return write_media(folder / f"clip{kind}", tracks)


class Tree:
    """A folder that is being filled."""

    def __init__(self, folder: Path, cache_folder: Path) -> None:
        self.folder, self._cache = folder, cache_folder

    def __str__(self) -> str:
        return str(self.folder)

    def text(self, path: str, *lines: str) -> "Tree":
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return self

    def json(self, path: str, value: object) -> "Tree":
        return self.text(path, json.dumps(value))

    def bytes(self, path: str, data: bytes) -> "Tree":
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return self

    def clips(self, *paths: str) -> "Tree":
        """A second of picture at 10 frames per second, and of sound where the suffix holds both."""
        for path in paths:
            place = self.folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_recorded(place.suffix.lower(), self._cache), place)
        return self

    def pictures(self, *paths: str) -> "Tree":
        for level, path in enumerate(paths):
            place = self.folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            save(place, gradient(level=level))
        return self


def save(path: Path, picture: np.ndarray) -> None:
    """An image file, lossless where the suffix allows."""
    import cv2

    suffix = {".JPEG": ".jpg"}.get(path.suffix, path.suffix)
    done, data = cv2.imencode(suffix, picture[..., ::-1] if picture.ndim == 3 else picture)
    assert done
    path.write_bytes(data.tobytes())
