"""What a source is: something that yields the packets of one stream, in the order of their arrival."""

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from runtime.packet import Decision, Packet, StreamInfo


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
