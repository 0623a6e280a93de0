"""What a source is: something that yields the packets of one stream, in the order of their arrival."""

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from runtime.closing import Closing
from runtime.packet import Decision, Packet, StreamInfo

TURN = 0.1  # seconds that ``LivePackets.packets`` waits at once, so that a close from another thread is seen


class Source(Protocol):
    """One stream of packets.

    ``packets`` yields in order of arrival (a packet without ``arrival`` arrives as soon as it is captured), each
    modality in decode order with sequence numbers that grow by one; a missing number is a lost packet. It is read once.
    """

    @property
    def info(self) -> StreamInfo:
        """What is known before the first packet."""
        ...

    def packets(self) -> Iterator[Packet | Decision]:
        """Every packet, and the decisions that a recording keeps."""
        ...

    def close(self) -> None:
        """Let go of files and devices; may be called again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class LiveSource(Source, Protocol):
    """A source whose packets come when they come: a device, a URL, a socket.

    Each packet carries the ``arrival`` it had on the clock that the source was given. A device that is lost, comes
    back or changes its format is a ``Decision`` among the packets; it never raises once the source is open.
    """

    @property
    def ended(self) -> bool:
        """Nothing will come any more, and everything that came was read."""
        ...

    def read(self, timeout: float) -> Packet | Decision | None:
        """The next item, waiting up to ``timeout`` seconds for it; None: nothing came. Never waits once ended."""
        ...


class LivePackets(Closing):
    """``packets``, ``with`` and nothing else, for classes that have ``read``, ``ended`` and ``close``."""

    def packets(self: LiveSource) -> Iterator[Packet | Decision]:
        """Every item until the source has ended; closing it from another thread ends this too."""
        while not self.ended:
            item = self.read(TURN)
            if item is not None:
                yield item
