"""Structured logs: one line per event, with the stream it is about; never what a client sent, never a token.

    log = logs.of(__name__)
    with logs.context(stream="9f2c", peer="ipv4:127.0.0.1:40112"):
        log.warning("packet skipped", modality="video", reason="no payload")

The event is a constant of ours, what varies goes into fields: so a line can be searched for, counted, and its
repetitions held back. Fields of ``context`` follow an asyncio task and end with the block; a thread that works for one
stream uses ``log.bind(stream=...)``. Nothing is configured on import: without ``setup``, warnings reach stderr as
the standard library prints them, without their fields.
"""

import json
import logging
import math
import re
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from runtime.errors import UsageError

__all__ = ["FORMATS", "Log", "bound_fields", "clean", "context", "of", "setup"]

FORMATS = ("plain", "json")
LEVELS = ("debug", "info", "warning", "error")
LONGEST = 400  # characters of a value; what is longer is content, or was made to fill a disk
DEEPEST = 3  # levels of a nested value
WIDEST = 32  # entries of a nested value
BURST, INTERVAL = 5, 10.0  # repetitions of one warning let through in so many seconds
REMEMBERED = 512  # warnings whose repetitions are counted at once

WITHHELD = "[withheld]"
SECRET = re.compile(
    r"token|authorization|payload|password|passphrase|secret|credential|cookie|private_?key|api_?key", re.IGNORECASE
)
BEARER = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)  # RFC 6750, section 2.1

_context: ContextVar[Mapping[str, Any]] = ContextVar("legato_log", default={})  # noqa: B039  never changed in place


class Log(logging.LoggerAdapter):
    """A logger whose keyword arguments are fields of the event."""

    OWN = ("exc_info", "stack_info", "stacklevel", "extra")

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        fields = {**bound_fields(), **(self.extra or {}), **(kwargs.get("extra") or {})}
        fields.update((name, value) for name, value in kwargs.items() if name not in self.OWN)
        options = {name: value for name, value in kwargs.items() if name in self.OWN[:3]}
        return msg, {**options, "extra": {"legato": fields}}

    def bind(self, **fields: Any) -> "Log":
        """The same logger with these fields in every line."""
        return Log(self.logger, {**(self.extra or {}), **fields})


def of(name: str) -> Log:
    """The log of a module: ``log = logs.of(__name__)``."""
    return Log(logging.getLogger(name), {})


@contextmanager
def context(**fields: Any) -> Iterator[None]:
    """Fields of every line written inside, by this thread or asyncio task."""
    before = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(before)


def bound_fields() -> Mapping[str, Any]:
    """The fields of the contexts around the caller."""
    return _context.get()


def setup(
    format: str = "plain",
    level: str = "info",
    *,
    stream: TextIO | None = None,
    burst: int = BURST,
    interval: float = INTERVAL,
    clock: Callable[[], float] = time.monotonic,
) -> logging.Handler:
    """Write logs to ``stream`` (stderr): ours from ``level`` on, those of libraries from warning on.

    Of one warning, ``burst`` repetitions in ``interval`` seconds are written and the rest counted. Called again, it
    replaces what it set up before. Raises UsageError for a format or level that is unknown.
    """
    if format not in FORMATS:
        raise UsageError(f"log format {format!r} is unknown; use {' or '.join(FORMATS)}")
    if level not in LEVELS:
        raise UsageError(f"log level {level!r} is unknown; use one of {', '.join(LEVELS)}")
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(handler)
        handler.close()
    handler = _Handler(stream or sys.stderr, Limit(burst, interval, clock))
    handler.setFormatter(_Json() if format == "json" else _Plain())
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("runtime").setLevel(level.upper())
    return handler


