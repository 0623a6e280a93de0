"""The gRPC edge of the service: calls in, sessions behind; statuses out. Nothing is decided here but who talks to whom.

One call is one connection of one stream. Two tasks serve it: one reads requests into the session, one writes what the
session has to say; whichever ends first ends the call.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc

from protos import stream_pb2 as pb
from protos import stream_pb2_grpc as rpc
from runtime import logs, spans
from runtime.serve.auth import LOCAL, Caller, Gatekeeper
from runtime.serve.calls import GARBLED, garbled, next_request, readable, refuse
from runtime.serve.relay import Relay
from runtime.serve.seat import Seat
from runtime.serve.service import Service
from runtime.serve.session import Session
from runtime.serve.status import Refused, cut_off, draining, out_of_order, timed_out

__all__ = ["CALLER", "Guard", "Servicer"]

log = logs.of(__name__)

CALLER: ContextVar[Caller] = ContextVar("caller", default=LOCAL)
AFTER_EOF = 0.2  # seconds in which a broken connection, which reads like a closed one, shows that it is broken
NEARLY = 0.5  # seconds by which a client's deadline may reach us before it is over by our clock
STREAM, DESCRIBE = "stream", "describe"
OURS = "/legato.v1.InferenceService/"
SCOPES = {  # what a method needs; one that is not named needs ``admin``
    "/legato.v1.InferenceService/Stream": STREAM,
    "/legato.v1.InferenceService/DescribeBundle": DESCRIBE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": DESCRIBE,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": DESCRIBE,
}
OPEN = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")  # load balancers carry no tokens


class Servicer(rpc.InferenceServiceServicer):
    """``legato.v1.InferenceService``. With a ``seat`` among other workers, what is theirs is passed on to them."""

    def __init__(self, service: Service, seat: Seat | None = None) -> None:
        self._service = service
        self.relay = None if seat is None else Relay(seat)

    async def DescribeBundle(self, request: pb.DescribeBundleRequest, context: Any) -> pb.DescribeBundleResponse:
        """What a bundle is."""
        try:
            return pb.DescribeBundleResponse(bundle=self._service.offer(request.bundle).description)
        except Refused as refused:
            await refuse(context, refused)

    async def Stream(self, _requests: Any, context: Any) -> None:
        """One connection of one stream."""
        caller, service = CALLER.get(), self._service
        try:
            with service.admitted():
                config = await _config(context, service.config_timeout)
                other = None if self.relay is None else self.relay.elsewhere(config)
                if other is None:
                    await self._answer(config, caller, context)
            if self.relay is not None and other is not None:
                await self.relay.run(other, config, caller, context)
        except Refused as refused:
            service.observer.rejected(refused.reason)
            log.info("stream refused", caller=caller.name, code=refused.code, reason=refused.reason)
            await refuse(context, refused)

    async def passed_on(self, context: Any, caller: Caller) -> None:
        """One connection of one stream, from another worker, which let its caller in and chose this one."""
        CALLER.set(caller)
        await Servicer(self._service).Stream(None, context)

    async def _answer(self, config: pb.StreamConfig, caller: Caller, context: Any) -> None:
        """Open or resume the stream that a config asks for, and serve this connection of it."""
        session, started = await self._service.open(config, caller)
        traceparent = dict(context.invocation_metadata() or ()).get("traceparent", "")
        with (
            logs.context(stream=session.ident, caller=caller.name),
            spans.span("stream", str(traceparent), stream=session.ident),
        ):
            await self._serve(session, started, context)

    async def _serve(self, session: Session, started: pb.StreamResponse, context: Any) -> None:
        """Run a connection until the stream is over, fails, goes elsewhere, or the client is gone."""
        # By itself: grpc.aio forgets that it went out with a first message that nobody reads, and then cannot abort.
        await context.send_initial_metadata(())
        connection = session.attach()
        session.outbox.first(started)
        reader = asyncio.create_task(_read(session, connection, context))
        writer = asyncio.create_task(_write(session, connection, context))
        cut = asyncio.create_task(session.cut.wait())
        finished = False
        log.info("stream connected", connection=connection)
        try:
            pending: set[asyncio.Task[Any]] = {reader, writer, cut}
            while not writer.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if cut.done():
                    check(session, connection)
            finished = True
        except Refused as refused:
            if connection == session.connection and refused is not session.hung_up:
                session.fail(refused)
            raise
        finally:
            for task in (reader, writer, cut):
                task.cancel()
            remaining = context.time_remaining()
            expired = remaining is not None and remaining <= NEARLY
            self._service.disconnected(session, connection, finished=finished, expired=expired)
            log.info("stream disconnected", connection=connection, finished=finished)


def check(session: Session, connection: int) -> None:
    """Raises Refused where this connection must not go on."""
    if connection != session.connection:
        raise cut_off("the stream goes on over another connection, with the token of this one")
    if session.failure is not None:
        raise session.failure
    if session.hung_up is not None:
        raise session.hung_up


async def _config(context: Any, timeout: float) -> pb.StreamConfig:
    """The first message."""
    try:
        async with asyncio.timeout(timeout):
            request = await next_request(context)
    except TimeoutError:
        raise timed_out(f"no StreamConfig within {timeout:g} s; it is the first message", "no_config") from None
    if request is grpc.aio.EOF:
        raise out_of_order("the stream ended before its StreamConfig", "config")
    kind = request.WhichOneof("request")
    if kind != "config":
        raise out_of_order(f"{kind or 'an empty message'} before StreamConfig, which is the first message", "config")
    return request.config


async def _read(session: Session, connection: int, context: Any) -> None:
    """Requests into the session, as long as it has room."""
    while not session.draining and connection == session.connection:
        request = await next_request(context)
        if request is grpc.aio.EOF:
            await asyncio.sleep(AFTER_EOF)
            session.no_more()
            return
        if session.draining or connection != session.connection:
            return
        session.receive(request)
        if not session.room:
            session.wait()
            await session.readable.wait()
            session.go_on()


async def _write(session: Session, connection: int, context: Any) -> None:
    """Responses to the client, in order, until everything was said."""
    outbox = session.outbox
    while True:
        outbox.ready.clear()
        while connection == session.connection and (entry := outbox.pop()) is not None:
            response, key, since = entry
            session.manners.writing()
            await context.write(response)
            session.manners.written()
            if key is not None:
                session.sent(key[1], since)
        check(session, connection)
        if session.done and not outbox:
            return
        if session.parting and not outbox:
            session.part()
            if (last := outbox.pop()) is not None:
                await context.write(last[0])
            raise draining()
        await outbox.ready.wait()


class Guard(grpc.aio.ServerInterceptor):
    """Lets a call through when its caller may make it; everything but health needs to be allowed."""

    def __init__(self, gatekeeper: Gatekeeper, rejected: Callable[[str], object]) -> None:
        self._gatekeeper, self._rejected = gatekeeper, rejected

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """The handler of a call, behind the gate."""
        handler = await continuation(details)
        if handler is None or details.method in OPEN:
            return handler
        ours = details.method.startswith(OURS)
        read = readable(handler.request_deserializer) if ours else handler.request_deserializer
        return self._guarded(handler, SCOPES.get(details.method, "admin"), read)

    def _guarded(self, handler: Any, scope: str, read: Any) -> Any:
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def guarded(request: Any, context: Any) -> Any:
            try:
                metadata = context.invocation_metadata() or ()
                caller = self._gatekeeper.admit(scope, metadata, context.auth_context() or {})
                if request is GARBLED:
                    raise garbled()
            except Refused as refused:
                self._rejected(refused.reason)
                await refuse(context, refused)
            CALLER.set(caller)
            answer = inner(request, context)
            if not hasattr(answer, "__aiter__"):
                return await answer
            async for response in answer:
                await context.write(response)
            return None

        return make(guarded, read, handler.response_serializer)
