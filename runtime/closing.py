"""Closing: ``with`` for everything that is closed when its block ends."""

from types import TracebackType
from typing import Self


class Closing:
    """Leaving a ``with`` block closes; ``close`` may be called again."""

    def close(self) -> None:
        """Let go of what is held; nothing, where a class does not say what."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
