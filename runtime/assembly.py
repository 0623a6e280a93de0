"""A bundle from presets, weights and trained parts, named on a command line.

What is not given is what a beginning needs: fresh encoder weights, no fill, a head that says nothing. Such a *draft*
already encodes, so that ``legato features`` can make the file that imputer and head are trained on; made again with
what came out, it is the bundle.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from encoders import external, registry
from encoders.adapters import spec_of
from encoders.clips import AudioSpec, ClipSpec
from encoders.errors import DataError
from encoders.heads import HEADS, build_head
from encoders.packages import Package
from encoders.settings import override, to_dict
from imputation.features import FeatureSet, Standardiser
from imputation.stored import load_imputer
from runtime.bundle import Bundle
from runtime.errors import BundleError, UsageError
from runtime.manifest import Manifest, make_manifest

__all__ = ["Assembled", "EncoderChoice", "Plan", "assemble"]

T = TypeVar("T")

WINDOW = 5  # clips, where nothing that was trained says otherwise
HEADS_OF_TRAINING = ("head.", "heads.")  # a trained classifier's last layers: no part of a frozen encoder


@dataclass(frozen=True)
class EncoderChoice:
    """A preset, its weights (None: fresh ones), and what is set in its config.

    ``external:FILE.onnx`` is ``external:onnx`` with that file as its weights.
    """

    preset: str
    weights: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for."""

    name: str
    encoders: Mapping[str, EncoderChoice]  # by modality
    labels: tuple[str, ...] = ()  # of the head or the features, where not given
    clip_seconds: Fraction | None = None  # None: the video encoder's
    window: int | None = None
    lookahead: int = 0
    features: Path | None = None  # the standardiser is fitted on its training split, or is its own
    train_split: str = "train"
    imputer: str = ""  # folder of a trained imputer, or a rule
    heads: tuple[Path, ...] = ()  # folders of trained heads, the default first
    face: str = "talk"  # the bundle whose face finder is taken, where the encoder looks at faces


@dataclass(frozen=True)
class Assembled:
    """A manifest, the tensors of each file it names, and what is worth saying about it."""

    manifest: Manifest
    tensors: dict[str, dict[str, Tensor] | bytes]
    notes: tuple[str, ...]


def assemble(plan: Plan) -> Assembled:
    """The bundle that was asked for; raises LegatoError, in one sentence, where parts are missing or do not fit."""
    if not plan.encoders:
        raise UsageError("a bundle needs an encoder; name one with --video or --audio, or give a recipe")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", plan.name):
        raise UsageError(f"a bundle cannot be called {plan.name!r}; give --name of letters, digits, and _ . - within")
    return _Assembly(plan).assembled()


