"""The columns of models that hear: AST (Gong et al., Interspeech 2021) with the values of its public code, MAT (Zhu,
2024), and ours for small data.
"""

from typing import Any

from encoders.audio.filterbank import STATISTICS

__all__ = ["CHOICES", "RECIPES"]


def _heard(**changes: Any) -> dict[str, Any]:
    """What is done to training sound, as settings of a run."""
    return {f"sound.{name}": value for name, value in changes.items()}


def _masked(bins: int, frames: int, of: int) -> dict[str, Any]:
    """One band of up to so many of 128 bins hidden, and one of so many mel frames ``of`` all, with zeros."""
    widths = {"frequency_share": bins / 128, "time_share": frames / of}
    return _heard(frequency_masks=1, time_masks=1, warp=0, fill="zero", repeat=False, **widths)


def _clip(seconds: int, frames: int, dataset: str) -> dict[str, Any]:
    """Recordings of another length, standardised by their own statistics."""
    mean, std = STATISTICS[dataset]
    return {"overrides": {"clip_seconds": seconds, "front": {"frames": frames, "mean": mean, "std": std}}}


_AST: dict[str, Any] = {
    "optimizer": "adam", "betas": (0.95, 0.999), "weight_decay": 5e-7, "clip": 0.0, "precision": "bf16",
    "schedule": "step", "warmup": 0.0, "views": "1x1",
}  # fmt: skip
_RISE = {"warmup_steps": 1000, "warmup_every": 50}
_AST_BALANCED: dict[str, Any] = {
    **_AST, **_RISE, "epochs": 25, "batch": 12, "lr": 5e-5, "decay": 0.5, "decay_from": 10, "decay_every": 5,
    "average": (6, 25), **_masked(48, 192, 1024), **_heard(mixup=0.5),
}  # fmt: skip
_AUDIOSET = {"loss": "sigmoid_mean", "validation_splits": ("test",)}

# MAT: what its paper says (AdamW, lr, batch, epochs) and for the rest MViTv2-B; what is done to sound is AST's. Its 30
# epochs of warm-up are a tenth of the epochs here, and pictures' mixup is AST's (ours).
_MAT: dict[str, Any] = {
    "batch": 64, "optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.05, "floor": 0.01, "clip_where": "mean",
    "stochastic_depth": 0.3, "overrides": {"dropout": 0.5}, "precision": "bf16", "views": "1x1",
    **_masked(48, 192, 1024), **_heard(mixup=0.5),
}  # fmt: skip

RECIPES: dict[str, dict[str, Any]] = {
    "ast_audioset": {
        **_AST, **_RISE, **_AUDIOSET, "epochs": 5, "batch": 12, "lr": 1e-5, "decay": 0.5, "decay_from": 2,
        "average": (1, 5), "sampling": "balanced", **_masked(48, 192, 1024), **_heard(mixup=0.5),
    },
    "ast_audioset_balanced": {**_AST_BALANCED, **_AUDIOSET},
    "ast": _AST_BALANCED,  # of other recordings of about ten seconds (ours)
    "ast_esc50": {  # from weights of AudioSet
        **_AST, "epochs": 25, "batch": 48, "lr": 1e-5, "decay": 0.85, "decay_from": 5, **_clip(5, 512, "esc50"),
        **_masked(24, 96, 512),
    },
    "ast_esc50_imagenet": {  # from weights of pictures alone
        **_AST, "epochs": 25, "batch": 48, "lr": 1e-4, "decay": 0.85, "decay_from": 5, **_clip(5, 512, "esc50"),
        **_masked(24, 96, 512),
    },
    "ast_speech_commands": {
        **_AST, "epochs": 30, "batch": 128, "lr": 2.5e-4, "decay": 0.85, "decay_from": 5, "loss": "sigmoid_mean",
        **_clip(1, 128, "speech_commands"), **_masked(48, 48, 128), **_heard(mixup=0.6, noise=0.1, roll=10),
    },
    "mat": {**_MAT, "epochs": 50, "warmup": 5.0},  # VGGSound
    "mat_epic_kitchens": {**_MAT, "epochs": 100, "warmup": 10.0},
    "mat_kinetics_sounds": {**_MAT, "epochs": 300, "warmup": 30.0},
    # ours, for a few hundred sounds, decoded once: every clip another part of its recording
    "esc10": {
        "epochs": 60, "batch": 32, "optimizer": "adamw", "lr": 1e-3, "betas": (0.9, 0.98), "weight_decay": 0.05,
        "warmup": 5.0, "cache": "memory", "workers": 0, "views": "10x1", "eval_every": 20, "save_every": 50,
        **_heard(mixup=0.5, gain=0.5, time_masks=1, frequency_share=0.2, time_share=0.2),
    },
}  # fmt: skip

# (family, dataset) to a recipe, as in `encoders.recipes`
CHOICES: dict[tuple[str, str], str] = {
    ("ast", ""): "ast",
    ("ast", "audioset"): "ast_audioset",
    ("ast", "audioset_500k"): "ast_audioset",
    ("ast", "audioset_balanced"): "ast_audioset_balanced",
    ("ast", "esc10"): "ast_esc50",
    ("ast_tiny", "esc10"): "esc10",
    ("mat", ""): "mat",
    ("mat", "epic_kitchens"): "mat_epic_kitchens",
    ("mat", "kinetics_sounds"): "mat_kinetics_sounds",
    ("", "esc10"): "esc10",
}
