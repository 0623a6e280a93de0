"""Service: the streams of a server. Who is admitted, resumed, kept for a while, sent elsewhere; no gRPC here.

All of it runs in the event loop's thread but what is handed to the decode pool. ``tick`` lets time pass and is called
some hundred times a second; it is all that sessions have for a clock.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from protos import stream_pb2 as pb
from runtime import logs
from runtime.clock import Clock, SystemClock
from runtime.observe import Observer
from runtime.serve.auth import Caller
from runtime.serve.convert import rational
from runtime.serve.limits import Plan, plan_stream
from runtime.serve.offer import Offer
from runtime.serve.resume import KEEP_SECONDS, Resumes
from runtime.serve.seat import Places, Seat
from runtime.serve.session import Session, Settings
from runtime.serve.status import Refused, denied, draining, invalid, unknown_name

__all__ = ["Service"]

log = logs.of(__name__)

RETRY_ELSEWHERE = 1.0  # seconds that a client should wait before it resumes at a server that drains


class Service:
    """Offers bundles to at most ``max_streams`` clients at once; the first offer is the default.

    With a ``seat`` it is one of several workers, and the limit is that of all.
    """

    def __init__(
        self,
        offers: Mapping[str, Offer],
        pool: Executor,
        *,
        settings: Settings | None = None,
        max_streams: int = 64,
        config_timeout: float = 10.0,
        keep_seconds: float = KEEP_SECONDS,
        clock: Clock | None = None,
        observer: Observer | None = None,
        keeper: Any = None,
        seat: Seat | None = None,
    ) -> None:
        self.offers = dict(offers)
        self.settings, self.config_timeout = settings or Settings(), config_timeout
        self.observer = observer or Observer()
        self.draining = False
        self._places = Places(max_streams, seat)
        self._pool, self._keeper, self._keep = pool, keeper, keep_seconds
        self._clock = clock or SystemClock()
        self._resumes: Resumes[Session] = Resumes(keep_seconds, max_streams, b"" if seat is None else seat.mark)

    @property
    def streams(self) -> int:
        """Connections that are served here, or about to be."""
        return self._places.taken

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place for one connection. Raises Refused: UNAVAILABLE while draining, RESOURCE_EXHAUSTED when full."""
        if self.draining:
            raise draining(RETRY_ELSEWHERE)
        self._places.take()
        self.observer.stream_started()
        try:
            yield
        finally:
            self._places.free()
            self.observer.stream_ended()

    def offer(self, name: str) -> Offer:
        """A bundle by name, the default for none. Raises Refused: NOT_FOUND."""
        if not name:
            return next(iter(self.offers.values()))
        if name not in self.offers:
            raise unknown_name("bundle", f"{name[:40]!r} is not served here; served: {', '.join(self.offers)}")
        return self.offers[name]

    async def open(self, config: pb.StreamConfig, caller: Caller) -> tuple[Session, pb.StreamResponse]:
        """The stream that a config asks for, new or resumed, and what to tell its client first. Raises Refused."""
        offer = self.offer(config.bundle)
        plan = plan_stream(config, offer, self.settings.limits)
        session = self._resumed(plan, offer, caller) if plan.token else None
        resumed = session is not None
        if session is None:
            session = await self._new(plan, offer, caller)
        token = self._resumes.issue(session, caller.name)
        log.info("stream opened", stream=session.ident, caller=caller.name, bundle=offer.name, resumed=resumed)
        return session, pb.StreamResponse(started=self._started(session, token, resumed))

    def disconnected(self, session: Session, connection: int, *, finished: bool, expired: bool) -> None:
        """A connection ended; its stream is kept unless it is over, or nobody is meant to come back."""
        if not session.detach(connection):
            return
        if finished or expired or session.failure is not None or self.draining or not self._keep:
            self._close(session)
            return
        for other in self._resumes.detach(session, self._clock.now()):
            other.close()

    def tick(self) -> None:
        """Let time pass."""
        for session in self._resumes.states():
            session.tick()
        for session in self._resumes.expire(self._clock.now()):
            log.info("stream given up", stream=session.ident)
            session.close()

    def drain(self) -> None:
        """Take nothing new; tell every stream where it stands, so that it can go elsewhere."""
        if self.draining:
            return
        self.draining = True
        for session in self._resumes.states():
            caller = self._resumes.caller(session)
            token = self._resumes.issue(session, caller)
            if session.connection:
                reason = "the server stops"
                away = pb.GoingAway(resume_token=token, retry_after_ms=RETRY_ELSEWHERE * 1e3, reason=reason)
                session.going_away(away)

    def cut(self) -> None:
        """The grace is over: end every stream."""
        for session in self._resumes.states():
            session.fail(draining(RETRY_ELSEWHERE))
            if not session.connection:
                self._close(session)

    @property
    def kept(self) -> int:
        """Streams whose client is away."""
        return self._resumes.detached()

    def _resumed(self, plan: Plan, offer: Offer, caller: Caller) -> Session | None:
        session = self._resumes.take(plan.token, caller.name, rebuildable=plan.resumption is not None)
        if session is None:
            return None
        if session.failure is not None:
            self._close(session)
            return None
        if session.offer is not offer or set(session.plan.info.codecs) != set(plan.info.codecs):
            raise invalid("bundle", "not that of the stream which the token names, or other tracks; resume as it was")
        try:
            session.resume(plan)
        except Refused:
            self._close(session)
            raise
        return session

    async def _new(self, plan: Plan, offer: Offer, caller: Caller) -> Session:
        loop = asyncio.get_running_loop()
        ident = self._ident(plan, caller)
        stream = await loop.run_in_executor(self._pool, offer.open, ident, plan, self.settings.limits)
        tap = None
        if self._keeper is not None and plan.recording_consent:
            tap = await loop.run_in_executor(self._pool, self._keeper.open, plan.info, ident)
        return Session(
            stream,
            plan,
            offer,
            self.settings,
            clock=self._clock,
            submit=self._pool.submit,
            post=poster(loop),
            observer=self.observer,
            tap=tap,
        )

    def _ident(self, plan: Plan, caller: Caller) -> str:
        """A stream that goes on keeps its name, unless somebody else's has it here."""
        if plan.resumption is None:
            return secrets.token_hex(8)
        for session in self._resumes.states():
            if session.ident != plan.resumption.stream:
                continue
            if self._resumes.caller(session) != caller.name:
                raise denied("resume_point names a stream of another caller")
            self._close(session)  # its own, under a token that was lost on the way
            session.supersede()
        return plan.resumption.stream

    def _started(self, session: Session, token: bytes, resumed: bool) -> pb.StreamStarted:
        plan, origin = session.plan, session.plan.info.origin
        return pb.StreamStarted(
            stream=session.ident,
            resume_token=token,
            origin=None if origin is None else rational(origin),
            lookahead=plan.lookahead,
            bundle=session.offer.description,
            recording=session.recording,
            playout_delay_ms=session.offer.delay(plan).cap * 1e3,
            resumed=resumed,
            report_interval_ms=self.settings.report_interval * 1e3,
        )

    def _close(self, session: Session) -> None:
        self._resumes.forget(session)
        session.close()


def poster(loop: asyncio.AbstractEventLoop) -> Callable[..., object]:
    """Calls a function in a loop, from any thread; a loop that is closed needs it no more."""

    def post(function: Callable[..., object], *arguments: object) -> None:
        try:
            loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            if not loop.is_closed():
                raise

    return post
