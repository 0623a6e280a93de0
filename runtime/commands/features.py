"""``legato features``: what a bundle's frozen encoders say of clips, in a file for training.

Of every clip of recordings, as a replay sees them; or of the same number of clips of every recording of a dataset.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from runtime.cli import fail
from runtime.errors import DataError, LegatoError, SourceError, UsageError
from runtime.output import check_folder, check_place

if TYPE_CHECKING:
    from imputation.features import FeatureSet
    from runtime.pipeline import Pipeline
    from runtime.stream import Encoded

app = typer.Typer(add_completion=False)
SHOWN = 10  # reasons why something was left out


@dataclass(frozen=True)
class Facts:
    """What a label table says of one recording."""

    label: str = ""
    speaker: str = ""
    split: str = "train"


@app.command(epilog="For example: legato features recordings --labels labels.csv --out talk.safetensors")
def features(
    out: Annotated[Path, typer.Option(help="The feature file to write (*.safetensors).")],
    source: Annotated[
        str, typer.Argument(help="A media file, a folder of them, or a packet recording (*.legato).")
    ] = "",
    dataset: Annotated[
        str, typer.Option(help="NAME:PATH of a dataset (see legato datasets), instead of a source.")
    ] = "",
    clips: Annotated[
        int | None, typer.Option(help="Equally spaced clips of each of its recordings; else as published.")
    ] = None,
    later: Annotated[
        float | None, typer.Option(min=0, help="Seconds that they begin later, where there is room.")
    ] = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="Clips never overlap: a recording too short for them has fewer.")
    ] = False,
    keep: Annotated[
        Path | None, typer.Option(help="Folder that keeps decoded clips for other encoders that look at the same.")
    ] = None,
    split: Annotated[str, typer.Option(help="Splits of the dataset, e.g. train,val; else all.")] = "",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out what is missing or cannot be read, and succeed all the same.")
    ] = False,
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle whose encoders are used.")] = "talk",
    labels: Annotated[
        Path | None, typer.Option(help="A CSV with columns file and label, and perhaps speaker and split.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="Loss to inject: a profile (wifi-burst, iid-10) or trace:FILE.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the injected loss.")] = 0,
    preset: Annotated[str, typer.Option(help="How long to wait: replay, interactive, patient.")] = "replay",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, such as delay.cap=0.3; may be given more than once.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
) -> None:
    """Write the features of recordings, clip by clip.

    They go the way of a replay - the same packets, decoders, face search and encoders - and equal its features bit
    for bit. Of a dataset, instead, equally spaced clips of each recording: side by side in its middle, or spread over
    it and overlapping where it is too short. Labels, speakers and splits are then the dataset's.
    """
    if dataset:
        if source or labels or loss:
            other = source or (f"--labels {labels}" if labels else f"--loss {loss}")
            raise UsageError(f"--dataset {dataset} and {other} do not go together; leave one out")
        wanted = Wanted(dataset, clips, split, skip_bad, later or 0.0, apart, keep)
        _of_dataset(wanted, out, bundle, preset, (f"engine.device={device}", *(settings or ())))
        return
    given = {"--clips": clips is not None, "--split": bool(split), "--skip-bad": skip_bad, "--later": later is not None,
             "--apart": apart, "--keep": keep is not None}  # fmt: skip
    if not source or any(given.values()):
        option = next((name for name, there in given.items() if there), "")
        raise UsageError(
            f"{option} is for a dataset; add --dataset NAME:PATH" if option else "name a SOURCE or --dataset NAME:PATH"
        )
    from runtime.bundle import Bundle
    from runtime.pipeline import Pipeline
    from runtime.sources import open_sources

    check_place(out)
    facts = read_labels(labels) if labels else {}
    chosen = Bundle.load(bundle)
    seconds = float(chosen.manifest.clip_seconds)
    unread: list[LegatoError] = []
    sources = open_sources(source, loss, seed, clip_seconds=seconds, report=unread.append)
    for error in unread:
        fail(str(error), error.exit_code)
    pipeline = Pipeline.from_bundle(chosen, device=device, preset=preset, overrides=settings or ())
    recordings: dict[str, list[Encoded]] = {}
    failed = 0
    bar = Console(stderr=True)
    for opened in track(sources, "features", console=bar, disable=len(sources) == 1, transient=True):
        try:
            with closing(opened):
                recordings[opened.info.name] = encode(pipeline, opened)
        except LegatoError as error:
            if len(sources) == 1:
                raise
            failed = fail(str(error), error.exit_code)
    if not recordings:
        raise SourceError(f"no recording in {source} gave a clip; nothing was written")
    unnamed = [name for name in recordings if labels and fact_of(name, facts) is None]
    if len(unnamed) == len(recordings):
        raise DataError(f"labels {labels} names none of these recordings ({unnamed[0]}, ...); correct its file column")
    notes = {"bundle": pipeline.bundle.hash, "clip_seconds": float(pipeline.config.clip.seconds), "loss": loss or ""}
    gather(pipeline, recordings, facts, notes | {"seed": seed}).save(out)
    several = f"{len(recordings)} recordings" if len(recordings) > 1 else "1 recording"
    lacking = f", {len(unnamed)} of them without a label" if unnamed else ""
    print(f"{sum(map(len, recordings.values()))} clips of {several}{lacking} in {out}")
    if failed or unread:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a dataset."""

    dataset: str
    clips: int | None
    split: str
    skip_bad: bool
    later: float = 0.0  # seconds
    apart: bool = False
    keep: Path | None = None

    def check(self) -> None:
        """Raises UsageError or OutputError where it cannot be, before anything is read."""
        if not 0 <= self.later < float("inf"):
            raise UsageError(f"--later {self.later} is no number of seconds; use 0 or more")
        if self.keep is not None:
            check_folder(self.keep)

    @property
    def count(self) -> int:
        """How many clips of a recording. Raises UsageError."""
        from encoders.datasets.equal_clips import PROTOCOL
        from encoders.datasets.sample import DATASETS
        from encoders.settings import pick

        name = self.dataset.partition(":")[0].partition("?")[0]
        pick(DATASETS, name, "dataset")
        if self.clips is None and name not in PROTOCOL:
            raise UsageError(f"how many clips of a recording of {name} are wanted is not known; give --clips")
        count = PROTOCOL[name].clips if self.clips is None else self.clips
        if count < 2:
            raise UsageError(f"--clips {count} leaves nothing to fill a lost clip from; use at least 2")
        return count