class _Assembly:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tensors: dict[str, dict[str, Tensor] | bytes] = {}
        self.notes: list[str] = []
        self.choices: dict[str, EncoderChoice] = {}
        self.seconds = self._settle()
        self.data = None if plan.features is None else FeatureSet.load(plan.features)
        self.heads = [_described(folder, "head", "legato train head") for folder in plan.heads]

    def assembled(self) -> Assembled:
        seconds = self.seconds
        encoders = self._encoders(seconds)
        width = max(dim for _, dim in encoders.values())
        values: dict[str, Any] = {
            "format_version": 1,
            "name": self.plan.name,
            "labels": self._labels(),
            "clip_seconds": str(seconds),
            "encoders": {modality: part for modality, (part, _) in encoders.items()},
            "standardise": self._standardise(width),
            **self._face(encoders),
            **self._fill(),
            "heads": self._heads(width),
        }
        values["min_clips"] = min(3, values["window"])
        values["training"] = {} if self.heads else {"draft": "the head is untrained"}
        values["metrics"] = {name: head["metrics"] for name, _, head in self._named_heads() if "metrics" in head}
        return Assembled(make_manifest(values, self.plan.name), self.tensors, tuple(self.notes))

    # -- encoders -----------------------------------------------------------------------------------------------

    def _settle(self) -> Fraction:
        """Encoders from outside say what they are; the length of a clip, as asked for or as the first encoder (video
        before audio) has it."""
        seconds = self.plan.clip_seconds
        for modality in ("video", "audio"):
            if modality in self.plan.encoders:
                choice = self.choices[modality] = _settled(modality, self.plan.encoders[modality], seconds)
                seconds = seconds or _own_seconds(choice)
        assert seconds is not None
        return seconds

    def _encoders(self, seconds: Fraction) -> dict[str, tuple[dict[str, Any], int]]:
        """By modality: the manifest's entry, and the width of a feature. One choice for both is one file."""
        choices = list(self.choices.values())
        joint = len(choices) == 2 and choices[0] == choices[1]
        made: dict[str, tuple[dict[str, Any], int]] = {}
        for modality, choice in self.choices.items():
            suffix = ".onnx" if choice.preset == external.ONNX else ".safetensors"
            file = f"encoder{suffix}" if joint else f"{modality}{suffix}"
            if file in self.tensors:
                made[modality] = next(iter(made.values()))
                continue
            overrides = _overrides(choice, seconds)
            encoder: Any = registry.build(choice.preset, **overrides)
            if modality not in encoder.modalities or (joint and len(encoder.modalities) < 2):
                raise UsageError(
                    f"{choice.preset} is for {' and '.join(encoder.modalities)}; name another preset for the other"
                )
            _check_clip(encoder, modality, seconds)
            part: dict[str, Any] = {"preset": choice.preset, "overrides": overrides}
            carried = getattr(encoder, "package", None)
            if carried is None:
                self.tensors[file] = self._weights(choice, encoder, modality)
                part["weights"] = file
            else:
                part["package"] = self._carried(choice, carried)
            made[modality] = part, int(encoder.dim)
        return made

    def _carried(self, choice: EncoderChoice, package: Package) -> dict[str, Any]:
        """The manifest's reference to a package that carries an encoder."""
        if choice.weights is not None:
            raise UsageError(f"{choice.preset} takes its weights from {package.name}; leave out {choice.weights}")
        self.notes.append(
            f"{choice.preset} stays in the package {package.name} {package.version} ({package.licence}); who uses this "
            f"bundle needs it too: {package.install}"
        )
        return {"name": package.name, "version": package.version, "sha256": dict(package.files)}

    def _weights(self, choice: EncoderChoice, encoder: nn.Module, modality: str) -> dict[str, Tensor] | bytes:
        if choice.preset == external.ONNX:
            assert choice.weights is not None  # `external.settled` opened it
            return choice.weights.read_bytes()
        own = encoder.state_dict()
        if choice.weights is None:
            self.notes.append(f"the {modality} encoder {choice.preset} has fresh weights; give --{modality}-weights")
            return dict(own)
        given = _tensors(choice.weights)
        if isinstance(encoder, external.External):  # a network's own names, as it stands inside ours
            return {f"network.{name}": value for name, value in given.items()}
        return {k: v for k, v in given.items() if k in own or not k.startswith(HEADS_OF_TRAINING)}

    def _face(self, encoders: Mapping[str, tuple[dict[str, Any], int]]) -> dict[str, Any]:
        """The face finder of another bundle, where the video encoder wants to see one."""
        if "video" not in encoders:
            return {}
        part = encoders["video"][0]
        with torch.device("meta"):
            spec = spec_of(registry.build(part["preset"], **part["overrides"]), "video")
        if spec.region != "face":
            return {}
        source = Bundle.load(self.plan.face)
        if source.manifest.face is None:
            raise BundleError(f"bundle {self.plan.face} has no face finder; name another with --face")
        self.tensors["face.safetensors"] = _tensors(source.path / source.manifest.face.weights)
        return {"face": {**source.manifest.face.model_dump(), "weights": "face.safetensors"}}

    # -- fill and heads -----------------------------------------------------------------------------------------

    def _standardise(self, width: int) -> str:
        name = "standardise.safetensors"
        scale: Any = Standardiser.identity(width)
        if self.data is not None:
            data = self.data if self.data.standardiser is not None else self.data.fitted(self.plan.train_split)
            scale = data.standardiser
        elif self.heads:
            self.notes.append("features are not standardised; give --features, the file the head was trained on")
        self.tensors[name] = dict(scale.state_dict())
        return name

    def _fill(self) -> dict[str, Any]:
        """Window, lookahead, imputer and ladder."""
        lookahead, fill = self.plan.lookahead, self.plan.imputer
        length = None if self.data is None else self.data.length
        values: dict[str, Any] = {"lookahead": lookahead, "ladder": []}
        if fill:
            imputer: Any = load_imputer(fill)
            values["ladder"] = [imputer.rung] + ["zero"] * (imputer.rung != "zero")
            if (Path(fill) / "imputer.json").is_file():
                made = _described(Path(fill), "imputer", "legato train curri-mae")
                self.tensors["imputer.safetensors"] = dict(imputer.state_dict())
                part = {"preset": made["preset"], "overrides": made["overrides"], "weights": "imputer.safetensors"}
                values["imputer"], length = part, getattr(imputer.config, "length", length)
        values["window"] = self.plan.window or (WINDOW if length is None else length - lookahead)
        if values["window"] < 1:
            raise UsageError(f"lookahead {lookahead} leaves nothing of {length} clips for a window; use less")
        return values

    def _heads(self, width: int) -> dict[str, Any]:
        if not self.heads:
            self.notes.append(
                f"there is no trained head, so every answer is uniform; run legato features --bundle on it, "
                f"legato train head, and make it again with --head ({width} numbers a clip and modality)"
            )
            config = {"classes": len(self._labels()), "dim": width}
            zeros = {k: torch.zeros_like(v) for k, v in build_head("linear", **config).state_dict().items()}
            self.tensors["head.safetensors"] = zeros
            return {"draft": {"kind": "linear", "config": config, "weights": "head.safetensors"}}
        parts: dict[str, Any] = {}
        for name, folder, head in self._named_heads():
            if head["kind"] not in HEADS:
                raise UsageError(
                    f"head {folder} is a {head['kind']}, which no bundle serves; train a linear, gru or mbt"
                )
            if name in parts:
                raise UsageError(f"two heads are called {name}; give their folders different names")
            file = f"head_{name}.safetensors"
            self.tensors[file] = _tensors(folder / "head.safetensors")
            parts[name] = {"kind": head["kind"], "config": head["config"], "weights": file}
        return parts

    def _named_heads(self) -> list[tuple[str, Path, dict[str, Any]]]:
        """Each head under the name of its folder."""
        return [(f.resolve().name, f, head) for f, head in zip(self.plan.heads, self.heads, strict=True)]

    def _labels(self) -> tuple[str, ...]:
        known = self.heads[0].get("labels") if self.heads else None
        labels = self.plan.labels or tuple(known or ()) or (() if self.data is None else self.data.labels)
        if len(labels) < 2:
            raise UsageError(f"labels {list(labels)} are fewer than two; give --labels a,b, or --head or --features")
        return labels


