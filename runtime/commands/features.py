"""``legato features SOURCE``: what a bundle's frozen encoders say of every clip, in a file for training."""

import csv
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from runtime.cli import fail
from runtime.errors import DataError, LegatoError, SourceError
from runtime.output import check_place

if TYPE_CHECKING:
    from imputation.features import FeatureSet
    from runtime.pipeline import Pipeline
    from runtime.stream import Encoded

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Facts:
    """What a label table says of one recording."""

    label: str = ""
    speaker: str = ""
    split: str = "train"


@app.command(epilog="For example: legato features recordings --labels labels.csv --out talk.safetensors")
def features(
    source: Annotated[str, typer.Argument(help="A media file, a folder of them, or a packet recording (*.legato).")],
    out: Annotated[Path, typer.Option(help="The feature file to write (*.safetensors).")],
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
    for bit.
    """
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
) -> "FeatureSet":
    """One row per recording, the shorter ones ending in positions that do not exist."""
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
    names = sorted({fact.label for fact in known if fact.label}) or list(pipeline.engine.task.labels)
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
