"""Relay: calls that another worker of the same server has to answer, passed on to it message by message.

The system spreads connections over the workers of a port (``runtime.serve.workers``) without knowing whose stream a
client resumes, nor who has much to do. So a worker looks at a call's first message, and passes it on where the resume
token names another worker, or where another has far fewer streams. The other finds it on a socket in a folder that
only workers may enter, and believes who the caller is.

Frames are a letter, a length and that many bytes: ``C`` who calls, ``M`` a message, ``E`` no more of them, ``S`` the
status. Not gRPC again: its asyncio client forgets the status that comes while it writes.
"""

import asyncio
import json
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import grpc

from protos import stream_pb2 as pb
from runtime import logs
from runtime.serve.auth import Caller
from runtime.serve.calls import abort, next_request, readable
from runtime.serve.seat import Seat
from runtime.serve.status import worker_gone

__all__ = ["Behind", "Relay"]

log = logs.of(__name__)

HEAD = struct.Struct(">cI")
CALL, MESSAGE, END, STATUS = b"C", b"M", b"E", b"S"
TRACE_KEY = "traceparent"
REACH_SECONDS = 5.0  # to reach another worker
LAST_WORD = 5.0  # seconds that it has to read a status


async def _send(writer: asyncio.StreamWriter, kind: bytes, data: bytes = b"") -> None:
    """One frame, when there is room for it."""
    writer.write(HEAD.pack(kind, len(data)) + data)
    await writer.drain()


