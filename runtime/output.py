"""Result files: whole under their final name, or not there at all."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from runtime.errors import OutputError


class ResultFile:
    """A text file that gets its name when it is complete; an error or Ctrl-C leaves nothing behind.

    Used with ``with``. Raises OutputError when the folder cannot be made, the disk is full, and the like.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._part = self.path.with_name(self.path.name + ".part")

    def __enter__(self) -> "ResultFile":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._part, "w", encoding="utf-8")
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
            if error is None:
                os.replace(self._part, self.path)
        except OSError as problem:
            if error is None:
                raise self._failed(problem) from problem
        finally:
            self._part.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(f"{self.path} could not be written: {error.strerror or error}; choose another place")


def as_line(value: Any) -> str:
    """JSON on one line, the same bytes for the same value."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
