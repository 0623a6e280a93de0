"""Engine: the models of one bundle on one device; closed clips in, predictions out.

Streams submit closed clips, ``run`` encodes them, fills and classifies the windows that fell due; ``serve`` does the
same for many streams and says of each job what came of it.

Deterministic, every forward pass has the one shape that a replay has, batch size 1, in fp32, with deterministic
algorithms and one thread: two replays are byte-equal without their timings, and a served stream is byte-equal to its
replay. A larger shape would not do: the kernels of a batch round differently (bench/engine.py shows both, and what
it costs). Otherwise clips of all streams go through the encoders in one batch, and their windows in one more
(``runtime.together``).

B batch (1), N position (W window clips, F_max ahead), M modality, D feature width, K label.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from runtime.drafts import Draft
from runtime.errors import LegatoError, UsageError
from runtime.forward import choose_precision
from runtime.packet import MODALITIES
from runtime.prediction import Prediction, Timings
from runtime.stream import FINAL, Encoded, Stream, Window, Windows, longest_gap, observed_share, provenances


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


@dataclass(eq=False)
class Job:
    """One closed clip of a stream, or (None) the stream's end."""

    stream: Stream
    clip: Clip | None
    shed: Collection[str] = ()  # modalities that are not encoded
    queue_ms: float = 0.0  # how long it has waited


@dataclass(eq=False)
class Done:
    """What came of a job; a stream whose job failed is over."""

    job: Job
    encoded: Encoded | None = None
    predictions: list[Prediction] = field(default_factory=list)
    error: LegatoError | None = None


@dataclass
class Served:
    """A batch that was worked through; ``spent`` is (rows, seconds) by stage: video, audio, fill."""

    done: list[Done]
    spent: dict[str, tuple[int, float]] = field(default_factory=dict)

    def add(self, stage: str, rows: int, seconds: float) -> None:
        """Count work of a stage."""
        before = self.spent.get(stage, (0, 0.0))
        self.spent[stage] = (before[0] + rows, before[1] + seconds)


def always(_stream: Stream) -> bool:
    """Nobody hung up."""
    return True


