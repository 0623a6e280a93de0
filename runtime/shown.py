"""What a bundle's encoders are shown of a recording, clip by clip; kept in a folder, so that it is made once.

Decoding a recording and finding the face in it cost more than most encoders do. Both depend only on the recording, on
where the clips begin and on what the encoders ask for, so encoders that ask for the same share what is kept. Each clip
is looked at by itself: neither its pixels nor the place of its face box know what lies before or after it.

Shapes: L clip, T frame, H W pixels, S sample, M modality (video, audio).
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.clips import ClipSpec
from encoders.datasets.reader import Audio, Video, read_sample
from encoders.datasets.sample import Sample
from encoders.training import save_weights
from runtime.clip import Clip
from runtime.engine import blank

if TYPE_CHECKING:
    from encoders.media import Reading
    from runtime.engine import Engine

__all__ = ["Shower", "Shown", "Whole"]

LONGEST = 60.0  # seconds of a file that is decoded whole; of a longer one each clip is read by itself
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Shown:
    """Clips of a recording as the encoders take them."""

    there: NDArray[np.bool_]  # (L, M): whether the recording has something there
    found: NDArray[np.bool_]  # (L,): whether a face was seen, for encoders that look at faces; else as ``there``
    video: NDArray[np.uint8] | None = None  # (L, T, H, W[, 3]), the face or the frame; black where there is nothing
    audio: NDArray[np.float32] | None = None  # (L, S)

    def save(self, path: Path) -> None:
        """One safetensors file, whole or not at all. Raises OutputError."""
        arrays = {name: value for name, value in vars(self).items() if value is not None}
        save_weights(path, {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()})

    @classmethod
    def load(cls, path: Path) -> "Shown | None":
        """What ``save`` wrote; None where it is not there or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        with suppress(OSError, SafetensorError, TypeError):
            return cls(**load_file(path))
        return None


class Shower:
    """Makes what an engine's encoders are shown, or finds it in the folder ``keep``."""

    def __init__(self, engine: "Engine", keep: Path | None = None) -> None:
        self.engine, self.keep = engine, keep
        self.spec = engine.spec
        asked = {"format": FORMAT, "spec": asdict(self.spec), "face": self._face_hash()}
        self._asked = json.dumps(asked, sort_keys=True, default=str)

    def show(self, sample: Sample, starts: Sequence[float]) -> Shown:
        """The clips that begin at ``starts``, in seconds of the sample's span. Raises SourceError or DataError."""
        path = None if self.keep is None else self.keep / f"{self._key(sample, starts)}.safetensors"
        known = None if path is None else Shown.load(path)
        if known is None:
            known = self._shown(sample, starts)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                known.save(path)
        return known

    def _shown(self, sample: Sample, starts: Sequence[float]) -> Shown:
        read = Whole()
        clips = [read_sample(sample, self.spec, start=start, read_clip=read) for start in starts]
        there = np.array([[video is not None, audio is not None] for video, audio in clips])
        seen, found = self._seen([video for video, _ in clips], there[:, 0].copy())
        heard = None
        if self.spec.audio is not None:
            quiet = np.zeros(self.spec.samples, np.float32)
            heard = np.stack([quiet if audio is None else audio for _, audio in clips])
        return Shown(there, found, seen, heard)

    def _seen(self, videos: Sequence[Video | None], found: NDArray[np.bool_]) -> tuple[Video | None, NDArray[np.bool_]]:
        """Pictures (L, T, H, W[, 3]), the face cut out where it is asked for, and where it was found."""
        if self.spec.video is None:
            return None, found
        black = blank(self.spec.video, self.spec.seconds)
        shown = []
        for place, video in enumerate(videos):
            picture: Any = video
            if video is not None and self.engine.looks_at_faces:
                picture, _, found[place] = self.engine.models.face.locate(
                    picture_clip(video, self.spec), self.engine.initial_face()
                )
            shown.append(black if picture is None else picture)
        return np.stack(shown), found

    def _key(self, sample: Sample, starts: Sequence[float]) -> str:
        """A name for clips of a file as it is now, shown as these encoders ask."""
        files = [path for path in (sample.path, sample.sound) if path is not None]
        stats = [(str(path.resolve()), *_stat(path)) for path in files]
        span = (sample.start, sample.frame_rate, sample.raw_at, *starts)
        return hashlib.sha256(json.dumps([self._asked, stats, span]).encode()).hexdigest()[:32]

    def _face_hash(self) -> str:
        """Of the net that finds faces, where one is asked."""
        model = getattr(self.engine.models.face, "model", None)
        if model is None:
            return ""
        found = hashlib.sha256()
        for name, value in sorted(model.state_dict().items()):
            tensor: Tensor = value
            found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


class Whole:
    """Reads clips of a file as `encoders.media.read_clip` does; a short file is decoded once for all of its clips.

    A clip in which a file has nothing is (None, None): others of it may be whole.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Path, ClipSpec], Reading | None] = {}

    def __call__(
        self, path: Path, start: float, seconds: Fraction, spec: ClipSpec
    ) -> tuple[Video | None, Audio | None]:
        from encoders.media import read_clip

        reading = self._reading(path, spec)
        if reading is None:
            return read_clip(path, start, seconds, spec)
        clip = reading.clip(reading.origin + Fraction(start), replace(spec, seconds=seconds))
        return clip.video, clip.audio

    def _reading(self, path: Path, spec: ClipSpec) -> "Reading | None":
        from encoders.media import MediaFile, read_all

        key = path, spec
        if key not in self._known:
            with MediaFile(path) as file:
                short = file.duration is not None and file.duration <= LONGEST
            self._known[key] = read_all(path, spec) if short else None
        return self._known[key]


def picture_clip(video: Video, spec: ClipSpec) -> Clip:
    """An observed clip of pictures alone, as a face is looked for in it."""
    return Clip(
        index=0, epoch=0, start=Fraction(0), seconds=spec.seconds, video=video, audio=None, presence={"video": True},
        coverage={"video": 1.0}, state={}, flags={}, severity={},
    )  # fmt: skip


def _stat(path: Path) -> tuple[int, int]:
    with suppress(OSError):
        found = path.stat()
        return found.st_size, found.st_mtime_ns
    return 0, 0
