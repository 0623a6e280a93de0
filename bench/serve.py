"""How many live streams a server holds, how long each stage takes, and what happens beyond: ``python -m bench.serve``.

A server (``legato serve``, one worker for each core) and clients (``bench.load``, a process of its own) share the cores
that this process may use. Everything is in real time: 320x240 video with sound, packets of up to 100 ms in one message.

1. ``--streams`` clients for ``--seconds``: latency by stage, from the server's own metrics, and as clients see it.
2. The largest number of streams whose 99th percentile stays below ``--limit-ms``, by bisection.
3. A plain loop over the same streams: batch 1, one stream after the other, no engine between them.
4. Load from few streams to more than fit (``--counts``), with the bundled demo, whose truth is known, and the same
   against a server that sheds nothing: the share of answers in time, what is shed, and how much of what is said is
   right. One plot.

    python -m bench.serve --streams 4 --seconds 8 --only streams --dry       a look
    taskset -c 0,1 python -m bench.serve                                     the figures of two cores
    python -m bench.serve --device cuda --clients 8 --name serve-gpu         a machine with a GPU

``--only`` takes some of streams, most, loop, load.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from bench.record import write_results
from bench.serve_page import page, plot

PARTS = ("streams", "most", "loop", "load")
COUNTS = (32, 48, 64, 72, 80, 96, 128)  # streams, from few to more than two cores hold
RESULTS = Path(__file__).parent / "results"
START_SECONDS = 120.0  # for models to load and warm
Samples = Mapping[tuple[str, ...], float]
STAGES = ("wait", "decode", "queue", "encode", "fill", "send")


# -- the server -------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A ``legato serve`` process."""

    address: str
    metrics: str  # URL
    process: subprocess.Popen[str]

    def scrape(self) -> dict[tuple[str, ...], float]:
        """(sample, label values) -> value."""
        with urllib.request.urlopen(self.metrics, timeout=10) as page:
            text = page.read().decode()
        families = text_string_to_metric_families(text)
        return {(s.name, *(v for _, v in sorted(s.labels.items()))): s.value for f in families for s in f.samples}


