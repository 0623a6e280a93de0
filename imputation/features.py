"""Feature files: what frozen encoders said of every clip of many windows, written once and read by all training.

One file is one safetensors file. Its tensors are ``features``, ``presence``, ``exists``, ``label`` and, once
fitted, ``mean`` and ``std``; its header carries one JSON object under ``legato`` with names, speakers, splits,
class labels and free notes.

Shape legend: n window, L clip, M modality (video, audio), D width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from encoders.errors import DataError
from encoders.training import save_weights

FORMAT = 1


class Standardiser(nn.Module):
    """(x - mean) / std per modality and dimension, with the statistics of the training windows."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone())  # (M, D)
        self.register_buffer("std", std.detach().clone())

    @classmethod
    def identity(cls, width: int) -> "Standardiser":
        return cls(torch.zeros(2, width), torch.ones(2, width))

    @classmethod
    def fit(cls, features: Tensor, presence: Tensor) -> "Standardiser":
        """From the observed places of features (n, L, M, D), presence (n, L, M); constant dimensions keep scale 1."""
        means, stds = [], []
        for m in range(features.shape[2]):
            seen = features[:, :, m][presence[:, :, m]].double()  # (places, D)
            if len(seen) == 0:
                raise DataError(f"modality {m} was never observed in training; add recordings that have it")
            std = seen.std(dim=0, unbiased=False)
            means.append(seen.mean(dim=0))
            stds.append(torch.where(std > 1e-6, std, 1.0))
        return cls(torch.stack(means).float(), torch.stack(stds).float())

    def forward(self, features: Tensor) -> Tensor:
        """Raw features (..., M, D) to standardised ones."""
        return (features - self.mean) / self.std

    def inverse(self, features: Tensor) -> Tensor:
        return features * self.std + self.mean


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Windows of raw features with what is known of them.

    ``speaker`` groups windows for splits and for reported spread; ``split`` is train, validation or test.
    """

    features: Tensor  # (n, L, M, D) float32, raw; 0 where absent
    presence: Tensor  # (n, L, M) bool
    label: Tensor  # (n,) int64, -1 = unlabelled
    exists: Tensor  # (n, L) bool
    names: tuple[str, ...]
    speaker: tuple[str, ...]
    split: tuple[str, ...]
    labels: tuple[str, ...]  # class names
    standardiser: Standardiser | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)  # encoders, weights, clip seconds, command

    @classmethod
    def of(
        cls,
        features: Tensor,
        label: Tensor,
        labels: Sequence[str],
        *,
        presence: Tensor | None = None,
        exists: Tensor | None = None,
        names: Sequence[str] | None = None,
        speaker: Sequence[str] | None = None,
        split: Sequence[str] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> "FeatureSet":
        """A checked set, with everything observed, one speaker and the split ``train`` unless told otherwise."""
        n, length = features.shape[:2]
        whole = torch.ones(n, length, dtype=torch.bool)
        there = whole if exists is None else exists
        seen = whole.unsqueeze(-1).expand(features.shape[:3]) if presence is None else presence
        seen = seen & there.unsqueeze(-1)
        out = cls(
            features=torch.where(seen.unsqueeze(-1), features, 0).float(),
            presence=seen,
            label=label.long(),
            exists=there,
            names=tuple(names) if names is not None else tuple(str(i) for i in range(n)),
            speaker=tuple(speaker) if speaker is not None else ("",) * n,
            split=tuple(split) if split is not None else ("train",) * n,
            labels=tuple(labels),
            notes=dict(notes or {}),
        )
        out.check("these features")
        return out

    def __len__(self) -> int:
        return len(self.features)

    @property
    def length(self) -> int:
        return self.features.shape[1]

    @property
    def width(self) -> int:
        return self.features.shape[3]

    def rows(self, index: Tensor) -> "FeatureSet":
        """The chosen windows, in the given order."""
        chosen = index.tolist()
        tensors = {name: getattr(self, name)[index] for name in ("features", "presence", "label", "exists")}
        lists: dict[str, Any] = {n: tuple(getattr(self, n)[i] for i in chosen) for n in ("names", "speaker", "split")}
        return replace(self, **tensors, **lists)

    def of_split(self, split: str) -> "FeatureSet":
        """The windows of one split. Raises DataError if it has none."""
        index = torch.tensor([i for i, s in enumerate(self.split) if s == split], dtype=torch.long)
        if len(index) == 0:
            raise DataError(f"split {split!r} has no windows; the file has {', '.join(sorted(set(self.split)))}")
        return self.rows(index)

    def fitted(self, split: str = "train") -> "FeatureSet":
        """The same set with standardisation fitted on the observed places of one split."""
        chosen = self.of_split(split)
        return replace(self, standardiser=Standardiser.fit(chosen.features, chosen.presence))

    def standardised(self) -> Tensor:
        """(n, L, M, D) in units of training deviations, 0 at absent places."""
        if self.standardiser is None:
            raise DataError("these features have no standardisation; call fitted() or use a file that has it")
        return torch.where(self.presence.unsqueeze(-1), self.standardiser(self.features), 0)

    def check(self, source: str) -> None:
        """Raise DataError naming ``source`` and the row if shapes disagree or a number is not finite."""
        n, length, modalities = self.features.shape[:3]
        shapes = {"presence": (n, length, modalities), "exists": (n, length), "label": (n,)}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise DataError(f"{name} of {source} has shape {tuple(getattr(self, name).shape)}; it must be {shape}")
        for name in ("names", "speaker", "split"):
            if len(getattr(self, name)) != n:
                count = len(getattr(self, name))
                raise DataError(f"{name} of {source} has {count} entries for {n} rows; give one each")
        if n and int(self.label.max()) >= len(self.labels):
            raise DataError(f"label {int(self.label.max())} of {source} has no name; labels has {len(self.labels)}")
        bad = (~torch.isfinite(self.features).flatten(1).all(dim=1)).nonzero()
        if len(bad):
            row = int(bad[0])
            raise DataError(f"row {row} ({self.names[row]}) of {source} is not finite; extract its features again")

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all. Raises OutputError."""
        path = Path(path)
        tensors = {name: getattr(self, name).contiguous() for name in ("features", "presence", "exists", "label")}
        if self.standardiser is not None:
            tensors |= {"mean": self.standardiser.mean, "std": self.standardiser.std}
        about: dict[str, Any] = {name: list(getattr(self, name)) for name in ("names", "speaker", "split", "labels")}
        about |= {"format": FORMAT, "notes": dict(self.notes)}
        save_weights(path, tensors, {"legato": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> "FeatureSet":
        """Read and check a feature file. Raises DataError."""
        try:
            with safe_open(str(path), "pt") as file:
                about = json.loads((file.metadata() or {}).get("legato", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise DataError(f"{path} is not a feature file ({_why(error)}); make one with `legato features`") from error
        if about.get("format") != FORMAT:
            found = about.get("format")
            what = "is not a feature file" if found is None else f"has feature format {found}, and {FORMAT} is read"
            raise DataError(f"{path} {what}; make one with `legato features`")
        scale = (tensors.pop("mean", None), tensors.pop("std", None))
        lists: dict[str, Any] = {name: tuple(about[name]) for name in ("names", "speaker", "split", "labels")}
        standardiser = None if scale[0] is None else Standardiser(*scale)
        out = cls(**tensors, **lists, standardiser=standardiser, notes=about["notes"])
        out.check(str(path))
        return out


def _why(error: Exception) -> str:
    """Half a sentence: what the system said, or that the content is none of ours."""
    if isinstance(error, FileNotFoundError):  # safetensors raises it without an errno
        return "it does not exist"
    return getattr(error, "strerror", None) or str(error)


def windows(recording: Tensor, length: int, hop: int = 1) -> Tensor:
    """Every window of ``length`` clips of a recording (T, ...): (windows, length, ...)."""
    starts = range(0, recording.shape[0] - length + 1, hop)
    if not starts:
        clips = recording.shape[0]
        raise DataError(f"a recording of {clips} clips is shorter than a window of {length}; shorten the window")
    return torch.stack([recording[s : s + length] for s in starts])
