"""RuntimeConfig: every setting of a run in one frozen value, its presets, and the latency that follows from it.

A bundle fixes what its models were trained with (clip length, window, thresholds); a preset fixes how long
the runtime waits; ``--set clip.seconds=0.5`` overrides a single value. Contradictions are refused here, before
a source is opened. Seconds in config are exact where the clip grid needs it (``Fraction``), floats elsewhere.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from encoders.settings import assignments, override
from imputation.presence import PresenceRule
from runtime.errors import ConfigError, UsageError
from runtime.jitter import AdaptiveDelay


class BundleFacts(Protocol):
    """What of a bundle's manifest bounds the settings."""

    name: str
    clip_seconds: Any
    window: int
    lookahead: int
    min_clips: int
    thresholds: Any
    forgive: Any


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """The capture grid."""

    seconds: Fraction = Fraction(2, 5)  # T: length of a clip; also the hop


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """What the head sees, in clips."""

    clips: int = 10  # W: the head sees the W clips ending at k
    lookahead: int = 0  # F: a final prediction of clip k waits for clip k + F
    min_clips: int = 3  # no prediction before this many clips closed


@dataclass(frozen=True, kw_only=True)
class DelaySettings:
    """How long a hole waits for its packets, in seconds after capture: follows the jitter from floor to cap."""

    floor: float = 0.05
    cap: float = 0.5
    late_repair: bool = False  # a late packet of inter-coded video has its group decoded anew, until clips are final

    @property
    def policy(self) -> "float | AdaptiveDelay":
        """What a jitter buffer takes: a fixed delay where floor and cap are one, else one that follows the jitter."""
        return self.floor if self.floor == self.cap else AdaptiveDelay(self.floor, self.cap)


