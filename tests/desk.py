"""A session with everything around it in one thread, driven by hand, on a clock that stands until it is moved."""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from protos import stream_pb2 as pb
from runtime.packet import Packet
from runtime.receive import Receiver
from runtime.serve.limits import Limits, plan_stream
from runtime.serve.session import Session, Settings
from tests.fakes import FakeClock
from tests.serving import batch, config, offer


class Desk:
    """A session with everything around it in one thread."""

    def __init__(self, made: Any = None, request: pb.StreamRequest | None = None, **settings: Any) -> None:
        self.clock = FakeClock()
        self.offer = made or offer(delay=0.1)
        self.settings = Settings(**settings)
        self.plan = plan_stream((request or config(origin=pb.Rational(denominator=1))).config, self.offer, Limits())
        self._jobs: deque[Callable[[], object]] = deque()
        kept = self.offer.open("s", self.plan, self.settings.limits)
        self.session = Session(
            kept, self.plan, self.offer, self.settings,
            clock=self.clock, submit=self._jobs.append, post=lambda f, *a: self._jobs.append(partial(f, *a)),
        )  # fmt: skip
        self.session.attach()
        self.said: list[pb.StreamResponse] = []

    @property
    def receiver(self) -> Receiver:
        return self.session.stream.receiver

    def work(self) -> "Desk":
        """Until nobody has anything to do."""
        while self._jobs:
            self._jobs.popleft()()
        return self

    def read(self) -> list[pb.StreamResponse]:
        """What a client would read now."""
        self.work()
        while (entry := self.session.outbox.pop()) is not None:
            self.said.append(entry[0])
        return self.said

    def send(self, *requests: pb.StreamRequest, at: float | None = None) -> "Desk":
        if at is not None:
            self.clock.seconds = at
        for request in requests:
            self.session.receive(request)
        return self.work()

    def play(self, packets: Iterable[Packet]) -> "Desk":
        """Packets at their own arrivals."""
        for item in packets:
            assert item.arrival is not None
            self.send(batch([item]), at=item.arrival)
        return self

    def of(self, kind: str) -> list[Any]:
        return [getattr(r, kind) for r in self.read() if r.WhichOneof("response") == kind]
