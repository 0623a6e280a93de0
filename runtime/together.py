"""Together: clips of many streams through the encoders in one batch, their windows through fill and heads in one more.

Rows are independent: what a stream is told does not depend on its neighbours, but for rounding (tests/test_engine.py,
tests/test_dispatch.py). A fault is tracked to the stream it belongs to: a batch that fails is tried again row by row.

B batch, N position (W window clips, F_max ahead), M modality, D feature width, K label.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.serving import served, served_face
from imputation.presence import OBSERVED
from runtime.drafts import Draft
from runtime.engine import Done, Engine, Job, Outcome, Served, blank, blank_window, fault
from runtime.face import FaceTracker, Located, follow_all
from runtime.forward import SIZES, WINDOWS, Forward, Graphed, lowered, on_device, precision
from runtime.packet import MODALITIES
from runtime.stream import Stream, Window

Alive = Callable[[Stream], bool]
Due = tuple[Done, Window]


class Together:
    """The models of an engine, arranged for batches."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.device, self.dtype = engine, engine.device, engine.dtype
        self.cuda = self.device.type == "cuda"
        originals = {m: getattr(engine.models, f"{m}_encoder") for m in engine.encoders}
        if self.device.type == "cpu":
            originals = {m: served(e, dtype=self.dtype, batched=True) for m, e in originals.items()}
        self.forwards = {m: Forward(e, self.device, self.dtype) for m, e in originals.items()}
        self.ladder = lowered(engine.ladder, self.dtype, packed=not self.cuda)
        self.heads = dict(engine.heads)
        if self.cuda:
            _graph_models(self.ladder)
            self.heads = {name: Graphed(head) for name, head in self.heads.items()}
        tracker = engine.models.face
        self._see = served_face(tracker.model) if isinstance(tracker, FaceTracker) else None

    def warm_up(self) -> None:
        """Run every model at the sizes that are prepared for: on a CPU up to the largest, so that memory is asked for
        now and not from the first busy moment on.
        """
        engine = self.engine
        features = np.zeros((len(MODALITIES), engine.width), np.float32)
        for size in SIZES if self.cuda else (1, 2, WINDOWS):
            for modality, forward in self.forwards.items():
                forward([blank(engine.encoders[modality].spec, engine.task.clip_seconds)] * size)
            missing = [blank_window(features, list(engine.encoders), engine.task.window, n) for n in (0, 1)]
            for windows in ([missing[0]] * size, [missing[1]] * size):
                self.classify(windows)

    def serve(self, jobs: Sequence[Job], alive: Alive, *, raising: bool = False) -> Served:
        """See ``Engine.serve``."""
        out = Served([Done(job) for job in jobs])
        for part in _parts(out.done):
            self._serve(part, out, alive, raising)
        return out

    def _serve(self, jobs: list[Done], out: Served, alive: Alive, raising: bool) -> None:
        over = {id(d.job.stream) for d in out.done if d.error is not None}
        jobs = [d for d in jobs if id(d.job.stream) not in over and alive(d.job.stream)]
        clips = [d for d in jobs if d.job.clip is not None]
        began = self.engine.stopwatch()
        drafts = self._encode(clips, out, alive, raising)
        spent = (self.engine.stopwatch() - began) * 1e3
        due: list[Due] = []
        for done in jobs:
            if not alive(done.job.stream):
                continue
            try:
                due += self._admitted(done, drafts, spent)
            except Exception as error:
                _fail(jobs, done, error, raising)
        due = [(done, window) for done, window in due if done.error is None and alive(done.job.stream)]
        began = self.engine.stopwatch()
        self._conclude(due, jobs, raising)
        out.add("fill", len(due), self.engine.stopwatch() - began)

    def _admitted(self, done: Done, drafts: dict[int, Draft], spent: float) -> list[Due]:
        """The windows that a job makes due."""
        job = done.job
        if done.error is not None:
            return []
        if job.clip is None:
            return [(done, window) for window in job.stream.windows.finish()]
        done.encoded = self.engine.finished(drafts[id(done)], job.queue_ms, spent)
        return [(done, window) for window in job.stream.windows.admit(done.encoded)]

    # -- clips --------------------------------------------------------------------------------------------------

    def _encode(self, clips: list[Done], out: Served, alive: Alive, raising: bool) -> dict[int, Draft]:
        """A draft with all its features for every clip that has no error."""
        engine, drafts = self.engine, dict[int, Draft]()
        for done in clips:
            assert done.job.clip is not None
            drafts[id(done)] = Draft.of(done.job.stream, done.job.clip, engine.encoders, engine.width, done.job.shed)
        for modality in engine.encoders:
            began = self.engine.stopwatch()
            wanted = [d for d in clips if modality in drafts[id(d)].needed and d.error is None and alive(d.job.stream)]
            rows: list[tuple[Done, np.ndarray, tuple[str, ...]]] = []
            if modality == "video" and engine.looks_at_faces:
                rows = list(self._faces(wanted, drafts, clips, raising))
            else:
                rows = [(d, getattr(d.job.clip, modality), ()) for d in wanted]
            self._features(modality, rows, drafts, clips, raising)
            out.add(modality, len(wanted), self.engine.stopwatch() - began)
        return drafts

    def _faces(
        self, wanted: list[Done], drafts: dict[int, Draft], clips: list[Done], raising: bool
    ) -> Iterator[tuple[Done, np.ndarray, tuple[str, ...]]]:
        """What the video encoder is shown; a face that was not found is settled here where the bundle knows how."""
        engine = self.engine
        streams: dict[int, list[Done]] = defaultdict(list)
        for done in wanted:
            streams[id(done.job.stream)].append(done)
        for dones, located in zip(streams.values(), self._located(list(streams.values())), strict=True):
            if isinstance(located, Exception):
                _fail(clips, dones[0], located, raising)
                continue
            for done, one in zip(dones, located, strict=True):
                draft = drafts[id(done)]
                pixels, found = engine.located(draft, one)
                if not found and engine.no_face is not None:
                    draft.put("video", engine.no_face, ("no_face",))
                else:
                    yield done, pixels, () if found else ("no_face",)

    @torch.inference_mode()
    def _located(self, chains: list[list[Done]]) -> list[list[Located] | Exception]:
        """Each stream's clips in order, all streams at once."""
        tracker = self.engine.models.face
        starts = [([d.job.clip for d in dones], dones[0].job.stream.face) for dones in chains]
        if self._see is None:
            return [_one_by_one(tracker, clips, face) for clips, face in starts]
        looks = [tracker.follow(clips, face) for clips, face in starts]
        see = self._see
        return follow_all(looks, lambda pictures: see(torch.from_numpy(pictures)))

    def _features(
        self,
        modality: str,
        rows: list[tuple[Done, np.ndarray, tuple[str, ...]]],
        drafts: dict[int, Draft],
        clips: list[Done],
        raising: bool,
    ) -> None:
        if not rows:
            return
        forward = self.forwards[modality]
        try:
            together = forward([pixels for _, pixels, _ in rows])
            features: Sequence[np.ndarray | Exception] = list(together)
            finite = bool(np.isfinite(together).all())
        except Exception as error:
            if raising and len(rows) == 1:
                raise
            features = [error] if len(rows) == 1 else [_attempt(lambda x: forward([x])[0], row[1]) for row in rows]
            finite = False
        for (done, _, flags), feature in zip(rows, features, strict=True):
            try:
                if isinstance(feature, Exception):
                    raise feature
                drafts[id(done)].put(modality, feature, flags, finite=finite)
            except Exception as error:
                _fail(clips, done, error, raising)

    # -- windows ------------------------------------------------------------------------------------------------

    def _conclude(self, due: list[Due], jobs: list[Done], raising: bool) -> None:
        """Fill, classify and put into words; each prediction to the job that made it due."""
        windows = [window for _, window in due]
        try:
            outcomes: Sequence[list[Outcome] | Exception] = self.classify(windows)
        except Exception:
            if raising:
                raise
            outcomes = [_attempt(lambda w: self.classify([w])[0], window) for window in windows]
        for (done, window), said in zip(due, outcomes, strict=True):
            if done.error is not None:
                continue
            try:
                if isinstance(said, Exception):
                    raise said
                done.predictions += [self.engine.prediction(done.job.stream.name, window, one) for one in said]
            except Exception as error:
                _fail(jobs, done, error, raising)

    @torch.inference_mode()
    def classify(self, windows: Sequence[Window]) -> list[list[Outcome]]:
        """One outcome per head for each window."""
        began = self.engine.stopwatch()
        seen_of = [[c.state[m] == OBSERVED for c in w.clips for m in self.engine.encoders] for w in windows]
        alike = _alike(windows, [not any(row) for row in seen_of], self.cuda)
        places = list(_chunks(alike, SIZES[-1] if self.cuda else WINDOWS))
        order = [i for part in places for i in part]
        ordered, seen = [windows[i] for i in order], [seen_of[i] for i in order]
        rungs: list[str] = []
        logits: dict[str, list[Tensor]] = {name: [] for name in self.heads}
        for part in places:
            at = len(rungs)
            rows = slice(at, at + len(part))
            blind = not self.cuda and not any(seen[at])  # as all of the part
            rungs += self._filled(ordered[rows], [not all(row) for row in seen[rows]], blind, logits)
        out: list[list[Outcome]] = [[] for _ in windows]
        shares = [sum(row) / len(row) for row in seen]
        for name in self.heads if windows else ():
            found = self._calibrated(torch.cat(logits[name]).float().cpu(), ordered, shares)
            spent = (self.engine.stopwatch() - began) * 1e3
            for i, rung, (probabilities, abstained) in zip(order, rungs, found, strict=True):
                out[i].append(Outcome(name, probabilities, abstained, rung, spent))
        return out

    def _filled(
        self, windows: list[Window], hollow: list[bool], blind: bool, logits: dict[str, list[Tensor]]
    ) -> list[str]:
        """Fill those of one batch that are ``hollow``, add what the heads say to ``logits``; the rungs that filled.

        ``blind``: nothing of any of them was observed.
        """
        width = self.engine.task.window
        ahead = self.engine.task.ahead if self.cuda else max(len(w.ahead) for w in windows)
        features, presence, exists = self._tensors(windows, width + ahead)
        if blind and hasattr(self.ladder, "names"):  # whatever was filled, they abstain
            for nothing in logits.values():
                nothing.append(features.new_zeros((len(windows), len(self.engine.task.labels))))
            names: list[str] = self.ladder.names(presence, exists)
            return names
        variance, rungs = torch.zeros_like(presence, dtype=torch.float32), [OBSERVED] * len(windows)
        holes = [i for i, has in enumerate(hollow) if has]
        if holes:
            rows = slice(None) if len(holes) == len(windows) else torch.tensor(holes, device=self.device)
            with precision(self.device, self.dtype):
                filled = self.ladder(features[rows], presence[rows], exists[rows])
            if len(holes) == len(windows):
                features, variance = filled.features.to(features), filled.variance.to(variance)
            else:
                features[rows], variance[rows] = filled.features.to(features), filled.variance.to(variance)
            for place, i in enumerate(holes):
                rungs[i] = filled.rung_of(place)
        first = 0 if self.cuda else width - len(windows[0].clips)  # what no window of the group has, no head needs
        view = [x[:, first:width] for x in (features, presence, variance, exists)]
        for name, head in self.heads.items():
            logits[name].append(head(*view))
        return rungs

    def _tensors(self, windows: list[Window], length: int) -> tuple[Tensor, Tensor, Tensor]:
        """features (B, N, M, D), presence (B, N, M), exists (B, N); each window's last clip at position W - 1."""
        shape = (len(windows), length, len(MODALITIES))
        if not self.cuda and len(windows[0].clips) + len(windows[0].ahead) == length:  # windows alike, without a hole
            clips = [clip for window in windows for clip in window.clips + window.ahead]
            laid = np.concatenate([c.features for c in clips]).reshape(*shape, self.engine.width)
            believed = np.concatenate([c.presence for c in clips]).reshape(shape)
            return torch.from_numpy(laid), torch.from_numpy(believed), torch.ones(shape[:2], dtype=torch.bool)
        features, presence = np.zeros((*shape, self.engine.width), np.float32), np.zeros(shape, bool)
        exists = np.zeros(shape[:2], bool)
        at = 0
        for group in [windows] if not self.cuda else [[window] for window in windows]:  # of windows alike
            rows, there = slice(at, at + len(group)), len(group[0].clips) + len(group[0].ahead)
            first = self.engine.task.window - len(group[0].clips)
            here = (rows, slice(first, first + there))
            clips = [clip for window in group for clip in (*window.clips, *window.ahead)]
            features[here] = np.concatenate([c.features for c in clips]).reshape(features[here].shape)
            presence[here] = np.concatenate([c.presence for c in clips]).reshape(presence[here].shape)
            exists[here] = True
            at += len(group)
        made = [on_device(torch.from_numpy(x), self.device) for x in (features, presence, exists)]
        return made[0], made[1], made[2]

    def _calibrated(self, logits: Tensor, windows: list[Window], shares: list[float]) -> list[tuple[list[float], bool]]:
        """Probabilities (K,) and whether to abstain; a window with nothing observed never gives an answer."""
        labels = len(self.engine.task.labels)
        out: list[tuple[list[float], bool]] = [([1 / labels] * labels, True)] * len(windows)
        by_status: dict[str, list[int]] = defaultdict(list)
        for i, window in enumerate(windows):
            if shares[i] > 0:
                by_status[window.status].append(i)
        for status, rows in by_status.items():
            share = torch.tensor([shares[i] for i in rows])
            found, unsure = self.engine.models.calibration[status](logits[rows], share)
            for i, row, not_sure in zip(rows, found.tolist(), unsure.tolist(), strict=True):
                out[i] = (row, not_sure)
        return out