@dataclass(frozen=True, kw_only=True)
class PresenceSettings:
    """Coverage that a clip must exceed for its feature to be believed, 0..1; see imputation.presence."""

    video: float = 0.5
    audio: float = 0.75
    forgive_video: float = 0.0  # share of a clip that may be spoiled and counts as covered all the same
    forgive_audio: float = 0.0

    @property
    def rule(self) -> PresenceRule:
        """The one rule that says what is present."""
        return PresenceRule(**dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Where and how the models run."""

    device: str = "auto"  # auto, cpu, cuda, cuda:N
    deterministic: bool = True  # one batch shape, fp32, deterministic algorithms: two replays are byte-equal
    precision: str = "auto"  # auto, fp32, bf16: auto is bf16 where the device has it; deterministic runs use fp32
    threads: int = 1  # of the model, on a CPU
    decode_ahead: int = 8  # clips that may wait between decoding and the model; 0 decodes in the model's thread


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """All settings of a run."""

    clip: ClipSettings = field(default_factory=ClipSettings)
    window: WindowSettings = field(default_factory=WindowSettings)
    delay: DelaySettings = field(default_factory=DelaySettings)
    presence: PresenceSettings = field(default_factory=PresenceSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def window_seconds(self) -> Fraction:
        """Length of the head's window."""
        return self.clip.seconds * self.window.clips

    @property
    def provisional_latency(self) -> tuple[float, float]:
        """Least and most seconds from the end of a clip to its provisional prediction, without compute."""
        return self.delay.floor, self.delay.cap

    @property
    def final_latency(self) -> tuple[float, float]:
        """The same for the final one: F more clips are waited for."""
        lookahead = float(self.window.lookahead * self.clip.seconds)
        return self.delay.floor + lookahead, self.delay.cap + lookahead

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, saved beside results."""
        plain = dataclasses.asdict(self)
        plain["clip"]["seconds"] = float(self.clip.seconds)
        return plain


# How long to wait. A bundle's lookahead is kept where a preset names none.
PRESETS: dict[str, dict[str, Any]] = {
    "replay": {"delay.floor": 0.05, "delay.cap": 0.5},
    "interactive": {"delay.floor": 0.02, "delay.cap": 0.15, "window.lookahead": 0},
    "patient": {"delay.floor": 0.2, "delay.cap": 1.5},
}


def resolve(
    facts: BundleFacts, preset: str = "replay", overrides: Iterable[str] = (), lookahead: int | None = None
) -> RuntimeConfig:
    """The settings for a bundle: its own values, then the preset's, then ``section.name=value`` overrides.

    Raises UsageError for an unknown preset, key or a value of another type, ConfigError for a contradiction.
    """
    if preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    seconds = _exact(facts.clip_seconds)
    thresholds = facts.thresholds if isinstance(facts.thresholds, Mapping) else facts.thresholds.model_dump()
    values: dict[str, Any] = {
        "clip.seconds": seconds,
        "window.clips": facts.window,
        "window.lookahead": facts.lookahead,
        "window.min_clips": facts.min_clips,
        **{f"presence.{name}": share for name, share in thresholds.items()},
        **{f"presence.forgive_{name}": share for name, share in facts.forgive.items()},
        **PRESETS[preset],
    }
    if lookahead is not None:
        values["window.lookahead"] = lookahead
    config = override(RuntimeConfig(), _nested(values | dict(assignments(overrides))))
    _check_against_bundle(config, facts, seconds)
    return config


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys checked for the form ``section.name``."""
    for key in values:
        if "." not in key:
            raise UsageError(f"--set {key!r} names no section; write section.name=value, as in window.lookahead=2")
    return dict(values)


def _exact(seconds: Any) -> Fraction:
    """0.4 from JSON as 2/5, not as the nearest binary float."""
    return seconds if isinstance(seconds, Fraction) else Fraction(str(seconds))


def _check(config: RuntimeConfig) -> None:
    clip, window, delay, engine = config.clip, config.window, config.delay, config.engine
    if clip.seconds <= 0:
        raise ConfigError(f"clip.seconds is {float(clip.seconds):g}; it must be above 0")
    if window.clips < 1:
        raise ConfigError(f"window.clips is {window.clips}; a window holds at least 1 clip")
    if window.lookahead < 0:
        raise ConfigError(f"window.lookahead is {window.lookahead}; use 0 or more clips")
    if not 1 <= window.min_clips <= window.clips:
        raise ConfigError(
            f"window.min_clips is {window.min_clips}, but the window holds {window.clips} clips; "
            f"use 1 to {window.clips}"
        )
    if not 0 <= delay.floor <= delay.cap < float("inf"):
        raise ConfigError(
            f"delay.floor {delay.floor:g} and delay.cap {delay.cap:g} contradict each other; "
            "use 0 <= floor <= cap, in seconds"
        )
    for name in ("video", "audio"):
        share = getattr(config.presence, name)
        if not 0 <= share < 1:
            raise ConfigError(f"presence.{name} is {share:g}; use a share from 0 to below 1")
        forgiven = getattr(config.presence, f"forgive_{name}")
        if not 0 <= forgiven <= 1:
            raise ConfigError(f"presence.forgive_{name} is {forgiven:g}; use a share from 0 to 1")
    if engine.threads < 1 or (engine.deterministic and engine.threads != 1):
        raise ConfigError(
            f"engine.threads is {engine.threads}; deterministic runs use 1 (or set engine.deterministic=false)"
        )
    if engine.decode_ahead < 0:
        raise ConfigError(f"engine.decode_ahead is {engine.decode_ahead}; use 0 or more clips")


def _check_against_bundle(config: RuntimeConfig, facts: BundleFacts, seconds: Fraction) -> None:
    """What the models were trained with cannot be changed afterwards."""
    if config.clip.seconds != seconds:
        raise ConfigError(
            f"clip.seconds is {float(config.clip.seconds):g}, but bundle {facts.name} was trained on clips of "
            f"{float(seconds):g} s; leave it out or choose another bundle"
        )
    if config.window.clips != facts.window:
        raise ConfigError(
            f"window.clips is {config.window.clips}, but bundle {facts.name} was trained on windows of "
            f"{facts.window} clips; leave it out or choose another bundle"
        )
    if config.window.lookahead > facts.lookahead:
        raise ConfigError(
            f"lookahead {config.window.lookahead} is more than the {facts.lookahead} clips that bundle "
            f"{facts.name} was trained with; use 0 to {facts.lookahead}"
        )
