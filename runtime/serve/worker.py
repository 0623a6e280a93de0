"""A worker: one of the processes that serve on one port. What it runs, and how it talks to the one that started it.

Both sides send lines of JSON. The worker says ``ready`` with what it serves, ``failed`` with why it does not, and
``drained``; it is told ``drain`` and ``stop``. The end of the line, on either side, means that the other is gone.
"""

import asyncio
import json
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from runtime import logs, spans
from runtime.errors import LegatoError
from runtime.serve.seat import Seat
from runtime.serve.server import ServeConfig, Server

__all__ = ["Line", "work"]

GONE = "gone"


class Line:
    """One end of the line between a worker and its keeper, in the running event loop."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pipe.fileno(), self._receive)

    def say(self, word: str, **facts: Any) -> None:
        """Tell the other side; one that is gone need not know."""
        with suppress(OSError):
            self._pipe.send_bytes(json.dumps({"word": word, **facts}).encode())

    async def hear(self) -> dict[str, Any]:
        """What the other side said next: its ``word`` and facts; at the end of the line GONE, and GONE again."""
        said = await self._heard.get()
        if said["word"] == GONE:
            self._heard.put_nowait(said)
        return said

    def close(self) -> None:
        """Hang up; again is harmless."""
        if not self._pipe.closed:
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()

    def _receive(self) -> None:
        try:
            self._heard.put_nowait(json.loads(self._pipe.recv_bytes()))
        except (EOFError, OSError):
            self.close()
            self._heard.put_nowait({"word": GONE})


def work(config: ServeConfig, seat: Seat, pipe: Connection, form: str, level: str) -> None:
    """The whole life of a worker's process."""
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal, or of a whole group: the keeper says what to do
        signal.signal(number, signal.SIG_IGN)
    logs.setup(form, level=level)
    with logs.context(worker=seat.index):
        sys.exit(asyncio.run(_work(config, seat, pipe)))


async def _work(config: ServeConfig, seat: Seat, pipe: Connection) -> int:
    line = Line(pipe)
    told = asyncio.create_task(line.hear())
    server = Server(config, seat=seat)
    spans.start()
    starting = asyncio.create_task(server.start())
    try:
        await asyncio.wait((starting, told), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return 0
        await starting
        line.say("ready", served=server.served, metrics_port=server.metrics_port)
        while (word := (await told)["word"]) == "drain":
            told = asyncio.create_task(line.hear())
            draining = asyncio.create_task(_drain(server, line))
            await asyncio.wait((draining, told), return_when=asyncio.FIRST_COMPLETED)
        return 0 if word == "stop" else 1
    except LegatoError as error:
        line.say("failed", kind=type(error).__name__, sentence=str(error))
        return 1
    finally:
        starting.cancel()
        await asyncio.wait((starting,))
        await server.stop()
        spans.stop()


async def _drain(server: Server, line: Line) -> None:
    await server.drain()
    line.say("drained")
