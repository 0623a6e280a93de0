"""Engine: the models of one bundle on one device; closed clips in, predictions out.

Streams submit closed clips, ``run`` encodes them, fills and classifies the windows that fell due. This engine
serves one stream at a time, clip by clip: in deterministic mode every forward pass has batch size 1, fp32,
deterministic algorithms and one thread, so two replays are byte-equal without their timings.

B batch (1), N position (W window clips, F_max ahead), M modality, D feature width, K label.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.clips import AudioSpec, ClipSpec, VideoSpec
from encoders.serving import served
from imputation.imputer import Filled, Imputer
from imputation.presence import OBSERVED
from runtime.clip import Clip
from runtime.config import WindowSettings
from runtime.errors import ConfigError, DataError, UsageError
from runtime.packet import MODALITIES
from runtime.prediction import Prediction, Timings
from runtime.stream import FINAL, Encoded, Stream, Window, Windows, longest_gap, observed_share


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a bundle's models mean: everything of its manifest that a prediction needs."""

    bundle: str  # hash
    labels: tuple[str, ...]
    clip_seconds: Fraction  # T
    window: int  # W
    ahead: int  # F_max: positions after the window that the imputer was trained with
    content_policy: Mapping[str, Sequence[str]]  # flag -> modalities whose feature it makes unbelievable

    @classmethod
    def of(cls, manifest: Any, bundle: str) -> "Task":
        """From a bundle's manifest and hash."""
        return cls(
            bundle=bundle,
            labels=tuple(manifest.labels),
            clip_seconds=Fraction(manifest.clip_seconds),
            window=manifest.window,
            ahead=manifest.lookahead,
            content_policy=manifest.content_policy,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one head says about one window."""

    head: str
    probabilities: list[float]  # (K,), calibrated
    abstained: bool
    rung: str  # of the fill ladder, for the places that were absent
    fill_ms: float


class Engine:
    """The models of one bundle, ready to serve.

    ``models`` is what ``Bundle.models`` returns. ``heads`` chooses heads by name (default: the bundle's first);
    ``fill`` replaces the bundle's ladder.
    """

    def __init__(
        self,
        models: Any,
        task: Task,
        *,
        device: str = "cpu",
        deterministic: bool = True,
        threads: int = 1,
        heads: Sequence[str] = (),
        fill: Imputer | None = None,
    ) -> None:
        self.models, self.task, self.device = models, task, torch.device(device)
        self.encoders = {m: e for m in MODALITIES if (e := getattr(models, f"{m}_encoder")) is not None}
        if self.device.type == "cpu":
            self.encoders = {m: served(e) for m, e in self.encoders.items()}
        self.width = next(iter(self.encoders.values())).dim  # D
        self.heads = _choose(models.heads, heads)
        self.ladder: Imputer = fill if fill is not None else models.ladder
        self._seconds = float(task.clip_seconds)
        self._mean = models.standardiser.mean.float().cpu().numpy()  # (M, D)
        self._std = models.standardiser.std.float().cpu().numpy()
        no_face = getattr(self.encoders.get("video"), "no_face", None)
        self._no_face = None if no_face is None else no_face.detach().float().cpu().numpy()
        self._jobs: deque[tuple[Stream, Clip | None]] = deque()
        configure(self.device, deterministic=deterministic, threads=threads)

    def refilled(self, fill: Imputer) -> "Engine":
        """The same models with another fill: what a comparison arm runs on."""
        twin = object.__new__(Engine)
        twin.__dict__ = {**self.__dict__, "ladder": fill, "_jobs": deque()}
        return twin

    @property
    def spec(self) -> ClipSpec:
        """The clips that the encoders ask for."""
        specs = {m: encoder.spec for m, encoder in self.encoders.items()}
        return ClipSpec(seconds=self.task.clip_seconds, video=specs.get("video"), audio=specs.get("audio"))

    def initial_face(self) -> Any:
        """What is known of the face before the first clip; None where the bundle looks at the whole frame."""
        return None if self.models.face is None else self.models.face.initial_state()

    def warm_up(self) -> None:
        """Run every model once, so that the first clip is as fast as the rest."""
        features = np.zeros((len(MODALITIES), self.width), np.float32)
        for modality, encoder in self.encoders.items():
            self._forward(modality, blank(encoder.spec, self.task.clip_seconds))
        for missing in (0, 1):
            self.classify(_blank_window(features, list(self.encoders), self.task.window, missing))

    def submit(self, stream: Stream, clip: Clip) -> None:
        """Queue a closed clip, or a repaired version of one."""
        self._jobs.append((stream, clip))

    def end(self, stream: Stream) -> None:
        """Queue the end of a stream: its pending windows become final."""
        self._jobs.append((stream, None))

    def run(self, trace: Callable[[Encoded], None] | None = None) -> list[Prediction]:
        """Work through everything submitted; predictions in the order in which they fell due."""
        out: list[Prediction] = []
        while self._jobs:
            stream, clip = self._jobs.popleft()
            if clip is None:
                out += self.conclude(stream.name, stream.windows.finish())
                continue
            encoded = self.encode(stream, clip)
            if trace is not None:
                trace(encoded)
            out += self.conclude(stream.name, stream.windows.admit(encoded))
        return out

    def replay(self, name: str, clips: Iterable[Encoded], settings: WindowSettings) -> list[Prediction]:
        """Predictions over clips encoded before: no second decode or encode."""
        windows, out = Windows(settings), []
        for encoded in clips:
            out += self.conclude(name, windows.admit(encoded))
        return out + self.conclude(name, windows.finish())

    def encode(self, stream: Stream, clip: Clip) -> Encoded:
        """Features of a closed clip; those of a repaired one only where the repair changed something."""
        began = time.perf_counter()
        raw = np.zeros((len(MODALITIES), self.width), np.float32)
        state = {m: clip.state.get(m, "lost") for m in self.encoders}
        flags = {m: tuple(clip.flags.get(m, ())) for m in self.encoders}
        before = stream.latest.get(clip.index)
        for modality in self.encoders:
            place = MODALITIES.index(modality)
            if not (clip.presence.get(modality) and getattr(clip, modality) is not None):
                continue
            if before is not None and before.presence[place] and before.coverage[modality] == clip.coverage[modality]:
                raw[place], flags[modality] = before.raw[place], before.flags[modality]
            else:
                raw[place], more = self._feature(stream, clip, modality)
                flags[modality] += more
            if any(modality in self.task.content_policy.get(flag, ()) for flag in flags[modality]):
                state[modality] = "shed"  # we chose not to believe it
        presence = np.array([state.get(m) == OBSERVED for m in MODALITIES])
        features = (raw - self._mean) / self._std
        if not presence.all():
            raw[~presence] = features[~presence] = 0
        encoded = Encoded(
            clip=clip.index,
            epoch=clip.epoch,
            version=clip.version,
            start_seconds=float(clip.start),
            raw=raw,
            features=features,
            presence=presence,
            state=state,
            flags=flags,
            coverage={m: float(clip.coverage.get(m, 0.0)) for m in self.encoders},
            wait_ms=clip.wait_ms,
            decode_ms=clip.decode_ms,
            encode_ms=(time.perf_counter() - began) * 1e3,
        )
        stream.remember(encoded)
        return encoded

    def conclude(self, stream: str, due: Iterable[Window]) -> list[Prediction]:
        """Fill, classify and put into words."""
        return [self._prediction(stream, window, outcome) for window in due for outcome in self.classify(window)]

    @torch.inference_mode()
    def classify(self, window: Window) -> list[Outcome]:
        """One outcome per head."""
        began = time.perf_counter()
        features, presence, exists = self._tensors(window)
        seen = [c.state[m] == OBSERVED for c in window.clips for m in self.encoders]
        if all(seen):  # nothing to fill: the ladder would return its input
            filled = Filled(features, features.new_zeros(presence.shape), OBSERVED)
        else:
            filled = self.ladder(features, presence, exists)
        width = self.task.window
        view = (filled.features[:, :width], presence[:, :width], filled.variance[:, :width], exists[:, :width])
        outcomes = []
        for name, head in self.heads.items():
            probabilities, abstained = self._calibrated(head(*view), window.status, seen)
            spent = (time.perf_counter() - began) * 1e3
            outcomes.append(Outcome(name, probabilities, abstained, filled.rung_of(0), spent))
        return outcomes

    def _calibrated(self, logits: Tensor, status: str, seen: Sequence[bool]) -> tuple[list[float], bool]:
        """Probabilities (K,) and whether to abstain; a window with nothing observed never gives an answer."""
        if not any(seen):
            return [1 / len(self.task.labels)] * len(self.task.labels), True
        probabilities, abstained = self.models.calibration[status](logits, sum(seen) / len(seen))
        return probabilities[0].tolist(), bool(abstained[0])

    def _feature(self, stream: Stream, clip: Clip, modality: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """The raw feature (D,) of one modality, and the flags that looking at it adds."""
        pixels, found = getattr(clip, modality), True
        if modality == "video" and self.encoders["video"].spec.region == "face":
            pixels, face, found = self.models.face.locate(clip, stream.face)
            if clip.version == 0:  # a repaired clip is older than what the box has followed since
                stream.face = face
            if pixels is None:
                pixels = blank(self.encoders["video"].spec, self.task.clip_seconds)
        feature = self._no_face if not found and self._no_face is not None else self._forward(modality, pixels)
        if not np.isfinite(feature).all():
            raise DataError(
                f"the {modality} encoder gave a feature that is not finite for clip {clip.index} of stream "
                f"{stream.name!r}; check the bundle's weights with legato bundle check"
            )
        return feature, () if found else ("no_face",)

    @torch.inference_mode()
    def _forward(self, modality: str, clip: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(clip)).unsqueeze(0).to(self.device)  # (1, ...)
        feature: np.ndarray = self.encoders[modality].encode(batch)[0].float().cpu().numpy()
        return feature

    def _tensors(self, window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """features (1, N, M, D), presence (1, N, M), exists (1, N); the window's last clip at position W - 1."""
        width, clips = self.task.window, (*window.clips, *window.ahead)
        first = width - len(window.clips)
        features = np.zeros((width + self.task.ahead, *clips[0].features.shape), np.float32)
        presence = np.zeros(features.shape[:2], bool)
        exists = np.zeros(len(features), bool)
        for place, clip in enumerate(clips, first):
            features[place], presence[place] = clip.features, clip.presence
        exists[first : first + len(clips)] = True
        made = [torch.from_numpy(x).unsqueeze(0).to(self.device) for x in (features, presence, exists)]
        return made[0], made[1], made[2]

    def _prediction(self, stream: str, window: Window, outcome: Outcome) -> Prediction:
        clips, newest = window.clips, window.clips[-1]
        best = max(range(len(outcome.probabilities)), key=outcome.probabilities.__getitem__)
        spent = (newest.wait_ms, newest.decode_ms, newest.encode_ms, outcome.fill_ms)
        return Prediction(
            stream=stream,
            epoch=window.epoch,
            clip=window.clip,
            start_seconds=clips[0].start_seconds,
            end_seconds=newest.start_seconds + self._seconds,
            head=outcome.head,
            label=None if outcome.abstained else self.task.labels[best],
            probabilities=dict(zip(self.task.labels, outcome.probabilities, strict=True)),
            confidence=outcome.probabilities[best],
            status=window.status,
            revision=window.revision,
            abstained=outcome.abstained,
            observed_share=observed_share(clips),
            clips=tuple(c.provenance(outcome.rung) for c in clips),
            longest_gap_ms=longest_gap(clips) * self._seconds * 1e3,
            bundle=self.task.bundle,
            timings=Timings(
                wait_ms=spent[0], decode_ms=spent[1], encode_ms=spent[2], fill_ms=spent[3], total_ms=sum(spent)
            ),
        )


def configure(device: torch.device, *, deterministic: bool, threads: int) -> None:
    """Set torch up for serving; process-wide, as torch's switches are.

    Deterministic: fp32 without TF32, deterministic algorithms, no autotuning.
    """
    if device.type == "cpu":
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by cuBLAS before its first use
        torch.use_deterministic_algorithms(True)
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - a debugging aid
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def choose_device(wanted: str) -> str:
    """``auto`` is the first accelerator, else the CPU; anything else is checked. Raises ConfigError."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f"device {wanted!r} is unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {wanted!r} is not on this machine ({torch.cuda.device_count()} found); use cpu")
    return wanted


def blank(spec: VideoSpec | AudioSpec, seconds: Fraction) -> np.ndarray:
    """A black or silent clip of an encoder's shape."""
    if isinstance(spec, AudioSpec):
        return np.zeros(round(seconds * spec.sample_rate), np.float32)
    shape = (spec.frames, spec.size, spec.size) + ((3,) if spec.pixel_format == "rgb24" else ())
    return np.zeros(shape, np.uint8)


def _choose(heads: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """The heads to run, in the order asked for; the bundle's first one by default."""
    unknown = [name for name in wanted if name not in heads]
    if unknown:
        raise UsageError(f"head {unknown[0]!r} is not in this bundle; choose from {', '.join(heads)}")
    return {name: heads[name] for name in wanted or list(heads)[:1]}


def _blank_window(features: np.ndarray, modalities: Sequence[str], width: int, missing: int) -> Window:
    clips = []
    for index in range(width):
        state = {m: "lost" if index < missing else OBSERVED for m in modalities}
        here = np.array([state.get(m) == OBSERVED for m in MODALITIES])
        clips.append(Encoded(clip=index, epoch=0, version=0, start_seconds=0.0, raw=features, features=features,
                             presence=here, state=state, flags={}, coverage={}))  # fmt: skip
    return Window(width - 1, 0, FINAL, 0, tuple(clips), ())