async def _receive(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The next frame. Raises IncompleteReadError or ConnectionError where the other side is gone."""
    kind, length = HEAD.unpack(await reader.readexactly(HEAD.size))
    return kind, await reader.readexactly(length)


class Relay:
    """The way from one worker to the others."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.active = 0  # calls being passed on

    def elsewhere(self, config: pb.StreamConfig) -> int | None:
        """The worker that has to answer a stream that begins so; None: this one."""
        token = config.resume_token
        return self.seat.holder(token) if token else self.seat.lighter()

    async def run(self, index: int, config: pb.StreamConfig, caller: Caller, context: Any) -> None:
        """Pass a call on until it ends, with the status that the other worker gives it. Raises Refused."""
        log.info("stream passed on", to=index, caller=caller.name)
        self.active += 1
        try:
            await self._pass_on(index, config, caller, context)
        finally:
            self.active -= 1

    async def _pass_on(self, index: int, config: pb.StreamConfig, caller: Caller, context: Any) -> None:
        try:
            async with asyncio.timeout(REACH_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self.seat.path(index))
        except (OSError, TimeoutError):
            raise worker_gone() from None
        try:
            await context.send_initial_metadata(())  # before a response can: grpc.aio would send it with that again
            code, message, trailing = await _piped(reader, writer, config, caller, context)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise worker_gone() from None
        finally:
            writer.transport.abort()
        if code != "OK":
            await abort(context, grpc.StatusCode[code], message, trailing)


Status = tuple[str, str, tuple[tuple[str, bytes], ...]]  # code, message, trailing metadata


async def _piped(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, config: pb.StreamConfig, caller: Caller, context: Any
) -> Status:
    """Both directions at once, until the other worker has said how the call ends."""
    up = asyncio.create_task(_up(writer, config, caller, context))
    down = asyncio.create_task(_down(reader, context))
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        if up.done() and not down.done():
            up.result()  # what was wrong with a request ends the call as it would have without a relay
        return await down
    finally:
        up.cancel()
        down.cancel()
        await asyncio.wait((up, down))


async def _up(writer: asyncio.StreamWriter, config: pb.StreamConfig, caller: Caller, context: Any) -> None:
    """Requests; one is read when the one before it was taken. A worker that takes no more has said why, below."""
    traceparent = str(dict(context.invocation_metadata() or ()).get(TRACE_KEY, ""))
    about = {"caller": caller.name, TRACE_KEY: traceparent, "remaining": context.time_remaining()}
    with suppress(ConnectionError):
        await _send(writer, CALL, json.dumps(about).encode())
        await _send(writer, MESSAGE, pb.StreamRequest(config=config).SerializeToString())
        while (request := await next_request(context)) is not grpc.aio.EOF:
            await _send(writer, MESSAGE, request.SerializeToString())
        await _send(writer, END)


async def _down(reader: asyncio.StreamReader, context: Any) -> Status:
    """Responses, as the client takes them; then the status."""
    while True:
        kind, data = await _receive(reader)
        if kind == STATUS:
            status = json.loads(data)
            trailing = tuple((key, bytes.fromhex(value)) for key, value in status["trailing"])
            return status["code"], status["message"], trailing
        await context.write(pb.StreamResponse.FromString(data))


class Behind:
    """Where a worker takes what others pass on. ``serve(context, caller)`` answers a call, as gRPC's handler would."""

    def __init__(self, path: Path, serve: Callable[[Any, Caller], Awaitable[None]]) -> None:
        self.path, self._serve = path, serve
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Listen; where one that died did before, too."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._call, self.path)

    async def close(self) -> None:
        """End every call."""
        if self._server is not None:
            self._server.close()
        for task in self._calls:
            task.cancel()
        if self._calls:
            await asyncio.wait(self._calls)

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            kind, data = await _receive(reader)
            assert kind == CALL, kind
            about = json.loads(data)
            context = PassedOn(reader, writer, about, task)
            with suppress(_Ended):
                await self._serve(context, Caller(about["caller"], frozenset({"stream"})))
                await context.end("OK", "", ())
            await _heard_out(reader)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # nobody is there to be told, or the server stops
        except Exception:
            log.exception("a call that was passed on failed")
        finally:
            self._calls.discard(task)
            writer.close()


async def _heard_out(reader: asyncio.StreamReader) -> None:
    """Take what the other worker still sends until it hangs up: a socket that is closed with something unread in it
    takes what it sent last along, and that was the status."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORD):
            while await reader.read(1 << 16):
                pass


class _Ended(Exception):
    """The call has its status."""


class PassedOn:
    """A call from another worker, with as much of grpc.aio.ServicerContext as the service uses."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        about: dict[str, Any],
        task: "asyncio.Task[Any]",
    ) -> None:
        self._reader, self._writer, self._task = reader, writer, task
        self._trace = about[TRACE_KEY]
        remaining = about["remaining"]
        self._until = None if remaining is None else time.monotonic() + remaining
        self._parse = readable(pb.StreamRequest.FromString)
        self._watch: asyncio.Task[None] | None = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """What the client sent beside its call, of what the service reads."""
        return ((TRACE_KEY, self._trace),) if self._trace else ()

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline."""
        return None if self._until is None else self._until - time.monotonic()

    async def send_initial_metadata(self, _metadata: Any) -> None:
        """The other worker has sent it."""

    async def read(self) -> Any:
        """The next request, or EOF. A client that goes ends the call, as it does in gRPC."""
        try:
            kind, data = await _receive(self._reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise asyncio.CancelledError from None
        if kind == MESSAGE:
            return self._parse(data)
        self._watch = asyncio.create_task(self._gone())
        return grpc.aio.EOF

    async def write(self, response: pb.StreamResponse) -> None:
        """One response, when there is room for it."""
        try:
            await _send(self._writer, MESSAGE, response.SerializeToString())
        except ConnectionError:
            raise asyncio.CancelledError from None

    async def abort(self, code: grpc.StatusCode, message: str, trailing: Any = ()) -> NoReturn:
        """End the call with a status."""
        await self.end(code.name, message, trailing)
        raise _Ended

    async def end(self, code: str, message: str, trailing: Any) -> None:
        """The last frame."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait((self._watch,))  # it reads, and only one may
        status = {"code": code, "message": message, "trailing": [(key, value.hex()) for key, value in trailing]}
        await _send(self._writer, STATUS, json.dumps(status).encode())

    async def _gone(self) -> None:
        """Nothing more is read after the last request; that the client went has to be noticed all the same."""
        with suppress(ConnectionError):
            await self._reader.read(1)
        self._task.cancel()


