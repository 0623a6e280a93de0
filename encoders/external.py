"""Frozen encoders from outside: an ONNX file, a torch module, or a network that a package carries.

Their names begin with ``external:``.

- ``external:onnx``: an ONNX file, which a bundle ships as it is (`encoders.onnx_network`).
- ``external:package.module:Class``: a torch module, built by calling ``Class(**arguments)`` and filled from a
  safetensors file. Its code runs in this process, so the name must be below one that ``LEGATO_TRUST`` lists. A class
  that has ``encode`` is an encoder already and is used as one; of any other the ``forward`` is called.
- ``external:NAME`` of ``PACKAGES``: networks that a package carries; a bundle refers to its release and hashes.

What a plain network is shown, and what is made of its answer, says ``ExternalConfig``.

Shapes: B clip, T picture of a clip, C colour, H W pixels, S sample, R row of the network's batch (B, or B T where it
looks at single pictures), D feature.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from encoders.clips import AudioSpec, ClipSpec, VideoSpec
from encoders.errors import ConfigError, DataError, UsageError
from encoders.onnx_network import OnnxNetwork
from encoders.settings import override, pick

__all__ = [
    "ONNX",
    "PACKAGES",
    "PREFIX",
    "TRUST",
    "External",
    "ExternalConfig",
    "build",
    "config_of",
    "is_external",
    "settled",
]

PREFIX = "external:"
ONNX = "external:onnx"
TRUST = "LEGATO_TRUST"  # names of modules or packages, with commas between them

# Name to the module and class that run a package's networks; the module holds PRESETS and PACKAGE, as others do.
PACKAGES: dict[str, str] = {
    "external:openwakeword": "encoders.audio.speech_embedding:SpeechEmbedding",
    "external:fer": "encoders.video.face_emotion:FaceEmotion",
}


@dataclass(frozen=True, kw_only=True)
class ExternalConfig:
    """How a clip becomes the input of a network that knows nothing of us, and its output a feature."""

    layout: str = "btchw"  # axes of its input: b, then of t c h w (without t: picture by picture), or of s c (sound)
    clip_seconds: Fraction = Fraction(2, 5)
    frames: int = 8  # pictures of a clip
    size: int = 112  # pixels, square
    pixel_format: Literal["rgb24", "gray"] = "rgb24"
    region: Literal["frame", "face"] = "frame"
    margin: float = 1.0  # of the face region, see VideoSpec
    lift: float = 0.0
    crop_share: float = 1.0
    mean: tuple[float, ...] = (0.0,)  # of pixels from 0 to 1: one number, or one for each colour
    std: tuple[float, ...] = (1.0,)
    sample_rate: int = 16_000  # Hz
    gain: float = 1.0  # of samples from -1 to 1; 32768 for networks that were fed 16-bit integers
    output: str = ""  # of several; "": the first
    feature_axis: int = -1  # of the output; 1 for maps (R, D, H, W)
    pool: Literal["mean", "moments", "none"] = "mean"  # over all other axes and pictures; moments: and their deviation
    arguments: Mapping[str, Any] = field(default_factory=dict)  # what a torch class is called with
    dim: int = 0  # D; found out when a bundle is made

    def __post_init__(self) -> None:
        letters = set(self.layout)
        sound = letters <= set("bsc") and "s" in letters
        picture = letters <= set("btchw") and {"h", "w"} <= letters
        if not self.layout.startswith("b") or len(letters) < len(self.layout) or not (sound or picture):
            raise ConfigError(
                f"layout {self.layout!r} is none; write b, then each once of t c h w for pictures (btchw, bchw) or of "
                "s c for sound (bs, bcs)"
            )
        if picture and "c" not in letters and self.pixel_format == "rgb24":
            raise ConfigError(f"layout {self.layout} has no axis for colours; add c, or set pixel_format=gray")
        for name in ("mean", "std"):
            given, colours = getattr(self, name), 3 if self.pixel_format == "rgb24" else 1
            if len(given) not in (1, colours):
                raise ConfigError(f"{name} has {len(given)} numbers for {colours} colours; give one, or one for each")
        if 0 in self.std or self.clip_seconds <= 0 or min(self.frames, self.size, self.sample_rate) < 1:
            raise ConfigError(
                "std, clip_seconds, frames, size and sample_rate must be above 0; correct the one that is not"
            )

    @property
    def modality(self) -> str:
        return "audio" if "s" in self.layout else "video"

    @property
    def spec(self) -> VideoSpec | AudioSpec:
        """What a clip of it is."""
        if self.modality == "audio":
            return AudioSpec(sample_rate=self.sample_rate)
        names = {f.name for f in dataclasses.fields(VideoSpec)}
        return VideoSpec(**{name: getattr(self, name) for name in names if hasattr(self, name)})

    @property
    def sizes(self) -> dict[str, int]:
        """Axes of the input of one clip, by letter."""
        if self.modality == "audio":
            clip = ClipSpec(seconds=self.clip_seconds, audio=AudioSpec(sample_rate=self.sample_rate))
            return {"s": clip.samples, "c": 1}
        return {"t": self.frames, "c": 3 if self.pixel_format == "rgb24" else 1, "h": self.size, "w": self.size}


class External(nn.Module):
    """A frozen encoder around a network: ``encode`` shows it clips as its config says and pools what it answers."""

    context_seconds = 0.0

    def __init__(self, config: ExternalConfig, network: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.config, self.network = config, network
        self.modalities, self.spec = (config.modality,), config.spec
        self.clip_seconds, self.dim = config.clip_seconds, config.dim

    def encode(self, clips: Tensor) -> Tensor:
        """uint8 (B, T, H, W[, 3]) or float32 (B, S) to (B, D)."""
        return self.pooled(self.network(self.prepare(clips)), len(clips))

    def prepare(self, clips: Tensor) -> Tensor:
        """Clips to the network's input, its axes as ``layout`` says."""
        config, right = self.config, list(self.config.layout)
        if config.modality == "audio":
            right = ["1" if axis == "c" else axis for axis in right]
            return rearrange(clips.float() * config.gain, f"b s -> {' '.join(right)}")
        colours = config.sizes["c"]
        x = clips.float() / 255
        x = x if clips.ndim == 5 else x.unsqueeze(-1)  # (B, T, H, W, C)
        mean, std = (x.new_tensor(values) for values in (config.mean, config.std))
        if "t" not in right:
            right[0] = "(b t)"
        left = "b t h w c" if "c" in right else "b t h w 1"
        return rearrange((x - mean) / std, f"{left} -> {' '.join(right)}", **({"c": colours} if "c" in right else {}))

    def pooled(self, answer: Any, clips: int) -> Tensor:
        """(R, ...) to (B, D)."""
        config = self.config
        if config.output and isinstance(answer, Mapping):
            answer = answer.get(config.output)
        if isinstance(answer, tuple | list):
            answer = answer[0]
        if not isinstance(answer, Tensor) or answer.ndim == 0 or len(answer) == 0 or len(answer) % clips:
            what = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise DataError(
                f"the network answered {what} to {clips} clips, not a row for each; check layout and output"
            )
        if answer.ndim > 2:
            answer = answer.movedim(config.feature_axis, -1)
        x = answer.float().reshape(clips, -1, answer.shape[-1] if answer.ndim > 1 else 1)  # (B, N, D)
        if config.pool == "none":
            return x.flatten(1)
        middle = x.mean(1)
        if config.pool == "mean":
            return middle
        return torch.cat([middle, x.std(1, unbiased=False)], -1)

    @torch.inference_mode()
    def probe(self) -> int:
        """The width of a feature, by encoding a clip of nothing. Raises DataError where the network cannot do that."""
        sizes = self.config.sizes
        blank = torch.zeros(1, sizes["s"]) if "s" in sizes else self._black(sizes)
        try:
            feature = self.encode(blank)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, DataError):
                raise
            why = str(error).splitlines()[0][:200]
            shown = tuple(self.prepare(blank).shape)
            raise DataError(f"the network does not take {shown}, laid out {self.config.layout}: {why}") from error

        if not feature.isfinite().all():
            raise DataError("the network gives numbers that are not finite for a black or silent clip; name another")
        return int(feature.shape[1])

    def _black(self, sizes: Mapping[str, int]) -> Tensor:
        colours = (3,) if sizes["c"] == 3 else ()
        return torch.zeros(1, sizes["t"], sizes["h"], sizes["w"], *colours, dtype=torch.uint8)


