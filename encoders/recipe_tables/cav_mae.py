"""CAV-MAE's pre-training and fine-tuning: the published columns, and runs for small data, by name.

Gong et al., "Contrastive Audio-Visual Masked Autoencoder" (ICLR 2023), and the public code (YuanGongND/cav-mae). What a
pre-training recipe does not name are the defaults of `encoders.pretrain_cav_mae.CAVMAERun`, the paper's Base. The
published runs share a batch by four devices, each of which contrasts what it sees: ``accumulate=4`` does so on one.
"""

from typing import Any

from encoders.recipe_tables.video import LIPS, augmented

__all__ = ["CHOICES", "DECODERS", "FINETUNED", "FINETUNED_CHOICES", "RECIPES"]

# --- pre-training -----------------------------------------------------------------------------------------------

# Ours: a few hundred recordings, decoded once; fewer of few tokens are hidden, and more weight lies on the contrast.
_SMALL: dict[str, Any] = {
    "epochs": 200, "batch": 32, "lr": 1e-3, "decay_from": 100, "decay_every": 25, "precision": "fp32",
    "cache": "memory", "workers": 0, "save_every": 20, "reading.fps": 25, "reading.sound.roll": 0,
    "objective.hidden_video": 0.5, "objective.hidden_audio": 0.5, "objective.contrast": 0.1,
}  # fmt: skip

RECIPES: dict[str, dict[str, Any]] = {
    "cav_mae_base": {},
    "cav_mae_scale_plus": {"lr": 1e-4, "batch": 120},
    "cav_mae_scale_plus_plus": {"lr": 2e-4, "batch": 256},  # as released, which is its epoch 21
    "cav_mae_vggsound": {"lr": 1e-4, "batch": 120},
    "cav_mae_small": _SMALL,
}

# (beginning of a preset, dataset) to a recipe; the longest beginning counts, "" is any dataset.
CHOICES: dict[tuple[str, str], str] = {
    ("cav_mae", ""): "cav_mae_base",
    ("cav_mae", "vggsound"): "cav_mae_vggsound",
    ("cav_mae_tiny", ""): "cav_mae_small",
}

# By the beginning of a preset: the decoder of its size.
DECODERS: dict[str, dict[str, int]] = {
    "cav_mae_base": {},
    "cav_mae_tiny": {"dim": 64, "depth": 2, "heads": 4, "mlp_dim": 256},
}

# --- fine-tuning ------------------------------------------------------------------------------------------------

# One picture of each second, any of them in training, the mean over all ten in a test.
_FINETUNED: dict[str, Any] = {
    "optimizer": "adam", "betas": (0.95, 0.999), "weight_decay": 5e-7, "clip": 0.0, "precision": "bf16",
    "schedule": "step", "warmup": 0.0, "decay": 0.5, "smoothing": 0.1, "stride": 1, "fps": 1, "views": "10x1",
    **augmented(mirror=0.0, scale=(1.0, 1.0), colour=0.0, grayscale=0.0),
    "sound.frequency_masks": 1, "sound.frequency_share": 48 / 128, "sound.time_masks": 1,
    "sound.time_share": 192 / 1024, "sound.warp": 0, "sound.fill": "zero", "sound.noise": 0.1, "sound.roll": 1024,
    "sound.mixup": 0.5,
}  # fmt: skip
_MULTI = {"loss": "sigmoid_mean", "validation_splits": ("test",)}

FINETUNED: dict[str, dict[str, Any]] = {
    "cav_mae_audioset_balanced": {
        **_FINETUNED, **_MULTI, "lr": 5e-5, "head_lr": 100.0, "batch": 36, "epochs": 15, "decay_from": 5,
        "average": (3, 15),
    },
    "cav_mae_audioset": {
        **_FINETUNED, **_MULTI, "lr": 1e-5, "head_lr": 50.0, "batch": 48, "epochs": 10, "decay_from": 2,
        "average": (1, 10), "sampling": "balanced",
    },
    "cav_mae_finetune_vggsound": {
        **_FINETUNED, "validation_splits": ("test",), "lr": 1e-4, "head_lr": 10.0, "batch": 48, "epochs": 10,
        "decay_from": 2, "average": (3, 10), "sampling": "balanced",
    },
    # ours, for emotions and words of a few people: the face, small data decoded once
    "cav_mae_faces": {
        **LIPS, "overrides": {"video.region": "face", "video.crop_share": 64 / 68}, "epochs": 40, "stride": 2,
        "sound.gain": 0.5, "sound.frequency_share": 0.2, "sound.time_masks": 1, "sound.time_share": 0.2, "views": "4x1",
    },
}  # fmt: skip

FINETUNED_CHOICES: dict[tuple[str, str], str] = {
    ("cav_mae", ""): "cav_mae_finetune_vggsound",
    ("cav_mae", "audioset"): "cav_mae_audioset",
    ("cav_mae", "audioset_500k"): "cav_mae_audioset",
    ("cav_mae", "audioset_balanced"): "cav_mae_audioset_balanced",
    **{("cav_mae_tiny", name): "cav_mae_faces"
       for name in ("java_sed", "grid_digits", "grid_commands", "grid_lips", "grid_words")},
}  # fmt: skip
