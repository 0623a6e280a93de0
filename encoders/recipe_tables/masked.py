"""AV-MAE's pre-training: the published columns, the sweep of epochs, and a run for small data, by name.

Georgescu et al. (ICCV 2023) and google-research/scenic (projects/av_mae/configs). What a recipe does not name is
VGGSound's, the defaults of `encoders.pretrain_mae.PretrainConfig`.
"""

from typing import Any

__all__ = ["CHOICES", "DECODERS", "RECIPES"]

_AUDIOSET: dict[str, Any] = {"epochs": 120, "lr": 6e-4, "objective.hidden_audio": 0.7}
# Ours: a few hundred recordings, decoded once; less is hidden of few tokens, and targets of unit variance are learned
# from in minutes.
_SMALL: dict[str, Any] = {
    "epochs": 200, "batch": 32, "lr": 1e-3, "warmup": 10.0, "clip": 1.0, "cache": "memory", "workers": 0,
    "save_every": 20, "reading.stride": 1, "objective.hidden_video": 0.75, "objective.hidden_audio": 0.5,
}  # fmt: skip
# Words as `lips` shows them to a classifier: the mouth by what moves in it, one word a clip.
_WORDS: dict[str, Any] = {**_SMALL, "epochs": 20, "reading.stride": 0}

RECIPES: dict[str, dict[str, Any]] = {
    "av_mae_vggsound": {},
    "av_mae_audioset": _AUDIOSET,
    **{f"av_mae_vggsound_{epochs}": {"epochs": epochs} for epochs in (200, 400, 800, 1200)},
    "av_mae_small": _SMALL,
    "av_mae_words": {
        **_WORDS, "model.video.motion": True, "model.video.region": "face", "model.video.crop_share": 64 / 68,
    },
}  # fmt: skip

# (beginning of a preset, dataset) to a recipe; the longest beginning counts, "" is any dataset.
CHOICES: dict[tuple[str, str], str] = {
    ("av_mae", ""): "av_mae_vggsound",
    ("av_mae", "audioset"): "av_mae_audioset",
    ("av_mae", "audioset_500k"): "av_mae_audioset",
    ("av_mae_tiny", ""): "av_mae_small",
    **{("av_mae_tiny", f"grid_{name}"): "av_mae_words" for name in ("digits", "commands", "lips", "words")},
}

# By the beginning of a preset: the decoder of its size.
DECODERS: dict[str, dict[str, int]] = {
    "av_mae_base": {},
    "av_mae_large": {"dim": 512, "heads": 8, "mlp_dim": 2048},
    "av_mae_tiny": {"dim": 64, "depth": 2, "joint_depth": 1, "heads": 4, "mlp_dim": 256},
}
