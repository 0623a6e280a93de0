"""A whole bundle of tiny, untrained models: quick to make, and real in every other respect."""

from pathlib import Path
from typing import Any

from runtime.bundle import Bundle
from runtime.manifest import Manifest, make_manifest

LABELS = ("silence", "speech", "music")
WINDOW, LOOKAHEAD = 6, 2
ENCODERS = {
    "video": {"preset": "r2plus1d_tiny", "weights": "video.safetensors"},
    "audio": {"preset": "conv2d_tiny", "weights": "audio.safetensors"},
}


def tiny_manifest(**changes: Any) -> Manifest:
    """The manifest of ``tiny_tensors``, with fields replaced."""
    dim = 16
    values = {
        "format_version": 1,
        "name": "tiny",
        "description": "Untrained; for tests.",
        "labels": list(LABELS),
        "clip_seconds": "1/2",
        "window": WINDOW,
        "lookahead": LOOKAHEAD,
        "min_clips": 2,
        "encoders": ENCODERS,
        "standardise": "standardise.safetensors",
        "imputer": {
            "preset": "curri_mae_tiny",
            "overrides": {"dim": dim, "length": WINDOW + LOOKAHEAD},
            "weights": "imputer.safetensors",
        },
        "ladder": ["curri_mae", {"rung": "lerp", "weights": "lerp.safetensors", "min_share": 0.1}, "zero"],
        "heads": {
            "gru": {"kind": "gru", "config": {"classes": 3, "dim": dim, "hidden": 8}, "weights": "gru.safetensors"},
            "linear": {"kind": "linear", "config": {"classes": 3, "dim": dim}, "weights": "linear.safetensors"},
        },
        "calibration": {"final": {"knots": [0.0, 1.0], "temperatures": [2.0, 1.0]}},
        "licence": "Apache-2.0",
    }
    return make_manifest(values | changes, "tiny")


def tiny_tensors() -> dict[str, dict[str, Any]]:
    """Fresh weights, drawn from a fixed seed."""
    import torch

    from encoders import heads, registry
    from imputation import imputer
    from imputation.features import Standardiser

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules = {
            "video": registry.build("r2plus1d_tiny"),
            "audio": registry.build("conv2d_tiny"),
            "standardise": Standardiser.identity(16),
            "imputer": imputer.build("curri_mae_tiny", dim=16, length=WINDOW + LOOKAHEAD),
            "lerp": imputer.build("lerp"),
            "gru": heads.build_head("gru", classes=3, dim=16, hidden=8),
            "linear": heads.build_head("linear", classes=3, dim=16),
        }
    return {f"{name}.safetensors": dict(module.state_dict()) for name, module in modules.items()}


def write_tiny_bundle(folder: Path, **changes: Any) -> Bundle:
    """A bundle in ``folder``; ``changes`` are made to its manifest."""
    return Bundle.write(folder, tiny_manifest(**changes), tiny_tensors())
