"""CREMA-D: actors saying twelve sentences in six emotions (Cao, Cooper, Keutmann, Gur, Nenkova, Verma, "CREMA-D:
Crowd-sourced Emotional Multimodal Actors Dataset", IEEE Transactions on Affective Computing 2014).

Expects the recordings anywhere below PATH, as published in ``VideoFlash/`` or converted, named actor, sentence, emotion
and level (``1001_DFA_ANG_XX.flv``). Where a recording is there as video and as sound, the video is taken; ``AudioWAV/``
alone gives recordings without a picture.

The splits are curri-MAE's: 70-15-15, speaker independent; 63, 14 and 14 of the 91 actors, whichever files are there.
"""

import re
from pathlib import Path

from encoders.datasets.corpus import About, Reader
from encoders.datasets.sample import MEDIA, Sample
from encoders.datasets.speakers import BySpeaker, drawn, split_by_speaker
from encoders.datasets.tables import Files
from encoders.errors import DataError

__all__ = ["ACTORS", "CREMA_D", "EMOTIONS", "SENTENCES", "list_samples"]

ACTORS = tuple(str(actor) for actor in range(1001, 1092))
EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
SENTENCES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")
SIZES = {"test": 14, "val": 14}
_NAME = re.compile(r"(?P<actor>\d{4})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<level>[A-Z]{1,2})")
_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".flv", *(s for s in MEDIA if s not in (".mp4", ".mkv", ".webm")))


def list_samples(folder: Path, options: BySpeaker) -> list[Sample]:
    """All recordings in order of their names; files that are named otherwise are none of them."""
    samples = []
    for name, path in sorted(Files([folder], _SUFFIXES).stems().items()):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        if match["actor"] not in ACTORS or match["sentence"] not in SENTENCES or match["emotion"] not in EMOTIONS:
            raise DataError(
                f"{path} is named like a recording of CREMA-D and has an actor, sentence or emotion that it has not; "
                "rename or remove it"
            )
        notes = {"sentence": match["sentence"], "level": match["level"]}
        label = EMOTIONS[match["emotion"]]
        samples.append(Sample(path=path, label=label, speaker=match["actor"], name=name, notes=notes))
    if not samples:
        raise DataError(
            f"{folder} holds no recording named ACTOR_SENTENCE_EMOTION_LEVEL such as 1001_DFA_ANG_XX.flv; "
            "give the folder that holds CREMA-D"
        )
    return split_by_speaker(samples, drawn(ACTORS, SIZES, options.seed))


def _reader(options: BySpeaker) -> Reader:
    return Reader(
        about=About(
            title="CREMA-D (Cao et al., IEEE Transactions on Affective Computing 2014)",
            layout="1001_DFA_ANG_XX.flv anywhere below (VideoFlash/, or converted), perhaps .wav beside",
            licence="Open Database License 1.0 (the repository CheyneyComputerScience/CREMA-D)",
            splits={"all": 7_442},
            classes=len(EMOTIONS),
            note="train, val, test are 63, 14 and 14 of 91 actors (curri-MAE); ?seed=1 draws others",
        ),
        samples=lambda folder: list_samples(folder, options),
        classes=lambda folder, head: tuple(EMOTIONS.values()),
        options=options,
        made=_reader,
    )


CREMA_D = _reader(BySpeaker())
