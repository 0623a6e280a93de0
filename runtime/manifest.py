"""What ``bundle.json`` holds: everything about a bundle but its weights, checked as it is read.

Weight files are named, never described: their tensors must be those of the model that the named preset and
overrides give. ``sha256`` covers each of them. An encoder from outside (`encoders.external`) may be an ONNX file, or
stay in the package that carries it; then its release and hashes stand here.
"""

import json
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    model_validator,
)

from imputation.presence import FLAGS
from runtime.errors import BundleError

FORMAT_VERSION = 1

Modality = Literal["video", "audio"]
WeightsFile = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors$")]
EncoderFile = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.(safetensors|onnx)$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Forgiven = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def _exact(value: Any) -> Any:
    """0.4 in JSON is 2/5, not the nearest binary float."""
    if isinstance(value, Fraction):
        return value
    try:
        return Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise ValueError("Input should be seconds like 0.4 or 2/5") from None


Seconds = Annotated[Fraction, BeforeValidator(_exact), PlainSerializer(str), Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Model(_Part):
    """An imputer or face finder: a preset, what was changed in it, and its weights."""

    preset: str
    overrides: dict[str, Any] = {}
    weights: WeightsFile


class Carried(_Part):
    """Where the weights of an encoder are that may not, or need not, be copied: in an installed package."""

    name: str  # of the distribution
    version: str
    sha256: Annotated[dict[str, Digest], Field(min_length=1)]  # by file below the package's folder


class EncoderPart(_Part):
    """An encoder: a preset, what was changed in it, and either its weights or the package that carries them."""

    preset: str
    overrides: dict[str, Any] = {}
    weights: EncoderFile | None = None
    package: Carried | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.weights is None) == (self.package is None):
            raise ValueError(f"encoder {self.preset} must name either its weights or the package that carries them")
        return self


class Head(_Part):
    """A head: its kind, its whole config, and its weights."""

    kind: str  # a key of encoders.heads.HEADS
    config: dict[str, Any]
    weights: WeightsFile


class Rung(_Part):
    """One step of the fill ladder; in JSON also just its name."""

    rung: str  # the rung of the bundle's imputer, or a rule from imputation.imputer.IMPUTERS
    overrides: dict[str, Any] = {}  # of the rule's config
    weights: WeightsFile | None = None  # of the rule: its fitted variances
    min_share: Annotated[float, Field(ge=0, le=1)] = 0.0  # least observed share of a window that it fills

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"rung": value} if isinstance(value, str) else value


class Manifest(_Part):
    """All of ``bundle.json``. Lengths are in clips, times in seconds, shares from 0 to 1."""

    format_version: int = FORMAT_VERSION
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    description: str = ""
    labels: Annotated[tuple[str, ...], Field(min_length=2)]  # in the order of every head's outputs
    clip_seconds: Seconds  # T
    window: Annotated[int, Field(ge=1)]  # W, clips a head sees
    lookahead: Annotated[int, Field(ge=0)] = 0  # F_max, clips after the window that the imputer was trained with
    min_clips: Annotated[int, Field(ge=1)] = 3  # clips that must exist before the first prediction
    thresholds: dict[Modality, Share] = {"video": 0.5, "audio": 0.75}  # coverage strictly above it is presence
    forgive: dict[Modality, Forgiven] = {}  # share that may be spoiled and still count as covered; none: 0
    content_policy: dict[str, tuple[Modality, ...]] = {}  # flag -> modalities whose feature it makes unbelievable
    encoders: Annotated[dict[Modality, EncoderPart], Field(min_length=1)]
    face: Model | None = None  # finds the face, where an encoder wants to see one
    standardise: WeightsFile  # mean and std, (M, D) each
    imputer: Model | None = None
    ladder: tuple[Rung, ...] = ()  # tried in this order; empty: absent features are zeros
    heads: Annotated[dict[str, Head], Field(min_length=1)]  # the first one is the default
    calibration: dict[Literal["provisional", "final"], dict[str, Any]] = {}  # see imputation.calibrate; absent: as is
    training: dict[str, Any] = {}  # data, command, commit, seed
    metrics: dict[str, Any] = {}  # by loss rate, and the command that measured them
    licence: str = ""  # SPDX expression of the weights
    attribution: str = ""  # what has to be said of the training data
    sha256: dict[str, Digest] = {}  # by weight file

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels {list(self.labels)} are not all different")
        if self.min_clips > self.window:
            raise ValueError(f"min_clips {self.min_clips} is above the window of {self.window} clips")
        if missing := set(self.encoders) - set(self.thresholds):
            raise ValueError(f"thresholds has no value for {', '.join(sorted(missing))}")
        if unknown := set(self.content_policy) - set(FLAGS):
            raise ValueError(f"content_policy names the flag {min(unknown)!r}; known: {', '.join(FLAGS)}")
        rungs = [rung.rung for rung in self.ladder]
        if len(set(rungs)) < len(rungs):
            raise ValueError(f"ladder {rungs} names a rung twice")
        return self

    @property
    def weights_files(self) -> tuple[str, ...]:
        """The weight files it names, each once."""
        parts: list[EncoderPart | Model | Head | Rung | None] = [*self.encoders.values(), self.face, self.imputer]
        parts += [*self.ladder, *self.heads.values()]
        named = [self.standardise, *(part.weights for part in parts if part is not None and part.weights)]
        return tuple(dict.fromkeys(named))

    def to_json(self) -> str:
        """The text of ``bundle.json``; of a bundle that forgives nothing, as it was before there was forgiving."""
        values = self.model_dump(mode="json", exclude=None if self.forgive else {"forgive"})
        return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def parse_manifest(text: str, where: str) -> Manifest:
    """Reads ``bundle.json``; ``where`` names the bundle in errors.

    Raises:
        BundleError: no JSON, a newer format, or a field that is missing, unknown or wrong.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"bundle {where}: bundle.json is not JSON ({error}); restore the file") from error
    return make_manifest(values, where)


def make_manifest(values: Any, where: str) -> Manifest:
    """A manifest from plain values; the errors of ``parse_manifest``."""
    version = values.get("format_version") if isinstance(values, Mapping) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"bundle {where}: bundle.json has no format_version; it is not a bundle's manifest")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"bundle {where} has format {version} and this Legato reads up to {FORMAT_VERSION}; update Legato"
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        raise BundleError(f"bundle {where}: {first_error(error)}; correct bundle.json") from error


def first_error(error: ValidationError) -> str:
    """The first thing pydantic found, as half a sentence that names the field and the value."""
    found = error.errors()[0]
    field = ".".join(str(step) for step in found["loc"])
    message = re.sub(r"^Value error, ", "", found["msg"])
    if not field:
        return message
    message = message[0].lower() + message[1:]
    if found["type"] == "extra_forbidden":
        return f"{field} is no field of a bundle"
    if found["type"] == "missing":
        return f"{field} is missing"
    value = repr(found["input"])
    return f"{field} is {value if len(value) <= 60 else value[:57] + '...'}: {message}"
