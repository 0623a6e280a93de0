"""Windows of features: what the frozen encoders say of scenes, for training and judging what comes after them.

Encoders see one clip at a time, so a change of scene is two windows cut and joined at a clip, and a window in which
nobody is in the picture is the same window with the learned ``no_face`` vector in the video's place.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from imputation.features import FeatureSet
from runtime.talk.corpus import Corpus
from runtime.talk.score import scene
from runtime.talk.train_encoders import Batch, TalkNet, encode, other_voices
from runtime.talk.windows import CONDITIONS, LABEL_OF, LABELS, Grid

WEIGHTS = {"still_noise": 1.0, "talk_noise": 1.0, "pair": 2.0, "still_voice": 0.8, "talk_other": 0.7, "talk_same": 0.7}
BATCH = 20  # windows encoded at once
Progress = Callable[[int, int], None]


@torch.no_grad()
def encoded(
    net: TalkNet, sights: np.ndarray, sounds: np.ndarray, grid: Grid, generator: torch.Generator | None
) -> Tensor:
    """Features (N, clips, 2, D) of windows; augmented where a generator is given."""
    v, a = encode(net, Batch(sights, sounds, np.zeros(0)), grid, generator)
    return torch.stack((v, a), 2)


def training_windows(
    net: TalkNet,
    corpus: Corpus,
    count: int,
    seed: int,
    grid: Grid,
    noises: Sequence[np.ndarray],
    window: int,
    progress: Progress,
) -> FeatureSet:
    """``count`` augmented windows of one scene each, and a quarter as many changing or faceless ones.

    The label is that of the scene in which the first ``window`` clips end.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    speakers = sorted(corpus.by_speaker)
    odds = np.array([WEIGHTS[c] for c in CONDITIONS])
    conditions = rng.choice(len(CONDITIONS), count, p=odds / odds.sum())
    who = [speakers[i] for i in rng.integers(len(speakers), size=count)]
    features = []
    for start in range(0, count, BATCH):
        rows = range(start, min(count, start + BATCH))
        made = [_scene(rng, corpus, speakers, who[i], CONDITIONS[conditions[i]], grid, noises) for i in rows]
        sounds = other_voices(rng, np.stack([sound for _, sound in made]), odds=0.3)
        features.append(encoded(net, np.stack([sight for sight, _ in made]), sounds, grid, generator))
        progress(rows.stop, count)
    whole = torch.cat(features)
    label = torch.tensor([LABEL_OF[CONDITIONS[c]] for c in conditions])
    x, y, source = _with_changes(rng, whole, label, net, window)
    names = [f"{who[i]}:{CONDITIONS[conditions[i]]}:{n}" for n, i in enumerate(source)]
    return FeatureSet.of(
        x, y, LABELS, names=names, speaker=[who[i] for i in source], notes={"clip_seconds": grid.seconds}
    )


def _scene(
    rng: np.random.Generator,
    corpus: Corpus,
    speakers: list[str],
    who: str,
    condition: str,
    grid: Grid,
    noises: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    others = corpus.by_speaker[speakers[(speakers.index(who) + rng.integers(1, len(speakers))) % len(speakers)]]
    return scene(rng, condition, corpus.by_speaker[who], others, grid, noises)


def _with_changes(
    rng: np.random.Generator, x: Tensor, label: Tensor, net: TalkNet, window: int
) -> tuple[Tensor, Tensor, np.ndarray]:
    """The windows, then changing ones (a sixth as many), then faceless ones (a twelfth)."""
    count = len(x)
    first, second = rng.integers(count, size=(2, count // 6))
    at = torch.from_numpy(rng.integers(1, window - 2, size=(count // 6, 1)))
    before = (torch.arange(x.shape[1]) < at)[..., None, None]
    changing = torch.where(before, x[first], x[second])
    empty = rng.integers(count, size=count // 12)
    faceless = x[empty].clone()
    assert net.video.no_face is not None
    faceless[:, :, 0] = net.video.no_face.detach()
    said = torch.where(label[empty] == 0, 0, 2)
    return (
        torch.cat((x, changing, faceless)),
        torch.cat((label, label[second], said)),
        np.concatenate((np.arange(count), second, empty)),
    )
