"""What attention costs: ``python -m bench.attention`` writes bench/results/attention.{md,json,png}.

Time and memory of ViViT's four encoders against the number of frames, on trunks small enough that attention is what
one sees; then forward and backward of base presets against the same products, norms, GELUs and attention calls with
no model around them (`bench.bare`). ``--device cuda`` and ``--frames`` reach further where there is an accelerator.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads would count as work

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.bare import Bare
from bench.record import write_results
from encoders.registry import build
from encoders.training import choose_device
from encoders.video.vivit import ViViT, ViViTConfig
from tests.macs import macs, on_meta

RESULTS = Path(__file__).parent / "results"
TARGET = 1.10  # of the bare calls' time

# 196 tokens at each step, as in every base preset, and heads that can be halved
TRUNK = ViViTConfig(dim=192, depth=4, heads=4, mlp_dim=768, pool="mean", temporal_depth=4)
ENCODERS = {
    "joint": TRUNK,
    "factorised encoder": replace(TRUNK, attention="factorised_encoder"),
    "factorised self-attention": replace(TRUNK, attention="factorised_self"),
    "factorised dot-product": replace(TRUNK, attention="factorised_dot"),
}
# base presets, with fewer frames where a clip of 32 takes a core half a minute
BASES = {
    "vivit_base": {"frames": 8},
    "vivit_b_16x2_fe": {"frames": 8},
    "vivit_b_16x2_fsa": {"frames": 8},
    "vivit_b_16x2_fdp": {"frames": 8},
    "mtv_base": {"frames": 16},
    "token_learner_base": {},
    "polyvit_base": {},
}


# --- measuring --------------------------------------------------------------------------------------------------


def seconds(run: Callable[[], object], device: str, *, repeats: int, least: float = 0.3) -> float:
    """Median time of ``run``; fewer than ``repeats`` once slow ones have taken ``least`` in total."""
    taken: list[float] = []
    run()  # warms up: allocations, the choice of kernels
    while len(taken) < repeats and (sum(taken) < least or len(taken) < 2):
        taken.append(once(run, device))
    return median(taken)


def once(run: Callable[[], object], device: str) -> float:
    """Seconds of one ``run``: of all processors together, so that a busy machine does not matter; or of the device."""
    if not device.startswith("cuda"):
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """The most memory held at once during ``run`` beyond what was held before it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    held = most = 0
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = (e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def train_step(model: nn.Module, video: Tensor) -> None:
    """Forward and backward; gradients are dropped."""
    model(video).sum().backward()
    model.zero_grad(set_to_none=True)


def forward(model: nn.Module, video: Tensor) -> None:
    with torch.no_grad():
        model(video)


# --- against frames ---------------------------------------------------------------------------------------------


def cost(name: str, frames: int, size: int, device: str, repeats: int) -> dict[str, Any]:
    """Time and memory of one encoder at one length."""
    config = replace(ENCODERS[name], frames=frames, size=size)
    model = ViViT(config).to(device)
    video = torch.randn(1, 3, frames, size, size, device=device)
    with sdpa_kernel(SDPBackend.MATH):  # scores of all pairs, written out
        written_out = peak_bytes(lambda: forward(model, video), device)
    return {
        "encoder": name,
        "frames": frames,
        "tokens": config.steps * config.places,
        "giga_macs": macs(on_meta(lambda: ViViT(config)), tuple(video.shape)) / 1e9,
        "forward_ms": 1e3 * seconds(lambda: forward(model, video), device, repeats=repeats),
        "step_ms": 1e3 * seconds(lambda: train_step(model, video), device, repeats=repeats),
        "step_mb": peak_bytes(lambda: train_step(model, video), device) / 1e6,
        "written_out_mb": written_out / 1e6,
    }


def growth(rows: Sequence[dict[str, Any]], name: str, key: str) -> float:
    """The exponent with which ``key`` grows with the frames, between the two longest clips."""
    a, b = [row for row in rows if row["encoder"] == name][-2:]
    return log(b[key] / a[key]) / log(b["frames"] / a["frames"])


# --- against the bare calls -------------------------------------------------------------------------------------


def overhead(preset: str, changes: dict[str, Any], device: str, repeats: int) -> dict[str, Any]:
    """A preset's training step beside the calls that it makes, in turns."""
    model: Any = build(preset, **changes).to(device).train()
    run, shape = _run(model)
    x = torch.randn(1, *shape, device=device)
    bare = Bare(lambda: run(x))

    def step() -> None:
        run(x).sum().backward()
        model.zero_grad(set_to_none=True)

    whole: list[float] = []
    calls: list[float] = []
    for turn in range(repeats + 1):
        pair = once(step, device), once(bare.step, device)
        if turn:  # the first one warms up
            whole.append(pair[0])
            calls.append(pair[1])
    return {
        "preset": preset,
        "input": "x".join(map(str, shape)),
        "calls": len(bare.calls),
        "model_ms": 1e3 * median(whole),
        "bare_ms": 1e3 * median(calls),
        "ratio": median(w / c for w, c in zip(whole, calls, strict=True)),
        "ratios": [w / c for w, c in zip(whole, calls, strict=True)],
    }


def _run(model: Any) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...]]:
    """A forward pass, and the shape of one example: a clip; of a model for many modalities, a picture."""
    if "image" in getattr(model, "tokenizers", ()):
        size = model.config.image.size
        return lambda x: model.features(x, "image"), (3, size, size)
    return model, (3, model.spec.frames, model.spec.size, model.spec.size)


