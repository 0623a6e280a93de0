"""What hearing costs: ``python -m bench.mat`` writes bench/results/mat.{md,json}, MAT against AST in one run.

Zhu, "Efficient Multiscale Multimodal Bottleneck Transformer for Audio-Video Classification" (2024), claims for MAT 58 %
of AST's parameters, 35 % of its multiply-adds, and a tenth of its memory per clip: a batch of 64 where AST fits 8.
Here are both, with time, peak memory and the batch that fits, of training steps with AdamW on spectrograms of ten
seconds (128 mel bins, 1024 mel frames). Each is measured twice: as we run it, with kernels of attention that keep no
scores, and written out, with a number for every pair of tokens, as models of the paper's day.

Every measurement is a process of its own, and its findings a file in ``--runs``: a run that was cut short goes on where
it was. ``--device cuda`` also looks for the batch that fits by trying.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads would count as work

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.attention import once
from bench.record import write_results
from encoders.layers import pooled_attention
from encoders.registry import build
from encoders.training import choose_device, writing
from tests.macs import macs, on_meta, parameters

RESULTS = Path(__file__).parent / "results"
PRESETS = ("mat_base", "ast_base_10")
PUBLISHED = {  # of the paper, on a device of 32 GB
    "mat_base": {"parameters": 52e6, "giga_macs": 46.2, "gb": 16.8, "batch": 64},
    "ast_base_10": {"parameters": 87e6, "giga_macs": 131, "gb": 20.6, "batch": 8},
}
WAYS = ("kernels", "written out")
CLASSES = 309  # of VGGSound


# --- one measurement, in a process of its own -------------------------------------------------------------------


@contextmanager
def attending(way: str) -> Iterator[None]:
    """Attention with the kernels we use, or with its scores written out."""
    before = pooled_attention.FOLDED
    if way == "kernels":
        yield
        return
    try:
        pooled_attention.FOLDED = 0
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        pooled_attention.FOLDED = before


class Steps:
    """Training steps of a preset on random spectrograms; the first makes gradients and moments."""

    def __init__(self, preset: str, batch: int, device: str) -> None:
        self.model: Any = build(preset, classes=CLASSES).to(device).train()
        self.x = _heard(self.model, torch.randn(batch, *_shape(self.model), device=device))
        self.targets = torch.randint(CLASSES, (batch,), device=device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)

    def train(self) -> None:
        """Forward, backward and a step of the weights."""
        nn.functional.cross_entropy(self.model(self.x), self.targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def infer(self) -> None:
        with torch.no_grad():
            self.model(self.x)


def measure(preset: str, way: str, batch: int, device: str, repeats: int) -> dict[str, Any]:
    """Median time of a step and of a forward pass, and the most memory that a step holds, weights included."""
    with attending(way):
        steps = Steps(preset, batch, device)
        steps.train()
        reset_peak(device)
        step = [once(steps.train, device) for _ in range(repeats)]
        peak = peak_bytes(device)
        steps.model.eval()
        steps.infer()
        forward = [once(steps.infer, device) for _ in range(repeats)]
    return {
        "preset": preset, "way": way, "batch": batch, "repeats": repeats, "step_ms": 1e3 * median(step),
        "forward_ms": 1e3 * median(forward), "peak_mb": peak / 1e6,
    }  # fmt: skip


def fits(preset: str, way: str, device: str, memory_gb: float) -> int:
    """The largest batch whose step fits into so much of a device's memory, by trying: doubled, then halved between."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory_gb * 1e9 / total))
    low, high = 0, 1
    while _fits(preset, way, high, device):
        low, high = high, high * 2
    while high - low > 1:
        between = (low + high) // 2
        low, high = (between, high) if _fits(preset, way, between, device) else (low, between)
    return low