@contextmanager
def serving(options: argparse.Namespace, *settings: str) -> Iterator[Server]:
    """A server on ports of the system's choice, ended with its process id."""
    command = [sys.executable, "-m", "runtime", "serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    command += ["--bundle", options.bundle, "--max-streams", str(options.max_streams), "--device", options.device]
    command += ["--json", "--workers", str(options.workers), *options.server, *settings]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield _ready(process, log)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[str], log: Any) -> Server:
    """Read its first line: where it listens."""
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        said = json.loads(line)
        port = said.get("port") or said["address"].rpartition(":")[2]
        metrics = str(said.get("metrics_port") or said["metrics"]).rpartition(":")[2].partition("/")[0]
    except (ValueError, KeyError, AttributeError):
        process.wait(5)
        log.seek(0)
        sys.exit(f"the server did not start: {line}{log.read()[-2000:]}")
    return Server(f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics", process)


# -- one measurement --------------------------------------------------------------------------------------------------


def trial(server: Server, options: argparse.Namespace, media: Path, streams: int, seconds: float) -> dict[str, Any]:
    """So many streams for so long: what clients saw, what the server measured meanwhile, and whose CPU it took."""
    shares = [streams // options.clients + (i < streams % options.clients) for i in range(options.clients)]
    loads = [_load(server, options, media, share, seconds, seed) for seed, share in enumerate(shares, 1) if share]
    for load in loads:
        assert load.stdout is not None
        load.stdout.readline()  # every stream is open
    before, began = server.scrape(), time.monotonic()
    for load in loads:
        assert load.stdin is not None
        load.stdin.write("\n")
        load.stdin.flush()
    seen = [json.loads(load.communicate(timeout=seconds + 120)[0]) for load in loads]
    after, wall = server.scrape(), time.monotonic() - began
    grown = {key: value - before.get(key, 0.0) for key, value in after.items()}
    return {**_joined(seen, wall), **_server_side(grown, after, wall)}


def _load(server: Server, options: argparse.Namespace, media: Path, streams: int, seconds: float, seed: int) -> Any:
    command = [sys.executable, "-m", "bench.load", server.address, "--media", str(media), "--streams", str(streams)]
    command += ["--seconds", str(seconds), "--warm", str(min(5.0, seconds / 4)), "--seed", str(seed)]
    command += ["--limit-ms", str(options.limit_ms), "--batch-ms", str(options.batch_ms), "--loss", options.loss]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _joined(seen: list[dict[str, Any]], wall: float) -> dict[str, Any]:
    """What all client processes saw, together."""
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for one in seen:
        counts.update(one["counts"])
        errors.update(one["errors"])
    latencies = np.array([value for one in seen for value in one["latencies_ms"]] or [np.nan])
    waits = np.array([value for one in seen for value in one["waits_ms"]] or [np.nan])
    cpu = sum(one["client_cpu_seconds"] for one in seen)
    return {
        **{name: counts[name] for name in ("streams", "served", "expected", "missed")},
        "errors": dict(errors),
        "miss_share": counts["missed"] / max(1, counts["expected"]),
        "latency_ms": {f"p{q}": round(float(np.percentile(latencies, q)), 1) for q in (50, 90, 99, 100)},
        "wait_ms": {f"p{q}": round(float(np.percentile(waits, q)), 1) for q in (50, 99)},
        "shed_share": counts["shed"] / max(1, counts["states"]),
        "accuracy": counts["right"] / counts["judged"] if counts["judged"] else None,
        "abstained_share": counts["abstained"] / max(1, counts["judged"]),
        "mbit_per_s": round(sum(one["bytes"] for one in seen) * 8e-6 / wall, 2),
        "client_lag_ms": max(one["lag_ms"] for one in seen),
        "client_cores": cpu / max(one["wall_seconds"] for one in seen),
    }


def _server_side(grown: Samples, now: Samples, wall: float) -> dict[str, Any]:
    """Latency by stage, CPU, batches and losses by choice, from two scrapes."""
    stages = {stage: _quantiles(grown, "stage_latency_seconds", stage) for stage in STAGES}
    batches = grown.get(("batch_clips_count",), 0.0)
    return {
        "stages_ms": {stage: found for stage, found in stages.items() if found["count"]},
        "end_to_end_ms": _quantiles(grown, "end_to_end_latency_seconds"),
        "server_cores": grown.get(("process_cpu_seconds_total",), 0.0) / wall,
        "server_rss_mib": now.get(("process_resident_memory_bytes",), 0.0) / 2**20,
        "clips_per_batch": grown.get(("batch_clips_sum",), 0.0) / batches if batches else None,
        "clips_shed": sum(value for key, value in grown.items() if key[0] == "clips_shed_total"),
    }


def _quantiles(grown: Samples, name: str, *labels: str) -> dict[str, float]:
    """p50 and p99 in ms, linear within a bucket; the last bucket's bound where they lie above all."""
    buckets = sorted((float(k[1]), n) for k, n in grown.items() if k[0] == f"{name}_bucket" and k[2:] == labels)
    total = buckets[-1][1] if buckets else 0.0
    out = {"count": total}
    for percent in (50, 99) if total else ():
        low, seen = 0.0, 0.0
        for high, count in buckets:
            if count >= percent / 100 * total:
                inside = (percent / 100 * total - seen) / (count - seen) if count > seen else 0.0
                out[f"p{percent}"] = round(1e3 * (low + (high - low) * inside if high < float("inf") else low), 1)
                break
            low, seen = high, count
    return out


# -- the questions ----------------------------------------------------------------------------------------------------


def holds(result: Mapping[str, Any], options: argparse.Namespace) -> bool:
    """Whether every stream was served in real time: p99 within the limit, at most 1 % missed, 0.1 % shed."""
    all_served = result["served"] == result["streams"] and not result["errors"] and result["expected"]
    return bool(
        all_served
        and result["latency_ms"]["p99"] <= options.limit_ms
        and result["miss_share"] <= 0.01
        and result["shed_share"] <= 0.001
    )


def most(server: Server, options: argparse.Namespace, media: Path, start: int) -> tuple[int, list[dict[str, Any]]]:
    """The largest number of streams that holds, to within 5 %, and every trial on the way."""
    tried: dict[int, dict[str, Any]] = {}

    def good(streams: int) -> bool:
        if streams not in tried:
            tried[streams] = trial(server, options, media, streams, options.seconds)
            show(tried[streams], f"{streams} streams")
        return holds(tried[streams], options)

    low, high = 0, start
    while high < options.max_streams and good(high):
        low, high = high, min(2 * high, options.max_streams)
    if high == options.max_streams and good(high):
        return high, list(tried.values())
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low, list(tried.values())


def plain_loop(options: argparse.Namespace, media: Path, streams: int) -> dict[str, Any]:
    """The same streams without an engine between them: each clip is encoded, filled and classified when its turn comes.

    As fast as it can, so that the streams it could hold are its speed; of one process, and of one for each core.
    """
    from runtime.pipeline import Pipeline
    from runtime.sources import open_source

    pipeline = Pipeline.from_bundle(options.bundle, device=options.device, overrides=["engine.decode_ahead=0"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    seconds, wall, cpu = 0.0, time.perf_counter(), time.process_time()
    for seed in range(streams):
        with open_source(media, loss=options.loss or None, seed=seed) as source:
            said = list(pipeline.run(source))
        seconds += said[-1].end_seconds - said[0].start_seconds
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "streams": streams,
        "media_seconds": seconds,
        "held_by_one_process": seconds / wall,
        "held_by_every_core": cores * seconds / cpu,
    }


def show(result: Mapping[str, Any], name: str) -> None:
    """One line while it runs."""
    latency = result["latency_ms"]
    line = f"{name}: p50 {latency['p50']} ms, p99 {latency['p99']} ms, missed {result['miss_share']:.1%}"
    cores = f"server {result['server_cores']:.2f} cores, clients {result['client_cores']:.2f}"
    print(f"{line}, shed {result['shed_share']:.1%}, {cores} {result['errors'] or ''}", file=sys.stderr, flush=True)


def overload(options: argparse.Namespace, media: Path) -> dict[str, list[dict[str, Any]]]:
    """Answers in time, accuracy and shedding with so many streams, of a server that sheds and of one that does not.

    Each count has a fresh start: what a server did not get done with one must not weigh on the next.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, setting in (("shedding", "--shed"), ("none", "--no-shed")):
        rows[name] = []
        for streams in options.counts:
            with serving(options, setting, "--answer-within", f"{options.limit_ms / 1e3:g}") as server:
                trial(server, options, media, 1, 4.0)
                rows[name].append(trial(server, options, media, streams, max(options.seconds, 10.0)))
            show(rows[name][-1], f"{streams} streams, {name}")
    return rows


# -- the command ------------------------------------------------------------------------------------------------------


def _device(name: str) -> str:
    if not name.startswith("cuda"):
        return "CPU"
    import torch

    return str(torch.cuda.get_device_name(name))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="of streams, under load")
    parser.add_argument("--limit-ms", type=float, default=400.0)
    parser.add_argument("--batch-ms", type=float, default=100.0)
    parser.add_argument("--bundle", default="talk")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--loss", default="", help="profile of losses on the way, such as wifi-poor")
    parser.add_argument("--clients", type=int, default=1, help="processes that the clients are spread over")
    parser.add_argument("--max-streams", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=0, help="processes of the server; 0: one for each core")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--server", action="append", default=[], help="one more argument of legato serve")
    parser.add_argument("--name", default="serve", help="of the results")
    parser.add_argument("--beside", default="", help="what else the machine did meanwhile, for the results")
    parser.add_argument("--dry", action="store_true", help="write no results")
    return parser.parse_args()


def measure(options: argparse.Namespace, media: Path) -> dict[str, Any]:
    """Every part that was asked for."""
    import runtime

    demo = Path(runtime.__file__).parent / "bundles" / "talk" / "demo.legato"
    found: dict[str, Any] = {}
    if "loop" in options.only:
        found["loop"] = plain_loop(options, media, 4)
    if "load" in options.only:
        found["load"] = overload(options, demo)
    if not {"streams", "most"} & set(options.only):
        return found
    with serving(options) as server:
        trial(server, options, media, min(16, options.streams), 5.0)  # the first pay for what is loaded late
        if "streams" in options.only:
            found["streams"] = trial(server, options, media, options.streams, options.seconds)
            show(found["streams"], f"{options.streams} streams")
        if "most" in options.only:
            found["most"], found["trials"] = most(server, options, media, options.streams)
    return found


def main() -> None:
    options = _options()
    from bench.replay import make_media

    with tempfile.TemporaryDirectory() as folder:
        media, shown = make_media(Path(folder), 1, tune="zerolatency")  # as a camera's encoder: no B frames
        found = measure(options, media)
    about = argparse.Namespace(**vars(options), holds="streams" in found and holds(found["streams"], options))
    lines = page(found, about, f"320x240 with sound ({shown})", _device(options.device))
    if options.beside:
        lines += [f"Meanwhile on the same machine: {options.beside}.", ""]
    if options.dry:
        print("\n".join(lines))
        return
    if "load" in found:
        RESULTS.mkdir(exist_ok=True)
        plot(found["load"], RESULTS / f"{options.name}.png", options.limit_ms)
    asked = {key: value for key, value in vars(options).items() if not re.search("dry|name", key)}
    write_results(RESULTS, options.name, {"options": asked, "media": shown, **found}, lines)


if __name__ == "__main__":
    main()
