"""Lombard GRID: 54 people reading GRID sentences, half of them against noise in their ears, which makes people speak
another way (Alghamdi, Maddock, Marxer, Barker, Brown, "A corpus of audio-visual Lombard speech with frontal and profile
views", JASA 2018).

Expects the front camera's videos in a folder ``front`` anywhere below PATH (``lombardgrid/front/s2_l_bbim3a.mov``):
talker, ``l`` or ``p`` for Lombard or plain, the sentence's code. The label is Lombard or plain. What is heard is the
recording of that name in ``audio`` beside ``front`` where there is one, else the video's own sound; the side view is
left alone. Where somebody said another sentence, a name goes on (``s46_p_gbszs_WRONG_sgbszs``); takes of silence
(``..._WRONG_#sil``) are left out.

The splits are curri-MAE's, speaker independent with 8 test talkers; of the others 8 validate (of fewer than 54 talkers,
as great a share, and at least one).
"""

import re
from pathlib import Path

from encoders.datasets.corpus import About, Reader
from encoders.datasets.grid_words import WORDS
from encoders.datasets.sample import MEDIA, Sample
from encoders.datasets.speakers import BySpeaker, drawn, split_by_speaker
from encoders.datasets.tables import Files
from encoders.errors import DataError

__all__ = ["LABELS", "LOMBARD_GRID", "list_samples", "transcript"]

LABELS = {"l": "lombard", "p": "plain"}
TALKERS, HELD_OUT = 54, 8
_NAME = re.compile(r"(?P<talker>s\d{1,3})_(?P<how>[lp])_(?P<code>[a-z0-9]+)(_WRONG_(?P<said>[a-z0-9]+))?")
_BY_LETTER = {kind: {word[0]: word for word in words} for kind, words in WORDS.items()}
_BY_LETTER["digit"] = {"z": "zero"} | {str(number): word for number, word in enumerate(WORDS["digit"])}


def list_samples(folder: Path, options: BySpeaker) -> list[Sample]:
    """All videos of the front camera, by talker and name."""
    fronts = [folder] if folder.name == "front" else sorted(path for path in folder.rglob("front") if path.is_dir())
    found = sorted(Files(fronts, MEDIA).stems().items())
    sounds = Files((front.with_name("audio") for front in fronts), (".wav", ".flac"))
    samples = [
        Sample(
            path=path,
            label=LABELS[match["how"]],
            speaker=match["talker"],
            name=name,
            sound=sounds.get(name),
            notes={"transcript": transcript(match["said"] or match["code"])},
        )
        for name, path in found
        if (match := _NAME.fullmatch(name))
    ]
    if not samples:
        raise DataError(
            f"{folder} holds no front/TALKER_l_SENTENCE.mov such as front/s2_l_bbim3a.mov; "
            "give the folder that holds Lombard GRID"
        )
    talkers = {sample.speaker for sample in samples}
    held_out = max(1, round(HELD_OUT * len(talkers) / TALKERS))
    return split_by_speaker(samples, drawn(talkers, {"test": held_out, "val": held_out}, options.seed))


def transcript(code: str) -> str:
    """A sentence's six words from its code: ``bbim3a`` is bin blue in m three again; "" where it is none."""
    said = [_BY_LETTER[kind].get(letter, "") for kind, letter in zip(WORDS, code, strict=False)]
    return " ".join(said) if len(code) == len(WORDS) and all(said) else ""


def _reader(options: BySpeaker) -> Reader:
    return Reader(
        about=About(
            title="Lombard GRID (Alghamdi et al., JASA 2018)",
            layout="[lombardgrid/]front/s2_l_bbim3a.mov, perhaps audio/s2_l_bbim3a.wav",
            licence="see the corpus's page at the University of Sheffield (avlombard)",
            splits={"all": 5_400},
            classes=len(LABELS),
            note="train, val, test are 38, 8 and 8 of 54 talkers (curri-MAE); ?seed=1 draws others",
        ),
        samples=lambda folder: list_samples(folder, options),
        classes=lambda folder, head: tuple(LABELS.values()),
        options=options,
        made=_reader,
    )


LOMBARD_GRID = _reader(BySpeaker())