def _fits(preset: str, way: str, batch: int, device: str) -> bool:
    try:
        with attending(way):
            steps = Steps(preset, batch, device)
            steps.train()
            steps.train()
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        steps = None  # type: ignore[assignment]  # or the next would find its memory taken
        torch.cuda.empty_cache()
    return True


def reset_peak(device: str) -> None:
    """Count the most memory anew from here on, where that can be done."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """The most memory held: of the device's allocator, or of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _shape(model: Any) -> tuple[int, int]:
    frames, bins = model.front.shape(model.clip_seconds)
    return frames, bins


def _heard(model: Any, spectrograms: Tensor) -> Tensor:
    heard: Tensor = model.heard(spectrograms) if hasattr(model, "heard") else spectrograms
    return heard


# --- all of them ------------------------------------------------------------------------------------------------


def size_of(preset: str) -> dict[str, Any]:
    """What a preset costs on paper, for one clip."""
    model: Any = on_meta(lambda: build(preset, classes=CLASSES))
    clip = _heard(model, torch.empty(1, *_shape(model), device="meta"))
    return {"parameters": parameters(model), "giga_macs": macs(model, clip) / 1e9}


def found(runs: Path, key: str, command: Sequence[str]) -> Any:
    """What a measurement found, from its file, or from a process that makes it."""
    file = runs / f"{key}.json"
    if not file.exists():
        started = time.perf_counter()
        whole = [sys.executable, "-m", "bench.mat", *command]
        done = subprocess.run(whole, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{key} failed: {done.stderr.strip().splitlines()[-1]}")
        runs.mkdir(parents=True, exist_ok=True)
        with writing(file) as partial:
            partial.write_text(done.stdout.splitlines()[-1] + "\n")
        print(f"{key}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return json.loads(file.read_text())


def all_of(args: argparse.Namespace) -> dict[str, Any]:
    """Every preset, in both ways, at every batch; the ways of one batch one after the other."""
    presets, batches = args.presets.split(","), sorted({int(b) for b in args.batches.split(",")})
    rows, fitting = [], []
    common = ["--device", args.device, "--threads", str(args.threads), "--seed", str(args.seed)]
    for batch in batches:
        for way in WAYS:
            for preset in presets:
                key = f"{preset}-{way.replace(' ', '-')}-{batch}"
                command = ["--one", preset, way, str(batch), "--repeats", str(args.repeats), *common]
                rows.append(found(args.runs, key, command))
    if args.device.startswith("cuda"):
        for way in WAYS:
            for preset in presets:
                key = f"{preset}-{way.replace(' ', '-')}-fits-{args.memory_gb:g}"
                command = ["--fits", preset, way, "--memory-gb", str(args.memory_gb), *common]
                fitting.append({"preset": preset, "way": way, "batch": found(args.runs, key, command)})
    return {
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU",
        "threads": args.threads, "torch": torch.__version__, "seed": args.seed, "memory_gb": args.memory_gb,
        "sizes": {preset: size_of(preset) for preset in presets}, "rows": rows, "fits": fitting,
    }  # fmt: skip


def per_clip(rows: Sequence[Mapping[str, Any]], preset: str, way: str) -> tuple[float, float]:
    """Megabytes that a step holds whatever the batch, and for each clip: a line through the peaks of all batches."""
    points = [(r["batch"], r["peak_mb"]) for r in rows if (r["preset"], r["way"]) == (preset, way)]
    if len(points) < 2:
        return 0.0, points[0][1] / points[0][0]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return mean_y - slope * mean_x, slope


def batch_that_fits(values: Mapping[str, Any], preset: str, way: str) -> tuple[int, str]:
    """How many clips a step of so much memory takes, and whether that was tried or is where the line leads."""
    for row in values["fits"]:
        if (row["preset"], row["way"]) == (preset, way):
            return row["batch"], "tried"
    fixed, slope = per_clip(values["rows"], preset, way)
    return max(0, int((values["memory_gb"] * 1e3 - fixed) / max(slope, 1e-9) + 1e-6)), "by the line"


# --- the page ---------------------------------------------------------------------------------------------------


def page(values: Mapping[str, Any]) -> list[str]:
    """The page of results."""
    presets = list(values["sizes"])
    first, second = presets[0], presets[-1]
    lines = [
        f"# MAT against AST, {values['threads']} threads, {values['device']}, torch {values['torch']}",
        "",
        f"Training steps (forward, backward, AdamW) in fp32 on spectrograms of the presets' clips, {CLASSES} classes.",
        "*Kernels*: attention as we run it, which keeps no scores where it can. *Written out*: a number for every pair",
        "of tokens, as in the paper's day. Time is that of all threads together (of the device, where that is no CPU),",
        "memory the most that the process held (the device's allocator), weights and moments included.",
        "",
        "| preset | parameters | GMAC | published |",
        "|---|---|---|---|",
        *(_size_line(preset, size) for preset, size in values["sizes"].items()),
        "",
        "| preset | attention | batch | forward ms | step ms | step ms per clip | peak MB |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {r['preset']} | {r['way']} | {r['batch']} | {r['forward_ms']:.0f} | {r['step_ms']:.0f} "
            f"| {r['step_ms'] / r['batch']:.0f} | {r['peak_mb']:.0f} |"
            for r in values["rows"]
        ),
        "",
        f"| preset | attention | MB per clip | batch that fits {values['memory_gb']:g} GB | found |",
        "|---|---|---|---|---|",
    ]
    for way in WAYS:
        for preset in presets:
            batch, how = batch_that_fits(values, preset, way)
            slope = per_clip(values["rows"], preset, way)[1]
            lines.append(f"| {preset} | {way} | {slope:.0f} | {batch} | {how} |")
    return [*lines, "", f"{first} as a share of {second}, at the largest batch of the table:", "",
            "| attention | forward | step | memory per clip |", "|---|---|---|---|",
            *(_share_line(values, first, second, way) for way in WAYS)]  # fmt: skip


def _size_line(preset: str, size: Mapping[str, Any]) -> str:
    said = PUBLISHED.get(preset)
    published = "" if said is None else (
        f"{said['parameters'] / 1e6:.0f} M, {said['giga_macs']:g} G; {said['gb']:g} GB at batch {said['batch']}"
    )  # fmt: skip
    return f"| {preset} | {size['parameters'] / 1e6:.1f} M | {size['giga_macs']:.1f} | {published} |"


def _share_line(values: Mapping[str, Any], first: str, second: str, way: str) -> str:
    one, other = (
        max((r for r in values["rows"] if (r["preset"], r["way"]) == (preset, way)), key=lambda r: r["batch"])
        for preset in (first, second)
    )
    memory = [per_clip(values["rows"], preset, way)[1] for preset in (first, second)]
    shares = [one[key] / other[key] for key in ("forward_ms", "step_ms")] + [memory[0] / max(memory[1], 1e-9)]
    return f"| {way} | " + " | ".join(f"{share:.2f}" for share in shares) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default=",".join(PRESETS), help="the one that is judged, and against what")
    parser.add_argument("--batches", default="1,2,4", help="comma-separated; two or more give memory per clip")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-gb", type=float, default=32.0, help="of which the batch that fits is asked")
    parser.add_argument("--runs", type=Path, default=Path("runs/mat"), help="where measurements are kept")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=3, metavar=("PRESET", "WAY", "BATCH"), help=argparse.SUPPRESS)
    parser.add_argument("--fits", nargs=2, metavar=("PRESET", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device = choose_device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.one:
        preset, way, batch = args.one
        print(json.dumps(measure(preset, way, int(batch), args.device, args.repeats)))
    elif args.fits:
        preset, way = args.fits
        print(json.dumps(fits(preset, way, args.device, args.memory_gb)))
    else:
        values = all_of(args)
        write_results(args.out, "mat", values, page(values))


if __name__ == "__main__":
    main()
