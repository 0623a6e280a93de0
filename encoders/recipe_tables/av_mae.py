"""The columns of AV-MAE's fine-tuning (Georgescu et al., ICCV 2023; google-research/scenic, projects/av_mae/configs).

A column goes by the dataset that is classified, whatever was pre-trained on: the paper's transfer is ``--init`` with
the folder of a run on other data. EPIC-KITCHENS has VGGSound's values (ours: its configuration is not public).
"""

from typing import Any

__all__ = ["CHOICES", "RECIPES"]

_VGGSOUND: dict[str, Any] = {
    "epochs": 50, "batch": 64, "lr": 0.8, "layer_decay": 0.75, "clip": 1.0, "clip_where": "mean", "smoothing": 0.3,
    "stochastic_depth": 0.3, "overrides": {"mixmod": 0.5}, "views": "4x1",
}  # fmt: skip
_AUDIOSET: dict[str, Any] = {
    **_VGGSOUND, "batch": 128, "lr": 1.6,
    "sound.frequency_masks": 2, "sound.frequency_share": 36 / 128, "sound.time_share": 48 / 992, "sound.roll": 496,
}  # fmt: skip

RECIPES: dict[str, dict[str, Any]] = {
    "mbt_av_mae_vggsound": _VGGSOUND,
    "mbt_av_mae_audioset": _AUDIOSET,
    "mbt_av_mae_epic_kitchens": _VGGSOUND,
}

CHOICES: dict[tuple[str, str], str] = {
    ("mbt_av_mae", ""): "mbt_av_mae_vggsound",
    ("mbt_av_mae", "vggsound"): "mbt_av_mae_vggsound",
    ("mbt_av_mae", "epic_kitchens"): "mbt_av_mae_epic_kitchens",
    **{("mbt_av_mae", name): "mbt_av_mae_audioset" for name in ("audioset", "audioset_balanced", "audioset_500k")},
}