class Engine:
    """The models of one bundle, ready to serve.

    ``models`` is what ``Bundle.models`` returns. ``heads`` chooses heads by name (default: the bundle's first);
    ``fill`` replaces the bundle's ladder; ``precision`` is auto, fp32 or bf16 (deterministic: always fp32);
    ``stopwatch`` measures the stages, in seconds.
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
        precision: str = "auto",
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.deterministic, self.stopwatch = deterministic, stopwatch
        self.models, self.task, self.device = models, task, torch.device(device)
        self.dtype = choose_precision(precision, self.device, deterministic=deterministic)
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
        self.no_face = None if no_face is None else no_face.detach().float().cpu().numpy()
        self._jobs: deque[tuple[Stream, Clip | None]] = deque()
        configure(self.device, deterministic=deterministic, threads=threads)
        self._no_variance: Tensor | None = None
        self._together: Any = None  # runtime.together.Together, made when first needed

    def refilled(self, fill: Imputer) -> "Engine":
        """The same models with another fill: what a comparison arm runs on."""
        twin = object.__new__(Engine)
        twin.__dict__ = {**self.__dict__, "ladder": fill, "_jobs": deque(), "_together": None}
        return twin

    @property
    def together(self) -> Any:
        """The models as they serve many streams at once."""
        if self._together is None:
            from runtime.together import Together

            self._together = Together(self)
        return self._together

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
            self.classify(blank_window(features, list(self.encoders), self.task.window, missing))
        if not self.deterministic:
            self.together.warm_up()

    def submit(self, stream: Stream, clip: Clip) -> None:
        """Queue a closed clip, or a repaired version of one."""
        self._jobs.append((stream, clip))

    def end(self, stream: Stream) -> None:
        """Queue the end of a stream: its pending windows become final."""
        self._jobs.append((stream, None))

    def run(self, trace: Callable[[Encoded], None] | None = None) -> list[Prediction]:
        """Work through everything submitted; predictions in the order in which they fell due.

        Raises the first job's error; ``serve`` instead goes on with the others.
        """
        jobs = [Job(stream, clip) for stream, clip in self._jobs]
        self._jobs.clear()
        out: list[Prediction] = []
        for done in self.serve(jobs, raising=True).done:
            if done.encoded is not None and trace is not None:
                trace(done.encoded)
            out += done.predictions
        return out

    def serve(self, jobs: Sequence[Job], alive: Callable[[Stream], bool] = always, *, raising: bool = False) -> Served:
        """Work through jobs of many streams, each stream's in order; one result for each, in the same order.

        ``alive`` is asked between the stages: what belongs to a stream that is gone is left undone, and its result is
        empty. One stream's fault is its own (``Done.error``), unless ``raising``; after it nothing of the stream runs.
        """
        if not self.deterministic:
            return self.together.serve(jobs, alive, raising=raising)
        served, failed = Served([]), set[int]()
        for job in jobs:
            done = Done(job)
            served.done.append(done)
            if id(job.stream) in failed or not alive(job.stream):
                continue
            try:
                self._alone(job, done, served)
            except Exception as error:
                if raising:
                    raise
                failed.add(id(job.stream))
                done.error = fault(job, error)
        return served

    def _alone(self, job: Job, done: Done, served: Served) -> None:
        """One job, at the shapes of a replay."""
        stream = job.stream
        if job.clip is None:
            due = stream.windows.finish()
        else:
            done.encoded = self.encode(stream, job.clip, job.shed, job.queue_ms, served)
            due = stream.windows.admit(done.encoded)
        began = self.stopwatch()
        done.predictions = self.conclude(stream.name, due)
        served.add("fill", len(due), self.stopwatch() - began)

    def replay(self, name: str, clips: Iterable[Encoded], settings: WindowSettings) -> list[Prediction]:
        """Predictions over clips encoded before: no second decode or encode."""
        windows, out = Windows(settings), []
        for encoded in clips:
            out += self.conclude(name, windows.admit(encoded))
        return out + self.conclude(name, windows.finish())

    def encode(
        self,
        stream: Stream,
        clip: Clip,
        shed: Collection[str] = (),
        queue_ms: float = 0.0,
        served: Served | None = None,
    ) -> Encoded:
        """Features of a closed clip; those of a repaired one only where the repair changed something."""
        start = began = self.stopwatch()
        draft = Draft.of(stream, clip, self.encoders, self.width, shed)
        for modality in draft.needed:
            self._feature(draft, modality)
            if served is not None:
                now = self.stopwatch()
                served.add(modality, 1, now - began)
                began = now
        return self.finished(draft, queue_ms, (self.stopwatch() - start) * 1e3)

    def finished(self, draft: Draft, queue_ms: float, encode_ms: float) -> Encoded:
        """A draft whose features are all there."""
        policy = self.task.content_policy
        return draft.done(policy, self._mean, self._std, queue_ms=queue_ms, encode_ms=encode_ms)

    def conclude(self, stream: str, due: Iterable[Window]) -> list[Prediction]:
        """Fill, classify and put into words."""
        return [self.prediction(stream, window, outcome) for window in due for outcome in self.classify(window)]

    @torch.inference_mode()
    def classify(self, window: Window) -> list[Outcome]:
        """One outcome per head."""
        began = self.stopwatch()
        width, first = self.task.window, self.task.window - len(window.clips)
        features, presence, exists = self._arrays(window)
        places = len(window.clips) * len(self.encoders)
        share = int(np.count_nonzero(presence[0, first:width])) / places
        if share == 1:  # nothing to fill: the ladder would return its input
            view = [self._tensor(x[:, :width]) for x in (features, presence, exists)]
            filled = Filled(view[0], self._certain(width), OBSERVED)
            seen = (filled.features, view[1], filled.variance, view[2])
        else:
            whole = [self._tensor(x) for x in (features, presence, exists)]
            filled = self.ladder(*whole)
            seen = (filled.features[:, :width], whole[1][:, :width], filled.variance[:, :width], whole[2][:, :width])
        outcomes = []
        for name, head in self.heads.items():
            probabilities, abstained = self._calibrated(head(*seen), window.status, share)
            spent = (self.stopwatch() - began) * 1e3
            outcomes.append(Outcome(name, probabilities, abstained, filled.rung_of(0), spent))
        return outcomes

    def _calibrated(self, logits: Tensor, status: str, share: float) -> tuple[list[float], bool]:
        """Probabilities (K,) and whether to abstain; a window with nothing observed never gives an answer."""
        if not share:
            return [1 / len(self.task.labels)] * len(self.task.labels), True
        probabilities, abstained = self.models.calibration[status](logits, share)
        return probabilities[0].tolist(), bool(abstained)

    def _feature(self, draft: Draft, modality: str) -> None:
        """The raw feature (D,) of one modality, and the flags that looking at it adds."""
        pixels, found = getattr(draft.clip, modality), True
        if modality == "video" and self.looks_at_faces:
            located = self.models.face.locate(draft.clip, draft.stream.face)
            pixels, found = self.located(draft, located)
        feature = self.no_face if not found and self.no_face is not None else self._forward(modality, pixels)
        draft.put(modality, feature, () if found else ("no_face",))

    @property
    def looks_at_faces(self) -> bool:
        """Whether the video encoder wants to see the face, not the frame."""
        video = self.encoders.get("video")
        return video is not None and getattr(video.spec, "region", "frame") == "face"

    def located(self, draft: Draft, located: Any) -> tuple[np.ndarray, bool]:
        """What the video encoder is shown of a clip whose face was looked for, and whether it was found."""
        pixels, face, found = located
        if draft.clip.version == 0:  # a repaired clip is older than what the box has followed since
            draft.face = face
        if pixels is None:
            pixels = blank(self.encoders["video"].spec, self.task.clip_seconds)
        return pixels, found

    @torch.inference_mode()
    def _forward(self, modality: str, clip: np.ndarray) -> np.ndarray:
        batch = self._tensor(np.ascontiguousarray(clip)[None])  # (1, ...)
        feature: np.ndarray = self.encoders[modality].encode(batch).float().cpu().numpy()[0]
        return feature

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def _certain(self, positions: int) -> Tensor:
        """The variance (1, N, M) where nothing was filled; nobody writes there."""
        if self._no_variance is None or self._no_variance.shape[1] != positions:
            self._no_variance = torch.zeros(1, positions, len(MODALITIES), device=self.device)
        return self._no_variance

    def _arrays(self, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """features (1, N, M, D), presence (1, N, M), exists (1, N); the window's last clip at position W - 1."""
        width, clips = self.task.window, (*window.clips, *window.ahead)
        first = width - len(window.clips)
        last = first + len(clips)
        features = np.zeros((1, width + self.task.ahead, *clips[0].features.shape), np.float32)
        presence = np.zeros(features.shape[:3], bool)
        exists = np.zeros(features.shape[:2], bool)
        np.concatenate([c.features for c in clips], out=features[0, first:last].reshape(-1, features.shape[3]))
        np.concatenate([c.presence for c in clips], out=presence[0, first:last].reshape(-1))
        exists[0, first:last] = True
        return features, presence, exists

    def prediction(self, stream: str, window: Window, outcome: Outcome) -> Prediction:
        """What an outcome means, in words and times."""
        clips, newest, said = window.clips, window.clips[-1], outcome.probabilities
        confidence = max(said)
        whole = outcome.rung == OBSERVED  # as nearly always
        total = newest.wait_ms + newest.decode_ms + newest.encode_ms + outcome.fill_ms + newest.queue_ms
        return Prediction(
            stream=stream,
            epoch=window.epoch,
            clip=window.clip,
            start_seconds=clips[0].start_seconds,
            end_seconds=newest.start_seconds + self._seconds,
            head=outcome.head,
            label=None if outcome.abstained else self.task.labels[said.index(confidence)],
            probabilities=dict(zip(self.task.labels, said, strict=True)),
            confidence=confidence,
            status=window.status,
            revision=window.revision,
            abstained=outcome.abstained,
            observed_share=dict.fromkeys(newest.state, 1.0) if whole else observed_share(clips),
            clips=provenances(clips, outcome.rung),
            longest_gap_ms=0.0 if whole else longest_gap(clips) * self._seconds * 1e3,
            bundle=self.task.bundle,
            timings=Timings(
                wait_ms=newest.wait_ms,
                decode_ms=newest.decode_ms,
                encode_ms=newest.encode_ms,
                fill_ms=outcome.fill_ms,
                total_ms=total,
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


def fault(job: Job, error: Exception) -> LegatoError:
    """What a stream is told that failed, in one sentence."""
    if isinstance(error, LegatoError):
        return error
    what = "its end" if job.clip is None else f"clip {job.clip.index}"
    why = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:200]
    made = LegatoError(f"stream {job.stream.name!r} ended at {what} ({why}); open it again")
    made.__cause__ = error
    return made


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


def blank_window(features: np.ndarray, modalities: Sequence[str], width: int, missing: int) -> Window:
    clips = []
    for index in range(width):
        state = {m: "lost" if index < missing else OBSERVED for m in modalities}
        here = np.array([state.get(m) == OBSERVED for m in MODALITIES])
        clips.append(Encoded(clip=index, epoch=0, version=0, start_seconds=0.0, raw=features, features=features,
                             presence=here, state=state, flags={}, coverage={}))  # fmt: skip
    return Window(width - 1, 0, FINAL, 0, tuple(clips), ())