def _own_seconds(choice: EncoderChoice) -> Fraction:
    with torch.device("meta"):
        encoder: Any = registry.build(choice.preset, **_overrides(choice, None))
    return Fraction(encoder.clip_seconds)


def _settled(modality: str, choice: EncoderChoice, seconds: Fraction | None) -> EncoderChoice:
    """A choice of ours as it is; of one from outside with what its network says of itself, for clips of ``seconds``.

    Raises UsageError, DataError and MissingExtraError where there is no such network.
    """
    if not external.is_external(choice.preset):
        return choice
    if choice.preset.endswith(".onnx"):
        if choice.weights is not None:
            raise UsageError(f"{choice.preset} is a file and {choice.weights} another; name one")
        choice = replace(choice, preset=external.ONNX, weights=Path(choice.preset.removeprefix(external.PREFIX)))
    asked = {} if seconds is None else {"clip_seconds": seconds}
    settings = external.settled(choice.preset, modality, choice.weights, {**asked, **choice.settings})
    return replace(choice, settings=settings)


def _overrides(choice: EncoderChoice, seconds: Fraction | None) -> dict[str, Any]:
    """What differs from the preset: what the weights were made with, what was set, clips of ``seconds``; no head."""
    preset = registry.config_of(choice.preset)
    config = override(preset, {**_made_with(choice), **choice.settings})
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    changes: dict[str, Any] = {name: type(fields[name])() for name in ("classes", "tasks") if fields.get(name)}
    if seconds is not None:
        changes |= {key: seconds for key, value in _clips_of(fields) if value != seconds}
    plain, own = to_dict(preset), to_dict(override(config, changes))
    return {name: value for name, value in own.items() if value != plain[name]}


def _check_clip(encoder: Any, modality: str, seconds: Fraction) -> None:
    """Raises ConfigError where a clip is no whole number of ticks of the grid, or of samples."""
    spec = spec_of(encoder, modality)
    clip = ClipSpec(seconds=seconds, audio=spec if isinstance(spec, AudioSpec) else None)
    assert clip.flicks and (clip.audio is None or clip.samples)


def _clips_of(fields: Mapping[str, Any]) -> list[tuple[str, Fraction]]:
    """Where a config says how long a clip is: itself, or for each of its modalities."""
    if "clip_seconds" in fields:
        return [("clip_seconds", fields["clip_seconds"])]
    parts = {name: getattr(value, "clip_seconds", None) for name, value in fields.items()}
    return [(f"{name}.clip_seconds", value) for name, value in parts.items() if value is not None]


def _made_with(choice: EncoderChoice) -> dict[str, Any]:
    """The config in the weights' own header, where they are of this preset and say so."""
    if choice.weights is None or external.is_external(choice.preset):
        return {}
    about = _opened(choice.weights, lambda file: file.metadata() or {})
    if about.get("preset", choice.preset) != choice.preset:
        raise DataError(f"{choice.weights} holds weights of {about['preset']}, not {choice.preset}; name that preset")
    try:
        config: dict[str, Any] = json.loads(about.get("config", "{}"))
        return config
    except ValueError:
        raise DataError(f"{choice.weights} has a damaged header; import or train its weights again") from None


def _tensors(path: Path) -> dict[str, Tensor]:
    return _opened(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def _opened(path: Path, read: Callable[[Any], T]) -> T:
    """What ``read`` takes from a safetensors file."""
    try:
        with safe_open(str(path), "pt") as file:
            return read(file)
    except (OSError, SafetensorError, ValueError) as error:
        why = "it does not exist" if isinstance(error, FileNotFoundError) else "it is no whole safetensors file"
        raise BundleError(f"weights {path} could not be read: {why}; name a file of safetensors") from error


def _described(folder: Path, what: str, command: str) -> dict[str, Any]:
    """The JSON beside trained weights."""
    try:
        values = json.loads((folder / f"{what}.json").read_text())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or f"{what}.json is damaged"
        raise DataError(f"{folder} holds no {what} ({why}); make one with `{command}`") from None
    if not isinstance(values, dict):
        raise DataError(f"{folder} holds no {what} ({what}.json is damaged); make one with `{command}`")
    return values