class OnnxEncoder(External):
    """An encoder in an ONNX file; ``attach`` gives it the file."""

    dtype = torch.float32  # it computes as its file says, whatever the engine prefers
    on_device = False  # and on the CPU, wherever the engine is

    def __init__(self, config: ExternalConfig) -> None:
        super().__init__(config, self._run)
        self.file: OnnxNetwork | None = None

    def attach(self, path: Path) -> "OnnxEncoder":
        """The same encoder, able to encode. Raises DataError where the file is another network's."""
        file = OnnxNetwork(path, self.config.output)
        sizes, layout = self.config.sizes, self.config.layout
        if len(file.shape) != len(layout):
            raise DataError(
                f"ONNX file {path} takes {len(file.shape)} axes and layout {layout} has {len(layout)}; correct layout"
            )
        for axis, fixed in list(zip(layout, file.shape, strict=True))[1:]:
            if fixed not in (None, sizes[axis]):
                raise DataError(
                    f"ONNX file {path} takes {fixed} along {axis} of {layout} and a clip has {sizes[axis]}; "
                    f"set {SETTING[axis]}"
                )
        if file.shape[0] not in (None, 1):
            raise DataError(f"ONNX file {path} takes {file.shape[0]} rows at once; export it for any number, or one")
        self.file = file
        if self.dim and (found := self.probe()) != self.dim:
            raise DataError(f"ONNX file {path} gives features of width {found} and dim is {self.dim}; make them one")
        return self

    def _run(self, x: Tensor) -> Tensor:
        assert self.file is not None, "attach a file first"
        return torch.from_numpy(self.file(x.cpu().numpy())).to(x.device)


