"""A dataset opened: its samples of the chosen splits, what had to be left out, and the order of its classes.

A dataset file holds a ``Reader``: how its folder is listed, which order its classes have, and what it is (``About``).
Here the list is checked once for all datasets: ids that occur twice, labels no class list knows, files that are not
there. Each is an error that counts and names; with ``skip_bad`` such samples are left out and counted instead, so
that a set whose videos vanish from the web can be used as it is. Where a reader has options, they follow the path as
in an address: ``ravdess:PATH?neutral=false&seed=1``.

A split may be cut like an array, ``train[:98%]`` and ``train[98%:]``: the samples are put in the order of a hash of
their ids, so that the cut is the same on every machine and does not move when a file is added elsewhere.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from encoders.datasets.sample import DATASETS, Sample, shipped
from encoders.errors import DataError, UsageError
from encoders.settings import override, pick

__all__ = [
    "About",
    "Bad",
    "Corpus",
    "Reader",
    "classes_of",
    "labels_of",
    "open_corpus",
    "reader_of",
    "shuffled",
    "survey",
]


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of a dataset before it is opened."""

    title: str  # and paper
    layout: str  # files and folders that are expected below PATH
    licence: str  # and where it is stated
    splits: dict[str, int]  # samples of the official release
    classes: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How a dataset's folder is read."""

    about: About
    samples: Callable[[Path], list[Sample]]  # all splits; files need not exist
    classes: Callable[[Path, str], tuple[str, ...]] | None = None  # official order by head; None: alphabetical
    heads: tuple[str, ...] = ()  # where one sample has several single labels, in ``notes``; () where it has one
    titles: Callable[[Path], dict[str, str]] | None = None  # class to the words people use for it
    multi_label: bool = False
    options: Any = None  # a frozen dataclass: what may be chosen, as in NAME:PATH?seed=1; None: nothing
    made: "Callable[[Any], Reader] | None" = None  # the reader with other options

    def __call__(self, folder: Path) -> list[Sample]:
        return self.samples(folder)


class Bad(NamedTuple):
    """A sample that cannot be used, and why."""

    sample: Sample
    reason: str


@dataclass(frozen=True)
class Corpus:
    """Samples of the chosen splits, in the dataset's order."""

    name: str
    folder: Path
    samples: Sequence[Sample]
    bad: Sequence[Bad]  # what was left out
    reader: Reader | None  # None for folders that have a labels.csv or nothing
    labels: Sequence[str] = field(repr=False)  # of all splits, alphabetical

    @property
    def heads(self) -> tuple[str, ...]:
        """What is to be told apart: ``("",)``, or names such as noun and verb."""
        return (self.reader.heads if self.reader else ()) or ("",)

    @property
    def multi_label(self) -> bool:
        """Whether a sample may have several labels, or none."""
        return bool(self.reader and self.reader.multi_label)

    def classes(self, head: str = "") -> tuple[str, ...]:
        """Class names by index: the official order where there is one, else alphabetical over all splits."""
        if head not in self.heads:
            raise UsageError(f"dataset {self.name} has no head {head!r}; it has {', '.join(self.heads) or 'one'}")
        return self._classes[head]

    @cached_property
    def _classes(self) -> dict[str, tuple[str, ...]]:
        official = self.reader.classes if self.reader else None
        return {head: official(self.folder, head) if official else tuple(self.labels) for head in self.heads}

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        return {head: {name: i for i, name in enumerate(names)} for head, names in self._classes.items()}

    def targets(self, sample: Sample, head: str = "") -> tuple[int, ...]:
        """Indices of a sample's labels: one, several where the set is multi-label, none where it has no label."""
        return tuple(self._places[head][label] for label in labels_of(sample, head))

    def titles(self, head: str = "") -> tuple[str, ...]:
        """``classes`` in words for people."""
        words = self.reader.titles(self.folder) if self.reader and self.reader.titles else {}
        return tuple(words.get(name, name) for name in self.classes(head))


def labels_of(sample: Sample, head: str = "") -> tuple[str, ...]:
    """A sample's labels for a head; () where it has none, as in test sets whose labels are kept back."""
    if head:
        return (sample.notes[head],) if sample.notes.get(head) else ()
    return sample.labels or ((sample.label,) if sample.label else ())


def open_corpus(text: str, *, splits: Iterable[str] = (), skip_bad: bool = False) -> Corpus:
    """The dataset ``NAME:PATH`` or ``NAME``; of these ``splits`` only, where given.

    Raises UsageError on an unknown name or split, DataError on a folder that is not this dataset, and on missing
    files, ids that occur twice and unknown labels; with ``skip_bad`` the last three are left out and counted.
    """
    everything = survey(text, splits=splits)
    samples, bad = everything.samples, everything.bad
    if bad and (not skip_bad or len(bad) == len(samples)):
        nothing = "" if len(bad) < len(samples) or not skip_bad else f"dataset {text} has nothing left to read: "
        raise DataError(nothing + _sentence(text, bad, len(samples)))
    left_out = {id(sample) for sample, _ in bad}
    return replace(everything, samples=[sample for sample in samples if id(sample) not in left_out])


