"""What a client knows of a stream besides its packets: how far it is, and where a restarted client goes on.

The law: a final prediction counts as had once the state that says so is on disk, and the results file is cut back to
what that state covers. So however often a client is killed, every final prediction is in the results exactly once
(tests/test_client_state.py; bench/faults.py kills for real).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from runtime.errors import OutputError, UsageError
from runtime.output import as_line, check_place, not_written
from runtime.prediction import Prediction
from runtime.stream import FINAL

__all__ = ["Progress", "ResumedFile", "StateFile"]

VERSION = 1


@dataclass(kw_only=True)
class Progress:
    """How far a stream is. ``token`` and ``point`` are the server's, passed back as they came."""

    source: dict[str, str] = field(default_factory=dict)  # what is being sent, to know it again
    token: bytes = b""
    point: bytes = b""
    acknowledged: dict[str, int] = field(default_factory=dict)  # by modality
    finals: dict[str, int] = field(default_factory=dict)  # head -> clip of the newest final prediction
    revisions: dict[str, dict[int, int]] = field(default_factory=dict)  # head -> clip -> its next revision
    written: int = 0  # bytes of the results file that this state covers
    complete: bool = False

    def admit(self, prediction: Prediction) -> Prediction | None:
        """The prediction if it is news, else None.

        Finals of a head come in the order of their clips, each once. A fresh server says again what an earlier one
        said of windows that are still open, and may number its revisions otherwise: what was had is dropped, and a
        final one whose number was used goes on counting.
        """
        head, clip = prediction.head, prediction.clip
        if clip <= self.finals.get(head, -1):
            return None
        following = self.revisions.setdefault(head, {})
        revision = following.get(clip, 0)
        if prediction.status == FINAL:
            self.finals[head] = clip
            self.revisions[head] = {c: r for c, r in following.items() if c > clip}
            return replace(prediction, revision=revision) if prediction.revision < revision else prediction
        if prediction.revision < revision:
            return None
        following[clip] = prediction.revision + 1
        return prediction

    def acknowledge(self, through: Mapping[str, int]) -> None:
        """The server's ``ack_through_seq``."""
        for modality, seq in through.items():
            self.acknowledged[modality] = max(seq, self.acknowledged.get(modality, -1))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "version": VERSION,
            "source": self.source,
            "token": self.token.hex(),
            "point": self.point.hex(),
            "acknowledged": self.acknowledged,
            "finals": self.finals,
            "revisions": {head: list(map(list, clips.items())) for head, clips in self.revisions.items()},
            "written": self.written,
            "complete": self.complete,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Progress":
        """What ``as_dict`` gave. Raises ValueError, KeyError, TypeError or AttributeError for anything else."""
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}")
        return cls(
            source={str(k): str(v) for k, v in values["source"].items()},
            token=bytes.fromhex(values["token"]),
            point=bytes.fromhex(values["point"]),
            acknowledged={str(m): _count(seq) for m, seq in values["acknowledged"].items()},
            finals={str(head): _count(clip) for head, clip in values["finals"].items()},
            revisions={
                str(head): {_count(clip): _count(number) for clip, number in clips}
                for head, clips in values["revisions"].items()
            },
            written=_count(values["written"]),
            complete=bool(values["complete"]),
        )


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


class StateFile:
    """A progress on disk, for its owner only (it holds a resume token), replaced whole each time.

    Used with ``with``: a second client with the same file is turned away. Raises OutputError where it cannot be
    written, UsageError where it is in use or is no state file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._part = self.path.parent / f".{self.path.name}.part"
        self._lock: int | None = None

    def __enter__(self) -> Self:
        check_place(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path.parent / f".{self.path.name}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise not_written(self.path, error) from error
        if not _locked(self._lock):
            os.close(self._lock)
            self._lock = None
            raise UsageError(f"state file {self.path} is in use by another legato send; wait for it or name another")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)  # and with it the lock; the empty file stays, as removing it would race
            self._lock = None

    def load(self) -> Progress | None:
        """What was saved last; None where nothing was."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"state file {self.path} cannot be read ({error}); delete it to start anew") from error
        try:
            return Progress.from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(
                f"state file {self.path} is not one of this version ({error}); delete it to start anew"
            ) from error

    def save(self, progress: Progress) -> None:
        """Put this in its place, all or nothing, also through a power cut."""
        try:
            fd = os.open(self._part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                file.write(as_line(progress.as_dict()) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._part, self.path)
        except OSError as error:
            raise not_written(self.path, error) from error


def _locked(fd: int) -> bool:
    """Take the lock; where the system has none, all are let in."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class ResumedFile:
    """A results file that outlives the client that writes it: hidden until complete, one JSON value a line.

    ``at`` is how much of it the saved state covers; what was written after that is cut off and will come again.
    """

    def __init__(self, path: str | Path, at: int = 0) -> None:
        self.path = Path(path)
        self._part = self.path.parent / f".{self.path.name}.part"
        self._at = at
        self._fd: int | None = None

    def __enter__(self) -> Self:
        check_place(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._part, os.O_CREAT | os.O_RDWR, 0o666)
            if os.fstat(self._fd).st_size < self._at:
                os.close(self._fd)
                self._fd = None
                raise OutputError(
                    f"{self._part} holds less than the state file says was written; delete both to start anew"
                )
            os.ftruncate(self._fd, self._at)
            os.lseek(self._fd, self._at, os.SEEK_SET)
        except OSError as error:
            raise not_written(self.path, error) from error
        return self

    @property
    def position(self) -> int:
        """Bytes written, all of them handed to the disk."""
        if self._fd is None:
            return self._at
        os.fsync(self._fd)
        return self._at

    def write_json(self, value: Any) -> None:
        """One JSON value on a line of its own, handed to the system at once."""
        assert self._fd is not None
        data = (as_line(value) + "\n").encode()
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise not_written(self.path, error) from error
        self._at += len(data)

    def finish(self) -> None:
        """It is complete, and gets its name."""
        try:
            os.replace(self._part, self.path)
        except OSError as error:
            raise not_written(self.path, error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
