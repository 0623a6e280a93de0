"""What the engine costs around its models, and what overload does: ``python -m bench.engine``.

Fed with closed clips of the demo recording (through a Receiver, with the losses it was recorded with), as many streams.
Every figure is CPU time of one core, so that a busy machine spoils little; the runs are compared within one process.

1. *Bare model*: the very forward passes that the engine made (face finder, encoders, imputer, heads), recorded with
   their inputs and run again with nothing around them; at the best batch size. *Engine*: dispatcher, queue, engine,
   predictions. *Loop*: one stream, batch 1, the bundle's models called one after the other.
   *Deterministic*: the dispatcher over an engine that keeps the shapes of a replay.
2. Latency by stage as the largest batch grows, 3. accuracy and streams served in time against the load, with shedding
   and without: real models and real clips on a virtual clock that moves by the CPU time of each batch times ``--slow``
   (a device that many times slower needs that many fewer streams to be overloaded).
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from bench.record import write_results
from runtime.batches import BatchPolicy
from runtime.bundle import Bundle
from runtime.clip import Clip
from runtime.clock import VirtualClock
from runtime.config import WindowSettings
from runtime.dispatch import Dispatcher
from runtime.engine import Engine, Task
from runtime.forward import precision
from runtime.pipeline import Pipeline
from runtime.run_log import read_truth
from runtime.sources import open_source
from runtime.stream import Stream, Windows

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
LOADS = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0)


class Bench:
    """A bundle, the clips of its demo, and engines over one set of models."""

    def __init__(self, name: str, wanted: str) -> None:
        self.bundle, self.precision = Bundle.load(name), wanted
        pipeline = Pipeline.from_bundle(self.bundle, device="cpu")
        source = open_source(self.bundle.path / "demo.legato")
        self.info, self.truth = source.info, read_truth(source.info)
        self.clips = list(pipeline.clips(source, pipeline.open(source.info)))
        self.settings: WindowSettings = pipeline.config.window
        self.seconds = float(pipeline.config.clip.seconds)
        self.task = Task.of(self.bundle.manifest, self.bundle.hash)
        self.models = self.bundle.models()
        self.engine = self.made()
        self.exact = self.made(deterministic=True)
        torch.use_deterministic_algorithms(False)

    def made(self, *, deterministic: bool = False) -> Engine:
        wanted = "auto" if deterministic else self.precision
        engine = Engine(
            self.models, self.task, deterministic=deterministic, precision=wanted, stopwatch=time.thread_time
        )
        engine.warm_up()
        return engine

    def stream(self, number: int) -> Stream:
        return Stream(str(number), Windows(self.settings), face=self.engine.initial_face())

    def clip(self, number: int, at: int) -> Clip:
        """The ``at``-th clip of a stream: the demo from a place of its own, over and over, each round an epoch."""
        played = (number * 7) % len(self.clips) + at
        original = self.clips[played % len(self.clips)]
        return replace(original, index=at, epoch=played // len(self.clips), version=0)


# -- throughput -----------------------------------------------------------------------------------------------------


def timed(call: Callable[[], int], repeats: int) -> float:
    """Milliseconds of CPU time per clip, best of some runs; ``call`` says how many clips it served."""
    best = float("inf")
    for _ in range(repeats):
        began = time.thread_time()
        clips = call()
        best = min(best, (time.thread_time() - began) * 1e3 / clips)
    return best


def dispatched(bench: Bench, engine: Engine, streams: int, clips: int, most: int) -> Callable[[], int]:
    """All clips of all streams through a dispatcher, always enough of them in line."""
    made = [[bench.clip(n, at) for n in range(streams)] for at in range(clips)]

    def run() -> int:
        clock = VirtualClock()
        policy = BatchPolicy(max_batch=most, max_wait_seconds=0.0)
        dispatcher = Dispatcher(engine, clock=clock, policy=policy)
        own = [bench.stream(n) for n in range(streams)]
        for stream in own:
            dispatcher.attach(stream, lambda _answer: None)
        for at, row in enumerate(made):
            for stream, clip in zip(own, row, strict=True):
                dispatcher.submit(stream, clip, deadline=at + 1.0)
            while dispatcher.step() is not None:
                pass
        return streams * clips

    return run


def recorded(bench: Bench, streams: int, clips: int, most: int) -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Every forward pass of such a run, with its inputs."""
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
    together = bench.engine.together

    def kept(call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any) -> Any:
            calls.append((call, given))
            return call(*given)

        return watched

    before = (together.ladder, together._see, dict(together.heads))
    runs = {m: forward._run for m, forward in together.forwards.items()}
    ladder = before[0]

    def filled(*given: Any) -> Any:
        with precision(bench.engine.device, bench.engine.dtype):
            return ladder(*given)

    together.ladder, together._see = kept(filled), kept(before[1]) if before[1] is not None else None
    together.heads = {name: kept(head) for name, head in before[2].items()}
    for m, forward in together.forwards.items():
        forward._run = kept(runs[m])
    try:
        dispatched(bench, bench.engine, streams, clips, most)()
    finally:
        together.ladder, together._see, together.heads = before
        for m, forward in together.forwards.items():
            forward._run = runs[m]
    return calls