def survey(text: str, *, splits: Iterable[str] = ()) -> Corpus:
    """As ``open_corpus``, but bad samples are named in ``bad`` and stay among ``samples``, however many there are."""
    place, options = _options(text)
    name, _, path = place.partition(":")
    reader = _chosen(name, options)
    folder = Path(path).expanduser() if path else shipped(name, DATASETS[name][1])
    if not folder.is_dir():
        fault = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"dataset folder {folder} {fault}; give the folder as {name}:PATH")
    listed = reader(folder)
    chosen = choose(listed, tuple(splits), text)
    known = reader if isinstance(reader, Reader) else None
    labels = sorted({label for sample in listed for label in labels_of(sample)})
    corpus = Corpus(name, folder, chosen, (), known, labels)
    return replace(corpus, bad=_bad(corpus))


def _options(text: str) -> tuple[str, dict[str, str]]:
    """``NAME:PATH?key=value&key=value`` as what stands before the mark and what is set; a folder may have the mark."""
    place, mark, query = text.rpartition("?")
    if not mark or "=" not in query or Path(text.partition(":")[2]).is_dir():
        return text, {}
    pairs = [pair.partition("=") for pair in query.split("&")]
    for key, sign, _ in pairs:
        if not sign or not key:
            raise UsageError(f"dataset option {key!r} of {text} is not key=value; write for example ?seed=1&song=false")
    return place, {key: value for key, _, value in pairs}


def _chosen(name: str, options: Mapping[str, str]) -> "Reader | Callable[[Path], list[Sample]]":
    """The reader of a dataset with these options; raises UsageError where it has none such."""
    reader = reader_of(name)
    if not options:
        return reader
    if not isinstance(reader, Reader) or reader.made is None:
        raise UsageError(f"dataset {name} has no options and {next(iter(options))} is set; leave it out")
    return reader.made(override(reader.options, options))


def reader_of(name: str) -> Reader | Callable[[Path], list[Sample]]:
    """The reader of a dataset by name; a plain function for those that list themselves in ``labels.csv``."""
    module, _, attribute = pick(DATASETS, name, "dataset")[0].partition(":")
    reader: Reader | Callable[[Path], list[Sample]] = getattr(import_module(module), attribute)
    return reader


def classes_of(text: str, head: str = "") -> tuple[str, ...]:
    """Class names of ``NAME:PATH`` by index, whatever files are missing."""
    return open_corpus(text, skip_bad=True).classes(head)


def _bad(corpus: Corpus) -> list[Bad]:
    """The samples that cannot be used, in their order."""
    bad: list[Bad] = []
    absent = _Absent()
    seen: dict[str, str] = {}  # id to the split that had it first
    for sample in corpus.samples:
        if corpus.reader is not None and sample.id in seen:
            bad.append(Bad(sample, f"{sample.id} is listed twice (in {seen[sample.id]} and {sample.split})"))
        elif corpus.reader is not None and (label := _unknown(corpus, sample)):
            bad.append(Bad(sample, f"the class list does not have {label!r}, the label of {sample.id}"))
        elif absent(sample.path):
            bad.append(Bad(sample, f"{sample.path} is missing"))
        seen.setdefault(sample.id, sample.split)
    return bad


def _unknown(corpus: Corpus, sample: Sample) -> str:
    """The first label that the class list does not have; "" where it has them all."""
    for head in corpus.heads:
        for label in labels_of(sample, head):
            if label not in corpus._places[head]:
                return label
    return ""


class _Absent:
    """Whether a path is missing; every folder is listed once, as sets of a million files are asked for one by one."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def __call__(self, path: Path) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(folder))
            except (OSError, ValueError):  # no such folder, or a name that can be none
                self._names[folder] = set()
        return name not in self._names[folder]


def _sentence(text: str, bad: Sequence[Bad], total: int) -> str:
    way_out = "mend them, or leave them out with --skip-bad"
    return f"{len(bad)} of {total} samples of {text} cannot be used, the first because {bad[0].reason}; {way_out}"


# --- splits ---

_SLICE = re.compile(r"(?P<split>[^\[\]]+)\[(?:(?P<first>\d+)%)?:(?:(?P<last>\d+)%)?\]")


def choose(samples: Sequence[Sample], wanted: Sequence[str], text: str) -> list[Sample]:
    """The samples of these splits, each whole or cut; raises DataError where one has nothing."""
    if not wanted:
        if not samples:
            raise DataError(f"dataset {text} has no sample of split any; it has nothing at all")
        return list(samples)
    chosen: set[int] = set()
    for split in wanted:
        chosen |= {id(sample) for sample in _cut(samples, split, text)}
    return [sample for sample in samples if id(sample) in chosen]


def _cut(samples: Sequence[Sample], split: str, text: str) -> list[Sample]:
    match = _SLICE.fullmatch(split)
    if match is None and ("[" in split or "]" in split):
        raise UsageError(f"split {split!r} is no cut; write for example train[:98%] or train[98%:]")
    name = match["split"] if match else split
    whole = [sample for sample in samples if sample.split == name]
    if not whole:
        known = ", ".join(sorted({s.split or "(none)" for s in samples})) or "nothing at all"
        raise DataError(f"dataset {text} has no sample of split {name}; it has {known}")
    if match is None:
        return whole
    first, last = int(match["first"] or 0), int(match["last"] or 100)
    cut = shuffled(whole)[len(whole) * first // 100 : len(whole) * last // 100]
    if not cut or last > 100:
        raise DataError(f"split {split} holds none of the {len(whole)} samples of {name}; cut within 0% to 100%")
    return cut


def shuffled(samples: Sequence[Sample]) -> list[Sample]:
    """In the order of a hash of their ids: random, the same everywhere, whatever else is listed."""
    return sorted(
        samples, key=lambda sample: (hashlib.sha1(sample.id.encode("utf-8", "surrogatepass")).digest(), sample.id)
    )
