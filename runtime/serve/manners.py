"""Manners: what one client may not do for long: leave what is said unread, or send faster than time passes.

A live client that reads nothing for ``Settings.unread`` seconds loses its connection, not its stream: a phone in a
tunnel resumes where it was. The message that it does not take is the sign, so a stall that buffers on the way cover is
none. The sender of a recorded stream can wait, and so do we, up to ``Settings.idle``. One that floods
(``runtime.serve.allowance``) loses its stream.
"""

from collections.abc import Iterable

from protos import stream_pb2 as pb
from runtime.serve.allowance import BANK, Allowance
from runtime.serve.limits import Plan
from runtime.serve.pacing import Wait
from runtime.serve.settings import Settings
from runtime.serve.status import Refused, exhausted

__all__ = ["Manners"]

LOOK = 0.05  # seconds between two looks


class Manners:
    """Of the client of one stream. Times are seconds on the real clock."""

    def __init__(self, plan: Plan, settings: Settings, now: float) -> None:
        self._settings = settings
        self._patience = settings.idle if plan.recorded else settings.unread
        self._untaken = Wait(self._patience)
        self._crowded = Wait(settings.idle)
        self._next_look = now
        self._writing = False  # a response is on its way, and its client has not made room for it yet
        self._allowance = None
        if not plan.recorded:
            self._allowance = Allowance(
                plan.info.codecs,
                now,
                ahead=settings.ahead,
                patience=settings.flood,
                packets=settings.live_packets,
                credit=0.0 if plan.resumption is None else BANK,  # what it kept while it had no server
            )

    def due(self, now: float) -> bool:
        """Whether it is time for a look; not at every tick, for there are many streams."""
        if now < self._next_look:
            return False
        self._next_look = now + LOOK
        return True

    def connected(self) -> None:
        """On a new connection."""
        self.written()

    def sent(self, packets: Iterable[pb.Packet], now: float) -> None:
        """The client sent these."""
        if self._allowance is not None:
            self._allowance.spend(packets, now)

    def too_fast(self, now: float) -> bool:
        """Whether nothing is to be read of it now."""
        return self._allowance is not None and self._allowance.full(now)

    def writing(self) -> None:
        """A response was handed to the transport, which takes it when the client reads."""
        self._writing = True

    def written(self) -> None:
        """It was taken."""
        self._writing = False
        self._untaken.over()

    def read_something(self) -> None:
        """The client of a recorded stream reads on."""
        self._crowded.over()

    def deaf(self, now: float) -> Refused | None:
        """Why its connection must end, though the stream may be resumed."""
        if not self._untaken.waited(now, self._writing):
            return None
        return exhausted(f"nothing was read for {self._patience:g} s; read what the server sends, and resume", "unread")

    def refused(self, now: float, crowded: bool) -> Refused | None:
        """Why its stream must end: half of our room is taken by what it does not read, or it keeps coming too fast."""
        settings, allowance = self._settings, self._allowance
        if allowance is None:
            if not self._crowded.waited(now, crowded):
                return None
            return exhausted(f"nothing was read for {settings.idle:g} s; read what the server sends", "unread", None)
        if not allowance.abused(now):
            return None
        ahead = f"{allowance.ahead:.0f} s of media came before their time, and more for {settings.flood:g} s"
        return exhausted(f"{ahead}; send as it is captured, or a file as recorded", "flood", None)