def _parts(jobs: list[Done]) -> Iterator[list[Done]]:
    """Runs of jobs in which no clip comes twice: a repaired version builds on the one before."""
    part: list[Done] = []
    there: set[tuple[int, int]] = set()
    for done in jobs:
        key = (id(done.job.stream), -1 if done.job.clip is None else done.job.clip.index)
        if key in there:
            yield part
            part, there = [], set()
        there.add(key)
        part.append(done)
    if part:
        yield part


def _alike(windows: Sequence[Window], blind: Sequence[bool], cuda: bool) -> list[list[int]]:
    """Windows by the places they have, and whether anything of them was seen; one group where shapes must not follow
    the data.

    Then nothing is computed for places that no window of a group has, and no attention needs a mask.
    """
    if cuda:
        return [list(range(len(windows)))] if windows else []
    groups: dict[tuple[int, int, bool], list[int]] = defaultdict(list)
    for i, window in enumerate(windows):
        groups[len(window.clips), len(window.ahead), blind[i]].append(i)
    return list(groups.values())


def _chunks(groups: list[list[int]], step: int) -> Iterator[list[int]]:
    for group in groups:
        for i in range(0, len(group), step):
            yield group[i : i + step]


def _attempt(call: Callable[[Any], Any], given: Any) -> Any:
    try:
        return call(given)
    except Exception as error:
        return error


def _one_by_one(tracker: Any, clips: list[Any], state: Any) -> list[Located] | Exception:
    """A tracker of another kind: it looks by itself."""
    out: list[Located] = []
    try:
        for clip in clips:
            located = tracker.locate(clip, state)
            state = located[1] if clip.version == 0 else state
            out.append(located)
    except Exception as error:
        return error
    return out


def _fail(jobs: list[Done], done: Done, error: Exception, raising: bool) -> None:
    """A stream is over: this job has its error, and nothing after it runs."""
    if raising:
        raise error
    at = next(i for i, other in enumerate(jobs) if other is done)
    done.error = fault(done.job, error)
    for other in jobs[at + 1 :]:
        if other.job.stream is done.job.stream and other.error is None:
            other.error = done.error


def _graph_models(ladder: Any) -> None:
    """The learned rungs of a ladder as CUDA graphs."""
    for imputer in getattr(ladder, "imputers", [ladder]):
        model = getattr(imputer, "model", None)
        if model is not None:
            model.forward = Graphed(model.forward)
