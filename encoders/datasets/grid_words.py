"""Single words of GRID, each a span of its sentence: digits, commands, or all six, to be read from the lips.

From the recordings of `grid` that have an alignment. The mouth opens before the sound and closes after it, so a span
reaches four frames beyond the word on either side. Splits are *within* a speaker (``split_within_speaker``: 70/15/15
of each): the task is unseen clips of seen people, and its figures are speaker s1's (599, 129 and 122 sentences), the
only one with enough of them. ``grid_digits:PATH`` is s1; the others' words are in splits of their own, such as
``s2/train``.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from encoders.datasets.corpus import About, Reader, shuffled
from encoders.datasets.grid import list_samples, word_times
from encoders.datasets.sample import Sample, read_table
from encoders.errors import DataError

__all__ = ["ALL", "COMMANDS", "DIGITS", "LIPS", "MARGIN", "SPEAKER", "SPEAKERS", "list_speakers", "list_words"]

SPEAKER = "s1"
MARGIN = 4 / 25  # seconds before and after the word
PLACES = {"command": 0, "color": 1, "preposition": 2, "letter": 3, "digit": 4, "adverb": 5}  # in a sentence
WORDS = {
    "command": ("bin", "lay", "place", "set"),
    "color": ("blue", "green", "red", "white"),
    "preposition": ("at", "by", "in", "with"),
    "letter": tuple("abcdefghijklmnopqrstuvxyz"),  # no w, which has three syllables
    "digit": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "adverb": ("again", "now", "please", "soon"),
}


def list_words(folder: Path, kinds: Sequence[str]) -> list[Sample]:
    """These words of every aligned sentence; raises DataError where table and alignment disagree."""
    rows = read_table(folder / "labels.csv", ("file", "speaker", "split_within_speaker", *kinds, "seconds"))
    times, samples = word_times(folder), []
    for row in rows:
        path = folder / row["file"]
        if path not in times:
            continue  # s26 and half of s31 were never aligned
        spoken = [span for span in times[path] if span[2] not in ("sil", "sp")]
        said = {kind: spoken[PLACES[kind]][2] for kind in kinds} if len(spoken) == 6 else {}
        if any(said.get(kind) != row[kind] for kind in kinds):
            label = row[next(kind for kind in kinds if said.get(kind) != row[kind])]
            raise DataError(f"{path.name} is aligned as {[w for _, _, w in spoken]}, its label is {label!r}")
        samples += [_span(path, row, spoken[PLACES[kind]], kind if len(kinds) > 1 else "") for kind in kinds]
    return samples


def _span(path: Path, row: Mapping[str, str], spoken: tuple[float, float, str], kind: str) -> Sample:
    """A word of a sentence, with a margin; ``kind`` tells the words of one sentence apart."""
    start, end = max(0.0, spoken[0] - MARGIN), min(float(row["seconds"]), spoken[1] + MARGIN)
    split = row["split_within_speaker"]
    split = split if row["speaker"] == SPEAKER else f"{row['speaker']}/{split}"
    name = "/".join(filter(None, (row["speaker"], path.stem, kind)))
    return Sample(path=path, start=start, seconds=end - start, label=spoken[2], speaker=row["speaker"], split=split,
                  name=name)  # fmt: skip


def list_speakers(folder: Path) -> list[Sample]:
    """Who it is: sentences of all nine speakers, of s1 as many as of any other, split within each speaker."""
    of: dict[tuple[str, str], list[Sample]] = defaultdict(list)  # by split and speaker
    for sample in list_samples(folder):
        split = sample.notes["split_within_speaker"]
        of[split, sample.speaker].append(replace(sample, label=sample.speaker, split=split, notes={}))
    chosen: list[Sample] = []
    for (split, who), samples in sorted(of.items()):
        most = max((len(of[key]) for key in of if key[0] == split and key[1] != SPEAKER), default=len(samples))
        chosen += shuffled(samples)[:most] if who == SPEAKER else samples
    return chosen


def _reader(title: str, *kinds: str) -> Reader:
    words = tuple(word for kind in kinds for word in WORDS[kind])
    sentences = {"train": 599, "val": 129, "test": 122}
    return Reader(
        about=About(
            title=f"GRID, {title} (Cooke et al., JASA 2006)",
            layout="labels.csv, alignments.csv, clips/SPEAKER/SENTENCE.mp4",
            licence="CC BY 4.0 (Zenodo record 3625687)",
            splits={split: count * len(kinds) for split, count in sentences.items()},
            classes=len(words),
            note="words of speaker s1 from the picture; other speakers' words in splits such as s2/train",
        ),
        samples=lambda folder: list_words(folder, kinds),
        classes=lambda folder, head: words,
    )


ALL = _reader("all its words", *PLACES)
LIPS = _reader("digits and commands", "digit", "command")
DIGITS = _reader("ten spoken digits", "digit")
COMMANDS = _reader("four spoken commands", "command")
SPEAKERS = Reader(
    about=About(
        title="GRID, nine speakers (Cooke et al., JASA 2006)",
        layout="labels.csv, clips/SPEAKER/SENTENCE.mp4",
        licence="CC BY 4.0 (Zenodo record 3625687)",
        splits={"train": 98, "val": 23, "test": 19},
        classes=9,
        note="who it is, from one picture; sentences are split within each speaker",
    ),
    samples=list_speakers,
)