def _of_dataset(wanted: Wanted, out: Path, bundle: str, preset: str, settings: Sequence[str]) -> None:
    """Features of a dataset's recordings; exits with 1 where some could not be read, unless they may be skipped."""
    from encoders.datasets.corpus import open_corpus
    from encoders.datasets.sample import splits_of
    from runtime.extract import extract
    from runtime.pipeline import Pipeline

    check_place(out)
    wanted.check()
    count = wanted.count
    corpus = open_corpus(wanted.dataset, splits=splits_of(wanted.split), skip_bad=wanted.skip_bad)
    pipeline = Pipeline.from_bundle(bundle, preset=preset, overrides=settings)
    bar = track(corpus.samples, "features", console=Console(stderr=True), transient=True)
    found = extract(pipeline, bar, count, later=wanted.later, apart=wanted.apart, keep=wanted.keep)
    lost = [*(reason for _, reason in corpus.bad), *found.unreadable]
    for reason in lost[:SHOWN]:
        print(f"left out: {reason}", file=sys.stderr)
    if len(lost) > SHOWN:
        print(f"left out: {len(lost) - SHOWN:,} more", file=sys.stderr)
    if not found.recordings:
        raise SourceError(f"no recording of {wanted.dataset} gave {count} clips; nothing was written")
    facts = {name: Facts(s.label, s.speaker, s.split or "train") for name, s in found.samples.items()}
    notes = {
        "bundle": pipeline.bundle.hash,
        "clip_seconds": float(pipeline.config.clip.seconds),
        "dataset": corpus.name,
        "clips": count,
        "overlapping": found.overlapping,
        "faceless": found.faceless,
        "later": wanted.later,
        "apart": wanted.apart,
    }
    classes = () if corpus.multi_label else corpus.classes()
    gather(pipeline, found.recordings, facts, notes, classes).save(out)
    short = f", overlapping in {found.overlapping:,} that are too short" if found.overlapping else ""
    short += f", no face in {found.faceless:,} clips" if found.faceless else ""
    print(f"{'at most ' if wanted.apart else ''}{count} clips of {len(found.recordings):,} recordings{short}, in {out}")
    if lost and not wanted.skip_bad:
        raise typer.Exit(1)


