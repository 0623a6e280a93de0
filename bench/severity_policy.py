"""Rules of presence on what ``bench.severity`` measured: every clip of a window by the rule, then the head's answer.

A rule is two numbers for each modality. Up to ``forgiven`` of estimated damage a clip is used as the decoder gave it,
spoiled parts included, if more than ``coverage`` of it came; else what is good of it is used, if that is more than
``coverage``; else the clip is absent and filled.

N clip, P position of a window, M modality.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

ABSENT, KEPT, SPOILT = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Thresholds of one modality; ``forgiven`` below 0 forgives nothing, as the runtime does today."""

    coverage: float
    forgiven: float = -1.0

    def choose(self, values: Mapping[str, np.ndarray], estimate: np.ndarray) -> np.ndarray:
        """What is used of each clip (N,): ABSENT, KEPT or SPOILT."""
        kept = values["has_kept"] & (values["coverage"] > self.coverage + 1e-9)
        came = values["has_spoilt"] & (values["came"] > self.coverage + 1e-9)
        return np.where(came & (estimate <= self.forgiven), SPOILT, np.where(kept, KEPT, ABSENT))

    def __str__(self) -> str:
        some = "everything forgiven" if self.forgiven > 1 else f"forgiven up to {self.forgiven:g}"
        forgiven = "nothing forgiven" if self.forgiven < 0 else some
        return f"coverage > {self.coverage:g}, {forgiven}"


class Windows:
    """Every window that ends with a clip that did not come whole, and which of its places are such clips."""

    def __init__(self, pipeline: Any, found: Any, every: int = 1) -> None:
        self.pipeline, self.found = pipeline, found
        about = found.about
        runs = [about[name] for name in ("stream", "camera", "coding", "loss")]
        keys = list(zip(*(x.tolist() for x in runs), strict=True))
        clips = about["clip"].tolist()
        self._row = {
            (*key, clip, m): n
            for n, (key, clip, m) in enumerate(
                zip(keys, about["clip"].tolist(), about["modality"].tolist(), strict=True)
            )
        }
        ends: dict[Any, int] = {}
        for n, (key, clip) in enumerate(zip(keys, clips, strict=True)):
            if clip % every == 0:
                ends.setdefault((*key, clip), n)
        self.rows = np.array(list(ends.values()))  # one of each window
        self.label = torch.from_numpy(about["label"][self.rows])
        self.speaker = np.char.add(np.char.add(about["corpus"][self.rows], "/"), about["speaker"][self.rows])
        width, places = pipeline.engine.task.window, found.context.shape[1]
        self.who = np.full((len(self.rows), places, 2), -1)
        for w, end in enumerate(ends):
            for q in range(places):
                for m, modality in enumerate(("video", "audio")):
                    self.who[w, q, m] = self._row.get((*end[:-1], end[-1] - width + 1 + q, modality), -1)

    @torch.inference_mode()
    def answers(self, choice: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """With what is used of each clip (N,): negative log-likelihood of the label, whether it was said, and the mean
        squared error of the features the head was given, for each window."""
        engine, found = self.pipeline.engine, self.found
        width = engine.task.window
        x, p = found.context[self.rows].copy(), found.presence[self.rows].copy()
        exists = torch.from_numpy(found.exists[self.rows])
        here = self.who >= 0
        rows = self.who[here]
        used = choice[rows]
        x[here] = np.where(used[:, None] == ABSENT, 0, found.features[rows, np.maximum(used, 1)])
        p[here] = used != ABSENT
        whole = found.context[self.rows].copy()
        whole[here] = found.features[rows, 0]
        seen = torch.from_numpy(p)
        filled = engine.ladder(torch.from_numpy(x), seen, exists)
        parts = (filled.features, seen, filled.variance, exists)
        logits = next(iter(engine.heads.values()))(*(v[:, :width] for v in parts))
        places = 2 * exists[:, :width].sum(1)
        share = (seen & exists[..., None])[:, :width].flatten(1).sum(1) / places
        probabilities, _ = engine.models.calibration["final"](logits, share.clamp(min=1e-3))
        loss = -probabilities.gather(1, self.label[:, None])[:, 0].clamp_min(1e-6).log()
        error = (filled.features - torch.from_numpy(whole))[:, :width].square().mean((2, 3)).sum(1)
        count = exists[:, :width].sum(1)
        hit = probabilities.argmax(1) == self.label
        return loss.numpy(), hit.numpy(), (error / count).numpy()


def by_speaker(values: np.ndarray, speaker: np.ndarray) -> np.ndarray:
    """The mean of each speaker."""
    return np.array([values[speaker == s].mean() for s in np.unique(speaker)])


def paired(values: np.ndarray, base: np.ndarray, speaker: np.ndarray) -> tuple[float, float]:
    """Mean difference to a base over speakers, and its standard error."""
    gap = by_speaker(values - base, speaker)
    return float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else float("nan")
