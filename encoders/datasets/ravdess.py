"""RAVDESS: 24 actors speaking and singing two sentences in eight emotions (Livingstone and Russo, "The Ryerson
Audio-Visual Database of Emotional Speech and Song", PLoS ONE 2018).

Expects the recordings anywhere below PATH, as the archives unpack (``Actor_01/01-01-03-01-01-01-01.mp4``). A name is
seven numbers: modality (01 both, 02 video only, 03 audio only), channel (01 speech, 02 song), emotion, intensity,
statement, repetition, actor (odd: male). Only recordings with both modalities are listed; the others are the same
takes.

The splits are curri-MAE's, speaker independent with 4 test actors; of the other 20 four validate. An actor's songs go
where the actor's speech goes. ``?neutral=false`` leaves out the neutral takes (the paper lists the other seven
emotions; 2 264 of 2 452 recordings), ``?song=false`` the songs.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from encoders.datasets.corpus import About, Reader
from encoders.datasets.sample import MEDIA, Sample
from encoders.datasets.speakers import BySpeaker, drawn, split_by_speaker
from encoders.datasets.tables import Files
from encoders.errors import DataError

__all__ = ["ACTORS", "EMOTIONS", "RAVDESS", "Takes", "list_samples"]

ACTORS = tuple(f"{actor:02}" for actor in range(1, 25))
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")  # 01 to 08
FIELDS = ("modality", "channel", "emotion", "intensity", "statement", "repetition", "actor")
WORDS = {
    "channel": {"01": "speech", "02": "song"},
    "intensity": {"01": "normal", "02": "strong"},
    "statement": {"01": "kids", "02": "dogs"},
    "repetition": {"01": "01", "02": "02"},
}
SIZES = {"test": 4, "val": 4}
_NAME = re.compile(r"\d\d(-\d\d){6}")


@dataclass(frozen=True, kw_only=True)
class Takes(BySpeaker):
    """Which recordings, and which draw of actors."""

    neutral: bool = True
    song: bool = True


def list_samples(folder: Path, options: Takes) -> list[Sample]:
    """All recordings with both modalities, in order of their names."""
    found = {name: path for name, path in Files([folder], MEDIA).stems().items() if _NAME.fullmatch(name)}
    if not found:
        raise DataError(
            f"{folder} holds no recording named like 01-01-03-01-01-01-01.mp4; give the folder that holds RAVDESS"
        )
    samples = [_sample(name, path) for name, path in sorted(found.items()) if name.startswith("01-")]
    if not samples:
        raise DataError(
            f"{folder} holds recordings of one modality only ({min(found)}, ...); add those whose names begin with 01"
        )
    wanted = [
        sample
        for sample in samples
        if (options.neutral or sample.label != "neutral") and (options.song or sample.notes["channel"] == "speech")
    ]
    return split_by_speaker(wanted, drawn(ACTORS, SIZES, options.seed))


def _sample(name: str, path: Path) -> Sample:
    fields = dict(zip(FIELDS, name.split("-"), strict=True))
    emotion = int(fields["emotion"])
    known = fields["actor"] in ACTORS and 1 <= emotion <= len(EMOTIONS)
    if not known or any(fields[field] not in words for field, words in WORDS.items()):
        raise DataError(f"{path} is named like a recording of RAVDESS and says what it has not; rename or remove it")
    notes = {field: words[fields[field]] for field, words in WORDS.items()}
    return Sample(path=path, label=EMOTIONS[emotion - 1], speaker=fields["actor"], name=name, notes=notes)


def _reader(options: Takes) -> Reader:
    return Reader(
        about=About(
            title="RAVDESS (Livingstone and Russo, PLoS ONE 2018)",
            layout="01-CC-EE-II-SS-RR-AA.mp4 anywhere below (Actor_AA/, as the archives unpack)",
            licence="CC BY-NC-SA 4.0 (Zenodo record 1188976)",
            splits={"speech": 1_440, "song": 1_012},
            classes=len(EMOTIONS),
            note="train, val, test are 16, 4 and 4 of 24 actors (curri-MAE); ?neutral=false, ?song=false, ?seed=1",
        ),
        samples=lambda folder: list_samples(folder, options),
        classes=lambda folder, head: EMOTIONS if options.neutral else EMOTIONS[1:],
        options=options,
        made=_reader,
    )


RAVDESS = _reader(Takes())
