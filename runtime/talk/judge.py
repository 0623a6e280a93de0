"""Test windows through what ships: the face found by the bundle's own net, clip after clip, nothing of the teacher.

Pictures of the speakers to judge are decoded again at full size; every window is a stream of its own, in which the
tracker starts from nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from encoders.media import read_all
from encoders.video.face_box import FaceBox
from imputation.features import FeatureSet
from runtime.face import FaceTracker
from runtime.talk import augment
from runtime.talk.corpus import Corpus
from runtime.talk.prepare import FOLDERS, SPEC
from runtime.talk.score import scene
from runtime.talk.train_encoders import TalkNet
from runtime.talk.windows import CONDITIONS, LABEL_OF, LABELS, Grid


def whole_pictures(data: Path, corpus: Corpus, speakers: Iterable[str]) -> Corpus:
    """These speakers' utterances with their frames uncut: uint8 (N, H, W)."""
    out = []
    for speaker in speakers:
        for u in corpus.by_speaker[speaker]:
            path = next((data / FOLDERS[u.corpus]).glob(f"**/{u.file}"))
            out.append(replace(u, pictures=np.stack([p.pixels for p in read_all(path, SPEC).pictures])))
    return Corpus(out, corpus.noises)


@torch.no_grad()
def judged(
    net: TalkNet,
    tracker: FaceTracker,
    sight: np.ndarray,
    sound: np.ndarray,
    grid: Grid,
    spoilt: torch.Generator | None = None,
) -> Tensor:
    """One window as the runtime sees it: (clips, 2, D); ``spoilt`` by another camera, voice and microphone."""
    state, crops, found = tracker.initial_state(), [], []
    for frames in sight.reshape(grid.clips, grid.frames, *sight.shape[1:]):
        crop, state, here = tracker.locate(SimpleNamespace(video=frames), state)  # type: ignore[arg-type]
        found.append(here)
        crops.append(crop if crop is not None else np.zeros((grid.frames, tracker.size, tracker.size), np.uint8))
    x = torch.from_numpy(np.stack(crops))
    mel = net.audio.prepare(torch.from_numpy(sound).view(grid.clips, -1))
    if spoilt is not None:
        x = augment.light(x.float(), spoilt, grid.clips)
        mel = augment.voice(mel, spoilt, grid.clips)
    v = net.video(net.video.prepare(x))
    assert net.video.no_face is not None
    v = torch.where(torch.tensor(found)[:, None], v, net.video.no_face)
    return torch.stack((v, net.audio(mel)), 1)


def unseen_windows(
    net: TalkNet,
    face: FaceBox,
    corpus: Corpus,
    speakers: Sequence[str],
    each: int,
    seed: int,
    grid: Grid,
    noises: Sequence[np.ndarray],
    split: str,
    harder: bool,
    progress: Callable[[int, int], None],
) -> FeatureSet:
    """``each`` windows of every condition for every speaker; names say ``speaker:condition:number``.

    With ``harder`` every second window is spoilt: what is fitted on it should hold in other rooms, for other people.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    tracker = FaceTracker(face, net.video.config.size)
    features, names, who = [], [], []
    for speaker in speakers:
        # of the same corpus: its rooms and picture size, so that only the voice can tell
        there = [s for s in speakers if s.split("/")[0] == speaker.split("/")[0]]
        others = [u for s in there if s != speaker for u in corpus.by_speaker[s]]
        for condition in CONDITIONS:
            for number in range(each):
                sight, sound = scene(rng, condition, corpus.by_speaker[speaker], others, grid, noises)
                spoilt = generator if harder and number % 2 else None
                features.append(judged(net, tracker, sight, sound, grid, spoilt))
                names.append(f"{speaker}:{condition}:{number}")
                who.append(speaker)
            progress(len(names), len(speakers) * len(CONDITIONS) * each)
    label = torch.tensor([LABEL_OF[name.split(":")[1]] for name in names])
    notes = {"clip_seconds": grid.seconds}
    return FeatureSet.of(
        torch.stack(features), label, LABELS, names=names, speaker=who, split=[split] * len(names), notes=notes
    )


def conditions_of(data: FeatureSet) -> np.ndarray:
    """Each window's condition, an index into CONDITIONS."""
    return np.array([CONDITIONS.index(name.split(":")[1]) for name in data.names])