SETTING = {"t": "frames", "c": "pixel_format", "h": "size", "w": "size", "s": "sample_rate or the clip's seconds"}


def is_external(name: str) -> bool:
    """Whether a preset's name means an encoder from outside."""
    return name.startswith(PREFIX)


def config_of(name: str, **overrides: Any) -> Any:
    """The config of an external encoder with ``overrides`` made; as `encoders.registry.config_of`."""
    if name == ONNX or ":" in name.removeprefix(PREFIX):
        return override(ExternalConfig(), overrides)
    module, _, _ = pick(PACKAGES, name, "external encoder").partition(":")
    return override(import_module(module).PRESETS[name], overrides)


def build(name: str, **overrides: Any) -> nn.Module:
    """An external encoder: without its file (ONNX), with fresh weights (torch), or whole (a package's).

    Raises UsageError where its code is not trusted or not there, MissingExtraError where a package is not installed.
    """
    config = config_of(name, **overrides)
    if name == ONNX:
        return OnnxEncoder(config)
    if name in PACKAGES:
        module, _, class_name = PACKAGES[name].partition(":")
        made: nn.Module = getattr(import_module(module), class_name)(config)
        return made
    return _foreign(name.removeprefix(PREFIX), config)


def settled(name: str, modality: str, weights: Path | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was set, and what the network itself says: an ONNX file its layout and sizes; D by trying it once.

    For making a bundle, so that serving finds everything written down. ``modality`` is what the encoder is wanted for.
    Raises UsageError and DataError.
    """
    if name in PACKAGES:
        return dict(settings)
    known = dict(settings)
    if name == ONNX:
        if weights is None:
            raise UsageError(f"encoder {name} has no file; give --{modality} {PREFIX}FILE.onnx or --{modality}-weights")
        known = {**_read_off(OnnxNetwork(weights), modality, known), **known}
    made: Any = build(name, **known)
    if not isinstance(made, External):  # an encoder already
        return known
    if modality == "audio" and "layout" not in known:
        known["layout"] = "bs"
        made = build(name, **known)
    if isinstance(made, OnnxEncoder):
        assert weights is not None
        made.attach(weights)
    return {**known, "dim": made.probe()}


def _read_off(file: OnnxNetwork, modality: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Layout and sizes as an ONNX file's input shows them; the layout is a guess from where 1 or 3 colours are."""
    layout = str(known.get("layout") or _guessed(file, modality))
    if len(layout) != len(file.shape):
        return {"layout": layout}  # attach says what is wrong
    fixed = {axis: size for axis, size in zip(layout, file.shape, strict=True) if size is not None}
    found: dict[str, Any] = {"layout": layout}
    if "h" in fixed:
        found["size"] = fixed["h"]
    if "t" in fixed:
        found["frames"] = fixed["t"]
    if "s" in fixed and "clip_seconds" not in known:
        rates = {name: value for name, value in known.items() if name == "sample_rate"}
        found["clip_seconds"] = Fraction(fixed["s"], config_of(ONNX, **rates).sample_rate)
    if modality == "video" and ("c" not in layout or fixed.get("c") == 1):
        found["pixel_format"] = "gray"
    return found


def _guessed(file: OnnxNetwork, modality: str) -> str:
    axes = len(file.shape)
    if modality == "audio":
        guess = {2: "bs", 3: "bcs" if file.shape[1:2] == (1,) else "bsc"}.get(axes)
    else:
        colours = [place for place, size in enumerate(file.shape) if place and size in (1, 3)]
        plain = {3: "bhw", 4: "bhw", 5: "bthw"}.get(axes)
        guess = plain
        if plain is not None and len(plain) < axes:
            place = colours[0] if colours else 1
            guess = plain[:place] + "c" + plain[place:]
    if guess is None:
        raise DataError(f"ONNX file {file.path} takes {axes} axes, which is no {modality} clip; name another")
    return guess


def _foreign(path: str, config: ExternalConfig) -> nn.Module:
    """A torch module by import path."""
    module, _, attribute = path.partition(":")
    trusted = [name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip()]
    if not any(module == name or module.startswith(f"{name}.") for name in trusted):
        raise UsageError(
            f"encoder {PREFIX}{path} would run the code of {module}, which {TRUST} does not name; "
            f"if you trust it, set {TRUST}={module}"
        )
    try:
        made = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"encoder {PREFIX}{path} cannot be imported ({error}); install it or correct the name"
        ) from None
    try:
        network = made(**config.arguments)
    except TypeError as error:
        raise UsageError(f"encoder {PREFIX}{path} cannot be built ({error}); set arguments") from None
    if not isinstance(network, nn.Module):
        raise UsageError(f"encoder {PREFIX}{path} is a {type(network).__name__}, no torch module; name one")
    return _promised(network, path, config) if hasattr(network, "encode") else External(config, network)


def _promised(network: Any, path: str, config: ExternalConfig) -> nn.Module:
    """A class that is an encoder already: what it lacks of the promise is named."""
    lacking = [
        name for name in ("modalities", "dim", "clip_seconds", "context_seconds", "spec") if not hasattr(network, name)
    ]
    if lacking:
        raise UsageError(f"encoder {PREFIX}{path} has encode and no {', '.join(lacking)}; add what an encoder promises")
    unread = override(ExternalConfig(), {"arguments": config.arguments, "clip_seconds": config.clip_seconds})
    if config != unread:
        raise UsageError(f"encoder {PREFIX}{path} prepares its clips itself; set nothing of it but arguments")
    network.config = config
    made: nn.Module = network
    return made
