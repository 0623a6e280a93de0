"""Result files: whole under their final name, or not there at all."""

import errno
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from runtime.errors import OutputError


class ResultFile:
    """A file that gets its name when it is complete; an error or Ctrl-C leaves nothing behind.

    Used with ``with``. A device or pipe (``/dev/stdout``) is written to as it stands, a link is followed, and two
    runs that write the same file do not mix. Raises OutputError when the folder cannot be made, the disk is full,
    and the like.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._target = self.path.resolve() if self.path.is_symlink() else self.path
        self._part = part_of(self._target)

    def __enter__(self) -> "ResultFile":
        check_place(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if is_device(self.path):
                self._part = self._target = self.path
            self._file: IO[str] = open(self._part, "w", encoding="utf-8")
        except OSError as error:
            raise self._failed(error) from error
        return self

    def write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            raise self._failed(error) from error

    def write_json(self, value: Any) -> None:
        """One JSON value on a line of its own."""
        self.write(as_line(value) + "\n")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._file.close()  # writes what is buffered, so a full disk may show only here
            if error is None and self._part != self._target:
                os.replace(self._part, self._target)
        except OSError as problem:
            if error is None:
                raise self._failed(problem) from problem
        finally:
            if self._part != self._target:
                self._part.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> OutputError:
        return not_written(self.path, error)


def part_of(path: Path) -> Path:
    """The name of a file until it is complete: hidden, and this process's own."""
    return path.parent / f".{path.name}.{os.getpid()}.part"


def is_device(path: Path) -> bool:
    """Whether something lies there that must be written to, never replaced: a device, a pipe, a socket."""
    return path.exists() and not path.is_file() and not path.is_dir()


def check_place(path: Path) -> None:
    """Raise OutputError where no file can have this name, before any work is done for it."""
    if path.is_dir():  # "" is the folder one is in
        raise OutputError(f"{path} is a folder; name a file in it")


def check_folder(path: Path) -> None:
    """Raise OutputError where no folder can have this name."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, and a folder is needed; choose another name")


def not_written(path: Path, error: OSError) -> OutputError:
    """The sentence for a result that could not be written."""
    way_out = "make room or choose another place" if error.errno in FULL else "choose another place"
    return OutputError(f"{path} could not be written: {reason(error)}; {way_out}")


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def reason(error: OSError) -> str:
    """What the system said, in a person's words."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "a file is where a folder is needed"
    return error.strerror or str(error)


def as_line(value: Any) -> str:
    """JSON on one line, the same bytes for the same value."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
