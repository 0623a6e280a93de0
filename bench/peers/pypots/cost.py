"""What a step of training and a pass of filling cost: ``python -m bench.peers.pypots.cost``, in PyPOTS's environment.

Every peer and curri-MAE on random windows of the size of a small corpus, on one thread. Processor time, not the
clock's, so that a busy machine changes little; the least of a few steps. Filling is one pass over all windows, of CSDI
reckoned from a few.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.peers.pypots.columns import Columns
from bench.peers.pypots.fills import PEERS, PeerTraining, new
from bench.record import write_results
from encoders.errors import ConfigError
from encoders.training import seed_everything
from imputation.curri_mae import curri_mae_small
from imputation.sampling import Sampling

RESULTS = Path(__file__).parents[2] / "results"
SLOW_ROWS = 8  # of a pass of CSDI, which is then reckoned for all


def seconds(work: Callable[[], Any], times: int) -> float:
    """Processor seconds of the cheapest of ``times`` runs, after one that is not counted where there are several."""
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found[1:] or found)


def measured(name: str, width: int, components: int, args: argparse.Namespace) -> dict[str, Any]:
    """Parameters, seconds of a step and of a pass; only the name and sizes where it takes no so many columns."""
    row: dict[str, Any] = {"fill": name, "width": width, "components": components}
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(args.windows, args.length, 2, width, generator=generator)
    exists = torch.ones(args.windows, args.length, dtype=torch.bool)
    sampling = Sampling.parse("uniform", length=args.length)
    sampled = torch.from_numpy(sampling.draw(np.random.Generator(np.random.PCG64(0)), 0, exists.numpy()))
    rows = slice(args.batch)
    if name == "curri_mae":
        imputer: Any = curri_mae_small(dim=width, length=args.length)
        trained = imputer.model

        def loss() -> torch.Tensor:
            total: torch.Tensor = trained.loss(features[rows], sampled[rows]).total
            return total
    else:
        try:
            columns = Columns.fit(features, exists.unsqueeze(-1).expand(-1, -1, 2), components)
            imputer = new(PeerTraining(peer=name, steps=1, components=components), columns, args.length)
        except ConfigError:
            return row
        trained = imputer.network

        def loss() -> torch.Tensor:
            hidden = sampled[rows]
            table, _ = imputer.table(features[rows], torch.ones_like(hidden))
            spread = imputer.columns.spread
            return trained.loss(table, spread(~hidden), spread(hidden))

    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    few = slice(SLOW_ROWS if name == "csdi" else args.windows)

    @torch.inference_mode()
    def fill() -> None:
        imputer(features[few], ~sampled[few], exists[few])

    imputer.train()
    row["step"] = seconds(step, args.times)
    imputer.eval()
    row["pass"] = seconds(fill, 1 if name == "csdi" else args.times) * args.windows / len(features[few])
    row["parameters"] = sum(p.numel() for p in trained.parameters())
    return row


def page(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> list[str]:
    lines = [
        "# Filling features: what peers cost",
        "",
        f"Windows of {args.length} clips, batches of {args.batch}; a pass fills {args.windows} windows under one mask "
        "each. Processor time of one thread. Of each modality's features all are columns of a peer, or the first few "
        "principal components.",
        "",
        "| | features | components | parameters, M | a step, ms | 1000 steps, min | a pass, s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        start = f"| {row['fill']} | {row['width']} | {row['components'] or 'all'} | "
        if "step" not in row:
            lines.append(start + "too many columns | | | |")
            continue
        lines.append(
            start + f"{row['parameters'] / 1e6:.2f} | {1000 * row['step']:.0f} | {1000 * row['step'] / 60:.1f} | "
            f"{row['pass']:.2f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=144)
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--components", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--times", type=int, default=4, help="steps, of which the cheapest counts")
    parser.add_argument("--peers", nargs="+", default=[*PEERS])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    seed_everything(0)
    print("measures; a peer that is slow takes minutes", file=sys.stderr)
    rows = [measured("curri_mae", width, 0, args) for width in args.widths]
    for name in args.peers:
        rows += [measured(name, width, c, args) for width in args.widths for c in (0, args.components)]
    write_results(args.results, "peers_cost", {"rows": rows}, page(rows, args))


if __name__ == "__main__":
    main()
