"""What a bottleneck saves: ``python -m bench.bottleneck`` writes bench/results/bottleneck.{md,json}.

Four blocks of fusion as MMT has them, AVBottleneck through 4 tokens against all tokens attending to all, from a quarter
of MMT's 393 tokens of pictures and 257 of sound to eight times as many: time and memory of a forward pass and of a
training step, on blocks narrow enough for a processor (``--width 768`` is the paper's, ``--device cuda`` reaches
further). Either side of a bottleneck has blocks of its own, so it has twice the weights of one full stack.
"""

import argparse
import os
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads would count as work

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.attention import peak_bytes, seconds
from bench.record import write_results
from encoders.audiovisual.av_bottleneck import AVBottleneck, FullAttention, Streams
from encoders.errors import ConfigError
from encoders.training import choose_device
from tests.macs import macs, on_meta, parameters

TOKENS = {"video": 393, "audio": 257}  # of MMT, class tokens included
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
BLOCKS, BETWEEN, HEAD = 4, 4, 64
KINDS = ("bottleneck", "full")


class Fused(nn.Module):
    """Fusion that takes both sequences as two arguments, so that its products can be counted."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        sizes = width, max(width // HEAD, 1), 4 * width
        self.fusion: nn.Module = (
            AVBottleneck(*sizes, blocks=BLOCKS, count=BETWEEN) if kind == "bottleneck"
            else FullAttention(*sizes, blocks=BLOCKS)
        )  # fmt: skip

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        made: Streams = self.fusion({"video": video, "audio": audio})
        return torch.cat([tokens[:, 0] for tokens in made.values()], 1)


def cost(kind: str, scale: float, width: int, batch: int, device: str, repeats: int) -> dict[str, Any]:
    """Time and memory of one kind at one length."""
    torch.manual_seed(0)
    counts = {name: round(scale * count) for name, count in TOKENS.items()}
    model = Fused(kind, width).to(device)
    x = [torch.randn(batch, count, width, device=device) for count in counts.values()]

    def forward() -> None:
        with torch.no_grad():
            model(*x)

    def step() -> None:
        model(*x).sum().backward()
        model.zero_grad(set_to_none=True)

    with sdpa_kernel(SDPBackend.MATH):  # scores of all pairs, written out
        written_out = peak_bytes(forward, device)
    shapes = [(1, count, width) for count in counts.values()]
    counted = on_meta(lambda: Fused(kind, width))
    return {
        "kind": kind, "scale": scale, **counts, "parameters": parameters(model),
        "giga_macs": macs(counted, *shapes) / 1e9,
        "forward_ms": 1e3 * seconds(forward, device, repeats=repeats),
        "step_ms": 1e3 * seconds(step, device, repeats=repeats),
        "step_mb": peak_bytes(step, device) / 1e6,
        "written_out_mb": written_out / 1e6,
    }  # fmt: skip


def ratio(rows: Sequence[dict[str, Any]], scale: float, key: str) -> float:
    """How many times the bottleneck's cost full attention costs."""
    at = {row["kind"]: row[key] for row in rows if row["scale"] == scale}
    return float(at["full"] / at["bottleneck"])


def growth(rows: Sequence[dict[str, Any]], kind: str, key: str) -> float:
    """The exponent with which ``key`` grows with the tokens, between the two longest."""
    a, b = [row for row in rows if row["kind"] == kind][-2:]
    return log(b[key] / a[key]) / log(b["scale"] / a["scale"])


def page(rows: Sequence[dict[str, Any]], width: int, batch: int, device: str) -> list[str]:
    """The page of results."""
    lines = [
        "# Fusion through four tokens, against all tokens with all",
        "",
        f"Four blocks {width} wide, batch {batch}, {device}. Times are of all processors together; memory is the most "
        "held at once beyond weights and input, last column with every score written out.",
        "",
        "| tokens of pictures and sound | fusion | GMAC | forward, ms | step, ms | step, MB | scores written out, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['video']} + {row['audio']} | {row['kind']} | {row['giga_macs']:.2f} | {row['forward_ms']:.1f} "
            f"| {row['step_ms']:.1f} | {row['step_mb']:.1f} | {row['written_out_mb']:.1f} |"
        )
    scales = sorted({row["scale"] for row in rows})
    lines += ["", "Full attention over the bottleneck, by length:", ""]
    lines += ["| times MMT's tokens | " + " | ".join(f"{s:g}" for s in scales) + " |", "|---" * (len(scales) + 1) + "|"]
    for key, name in (("giga_macs", "multiply-adds"), ("forward_ms", "forward"), ("step_ms", "step"),
                      ("step_mb", "memory of a step"), ("written_out_mb", "memory, scores written out")):  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(f"{ratio(rows, s, key):.2f}" for s in scales) + " |")
    if len(scales) > 1:
        grown = ", ".join(f"{k} {growth(rows, k, 'step_ms'):.2f}" for k in KINDS)
        lines += ["", f"A step's time grows with the tokens, at the end, to the power of: {grown}."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=192, help="of tokens; heads are 64 wide")
    parser.add_argument("--scales", default=",".join(f"{s:g}" for s in SCALES), help="times MMT's tokens")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="bottleneck", help="of the results")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    scales = [float(s) for s in args.scales.split(",")]
    if min(scales) * min(TOKENS.values()) < 1 or args.width % HEAD or args.batch < 1:
        raise ConfigError(f"scales {args.scales}, width {args.width} and batch {args.batch} leave no tokens to fuse")
    torch.set_num_threads(1)
    device, rows = choose_device(args.device), []
    for scale in scales:
        for kind in KINDS:
            rows.append(cost(kind, scale, args.width, args.batch, device, args.repeats))
            print({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    write_results(args.out, args.name, {"rows": rows}, page(rows, args.width, args.batch, device))


if __name__ == "__main__":
    main()
