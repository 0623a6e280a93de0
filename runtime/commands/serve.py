"""``legato serve``: bundles for clients over gRPC, until SIGTERM or Ctrl-C."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.errors import UsageError
from runtime.output import as_line

if TYPE_CHECKING:
    from runtime.serve.auth import TlsFiles
    from runtime.serve.server import ServeConfig, Server
    from runtime.serve.workers import Workers

app = typer.Typer(add_completion=False)
GB, HOUR = 1 << 30, 3600.0
KERNELS = 128  # that oneDNN keeps, one for each layer and batch size met lately; its own 1024 take 200 MB in time


@app.command(epilog="For example: legato serve --listen 127.0.0.1:50051 --metrics 127.0.0.1:9090")
def serve(
    bundle: Annotated[
        list[str] | None, typer.Option(help="Name or folder; may be given more than once, the first is the default.")
    ] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT (port 0: any), [IPv6]:PORT or unix:PATH.")] = "127.0.0.1:50051",
    tls_cert: Annotated[Path | None, typer.Option(help="The server's certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM, without a passphrase.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Ask clients for certificates of this authority, PEM.")
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="File of token hashes; see legato token new.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve others than this machine in the clear, and let anybody in.")
    ] = False,
    max_streams: Annotated[int, typer.Option(min=1, help="Clients at once; one more is asked to come again.")] = 64,
    metrics: Annotated[str, typer.Option(help="HOST:PORT of /metrics and /healthz; default: none.")] = "",
    record: Annotated[Path | None, typer.Option(help="Keep the packets of clients who consent in this folder.")] = None,
    record_gb: Annotated[float, typer.Option(min=0.001, help="All recordings together; the oldest go first.")] = 10.0,
    record_hours: Annotated[float, typer.Option(min=0.001, help="Recordings older than this go.")] = 168.0,
    record_stream_gb: Annotated[float, typer.Option(min=0.001, help="One recording; it ends there.")] = 1.0,
    preset: Annotated[str, typer.Option(help="How long to wait: interactive, replay, patient.")] = "interactive",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, such as delay.cap=0.3; may be given more than once.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Answers byte-equal to a replay's; slower, nothing is shed.")
    ] = False,
    shed: Annotated[
        bool, typer.Option("--shed/--no-shed", help="Under load, look at less rather than answer late.")
    ] = True,
    answer_within: Annotated[
        float, typer.Option(min=0.05, help="Seconds in which a clip is to be answered, or looked at less.")
    ] = 1.0,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that share the port, each with its own models; 0: one for each core.")
    ] = 1,
    grace: Annotated[float, typer.Option(min=0.0, help="Seconds that streams have to go elsewhere at the end.")] = 10.0,
    log: Annotated[str, typer.Option(help="Form of the log on stderr: plain or json.")] = "plain",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    as_json: Annotated[bool, typer.Option("--json", help="Say where it listens as a JSON line.")] = False,
) -> None:
    """Serve bundles over gRPC: packets in, predictions out.

    On loopback nothing is asked; beyond it TLS is needed (or --insecure), and tokens are only taken over TLS. SIGTERM
    and Ctrl-C drain: health says so first, every stream is told where to go on, then --grace seconds pass. A second
    one ends at once. The line that says where it listens comes when the models are warm.
    """
    from runtime import logs
    from runtime.serve.server import ServeConfig
    from runtime.serve.settings import Settings

    logs.setup(log, level=log_level)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))  # read when torch first computes
    config = ServeConfig(
        bundles=tuple(bundle or ("talk",)),
        listen=listen,
        tls=_tls(tls_cert, tls_key, tls_client_ca),
        tokens=tokens,
        insecure=insecure,
        max_streams=max_streams,
        metrics=metrics,
        record=record,
        record_limits={
            "max_bytes": int(record_gb * GB),
            "max_age": record_hours * HOUR,
            "per_stream_bytes": int(record_stream_gb * GB),
        },
        preset=preset,
        settings=tuple(settings or ()),
        device=device,
        deterministic=deterministic,
        shed=shed,
        stream=Settings(answer_within=answer_within, behind=0.4 * answer_within),
        grace=grace,
    )
    count = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    asyncio.run(_serve(lambda: _server(config, count, log, log_level), as_json=as_json))


def _server(config: "ServeConfig", count: int, form: str, level: str) -> "Server | Workers":
    """One process, or several."""
    if count == 1:
        from runtime.serve.server import Server

        return Server(config)
    from runtime.serve.workers import Workers

    return Workers(config, count, form=form, level=level)


async def _serve(make: "Callable[[], Server | Workers]", *, as_json: bool) -> None:
    """From start to stop."""
    from runtime import spans

    stop, now = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (now if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    server = make()
    spans.start()
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await starting
            _announce(server, as_json=as_json)
            await stop.wait()
            await _first(server.drain(), now.wait())
    finally:
        stopping.cancel()
        if not starting.done():
            starting.cancel()
        await asyncio.wait((starting,))
        await server.stop()
        spans.stop()


async def _first(*waits: Any) -> None:
    """Until one of them is through."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    _, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()


def _announce(server: "Server | Workers", *, as_json: bool) -> None:
    """The one line on stdout."""
    bundles, count = server.served, getattr(server, "count", 1)
    if as_json:
        facts: dict[str, Any] = {
            "event": "ready",
            "address": server.where,
            "port": server.port,
            "metrics_port": server.metrics_port,
            "tls": server.config.tls is not None,
            "tokens": server.config.tokens is not None,
            "recording": server.config.record is not None,
            "workers": count,
            "bundles": [{"name": name, "hash": digest} for name, digest in bundles],
        }
        print(as_line(facts), flush=True)
        return
    served = ", ".join(f"{name} (sha256 {digest[:12]})" for name, digest in bundles)
    notes = [f"metrics on port {server.metrics_port}"] if server.metrics_port else []
    notes += [f"{count} workers"] if count > 1 else []
    notes += ["tokens needed"] if server.config.tokens is not None else []
    notes += ["TLS"] if server.config.tls is not None else ["in the clear"]
    notes += [f"recording who consents into {server.config.record}"] if server.config.record is not None else []
    print(f"serving {served} on {server.where}; {', '.join(notes)}", flush=True)


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> "TlsFiles | None":
    from runtime.serve.auth import TlsFiles

    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        missing = "--tls-cert" if cert is None else "--tls-key"
        raise UsageError(f"{missing} is missing; TLS needs --tls-cert and --tls-key")
    return TlsFiles(cert=cert, key=key, client_ca=client_ca)