class Limit:
    """Lets ``burst`` repetitions of one thing through in each ``interval`` seconds and counts the rest."""

    def __init__(self, burst: int, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._interval, self._clock = burst, interval, clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[Any, list[float]] = OrderedDict()  # key -> window's start, let through, held back

    def admit(self, key: Any) -> int | None:
        """How many were held back since the last that was let through; None: hold this one back too."""
        now = self._clock()
        with self._lock:
            seen = self._seen.setdefault(key, [now, 0, 0])
            self._seen.move_to_end(key)
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            if now - seen[0] >= self._interval:
                seen[0], seen[1] = now, 0
            if seen[1] >= self._burst:
                seen[2] += 1
                return None
            held, seen[2] = int(seen[2]), 0
            seen[1] += 1
            return held

    def held(self) -> list[tuple[Any, int]]:
        """What was held back and has not been told yet; told now."""
        with self._lock:
            out = [(key, int(seen[2])) for key, seen in self._seen.items() if seen[2]]
            self._seen.clear()
            return out


class _Handler(logging.StreamHandler):
    """One line per record; repeated warnings are held back, and what is left of them is told at the end."""

    def __init__(self, stream: TextIO, limit: Limit) -> None:
        super().__init__(stream)
        self._limit = limit

    def filter(self, record: logging.LogRecord) -> Any:
        if record.levelno < logging.WARNING:
            return super().filter(record)
        held = self._limit.admit((record.name, record.levelno, str(record.msg)))
        if held:
            record.suppressed = held
        return held is not None and super().filter(record)

    def close(self) -> None:
        for (name, level, msg), held in self._limit.held():
            record = logging.LogRecord(name, level, "", 0, msg, None, None)
            record.suppressed = held
            if not getattr(self.stream, "closed", False):
                self.emit(record)
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """A log that cannot be written is no reason to stop a stream, nor to print a traceback for each line."""


class _Plain(logging.Formatter):
    """``10:11:12.131 warning serve.server: packet skipped stream=9f2c reason="no payload"`` for people."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        where = record.name.removeprefix("runtime.")
        fields = "".join(f" {name}={_quoted(value)}" for name, value in _fields(record).items())
        head = f"{clock}.{int(record.msecs):03d} {record.levelname.lower()}"
        return f"{head} {where}: {_one_line(_event(record))}{fields}"


class _Json(logging.Formatter):
    """One JSON object a line for machines: time (UTC), level, logger, event, and the fields beside them."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _event(record),
        }
        for name, value in _fields(record).items():
            line[f"{name}_" if name in line else name] = value
        return json.dumps(line, default=str)


def _event(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception:  # arguments that do not fit the format: say what we can
        text = str(record.msg)
    return _text(text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Everything besides the event, safe to print."""
    fields = clean(getattr(record, "legato", {}))
    if getattr(record, "suppressed", 0):
        fields["suppressed"] = record.suppressed  # type: ignore[attr-defined]
    if record.exc_info and record.exc_info[1] is not None:
        fields["exception"] = _exception(record.exc_info[1])
    return fields


def clean(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that may be printed: secrets by name withheld, bytes as their number, long values cut."""
    return {_name(name): WITHHELD if SECRET.search(str(name)) else _value(value) for name, value in fields.items()}


def _name(name: Any) -> str:
    return re.sub(r"\W", "_", str(name))[:64]


def _value(value: Any, depth: int = DEEPEST) -> Any:
    if value is None or isinstance(value, bool | int):
        return value if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge number"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if depth and isinstance(value, Mapping):
        items = list(value.items())[:WIDEST]
        return {_name(k): WITHHELD if SECRET.search(str(k)) else _value(v, depth - 1) for k, v in items}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_value(entry, depth - 1) for entry in list(value)[:WIDEST]]
    try:
        return _text(str(value))
    except Exception:
        return f"<{type(value).__name__}>"


def _text(text: str) -> str:
    """Text without bearer tokens, at most LONGEST characters."""
    text = BEARER.sub(rf"\1 {WITHHELD}", text[: 4 * LONGEST])
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _exception(error: BaseException) -> str:
    """An exception in one field: what it was, and where it passed."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = [f"{frame.name} ({frame.filename.rsplit('/', 1)[-1]}:{frame.lineno})" for frame in reversed(frames)]
    where = " < ".join(places)
    what = _text(f"{type(error).__name__}: {error}")
    return f"{what} in {where}" if where else what


def _quoted(value: Any) -> str:
    """A value in one word: as it is where that is readable, else as JSON, which has no line ends."""
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w.:/@+-]+", value) and value.isascii() else json.dumps(value)
    return json.dumps(value, default=str)


def _one_line(text: str) -> str:
    """Text that cannot end its line nor move the cursor: a client must not write lines of its own."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