def bare(bench: Bench, streams: int, clips: int, most: int) -> Callable[[], int]:
    """The same forward passes, and nothing else."""
    calls = recorded(bench, streams, clips, most)

    def run() -> int:
        with torch.inference_mode():
            for call, given in calls:
                call(*given)
        return streams * clips

    return run


@torch.inference_mode()
def loop(bench: Bench, clips: int) -> int:
    """What one would write first: one stream, the models one after the other, windows at batch 1."""
    models, width = bench.models, bench.task.window
    face, rows, out = models.face.initial_state(), [], 0
    for at in range(clips):
        clip, raw, here = bench.clip(0, at), torch.zeros(2, bench.engine.width), [False, False]
        if clip.presence["video"]:
            crops, face, found = models.face.locate(clip, face)
            raw[0] = (
                models.video_encoder.encode(torch.from_numpy(crops)[None])[0] if found else models.video_encoder.no_face
            )
            here[0] = True
        if clip.presence["audio"]:
            raw[1] = models.audio_encoder.encode(torch.from_numpy(clip.audio)[None])[0]
            here[1] = True
        rows = [*rows, (models.standardiser(raw), torch.tensor(here))][-width - bench.settings.lookahead :]
        for ahead in (bench.settings.lookahead, 0):
            last = len(rows) - ahead
            if last < bench.settings.min_clips:
                continue
            places = width + bench.task.ahead
            features, exists = torch.zeros(1, places, 2, raw.shape[1]), torch.zeros(1, places, dtype=torch.bool)
            presence = torch.zeros(1, places, 2, dtype=torch.bool)
            for place, (row, there) in enumerate(rows[max(0, last - width) :], width - min(width, last)):
                features[0, place], presence[0, place], exists[0, place] = row, there, True
            filled = models.ladder(features, presence, exists)
            head = next(iter(models.heads.values()))
            logits = head(
                filled.features[:, :width], presence[:, :width], filled.variance[:, :width], exists[:, :width]
            )
            share = float(presence[0, :width].float().sum() / (2 * exists[0, :width].sum()))
            models.calibration["final"](logits, share)
            out += 1
    return clips


