"""Workers: a server as several processes on one port; this is the one that starts, watches and ends them.

Python runs one thread at a time, so that one process receives for little more than one core however many there are.
Workers each have models, an engine and streams of their own; the system spreads new connections over them
(SO_REUSEPORT) and they pass on what is another's (``runtime.serve.relay``). One that dies is replaced, and its clients
resume as after the death of a server. This process loads no models and sees no packets.
"""

import asyncio
import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime import errors, logs
from runtime.errors import ConfigError, LegatoError, UsageError
from runtime.retention import prepare
from runtime.serve.auth import Address
from runtime.serve.merged import Merged
from runtime.serve.seat import MOST_WORKERS, Seat
from runtime.serve.server import ServeConfig, Server
from runtime.serve.web import READY, Health, Web
from runtime.serve.worker import GONE, Line, work

__all__ = ["Workers", "reserve"]

log = logs.of(__name__)

AGAIN_FIRST, AGAIN_MOST = 0.5, 30.0  # seconds before a worker that died is replaced
STEADY = 60.0  # seconds after which a worker's death is its first again
STOP_SECONDS = 5.0  # for a worker to end by itself


@dataclass(eq=False)
class _Worker:
    process: Any
    line: Line
    began: float
    ready: bool = False
    drained: bool = False
    metrics_port: int = 0


