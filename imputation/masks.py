"""What to hide in training and evaluation: masks (B, L, M), **True = hidden**, M = (video, audio) (numpy only).

Two families. The paper's: k of L clips uniformly, or a rate per clip, each modality for itself. Real networks':
runs of clips, a whole modality, or packet losses of a profile turned into clips by the presence rule. Generators
are passed in; nothing here keeps state.
"""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from encoders.errors import ConfigError
from imputation.channel import Channel
from imputation.gilbert import chain, from_loss
from imputation.presence import PresenceRule
from imputation.profiles import Profile, WholeClips
from imputation.reception import clip_reception

Mask = NDArray[np.bool_]
MODALITIES = ("video", "audio")


def uniform_k(rng: np.random.Generator, batch: int, length: int, k: int | NDArray[np.integer]) -> Mask:
    """Exactly ``k`` of ``length`` clips hidden in each modality, independently; ``k`` is one number or (B,).

    The count is an integer from 0 to L: no rate is rounded. ConfigError outside that.
    """
    counts = np.broadcast_to(np.asarray(k), (batch,))
    if counts.size and (counts.min() < 0 or counts.max() > length):
        wrong = counts.min() if counts.min() < 0 else counts.max()
        raise ConfigError(f"k {wrong} of {length} clips cannot be hidden; use 0 to {length}")
    ranks = rng.random((batch, length, 2)).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return np.asarray(ranks < counts[:, None, None])


def independent_rates(rng: np.random.Generator, batch: int, length: int, rate: float | tuple[float, float]) -> Mask:
    """Every clip hidden with probability ``rate``, a number or (video, audio), independently."""
    rates = np.broadcast_to(np.asarray(rate, float), (2,))
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ConfigError(f"dropout rate {rate} is not within 0 to 1; give a fraction, e.g. 0.4")
    return np.asarray(rng.random((batch, length, 2)) < rates)


def bursts(
    rng: np.random.Generator, batch: int, length: int, rate: float, burst: float, *, together: bool = False
) -> Mask:
    """Runs of hidden clips: share ``rate`` in all, ``burst`` clips long on average (windows cut the outer ones).

    ``together`` hides both modalities at once, as a shared link does; else each has its own runs.
    UsageError where no such runs exist (see ``from_loss``).
    """
    model, streams = from_loss(rate, burst), 1 if together else 2
    u = rng.random((batch, streams, length + 1))
    hidden = chain(model, u[..., 0] < model.bad_share, u[..., 1:])
    return np.ascontiguousarray(np.broadcast_to(hidden, (batch, 2, length)).transpose(0, 2, 1))


def whole_modality(rng: np.random.Generator, batch: int, length: int, probability: float) -> Mask:
    """In a share ``probability`` of the samples one modality, either, is hidden from beginning to end."""
    u = rng.random((batch, 2))
    victim = np.where(u[:, :1] < probability, u[:, 1:] < 0.5, False) ^ np.array([[False, True]])
    hidden = victim & (u[:, :1] < probability)
    return np.repeat(hidden[:, None, :], length, axis=1)


def network(
    profile: Profile,
    seed: int,
    *,
    batch: int,
    length: int,
    clip_seconds: float = 0.4,
    rule: PresenceRule | None = None,
    recovery: str = "pli",
    fec: bool = False,
) -> Mask:
    """Windows of a reference call over the profile's link: a clip is hidden where the presence rule says absent.

    ``recovery`` (gop, pli, nack, intra) ends video damage, ``fec`` repairs single audio losses; see
    ``imputation.reception``. Rows lie along one run of the link, so the same seed gives the same rows, and a
    test set is masked in one call.
    """
    if isinstance(profile.process, WholeClips):
        times = profile.process.origin + (np.arange(batch * length) + 0.5) * profile.process.clip_seconds
        channel = Channel(profile, seed)
        return np.stack([channel.bad(m, times).reshape(batch, length) for m in MODALITIES], axis=-1)
    rule = rule or PresenceRule()
    coverage, spoiled = clip_reception(
        profile, seed, batch=batch, length=length, clip_seconds=clip_seconds, recovery=recovery, fec=fec
    )
    return np.stack([~rule.present(m, coverage[..., i], spoiled[..., i]) for i, m in enumerate(MODALITIES)], axis=-1)


def paired_seed(sample: int | str, k: int, draw: int) -> int:
    """One seed per (sample, k, draw), shared by every method that is compared; 32 bits, the same everywhere."""
    return crc32(f"{sample}/{k}/{draw}".encode())


def paired_uniform(samples: Sequence[int | str], length: int, k: int, draw: int) -> Mask:
    """``uniform_k`` for each sample from its own paired seed: rows do not depend on who else is in the batch."""
    rows = [uniform_k(_generator(paired_seed(sample, k, draw)), 1, length, k) for sample in samples]
    return np.concatenate(rows) if rows else np.zeros((0, length, 2), bool)


def paired_rates(samples: Sequence[int | str], length: int, rate: float, draw: int) -> Mask:
    """``independent_rates`` for each sample from the paired seed of (sample, rate in percent, draw)."""
    percent = round(100 * rate)
    rows = [
        independent_rates(_generator(paired_seed(sample, percent, draw)), 1, length, rate) for sample in samples
    ]
    return np.concatenate(rows) if rows else np.zeros((0, length, 2), bool)


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))
