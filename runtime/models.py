"""A bundle's models, built from its presets and filled with its weights: each weight in its place, or an error."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from encoders import registry
from encoders.adapters import adapted, spec_of
from encoders.heads import build_head
from encoders.video import face_box
from imputation import imputer as imputers
from imputation.calibrate import Calibration
from imputation.features import Standardiser
from imputation.ladder import Ladder
from runtime.errors import BundleError, LegatoError
from runtime.face import FaceTracker
from runtime.manifest import EncoderPart, Manifest, Model, Rung
from runtime.packet import MODALITIES

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Models:
    """What a bundle serves with, on one device, without gradients."""

    video_encoder: nn.Module | None  # uint8 (B, T, H, W[, 3]) -> (B, D)
    audio_encoder: nn.Module | None  # float32 (B, S) -> (B, D)
    face: FaceTracker | None  # None where the encoder looks at the whole frame
    standardiser: Standardiser  # (..., M, D) -> (..., M, D)
    ladder: Ladder
    heads: Mapping[str, nn.Module]  # by name, the default first
    calibration: Mapping[str, Calibration]  # by status: provisional, final


def build_models(folder: Path, manifest: Manifest, device: str = "cpu") -> Models:
    """The models of the bundle in ``folder``.

    Raises:
        BundleError: an unknown preset or setting, a weight without a place, a place without a weight, or parts whose
            widths, clip lengths or classes do not fit together.
    """
    return _Builder(folder, manifest, device).models()


REMAKE = "name the preset they were trained with, or other weights"


class _Builder:
    def __init__(self, folder: Path, manifest: Manifest, device: str) -> None:
        self.folder, self.manifest, self.device = folder, manifest, device
        self._joint: dict[str, Any] = {}  # an encoder named for both modalities is built once

    def models(self) -> Models:
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn and replaced; the caller's draws stay
            made = {m: self._encoder(m) for m in MODALITIES}
            width = max(int(encoder.dim) for encoder in made.values() if encoder is not None)
            encoders = {m: None if e is None else self._ready(adapted(e, m, width)) for m, e in made.items()}
            return Models(
                video_encoder=encoders["video"],
                audio_encoder=encoders["audio"],
                face=self._face(encoders["video"]),
                standardiser=self._standardiser(width),
                ladder=self._ladder(width),
                heads={name: self._head(name, width) for name in self.manifest.heads},
                calibration={status: self._calibration(status) for status in ("provisional", "final")},
            )

    def _encoder(self, modality: str) -> Any:
        part = self.manifest.encoders.get(modality)  # type: ignore[call-overload]
        if part is None:
            return None
        what = f"the {modality} encoder"
        name = part.model_dump_json()
        if name not in self._joint:
            self._joint[name] = self._network(part, what)
        encoder: Any = self._joint[name]
        if modality not in encoder.modalities:
            raise self._error(f"{what} {part.preset} is for {', '.join(encoder.modalities)}; name another preset")
        if Fraction(encoder.clip_seconds) != self.manifest.clip_seconds:
            raise self._error(
                f"{what} {part.preset} takes clips of {float(encoder.clip_seconds):g} s and clip_seconds is "
                f"{float(self.manifest.clip_seconds):g}; make them one"
            )
        if getattr(spec_of(encoder, modality), "region", "frame") == "face" and self.manifest.face is None:
            raise self._error(f"{what} {part.preset} looks at faces and the bundle has no face finder; add face")
        return encoder

    def _network(self, part: EncoderPart, what: str) -> Any:
        """An encoder with its weights: the bundle's own, or the package's that it refers to."""
        made: Any = self._built(what, lambda: registry.build(part.preset, **part.overrides))
        carried = getattr(made, "package", None)
        if part.package is not None:
            if carried is None:
                raise self._error(f"{what} {part.preset} is in no package and names {part.package.name}; give weights")
            known, named = (carried.name, carried.version, dict(carried.files)), part.package
            if known != (named.name, named.version, named.sha256):
                raise self._error(
                    f"{what} refers to files of {named.name} {named.version} and this Legato knows {part.preset} as "
                    f"those of {carried.name} {carried.version}; make the bundle again"
                )
            return self._ready(made)
        file = str(part.weights)
        if hasattr(made, "attach") is not file.endswith(".onnx"):
            raise self._error(f"{what} {part.preset} cannot have its weights in {file}; name the preset they are for")
        if hasattr(made, "attach"):
            return self._ready(self._built(what, lambda: made.attach(self.folder / file)))
        if carried is not None:
            raise self._error(f"{what} {part.preset} takes its weights from {carried.name}, not {file}; name package")
        return self._filled(made, file, what)

    def _face(self, encoder: Any) -> FaceTracker | None:
        """The face is looked for where the pictures are: on the CPU, between decode and encode."""
        if self.manifest.face is None:
            return None
        if encoder is None:
            raise self._error("there is a face finder and no video encoder; add one or leave face out")
        model = self._model(self.manifest.face, "the face finder", face_box.build)
        spec = encoder.spec
        return FaceTracker(model.cpu(), spec.size, margin=spec.margin, lift=spec.lift)

    def _standardiser(self, width: int) -> Standardiser:
        return self._filled(Standardiser.identity(width), self.manifest.standardise, "the standardiser")

    def _ladder(self, width: int) -> Ladder:
        trained: Any = None
        if self.manifest.imputer is not None:
            trained = self._model(self.manifest.imputer, "the imputer", imputers.build)
            self._check_imputer(trained, width)
        rungs = [self._rung(rung, trained) for rung in self.manifest.ladder]
        return self._ready(Ladder(rungs, [rung.min_share for rung in self.manifest.ladder]))

    def _rung(self, rung: Rung, trained: Any) -> nn.Module:
        if trained is not None and rung.rung == trained.rung:
            if rung.weights or rung.overrides:
                raise self._error(f"the rung {rung.rung} has weights or overrides of its own; they belong to imputer")
            return trained
        what = f"the rung {rung.rung}"
        rule: nn.Module = self._built(what, lambda: imputers.build(rung.rung, **rung.overrides))
        if rung.weights is not None:
            return self._filled(rule, rung.weights, what)
        if next(rule.parameters(), None) is not None:
            raise self._error(f"{what} is trained and has no weights; name them, or make it the imputer")
        return rule

    def _head(self, name: str, width: int) -> nn.Module:
        part, what = self.manifest.heads[name], f"the head {name}"
        head: Any = self._built(what, lambda: build_head(part.kind, **part.config))
        classes = len(self.manifest.labels)
        if head.config.classes != classes:
            raise self._error(f"{what} has {head.config.classes} classes and there are {classes} labels; make them one")
        if head.config.dim != width:
            raise self._error(f"{what} reads features of width {head.config.dim} and the encoders give {width}")
        return self._filled(head, part.weights, what)

    def _calibration(self, status: str) -> Calibration:
        values = self.manifest.calibration.get(status, {})  # type: ignore[call-overload]
        what = f"the {status} calibration"
        calibration = self._built(what, lambda: Calibration.from_dict(values))
        if calibration.offsets and len(calibration.offsets) != len(self.manifest.labels):
            raise self._error(f"{what} has {len(calibration.offsets)} offsets for {len(self.manifest.labels)} labels")
        return calibration

    def _check_imputer(self, imputer: Any, width: int) -> None:
        config: Any = getattr(imputer, "config", None)
        need = self.manifest.window + self.manifest.lookahead
        if getattr(config, "length", need) < need:
            raise self._error(f"the imputer takes {config.length} clips and window + lookahead is {need}; lower one")
        if getattr(config, "dim", width) != width:
            raise self._error(f"the imputer fills features of width {config.dim} and the encoders give {width}")

    # -- one part -----------------------------------------------------------------------------------------------

    def _model(self, part: Model, what: str, build: Callable[..., M]) -> M:
        return self._filled(self._built(what, lambda: build(part.preset, **part.overrides)), part.weights, what)

    def _built(self, what: str, build: Callable[[], T]) -> T:
        try:
            return build()
        except (LegatoError, TypeError, ValueError) as error:
            raise self._error(f"{what} cannot be built: {error}") from error

    def _filled(self, module: M, file: str, what: str) -> M:
        """``module`` with the weights of ``file``, ready to serve."""
        given, own = self._tensors(file), module.state_dict()
        if missing := sorted(own.keys() - given.keys()):
            raise self._error(f"{file} lacks {missing[0]}, which {what} needs{_more(missing)}; {REMAKE}")
        if extra := sorted(given.keys() - own.keys()):
            raise self._error(f"{file} holds {extra[0]}, which {what} has no place for{_more(extra)}; {REMAKE}")
        for name, tensor in given.items():
            if tensor.shape != own[name].shape:
                raise self._error(
                    f"{name} in {file} has shape {tuple(tensor.shape)} and {what} needs {tuple(own[name].shape)}; "
                    f"{REMAKE}"
                )
        module.load_state_dict(given)
        return self._ready(module)

    def _tensors(self, file: str) -> dict[str, Tensor]:
        try:
            return load_file(self.folder / file)
        except (OSError, SafetensorError) as error:
            raise self._error(f"{file} cannot be read: {error}") from error

    def _ready(self, module: M) -> M:
        return module.requires_grad_(False).eval().to(self.device)

    def _error(self, what: str) -> BundleError:
        return BundleError(f"bundle {self.folder}: {what}")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
