"""Splits by speaker: nobody who is heard or seen in training is tested on.

Who goes where is drawn by a hash of seed and name, so that it is the same on every machine and for every kind of file
of a speaker (RAVDESS: speech and song). ``NAME:PATH?seed=1`` is another draw.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from encoders.datasets.sample import Sample
from encoders.errors import DataError

__all__ = ["BySpeaker", "drawn", "split_by_speaker"]


@dataclass(frozen=True, kw_only=True)
class BySpeaker:
    """Which draw of speakers."""

    seed: int = 0


def drawn(speakers: Iterable[str], sizes: Mapping[str, int], seed: int) -> dict[str, str]:
    """The split of each speaker: ``sizes`` says how many each split but ``train`` gets, which has the rest.

    Raises DataError where nobody is left for training.
    """
    order = sorted(set(speakers), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    if len(order) <= sum(sizes.values()):
        some = ", ".join(sorted(order)[:3]) + (", ..." if len(order) > 3 else "")
        wanted = ", ".join(f"{count} for {split}" for split, count in sizes.items())
        raise DataError(
            f"{len(order)} speakers ({some}) cannot be split into {wanted} and one for train; give the whole set"
        )
    names = [split for split, count in sizes.items() for _ in range(count)]
    return dict(zip(order, [*names, *["train"] * (len(order) - len(names))], strict=True))


def split_by_speaker(samples: Sequence[Sample], split_of: Mapping[str, str]) -> list[Sample]:
    """The same samples, each in the split of its speaker."""
    return [replace(sample, split=split_of[sample.speaker]) for sample in samples]
