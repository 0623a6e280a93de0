"""Retention: a folder of packet recordings, and which of them go when they are too old or too many.

The folder is its owner's only, and one process's at a time. Names are made of time and chance, never of what a client
said, and only files with such names are ever deleted: the oldest first, never one that is being written.
"""

import os
import re
import secrets
import stat
import threading
import time
from pathlib import Path

from runtime import logs
from runtime.errors import OutputError

__all__ = ["Retention", "prepare"]

log = logs.of(__name__)

SUFFIX = ".legato"
NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{16}\.legato")
PART = re.compile(NAME.pattern + r"\.\d+\.part")  # a file that never got its header
LOCK = ".lock"


class Retention:
    """The recordings in ``folder``, which is made with mode 0700 where it does not exist.

    max_bytes: of all of them together; max_age: seconds since a recording was last written. Any thread may call.

    Raises:
        OutputError: the folder cannot be used, can be opened by others, or another process keeps recordings there.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_age: float) -> None:
        self.folder, self.max_bytes, self.max_age = folder, max_bytes, max_age
        prepare(folder)
        self._lock_file: int | None = _lock(folder)
        self._guard = threading.Lock()
        self._sizes: dict[Path, int] = {}  # bytes
        self._total = 0  # their sum
        self._live: set[Path] = set()  # being written
        for entry in os.scandir(folder):
            if PART.fullmatch(entry.name):
                _unlink(Path(entry.path))
            elif NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                self._set(Path(entry.path), entry.stat(follow_symlinks=False).st_size)

    def new_name(self, wall: float) -> Path:
        """Where a recording that begins now goes; ``wall`` in seconds since 1970."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(wall))
        return self.folder / f"{stamp}-{secrets.token_hex(8)}{SUFFIX}"

    @property
    def files(self) -> list[Path]:
        """The recordings, oldest first, those being written last."""
        with self._guard:
            return [*self._finished(), *sorted(self._live)]

    @property
    def room(self) -> int:
        """Bytes that are left when everything is deleted that may be."""
        with self._guard:
            return self.max_bytes - sum(self._sizes.get(path, 0) for path in self._live)

    def begin(self, path: Path) -> None:
        """A recording is being written here."""
        with self._guard:
            self._live.add(path)
            self._measure(path)

    def grow(self, path: Path, size: int) -> bool:
        """About ``size`` bytes were added; False when what is being written takes more than all the room."""
        with self._guard:
            self._set(path, self._sizes.get(path, 0) + size)
            return self._make_room()

    def end(self, path: Path) -> None:
        """A recording is finished; from now on it may be deleted."""
        with self._guard:
            self._live.discard(path)
            self._measure(path)
            self._make_room()

    def sweep(self, wall: float) -> int:
        """Delete what is too old or too much; ``wall`` in seconds since 1970. How many went for their age."""
        with self._guard:
            old = [path for path in self._finished() if _written(path) < wall - self.max_age]
            for path in old:
                self._delete(path)
            self._make_room()
        return len(old)

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def _finished(self) -> list[Path]:
        """Oldest first: names begin with the time."""
        return sorted(path for path in self._sizes if path not in self._live)

    def _measure(self, path: Path) -> None:
        try:
            self._set(path, path.stat().st_size)
        except OSError:  # somebody took it away
            self._set(path, None)

    def _set(self, path: Path, size: int | None) -> None:
        self._total += (size or 0) - self._sizes.pop(path, 0)
        if size is not None:
            self._sizes[path] = size

    def _make_room(self) -> bool:
        if self._total <= self.max_bytes:
            return True
        for path in self._finished():
            self._delete(path)
            if self._total <= self.max_bytes:
                return True
        return False

    def _delete(self, path: Path) -> None:
        _unlink(path)
        self._set(path, None)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("recording cannot be deleted", why=error.strerror)


def prepare(folder: Path) -> None:
    """Make a folder that is nobody else's. One that others may open is refused with OutputError, not changed."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except OSError as error:
        raise _refused(folder, error.strerror or "") from error
    if os.name != "posix":
        return
    mode = stat.S_IMODE(about.st_mode)
    if mode & 0o077:
        raise OutputError(
            f"recordings cannot be kept in {folder}: others may open it (mode {mode:04o}); chmod it 700 or take another"
        )
    if about.st_uid != os.geteuid():
        raise _refused(folder, "it belongs to another user")


def _lock(folder: Path) -> int:
    """An open file that says who deletes here; the system lets go of it even after a crash."""
    try:
        fd = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise _refused(folder, error.strerror or "") from error
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise _refused(folder, "another process keeps its recordings there") from error
    return fd


def _refused(folder: Path, why: str) -> OutputError:
    return OutputError(f"recordings cannot be kept in {folder}: {why}; choose another folder")
