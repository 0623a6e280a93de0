"""Server: bundles, models, sessions, ports and their ends, put together.

server = Server(ServeConfig(bundles=("talk",), listen="127.0.0.1:0"))
port = await server.start()      # models are warm, health says SERVING
await server.drain()             # NOT_SERVING, GoingAway to every stream, then the grace
await server.stop()
"""

import asyncio
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos import stream_pb2 as pb
from protos import stream_pb2_grpc as rpc
from runtime import logs
from runtime.clock import Clock, SystemClock
from runtime.errors import ConfigError, UsageError
from runtime.observe import Metrics, Observer
from runtime.serve.auth import Address, Gatekeeper, TlsFiles, TokenFile, check_exposure
from runtime.serve.offer import Offer
from runtime.serve.ports import channel_options, credentials
from runtime.serve.relay import Behind
from runtime.serve.seat import Seat
from runtime.serve.service import Service
from runtime.serve.servicer import Guard, Servicer
from runtime.serve.session import Settings
from runtime.serve.web import READY, Health, Web

__all__ = ["ServeConfig", "Server", "load_offers"]

log = logs.of(__name__)

TICK = 0.01  # seconds between two looks at the clock: what a clip's closing may be late by
SERVICE = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
SPARE_CALLS = 64  # beyond streams: health, descriptions, reflection, and streams that are being refused


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """All of a server's settings. Times in seconds."""

    bundles: tuple[str, ...] = ("talk",)  # names or folders; the first is the default
    listen: str = "127.0.0.1:50051"
    tls: TlsFiles | None = None
    tokens: Path | None = None
    insecure: bool = False  # said aloud: in the clear beyond this machine
    max_streams: int = 64
    metrics: str = ""  # HOST:PORT of /metrics and /healthz; empty: none
    record: Path | None = None  # folder for recordings of those who consent
    record_limits: Mapping[str, float] = field(default_factory=dict)  # max_bytes, max_age, per_stream_bytes
    preset: str = "interactive"
    settings: tuple[str, ...] = ()  # section.name=value, as in runtime.config
    device: str = "auto"
    deterministic: bool = False
    shed: bool = True  # leave out what cannot be answered in time; never where answers are deterministic
    grace: float = 10.0  # between GoingAway and the end
    config_timeout: float = 10.0
    keep_seconds: float = 30.0  # that a stream without a connection is kept
    decode_threads: int = 0  # 0: as many as there are cores, four at most
    stream: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if not self.bundles:
            raise UsageError("--bundle names no bundle; a server needs at least one")
        if self.max_streams < 1:
            raise UsageError(f"--max-streams is {self.max_streams}; use 1 or more")
        if not 0 <= self.grace < float("inf"):
            raise UsageError(f"--grace is {self.grace}; use 0 or more seconds")