class Workers:
    """``count`` processes that serve one config. Used as ``runtime.serve.server.Server`` is: start, drain, stop.

    ``work`` is what a process runs; tests give another.
    """

    def __init__(
        self, config: ServeConfig, count: int, *, form: str = "plain", level: str = "info", work: Any = work
    ) -> None:
        if not 2 <= count <= MOST_WORKERS:
            raise UsageError(f"--workers {count} cannot be; use 1 to {MOST_WORKERS}")
        Server(config)  # what is wrong with addresses, files and exposure is said before a process starts
        self.config, self.count = config, count
        self.address = Address.parse(config.listen)
        if not self.address.host:
            raise UsageError(f"--listen {config.listen} is one socket for one process; use HOST:PORT, or --workers 1")
        self.port = 0
        self.served: list[tuple[str, str]] = []
        self._spawn = multiprocessing.get_context("spawn")
        self._seats = self._spawn.RawArray("i", count)
        self._work, self._logs = work, (form, level)
        self._workers: dict[int, _Worker] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._folder: Path | None = None
        self._reserved: socket.socket | None = None
        self._web: Web | None = None
        self._state = "starting"

    @property
    def where(self) -> str:
        """The address that clients use."""
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        return f"{host}:{self.port}"

    @property
    def metrics_port(self) -> int:
        """Of /metrics and /healthz of all workers together; 0: none."""
        return 0 if self._web is None else self._web.port

    async def start(self) -> int:
        """Start all workers; the port, when each of them is ready. Raises what the first of them failed with."""
        try:
            self._reserved = reserve(self.address)
            self.port = self._reserved.getsockname()[1]
            self._folder = Path(tempfile.mkdtemp(prefix="legato-"))  # for its owner alone
            if self.config.record is not None:
                prepare(self.config.record)
            await self._watch()
            lives = [self._begin(index) for index in range(self.count)]
            await asyncio.gather(*(self._ready(index, life) for index, life in enumerate(lives)))
        except BaseException:
            await self.stop()
            raise
        self._state = "serving"
        self._watchers = [asyncio.create_task(self._keep(index)) for index in range(self.count)]
        return self.port

    async def drain(self) -> None:
        """Tell every worker to drain, and wait until each has."""
        self._state = "draining"
        for worker in self._workers.values():
            worker.line.say("drain")
        while any(not worker.drained and worker.process.is_alive() for worker in self._workers.values()):
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """End everything now; again is harmless."""
        self._state = "draining"
        for watcher in self._watchers:
            watcher.cancel()
        workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            worker.line.say("stop")
        await asyncio.to_thread(_end, [worker.process for worker in workers])
        for worker in workers:
            worker.line.close()
        if self._web is not None:
            await self._web.close()
        if self._reserved is not None:
            self._reserved.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self, index: int) -> _Worker:
        """A new process in a seat."""
        assert self._folder is not None
        self._seats[index] = 0
        seat = Seat(index=index, loads=self._seats, folder=self._folder)
        here, there = self._spawn.Pipe()
        arguments = (self._config(index), seat, there, *self._logs)
        process = self._spawn.Process(target=self._work, args=arguments, name=f"legato-worker-{index}", daemon=True)
        process.start()
        there.close()
        self._workers[index] = worker = _Worker(process, Line(here), time.monotonic())
        return worker

    def _config(self, index: int) -> ServeConfig:
        """A worker's part of the whole."""
        config = self.config
        cores = config.decode_threads or min(4, os.cpu_count() or 1)
        limits = dict(config.record_limits)
        if "max_bytes" in limits:
            limits["max_bytes"] = max(1, int(limits["max_bytes"]) // self.count)
        return replace(
            config,
            listen=self.where,
            metrics="127.0.0.1:0" if config.metrics else "",
            record=None if config.record is None else config.record / f"worker-{index}",
            record_limits=limits,
            decode_threads=max(1, cores // self.count),
        )

    async def _ready(self, index: int, worker: _Worker) -> None:
        """Wait until a worker serves. Raises LegatoError with what it says if it cannot."""
        said = await worker.line.hear()
        if said["word"] == "ready":
            worker.ready, worker.metrics_port = True, said["metrics_port"]
            self.served = [(name, digest) for name, digest in said["served"]]
        elif said["word"] == "failed":
            raise getattr(errors, said["kind"], LegatoError)(said["sentence"])
        else:
            await asyncio.to_thread(worker.process.join, STOP_SECONDS)
            code = worker.process.exitcode
            raise LegatoError(f"worker {index} ended (exit code {code}) before it was ready; its log says why")

    async def _keep(self, index: int) -> None:
        """Replace a worker whenever it dies, later each time."""
        again = AGAIN_FIRST
        while True:
            worker = self._workers[index]
            while (said := await worker.line.hear())["word"] != GONE:
                worker.drained = worker.drained or said["word"] == "drained"
            if self._state == "draining":
                return
            worker.ready = False
            await asyncio.to_thread(worker.process.join, STOP_SECONDS)
            log.error("worker died", worker=index, exit_code=worker.process.exitcode)
            self._seats[index] = 0
            again = AGAIN_FIRST if time.monotonic() - worker.began > STEADY else min(2 * again, AGAIN_MOST)
            await self._replace(index, again)

    async def _replace(self, index: int, wait: float) -> None:
        await asyncio.sleep(wait)
        try:
            await self._ready(index, self._begin(index))
        except LegatoError as error:
            log.error("worker not replaced", worker=index, why=str(error))
        else:
            log.info("worker replaced", worker=index)

    async def _watch(self) -> None:
        if self.config.metrics:
            address = Address.parse(self.config.metrics, "--metrics")
            pages = Merged(lambda: [w.metrics_port for w in self._workers.values() if w.ready])
            self._web = Web(pages, self._health, host=address.host, port=address.port)
            await self._web.start()

    def _health(self) -> Health:
        """For /healthz: as long as one worker serves, the server does."""
        if self._state == "draining":
            return Health("draining", "the server stops")
        ready = sum(worker.ready for worker in self._workers.values())
        return Health(READY) if ready and self._state == "serving" else Health("starting", "models are loaded")


def reserve(address: Address) -> socket.socket:
    """Hold a port that workers of this process may share, and nobody else; port 0 becomes a free one.

    Raises:
        ConfigError: somebody listens there already, or this system cannot share a port.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError("--workers needs a system whose sockets share a port (SO_REUSEPORT); use --workers 1")
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, where = found[0][0], found[0][4]
        if address.port:  # others that would share it too are found by not offering to
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
        held = socket.socket(family, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(where)
    except OSError:
        raise ConfigError(f"--listen {address.text} cannot be had; choose another port, or 0 for any") from None
    return held


def _end(processes: list[Any]) -> None:
    """Wait for processes, together no longer than STOP_SECONDS, and end what is left."""
    until = time.monotonic() + STOP_SECONDS
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