# --- the page ---------------------------------------------------------------------------------------------------


def page(values: dict[str, Any]) -> list[str]:
    """The page of results."""
    rows, bases = values["against_frames"], values["against_bare"]
    longest = max(row["frames"] for row in rows)
    lines = [
        f"# Attention in ViViT, {values['threads']} threads, {values['device']}, torch {values['torch']}",
        "",
        f"One clip, {TRUNK.depth} blocks of width {TRUNK.dim} (the factorised encoder has {TRUNK.temporal_depth} more",
        f"over time), {rows[0]['tokens'] * 2 // rows[0]['frames']} tokens per step of two frames, fp32. A step is",
        "forward and backward. Time is that of all threads together (of the device, where that is no CPU). Memory is",
        "the peak of what the allocator held beyond weights and clip, so with gradients; *written out* is a forward",
        "pass whose attention keeps the scores of all pairs, as the papers' did.",
        "",
        "| encoder | frames | tokens | GMAC | forward ms | step ms | step MB | written out, forward MB |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {r['encoder']} | {r['frames']} | {r['tokens']} | {r['giga_macs']:.2f} | {r['forward_ms']:.0f} "
            f"| {r['step_ms']:.0f} | {r['step_mb']:.0f} | {r['written_out_mb']:.0f} |"
            for r in rows
        ),
        "",
        f"Growth with the number of frames, as an exponent between the two longest clips (of {longest} frames and the",
        "one before): 1 is in proportion, 2 the square.",
        "",
        "| encoder | GMAC | forward | step | step memory | written-out memory |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | "
            + " | ".join(
                f"{growth(rows, name, key):.2f}"
                for key in ("giga_macs", "forward_ms", "step_ms", "step_mb", "written_out_mb")
            )
            + " |"
            for name in ENCODERS
        ),
        "",
        "![time and memory against frames](attention.png)",
    ]
    return lines + _bare_lines(bases)


def _bare_lines(bases: list[dict[str, Any]]) -> list[str]:
    if not bases:
        return []
    worst = max(row["ratio"] for row in bases)
    return [
        "",
        "## Base presets against their bare calls",
        "",
        "Forward and backward of one clip, beside the same products, norms, GELUs and attention calls on tensors of",
        f"the same shapes with no model around them, in turns; asked for: at most {TARGET:.2f}, the worst is",
        f"{worst:.3f}: **{'met' if worst <= TARGET else 'missed'}**. Where a step of a preset's own clip takes",
        "half a minute, the clip is shorter.",
        "",
        "| preset | input | calls | model ms | bare calls ms | ratio | all ratios |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {r['preset']} | {r['input']} | {r['calls']} | {r['model_ms']:.0f} | {r['bare_ms']:.0f} "
            f"| {r['ratio']:.3f} | {', '.join(f'{x:.2f}' for x in r['ratios'])} |"
            for r in bases
        ),
    ]


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Time of a step, its memory, and memory with scores written out, against frames."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {"step_ms": "step, ms", "step_mb": "step, MB", "written_out_mb": "forward, scores written out, MB"}
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for name in ENCODERS:
            own = [row for row in rows if row["encoder"] == name]
            panel.loglog([r["frames"] for r in own], [r[key] for r in own], "o-", label=name, markersize=4)
        ticks = sorted({row["frames"] for row in rows})
        panel.set_xticks(ticks, [str(t) for t in ticks], minor=False)
        panel.set_xticks([], minor=True)
        panel.set(xlabel="frames", title=title)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", default="8,16,32,64", help="lengths of clips, at least two, comma-separated")
    parser.add_argument("--size", type=int, default=224, help="pixels, a multiple of 16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--bases", default=",".join(BASES), help="presets to hold against their bare calls; '' for none"
    )
    parser.add_argument("--base-frames", type=int, default=0, help="frames of their clips; default: as BASES says")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    frames = sorted({int(n) for n in args.frames.split(",")})
    if len(frames) < 2:
        parser.error(f"--frames {args.frames} names one length; growth needs two, such as 8,16")
    device = choose_device(args.device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rows = [cost(name, n, args.size, device, args.repeats) for name in ENCODERS for n in frames]
    bases = []
    for preset in filter(None, args.bases.split(",")):
        changes = {"frames": args.base_frames} if args.base_frames else BASES.get(preset, {})
        bases.append(overhead(preset, changes, device, args.repeats))
    values = {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU",
        "threads": args.threads,
        "torch": torch.__version__,
        "seed": args.seed,
        "size": args.size,
        "against_frames": rows,
        "against_bare": bases,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    plot(rows, args.out / "attention.png")
    write_results(args.out, "attention", values, page(values))


if __name__ == "__main__":
    main()