class Server:
    """A gRPC server in the running event loop. ``offers`` replaces the bundles of the config, for tests.

    With a ``seat`` it is one of several workers on its port (``runtime.serve.workers``).
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        offers: Mapping[str, Offer] | None = None,
        observer: Observer | None = None,
        clock: Clock | None = None,
        seat: Seat | None = None,
    ) -> None:
        self.config, self.seat = config, seat
        self.observer = observer or (Metrics() if config.metrics else Observer())
        self.address = Address.parse(config.listen)
        self._metrics = Address.parse(config.metrics, "--metrics") if config.metrics else None
        self.port = 0
        self.offers: dict[str, Offer] = {}
        self.service: Service | None = None
        self._given, self._clock = offers, clock or SystemClock()
        self._tokens = TokenFile(config.tokens) if config.tokens is not None else None
        check_exposure(self.address, config.tls, tokens=self._tokens is not None, insecure=config.insecure)
        if config.tls is not None:
            config.tls.check()
        self._server: Any = None
        self._servicer: Servicer | None = None
        self._behind: Behind | None = None  # for what other workers pass on
        self._health = health.aio.HealthServicer()
        self._web: Web | None = None
        self._keeper: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._ticker: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Load and warm the models, then listen; the port (0 for a socket in the file system).

        Raises:
            LegatoError: a bundle, a file or an address that cannot be used.
        """
        config = self.config
        self._pool = ThreadPoolExecutor(
            config.decode_threads or min(4, os.cpu_count() or 1), thread_name_prefix="legato-decode"
        )
        try:
            await self._watch()
            if config.record is not None:
                self._keeper = _keeper(config, self.observer)
            self.offers = await self._load()
            self.service = self._service()
            await self._listen(self.service)
        except BaseException:
            await self.stop()
            raise
        self._ticker = asyncio.create_task(self._tick(self.service))
        for name in (*self.offers, "", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", address=self.where, bundles=list(self.offers))
        return self.port

    async def drain(self) -> None:
        """Stop in order: health first, then every stream is told and finishes what was read, as long as grace lasts."""
        await self._health.enter_graceful_shutdown()
        if self.service is None:
            return
        log.info("draining", streams=self.service.streams, grace=self.config.grace)
        self.service.drain()
        try:
            async with asyncio.timeout(self.config.grace):
                while self.busy:
                    await asyncio.sleep(TICK)
        except TimeoutError:
            log.warning("the grace is over", streams=self.busy)
        self.service.cut()

    async def stop(self) -> None:
        """End everything now; again is harmless."""
        await self._health.enter_graceful_shutdown()
        if self.service is not None:
            self.service.cut()
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(1.0)
        if self._behind is not None:
            await self._behind.close()
        if self._ticker is not None:
            self._ticker.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticker
            self._ticker = None
        if self._web is not None:
            await self._web.close()
        await asyncio.to_thread(self._end)

    @property
    def busy(self) -> int:
        """Calls that are being served, here or through here."""
        relay = None if self._servicer is None else self._servicer.relay
        return (0 if self.service is None else self.service.streams) + (0 if relay is None else relay.active)

    @property
    def where(self) -> str:
        """The address that clients use."""
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        return f"{host}:{self.port}" if host else self.address.text

    @property
    def served(self) -> list[tuple[str, str]]:
        """Name and hash of each bundle."""
        return [(name, offer.description.hash) for name, offer in self.offers.items()]

    @property
    def metrics_port(self) -> int:
        """Of /metrics and /healthz; 0: none."""
        return 0 if self._web is None else self._web.port

    async def _load(self) -> dict[str, Offer]:
        if self._given is not None:
            return dict(self._given)
        return await asyncio.to_thread(load_offers, self.config, self._clock, self.observer)

    def _service(self) -> Service:
        config = self.config
        assert self._pool is not None
        return Service(
            self.offers,
            self._pool,
            settings=config.stream if sheds(config) else replace(config.stream, behind=math.inf),
            max_streams=config.max_streams,
            config_timeout=config.config_timeout,
            keep_seconds=config.keep_seconds,
            clock=self._clock,
            observer=self.observer,
            keeper=self._keeper,
            seat=self.seat,
        )

    async def _listen(self, service: Service) -> None:
        gatekeeper = Gatekeeper(
            self._tokens, certificates=self.config.tls is not None and self.config.tls.client_ca is not None
        )
        # Only workers share a port: a second server on it is an error, not half of the clients.
        self._server = grpc.aio.server(
            interceptors=(Guard(gatekeeper, self.observer.rejected),),
            options=[*channel_options(), ("grpc.so_reuseport", int(self.seat is not None))],
            maximum_concurrent_rpcs=self.config.max_streams + SPARE_CALLS,
        )
        self._servicer = servicer = Servicer(service, self.seat)
        rpc.add_InferenceServiceServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        if self.seat is not None:
            self._behind = Behind(self.seat.path(self.seat.index), servicer.passed_on)
            await self._behind.start()
        self.port = self._bind()
        await self._server.start()

    async def _watch(self) -> None:
        """The metrics port, before anything that takes long: whoever waits for this server sees that it comes."""
        if self._metrics is not None and isinstance(self.observer, Metrics):
            self._web = Web(self.observer, self._state, host=self._metrics.host, port=self._metrics.port)
            await self._web.start()

    def _bind(self) -> int:
        try:
            if self.config.tls is None:
                port = self._server.add_insecure_port(self.address.text)
            else:
                port = self._server.add_secure_port(self.address.text, credentials(self.config.tls))
        except RuntimeError:
            port = 0
        if not port and self.address.host:
            raise ConfigError(f"--listen {self.address.text} cannot be had; choose another port, or 0 for any")
        return port if self.address.host else 0

    def _state(self) -> Health:
        """For /healthz."""
        if self.service is not None and self.service.draining:
            return Health("draining", "the server stops")
        if self.service is None or self._ticker is None:
            return Health("starting", "models are loaded")
        waiting = [name for name, offer in self.offers.items() if not offer.dispatcher.ready]
        return Health("starting", f"bundle {waiting[0]} is not ready") if waiting else Health(READY)

    async def _tick(self, service: Service) -> None:
        while True:
            await asyncio.sleep(TICK)
            service.tick()

    def _end(self) -> None:
        """What may block."""
        if self._given is None:
            for offer in self.offers.values():
                offer.dispatcher.stop()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._keeper is not None:
            self._keeper.close()


def sheds(config: ServeConfig) -> bool:
    """Whether anything is ever left out under load."""
    return config.shed and not config.deterministic


def load_offers(config: ServeConfig, clock: Clock, observer: Observer) -> dict[str, Offer]:
    """The bundles of a config, their models warm. Raises LegatoError where one cannot be served."""
    from runtime.batches import BatchPolicy
    from runtime.bundle import Bundle
    from runtime.dispatch import Dispatcher
    from runtime.pipeline import Pipeline
    from runtime.serve.answers import bundle_to_wire

    offers: dict[str, Offer] = {}
    for wanted in config.bundles:
        bundle = Bundle.load(wanted)
        name, heads = bundle.manifest.name, tuple(bundle.manifest.heads)
        if name in offers:
            raise UsageError(f"--bundle {wanted}: a bundle called {name} is served already; leave one of them out")
        pipeline = Pipeline.from_bundle(
            bundle,
            device=config.device,
            preset=config.preset,
            heads=heads,
            overrides=(f"engine.deterministic={str(config.deterministic).lower()}", *config.settings),
        )
        policy = BatchPolicy(shed=sheds(config))
        dispatcher = Dispatcher(pipeline.engine, clock=clock, policy=policy, observer=observer)
        dispatcher.start()
        offers[name] = Offer(
            name=name,
            heads=heads,
            lookahead=bundle.manifest.lookahead,
            description=bundle_to_wire(bundle),
            config=pipeline.config,
            spec=pipeline.engine.spec,
            dispatcher=dispatcher,
            face=pipeline.engine.initial_face,
        )
    return offers


def _keeper(config: ServeConfig, observer: Observer) -> Any:
    from runtime.keep import Keeper

    assert config.record is not None
    limits: dict[str, Any] = dict(config.record_limits)
    return Keeper(config.record, observer=observer, **limits)