def encode(pipeline: "Pipeline", source: Any) -> "list[Encoded]":
    """Every clip of a source once, in order, as last repaired. Raises SourceError if nothing of it was observed."""
    newest = {encoded.clip: encoded for encoded in pipeline.features(source)}
    name, seconds = source.info.name, float(pipeline.config.clip.seconds)
    if not newest:
        raise SourceError(f"{name} gave less than one clip of {seconds:g} s; use a longer recording")
    if not any(encoded.presence.any() for encoded in newest.values()):
        raise SourceError(
            f"{name}: nothing of its {len(newest)} clips could be seen or heard; it is damaged, encrypted, "
            "or lost too much"
        )
    return [newest[clip] for clip in sorted(newest)]


def gather(
    pipeline: "Pipeline",
    recordings: "Mapping[str, Sequence[Encoded]]",
    facts: Mapping[str, Facts],
    notes: Mapping[str, Any],
    classes: Sequence[str] = (),
) -> "FeatureSet":
    """One row per recording, the shorter ones ending in positions that do not exist.

    ``classes``: names of the labels in their order; else those that occur, in alphabetical order.
    """
    import torch

    from imputation.features import FeatureSet

    length = max(map(len, recordings.values()))
    raw = torch.zeros(len(recordings), length, 2, pipeline.engine.width)
    presence = torch.zeros(raw.shape[:3], dtype=torch.bool)
    exists = torch.zeros(raw.shape[:2], dtype=torch.bool)
    for row, clips in enumerate(recordings.values()):
        for place, clip in enumerate(clips):
            raw[row, place] = torch.from_numpy(clip.raw)
            presence[row, place] = torch.from_numpy(clip.presence)
        exists[row, : len(clips)] = True
    known = [fact_of(name, facts) or Facts() for name in recordings]
    names = list(classes) or sorted({fact.label for fact in known if fact.label}) or list(pipeline.engine.task.labels)
    label = torch.tensor([names.index(fact.label) if fact.label else -1 for fact in known])
    rows = FeatureSet.of(
        raw,
        label,
        names,
        presence=presence,
        exists=exists,
        names=list(recordings),
        speaker=[fact.speaker for fact in known],
        split=[fact.split for fact in known],
        notes=notes,
    )
    if "draft" in pipeline.bundle.manifest.training:  # it has no statistics of its own yet: training fits them
        return rows
    return replace(rows, standardiser=pipeline.engine.models.standardiser)


def fact_of(name: str, facts: Mapping[str, Facts]) -> Facts | None:
    """What a label table says of a recording, by its name or its name without suffix."""
    return facts.get(name) or facts.get(Path(name).stem)


def read_labels(path: Path) -> dict[str, Facts]:
    """A label table by file name and by its stem. Raises DataError when it cannot be read or lacks a column."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text in columns"
        raise DataError(f"labels {path} could not be read: {why}; give a CSV file") from error
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise DataError(f"labels {path} lacks rows or a column file or label; its first line must name the columns")
    facts = {}
    for row in rows:
        fact = Facts(row["label"] or "", row.get("speaker") or "", row.get("split") or "train")
        facts[Path(row["file"]).name] = facts[Path(row["file"]).stem] = fact
    return facts
