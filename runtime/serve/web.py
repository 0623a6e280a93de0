"""The metrics port: ``/metrics`` for Prometheus and ``/healthz`` for whoever starts and stops servers; nothing else.

It lives in the server's event loop, so that an answer from ``/healthz`` also says that the loop still turns. It speaks
as much of HTTP/1.1 (RFC 9112) as a scraper needs: one GET or HEAD per connection, a bounded head, no body, time-outs
on every step. It listens on loopback unless told otherwise: metrics tell a stranger how busy a server is.
"""

import asyncio
import inspect
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

from runtime import logs
from runtime.errors import ConfigError

__all__ = ["READY", "Health", "Web"]

log = logs.of(__name__)

READY = "ready"
LOOPBACK = "127.0.0.1"
MAX_HEAD = 8192  # bytes of a request's line and headers; scrapers send some 300
HEAD_SECONDS = 5.0  # from the connection to the end of the head
SEND_SECONDS = 10.0  # for a client to take the answer
MAX_CONNECTIONS = 32  # at once, then the oldest is cut off: who opens many and asks nothing keeps nobody out

REQUEST = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*|\*) HTTP/1\.[01]")
ACCEPT = re.compile(rb"\r\naccept:[ \t]*([\x20-\x7e]*)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Health:
    """Whether a server takes streams: ``status`` is READY, or "starting", "draining", with the reason for people."""

    status: str
    reason: str = ""


class Pages(Protocol):
    """What is shown on ``/metrics``: ``runtime.observe.Metrics``, or ``runtime.serve.merged.Merged``."""

    def render(self, accept: str = "") -> tuple[bytes, str] | Awaitable[tuple[bytes, str]]:
        """The page and its content type, for what a client accepts."""
        ...


class Web:
    """Serves metrics and health on one port until it is closed.

    ``health`` is called for each request to ``/healthz``; it answers 200 when READY, else 503.
    """

    def __init__(
        self,
        metrics: Pages,
        health: Callable[[], Health],
        *,
        host: str = LOOPBACK,
        port: int = 0,
        head_seconds: float = HEAD_SECONDS,
        send_seconds: float = SEND_SECONDS,
    ) -> None:
        self.metrics, self.health = metrics, health
        self.host, self.port = host, port
        self._head_seconds, self._send_seconds = head_seconds, send_seconds
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[Any], None] = {}  # connections, oldest first

    async def start(self) -> int:
        """Listen; the port that it got. Raises ConfigError where it cannot."""
        try:
            self._server = await asyncio.start_server(self._serve, self.host, self.port, limit=MAX_HEAD)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            place = f"{self.host}:{self.port}"
            raise ConfigError(f"metrics cannot listen on {place} ({why}); choose another port, or 0 for any") from error
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def close(self) -> None:
        """Stop listening and end what is open; again is harmless."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._open):
            task.cancel()
        if self._open:
            await asyncio.wait(self._open, timeout=1.0)
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one answer. Whatever comes, nothing leaves here but the answer."""
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= MAX_CONNECTIONS:
            next(iter(self._open)).cancel()
        self._open[task] = None
        try:
            await self._answer(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            writer.transport.abort()  # gone, too slow, or the server stops
        finally:
            self._open.pop(task, None)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await self._respond(await self._head(reader)))
        async with asyncio.timeout(self._send_seconds):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def _head(self, reader: asyncio.StreamReader) -> bytes | HTTPStatus:
        """The request's line and headers, or what is wrong with them."""
        try:
            async with asyncio.timeout(self._head_seconds):
                return await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            return HTTPStatus.REQUEST_TIMEOUT
        except asyncio.LimitOverrunError:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        except asyncio.IncompleteReadError:
            return HTTPStatus.BAD_REQUEST

    async def _respond(self, head: bytes | HTTPStatus) -> bytes:
        if isinstance(head, HTTPStatus):
            return _page(head, f"{head.phrase.lower()}\n")
        request = REQUEST.match(head)
        if request is None or head[request.end() : request.end() + 2] != b"\r\n":
            return _page(HTTPStatus.BAD_REQUEST, "this is not an HTTP request\n")
        method, path = request[1].decode(), request[2].decode().partition("?")[0]
        show = {"/metrics": self._metrics, "/healthz": self._health}.get(path)
        if show is None:
            return _page(HTTPStatus.NOT_FOUND, "there are /metrics and /healthz\n", head_only=method == "HEAD")
        if method not in ("GET", "HEAD"):
            return _page(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD\n", extra="Allow: GET, HEAD\r\n")
        try:
            status, body, content_type = await show(head)
        except Exception:
            log.exception("metrics request failed", path=path)
            return _page(HTTPStatus.INTERNAL_SERVER_ERROR, "see the log\n", head_only=method == "HEAD")
        return _page(status, body, content_type, head_only=method == "HEAD")

    async def _metrics(self, head: bytes) -> tuple[HTTPStatus, bytes, str]:
        accept = ACCEPT.search(head)
        page = self.metrics.render(accept[1].decode() if accept else "")
        body, content_type = await page if inspect.isawaitable(page) else page
        return HTTPStatus.OK, body, content_type

    async def _health(self, head: bytes) -> tuple[HTTPStatus, bytes, str]:
        now = self.health()
        status = HTTPStatus.OK if now.status == READY else HTTPStatus.SERVICE_UNAVAILABLE
        body = json.dumps({"status": now.status, "reason": now.reason}) + "\n"
        return status, body.encode(), "application/json"


def _page(
    status: HTTPStatus,
    body: str | bytes,
    content_type: str = "text/plain; charset=utf-8",
    *,
    head_only: bool = False,
    extra: str = "",
) -> bytes:
    """A whole answer; the connection ends with it."""
    data = body.encode() if isinstance(body, str) else body
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {len(data)}\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n{extra}\r\n"
    )
    return head.encode() + (b"" if head_only else data)
