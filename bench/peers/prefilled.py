"""What a peer filled, in a file that is read without it: an imputer that looks up the answer.

One safetensors file holds every window that ``imputation.evaluate`` asks for (all k, some draws) with its hidden places
filled. A window is found by what was seen of it: a digest of its observed features, of where they stand and of the
positions that exist. So the answer to another mask, another window, or other features cannot come back by mistake:
there is none, and the error says so. Order, batch and device do not matter.

Shape legend: n window, L position, M modality, D width, R window filled under one mask, P filled place.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from encoders.errors import DataError
from encoders.training import save_weights
from imputation.evaluate import trials
from imputation.features import FeatureSet
from imputation.imputer import Filled, checked

__all__ = ["Prefilled", "write_prefilled"]

FORMAT = 1
DIGEST = 16  # bytes


def digests(features: Tensor, present: Tensor, exists: Tensor) -> list[bytes]:
    """One digest of each window of features (B, L, M, D), present (B, L, M), exists (B, L); reads observed places."""
    seen = torch.where(present.unsqueeze(-1), features, 0).float().cpu().numpy()
    masks = torch.cat([present.flatten(1), exists], dim=1).cpu().numpy()
    shape = str(tuple(features.shape[1:])).encode()
    return [
        hashlib.blake2b(shape + m.tobytes() + x.tobytes(), digest_size=DIGEST).digest()
        for x, m in zip(seen, masks, strict=True)
    ]


def write_prefilled(
    path: Path,
    imputer: Callable[..., Filled],
    data: FeatureSet,
    *,
    levels: Sequence[int] | None = None,
    draws: int = 3,
    seed: int = 0,
    profiles: Sequence[str] = (),
    batch: int = 512,
    progress: Callable[[int, int, str], None] | None = None,
    **about: Any,
) -> None:
    """Fill ``data`` (windows with their standardisation) under the masks that ``evaluate`` draws with them.

    ``levels``: the k of L hidden clips (default 0 .. L - 1; k = 0 fills what was never observed). ``about``: plain
    values that the file keeps. Raises DataError, OutputError.
    """
    features, parts = data.standardised(), dict[bytes, tuple[Tensor, Tensor, Tensor]]()
    levels = range(data.length) if levels is None else levels
    count, rung = draws * (len(levels) - (0 in levels) + len(profiles)) + (0 in levels), ""
    asked = trials(data, data.exists, levels=levels, draws=draws, seed=seed, profiles=profiles)
    for done, trial in enumerate(asked):
        if progress is not None:
            progress(done, count, trial.condition)
        for start in range(0, len(data), batch):
            rows = slice(start, start + batch)
            known = torch.where(trial.presence[rows].unsqueeze(-1), features[rows], 0)
            rung = _fill(imputer, known, trial.presence[rows], data.exists[rows], parts) or rung
    if not parts:
        raise DataError("nothing is hidden in these windows; name levels above 0")
    keys, places, values, variances = list(parts), *(list(x) for x in zip(*parts.values(), strict=True))
    header = {"format": FORMAT, "rung": rung, "levels": list(levels), "draws": draws, "seed": seed, "about": about,
              "profiles": list(profiles), "windows": len(data), "split": sorted(set(data.split))}  # fmt: skip
    tensors = {
        "key": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, DIGEST),
        "place": torch.stack(places),  # (R, L, M)
        "value": torch.cat(values),  # (P, D), places of one window after another
        "variance": torch.cat(variances),  # (P,)
    }
    save_weights(path, tensors, {"legato": json.dumps(header)})


@torch.inference_mode()
def _fill(
    imputer: Callable[..., Filled],
    known: Tensor,
    present: Tensor,
    exists: Tensor,
    parts: dict[bytes, tuple[Tensor, Tensor, Tensor]],
) -> str:
    """Adds what was filled of each window, by digest; gives the rung."""
    absent = exists.unsqueeze(-1) & ~present
    filled = imputer(known, present, exists)
    if not bool(torch.isfinite(filled.features).all()):
        raise DataError(f"{filled.rung} filled places with what is no number; train it again")
    for row, key in enumerate(digests(known, present, exists)):
        if bool(absent[row].any()):
            place = absent[row]
            parts[key] = (place.clone(), filled.features[row][place].float(), filled.variance[row][place].float())
    return filled.rung


class Prefilled(nn.Module):
    """The imputer that answers from such a file. ``about`` is its header. Raises DataError."""

    key: Tensor

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        try:
            self._file = safe_open(str(path), "pt")
            self.about: dict[str, Any] = json.loads((self._file.metadata() or {}).get("legato", "{}"))
        except (OSError, SafetensorError, ValueError) as error:
            why = "it does not exist" if isinstance(error, FileNotFoundError) else str(error)
            raise DataError(f"{path} holds no filled windows ({why}); make it with bench.peers.pypots.fill") from None
        if self.about.get("format") != FORMAT or "place" not in self._file.keys():  # noqa: SIM118
            raise DataError(f"{path} holds no filled windows; make it with bench.peers.pypots.fill")
        self.rung: str = self.about["rung"]
        self.register_buffer("key", self._file.get_tensor("key"))
        place = self._file.get_tensor("place")
        self._ends = place.flatten(1).sum(dim=1).cumsum(0).tolist()
        self._place = place
        self._value, self._variance = self._file.get_slice("value"), self._file.get_tensor("variance")
        raw = self.key.numpy().tobytes()
        self._row = {raw[i : i + DIGEST]: i // DIGEST for i in range(0, len(raw), DIGEST)}

    def __len__(self) -> int:
        """Windows under one mask each."""
        return len(self._row)

    def forward(self, features: Tensor, presence: Tensor, exists: Tensor | None = None) -> Filled:
        """features (B, L, M, D), presence (B, L, M), exists (B, L) -> Filled; DataError where it holds no answer."""
        present, exists = checked(features, presence, exists)
        absent = exists.unsqueeze(-1) & ~present
        out = features.clone()
        variance = features.new_zeros(present.shape, dtype=torch.float32)
        needs = absent.flatten(1).any(dim=1).tolist()
        for row, key in enumerate(digests(features, present, exists)):
            if needs[row]:
                values, spread = self._look_up(key, absent[row])
                out[row, absent[row]] = values.to(out)
                variance[row, absent[row]] = spread.to(variance)
        return Filled(out, variance, self.rung)

    def __deepcopy__(self, memo: object) -> "Prefilled":
        """Itself: a file is open, and nothing in it learns."""
        return self

    def applies(self, presence: Tensor, exists: Tensor | None = None) -> Tensor:
        """(B,) bool: anything at all was observed."""
        present = presence if exists is None else presence & exists.unsqueeze(-1)
        return present.flatten(1).any(dim=1)

    def _look_up(self, key: bytes, absent: Tensor) -> tuple[Tensor, Tensor]:
        """Values (P, D) and variances (P,) of one window."""
        row = self._row.get(key)
        if row is None:
            raise DataError(
                f"{self.path} was not filled for a window with {int(absent.sum())} places hidden so; it holds "
                f"{self.about['windows']} windows of {' and '.join(self.about['split'])}, {self.about['draws']} draws "
                f"from seed {self.about['seed']}: ask for these, or fill it for yours with bench.peers.pypots.fill"
            )
        start = self._ends[row - 1] if row else 0
        return self._value[start : self._ends[row]], self._variance[start : self._ends[row]]
