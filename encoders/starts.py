"""A model that starts from one of another kind, as one that classifies from one that learned without labels.

Which can start from which is the table; the files say what they are of.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from encoders.errors import DataError
from encoders.registry import ENCODERS, config_of

__all__ = ["carried"]

# (class of what was trained, class of what starts) to a function of (model, weights, config, what=...).
CARRIERS = {
    ("AVMAE", "MBT"): "encoders.weights.av_mae_start:carry",
    ("MViTv2", "MMT"): "encoders.weights.mmt:carry",
    ("MAT", "MMT"): "encoders.weights.mmt:carry",
}
FILES = ("encoder.safetensors", "video.safetensors", "audio.safetensors")  # a run's encoder, by itself


def carried(model: Any, init: Path) -> bool:
    """Whether ``init``, weights or the folder of a run, is of another kind, in which case ``model`` now starts from it.

    Raises DataError where it is of another kind and does not fit, or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    file = next((f for f in map(init.joinpath, FILES) if f.is_file()), init) if init.is_dir() else init
    if not file.is_file():
        return False  # whoever reads weights of the model's own kind says what is wrong
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata() or {}
            kind = ENCODERS.get(about.get("preset", ""), "").partition(":")[2]
            carrier = CARRIERS.get((kind, type(model).__name__))
            if carrier is None:
                return False
            names = opened.keys()  # it is no mapping
            weights = {name: opened.get_tensor(name) for name in names} | _head_of(init)
        config = config_of(about["preset"], **json.loads(about["config"]))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{file} cannot be read ({str(error).splitlines()[0]}); name the folder of a run") from None
    module, _, name = carrier.partition(":")
    getattr(import_module(module), name)(model, weights, config, what=str(init))
    return True


def _head_of(init: Path) -> dict[str, Any]:
    """The classifier of a finished run, whose encoder's own file is without it."""
    from safetensors import safe_open

    whole = init / "model.safetensors"
    if not whole.is_file():
        return {}
    with safe_open(whole, "pt") as opened:
        names = opened.keys()
        return {name: opened.get_tensor(name) for name in names if name.startswith("head.")}