def same_bits(bench: Bench, most: int = 16) -> dict[str, float]:
    """The share of rows that come out of a batch with the bits they have alone, fp32, the same encoder."""
    present = [c for c in bench.clips if c.presence["audio"]][:most]
    encoder = bench.exact.encoders["audio"]
    crops = [np.random.default_rng(n).integers(0, 256, (1, 10, 40, 40), np.uint8) for n in range(most)]
    given = {"audio": [c.audio[None] for c in present], "video": crops}
    out = {}
    with torch.inference_mode():
        for modality, rows in given.items():
            encoder = bench.exact.encoders[modality]
            whole = encoder.encode(torch.from_numpy(np.concatenate(rows)))
            alone = [encoder.encode(torch.from_numpy(row))[0] for row in rows]
            out[modality] = float(np.mean([torch.equal(a, b) for a, b in zip(whole, alone, strict=True)]))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="talk")
    parser.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--clips", type=int, default=24, help="of each stream, for throughput")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=24.0, help="of stream time under load")
    parser.add_argument("--slow", type=float, default=2.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    from bench.engine_page import page, plot

    bench = Bench(options.bundle, options.precision)
    values = measured(bench, options)
    RESULTS.mkdir(exist_ok=True)
    plot(values, RESULTS / "engine.png")
    write_results(RESULTS, "engine", values, page(values))


def stages(bench: Bench, most: int, ms: float, options: argparse.Namespace) -> dict[str, Any]:
    """Latencies at 70 % of what a device can do with batches of at most ``most``."""
    from bench.engine_load import played

    count = max(1, int(0.7 * 1e3 / ms * bench.seconds / options.slow))
    policy = BatchPolicy(max_batch=most, shed=False, per_stream=10_000, max_line=100_000)
    return vars(played(bench, count, options.seconds / 2, policy, options.slow))


def measured(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    from bench.engine_load import BUDGET, played

    streams, clips, repeats = options.streams, options.clips, options.repeats
    throughput: dict[int, dict[str, float]] = {}
    for most in BATCHES:
        of = min(streams, max(4, most))
        model, engine = bare(bench, of, clips, most), dispatched(bench, bench.engine, of, clips, most)
        turns = [(timed(model, 1), timed(engine, 1)) for _ in range(repeats)]  # in turns: what disturbs, disturbs both
        throughput[most] = {"bare": min(t[0] for t in turns), "engine": min(t[1] for t in turns)}
        print(f"batch {most}: {throughput[most]} ms a clip", flush=True)
    best = min(throughput, key=lambda b: throughput[b]["bare"])
    fastest = min(throughput, key=lambda b: throughput[b]["engine"])
    rows = {
        "bare": throughput[best]["bare"],
        "engine": throughput[fastest]["engine"],
        "loop": timed(lambda: loop(bench, 4 * clips), repeats),
        "deterministic": timed(dispatched(bench, bench.exact, 4, clips, 1), repeats),
    }
    endless = BatchPolicy(shed=False, per_stream=10_000, max_line=100_000, max_bytes=8 << 30)
    many = int(2e3 / rows["engine"] * bench.seconds / options.slow)
    capacity = played(bench, many, options.seconds / 2, endless, options.slow).rate * bench.seconds  # streams
    latencies = {most: stages(bench, most, throughput[most]["engine"], options) for most in BATCHES}
    loads: dict[str, list[dict[str, Any]]] = {"shedding": [], "none": []}
    for load in LOADS:
        for name in loads:
            policy = replace(endless, shed=name == "shedding")
            out = played(bench, max(1, round(load * capacity)), options.seconds, policy, options.slow)
            out.load = load
            loads[name].append(vars(out))
            print(f"load {load}, {name}: {out}", flush=True)
    return {
        "bundle": options.bundle,
        "precision": str(bench.engine.dtype).removeprefix("torch."),
        "clip_seconds": bench.seconds,
        "observed": {m: float(np.mean([c.presence[m] for c in bench.clips])) for m in ("video", "audio")},
        "budget_ms": BUDGET * 1e3,
        "slow": options.slow,
        "capacity_streams": capacity,
        "best_batch": best,
        "engine_batch": fastest,
        "ms_per_clip": rows,
        "of_bare": rows["bare"] / rows["engine"],
        "by_batch": throughput,
        "same_bits": same_bits(bench),
        "latency": latencies,
        "loads": loads,
    }


if __name__ == "__main__":
    main()
