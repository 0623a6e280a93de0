"""Trains peers and writes what they fill: ``python -m bench.peers.pypots.fill --features FILE --steps N --out DIR``.

To be run in PyPOTS's environment, from the root of the repository. Each peer learns on the file's training windows and
leaves ``DIR/NAME/`` (its weights, its log) and ``DIR/NAME.filled.safetensors``: the test windows, filled under every
mask that ``imputation.evaluate`` draws for all k and some draws. That file is read without PyPOTS, by
``bench.peers.prefilled.Prefilled``. What is there is not made again: a stopped training goes on, a finished one is
only asked.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.peers.prefilled import write_prefilled
from bench.peers.pypots.fills import PEERS, trained
from encoders.errors import LegatoError, UsageError
from encoders.settings import assignments, pick
from imputation.features import FeatureSet


def opened(path: Path, train_split: str) -> FeatureSet:
    """A feature file with its standardisation, fitted on the training windows where it has none."""
    data = FeatureSet.load(path)
    return data if data.standardiser is not None else data.fitted(train_split)


def told(peer: str) -> Callable[[int, int, float], None]:
    """Says how far the training is, and how long it will take."""
    began, first = time.monotonic(), list[int]()

    def say(done: int, of: int, loss: float) -> None:
        first[:] = first or [done - 1]
        if done - first[0] == 3 or done % 100 == 0 or done == of:
            left = (time.monotonic() - began) / (done - first[0]) * (of - done)
            _say(f"{peer}: step {done} of {of}, loss {loss:.3f}, {left / 60:.1f} min left")

    return say


def _filling(peer: str) -> Callable[[int, int, str], None]:
    def say(done: int, of: int, condition: str) -> None:
        _say(f"{peer}: fills {condition}, {done} of {of} draws done")

    return say


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> None:
    if args.draws < 1:
        raise UsageError(f"draws {args.draws} fill nothing; use 1 or more")
    for peer in args.peers:
        pick(dict.fromkeys(PEERS), peer, "peer")
    data = opened(args.features, args.train_split)
    test = data.of_split(args.split)
    for peer in args.peers:
        imputer = trained(peer, data, args.out / peer, splits=(args.train_split, args.validation_split),
                          sizes=assignments(args.set), progress=told(peer), steps=args.steps, batch=args.batch,
                          seed=args.seed, components=args.components)  # fmt: skip
        path: Path = args.out / f"{peer}.filled.safetensors"
        about: dict[str, Any] = json.loads((args.out / peer / "peer.json").read_text())
        write_prefilled(path, imputer, test, draws=args.draws, seed=args.draw_seed, profiles=args.profile,
                        batch=args.fill_batch, progress=_filling(peer), peer=about)  # fmt: skip
        print(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="a feature file with its splits")
    parser.add_argument("--steps", type=int, required=True, help="masked steps of training")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and filled windows")
    parser.add_argument(
        "--peers", nargs="+", default=["saits", "brits", "gpvae"], metavar="NAME", help=", ".join(PEERS)
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--components", type=int, default=32, help="principal components of each modality; 0: none")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="sizes of the peer, e.g. loss=mse")
    parser.add_argument("--split", default="test", help="what is filled")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--validation-split", default="validation", help="where variances are fitted, if it is there")
    parser.add_argument("--draws", type=int, default=3, help="of the masks, for each k")
    parser.add_argument("--draw-seed", type=int, default=0, help="the seed that imputation.evaluate is given")
    parser.add_argument("--profile", nargs="*", default=[], help="loss profiles to fill beside the k")
    parser.add_argument("--fill-batch", type=int, default=128)
    try:
        run(parser.parse_args(arguments))
    except LegatoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
