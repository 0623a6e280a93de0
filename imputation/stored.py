"""Trained imputers and heads as folders: a JSON that says how to build, and safetensors beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from encoders.errors import DataError, LegatoError
from encoders.heads import HEADS, build_head
from encoders.settings import to_dict
from encoders.training import load_weights, save_weights, write_json
from imputation.baselines import Backoff
from imputation.imputer import build

__all__ = ["load_head", "load_imputer", "save_head", "save_imputer"]


RULES = ("zero", "hold", "lerp", "observed_mean")  # of IMPUTERS, those that fill without being trained


def save_imputer(folder: Path, imputer: nn.Module, preset: str, overrides: Mapping[str, Any], **about: Any) -> None:
    """``imputer.json`` and ``imputer.safetensors``; ``about`` is kept as it is (metrics, training)."""
    save_weights(folder / "imputer.safetensors", imputer.state_dict())
    write_json(folder / "imputer.json", {"preset": preset, "overrides": dict(overrides), **about})


def load_imputer(name: str | Path) -> nn.Module:
    """A rule by name (zero, hold, lerp, observed_mean), or a trained imputer by its folder. Raises LegatoError."""
    if str(name) in RULES and not Path(name).is_dir():
        imputer: nn.Module = build(str(name))
        return imputer.eval()
    rules = ", ".join(RULES)
    about = _read(Path(name), "imputer", "legato train curri-mae", f", or name a rule: {rules}")
    imputer = build(about["preset"], **about["overrides"])
    load_weights(imputer, _tensors(Path(name) / "imputer.safetensors"), what=f"the imputer in {name}")
    return imputer.eval()


def save_head(folder: Path, head: nn.Module, **about: Any) -> None:
    """``head.json`` and ``head.safetensors``; a backoff arm keeps its three classifiers in one file."""
    if isinstance(head, Backoff):
        joint: Any = head.classifiers["both"]
        made = {"kind": "backoff", "config": {"classes": joint.out_features, "dim": joint.in_features // 2}}
    else:
        config: Any = head.config
        kind = next(name for name, (made_by, _) in HEADS.items() if type(head) is made_by)
        made = {"kind": kind, "config": to_dict(config)}
    save_weights(folder / "head.safetensors", head.state_dict())
    write_json(folder / "head.json", {**made, **about})


def load_head(folder: str | Path) -> nn.Module:
    """The head (or backoff arm) that ``save_head`` wrote. Raises LegatoError."""
    about = _read(Path(folder), "head", "legato train head")
    config = about["config"]
    head = (
        new_backoff(config["classes"], config["dim"])
        if about["kind"] == "backoff"
        else build_head(about["kind"], **config)
    )
    load_weights(head, _tensors(Path(folder) / "head.safetensors"), what=f"the head in {folder}")
    return head.eval()


def new_backoff(classes: int, dim: int) -> Backoff:
    """Untrained classifiers for clips with both modalities, video only, audio only."""
    return Backoff({"both": nn.Linear(2 * dim, classes), **{m: nn.Linear(dim, classes) for m in ("video", "audio")}})


def _read(folder: Path, what: str, command: str, otherwise: str = "") -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((folder / f"{what}.json").read_text())
        return values
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{what}.json is damaged"
        raise DataError(f"{folder} holds no {what} ({why}); make one with `{command}`{otherwise}") from None


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        if isinstance(error, LegatoError):
            raise
        raise DataError(f"{path} is not a weights file ({error}); train it again") from None
