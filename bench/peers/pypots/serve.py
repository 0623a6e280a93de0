"""A trained peer that fills what it is asked over its standard input: ``python -m bench.peers.pypots.serve FOLDER``.

To be started by ``bench.peers.remote``, in PyPOTS's environment. A message is its length (8 bytes, little-endian), then
one byte, 0 or 1, then safetensors or one sentence that says what is wrong. The first message is the peer's name; each
question (features, presence, exists) gets one answer (features, variance). With ``--train`` it learns first.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load, save

from bench.peers.pypots.fill import told
from bench.peers.pypots.fills import PeerImputer, trained
from bench.peers.pypots.fills import load as load_peer
from encoders.errors import LegatoError
from imputation.features import FeatureSet


def read(stream: BinaryIO) -> bytes:
    """One message, empty at the end of the stream."""
    return stream.read(int.from_bytes(stream.read(8), "little"))


def write(stream: BinaryIO, content: bytes, *, wrong: bool = False) -> None:
    stream.write((len(content) + 1).to_bytes(8, "little") + bytes([wrong]) + content)
    stream.flush()


@torch.inference_mode()
def answer(imputer: PeerImputer, question: bytes) -> bytes:
    asked = load(question[1:])
    filled = imputer(asked["features"], asked["presence"], asked["exists"])
    return save({"features": filled.features.contiguous(), "variance": filled.variance.contiguous()})


def opened(args: argparse.Namespace) -> PeerImputer:
    """As it lies in its folder, or trained now."""
    if args.train is None:
        return load_peer(args.folder)
    asked: dict[str, Any] = {name: getattr(args, name) for name in ("steps", "batch", "seed", "components")}
    return trained(args.peer, FeatureSet.load(args.train), args.folder, progress=told(args.peer), **asked)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=Path, help="standardised windows of the splits train and validation")
    parser.add_argument("--peer", default="saits")
    for name, value in {"steps": 1000, "batch": 64, "seed": 0, "components": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with os.fdopen(os.dup(1), "wb") as out:  # what others print goes beside, not between
        os.dup2(2, 1)
        try:
            imputer = opened(args)
        except LegatoError as error:
            write(out, str(error).encode(), wrong=True)
            return error.exit_code
        write(out, imputer.rung.encode())
        while question := read(sys.stdin.buffer):
            try:
                write(out, answer(imputer, question))
            except LegatoError as error:
                write(out, str(error).encode(), wrong=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
