"""How a server treats every stream: bounds and times, the same for all."""

from dataclasses import dataclass, field

from runtime.serve.limits import Limits

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server treats every stream. Times in seconds."""

    inbox_packets: int = 512  # read and not decoded yet
    inbox_bytes: int = 8 << 20
    in_flight: int = 8  # clips between receiver and answer
    answer_within: float = 1.0  # after a clip closed, or was due if the sender is ahead of real time
    behind: float = 0.4  # that a live packet may wait for its decoder, before pictures are shed; for sound, twice that
    idle: float = 30.0  # without a message from a client that has not ended its stream
    unread: float = 6.0  # that a live client reads nothing of what waits for it; the stream is kept for it to resume
    ahead: float = 20.0  # of media that a live stream may bring before its time; beyond that it is not read from
    flood: float = 3.0  # that it may stay there, before it is ended
    live_packets: int = 4000  # of a live stream in a second; each counts for its part of it, whatever its time
    report_interval: float = 2.0  # between StreamStats
    outbox: int = 256  # responses that wait for a client to read
    limits: Limits = field(default_factory=Limits)
