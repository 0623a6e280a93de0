"""The columns of models that see and hear at once: M&M (Xiong et al., 2022), MMT (Zhu, 2024), MBT (Nagrani et al.,
2021), and ours for words and emotions of a few people.
"""

from typing import Any

from encoders.recipe_tables.video import LIPS, MTV, augmented

__all__ = ["CHOICES", "RECIPES"]

# MMT: the paper's table of settings, the rest as MViTv2 on Kinetics, whose two readings of a clip are the two views
# that are contrasted. Mixup, which would leave clips without a class to contrast by, is off; the paper does not say.
# Nor does it say how 16 frames lie in a clip: spread over it. A tenth of the epochs warms up: 30 of 50 would be long.
_MMT: dict[str, Any] = {
    "epochs": 50, "batch": 64, "repeats": 2, "optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.05, "warmup": 5.0,
    "floor": 1e-2, "clip": 1.0, "clip_where": "mean", "stochastic_depth": 0.3, "smoothing": 0.1, "stride": 0,
    "views": "5x1",
    **augmented(rand_layers=4, rand_magnitude=7.0, area=(0.08, 1.0), colour=0.4, grayscale=0.0),
}  # fmt: skip
# Ours, for emotions of a few actors: 2 s of a sentence, the face by what moves in it, small data decoded once.
_EMOTIONS: dict[str, Any] = {
    **LIPS, "overrides": {"video.motion": True, "video.region": "face", "video.crop_share": 64 / 68, "clip_seconds": 2,
                          "audio.frames": 200},
    "repeats": 2, "epochs": 24, "batch": 16, "stride": 5, "views": "3x1", "smoothing": 0.1,
    "sound.gain": 0.5, "sound.frequency_share": 0.2, "sound.time_masks": 2, "sound.time_share": 0.2,
}  # fmt: skip
_MMT_WORDS: dict[str, Any] = {
    **LIPS, "overrides": {"video.motion": True, "video.region": "face", "video.crop_share": 64 / 68}, "repeats": 2,
    "sound.gain": 0.5, "sound.frequency_share": 0.2, "sound.time_masks": 1, "sound.time_share": 0.2,
}  # fmt: skip

# MBT on AudioSet's balanced split, as its public configuration has it (projects/mbt); elsewhere as the paper says.
_MBT: dict[str, Any] = {
    "epochs": 50, "lr": 0.5, "mixup": 0.5, "smoothing": 0.3, "stochastic_depth": 0.3, "views": "4x1",
}  # fmt: skip
_MBT_PAPER: dict[str, Any] = {**_MBT, "mixup": 0.3, "smoothing": 0.0}
_MBT_COLUMNS = {
    "audioset": _MBT,
    "audioset_500k": {**_MBT_PAPER, "epochs": 30},
    "vggsound": _MBT_PAPER,
    "epic_kitchens": {**_MBT_PAPER, "smoothing": 0.3},
}
_SPREAD = {"stride": 25}  # 8 pictures over the 8 s that are heard

RECIPES: dict[str, dict[str, Any]] = {
    **{f"mbt_{name}": column for name, column in _MBT_COLUMNS.items()},
    **{f"mbt_8_{name}": {**column, **_SPREAD} for name, column in _MBT_COLUMNS.items()},
    # of 2 s of a sentence
    "mbt_emotions": {
        **LIPS, "overrides": {"video.motion": True, "video.region": "face", "video.crop_share": 64 / 68,
                              "video.clip_seconds": 2, "audio.clip_seconds": 2, "audio.frames": 200},
        "epochs": 80, "batch": 16, "eval_every": 20, "save_every": 20, "stride": 5, "smoothing": 0.1, "views": "3x1",
        "sound.gain": 0.5, "sound.frequency_share": 0.2, "sound.time_masks": 2, "sound.time_share": 0.2,
    },
    "mbt_words": {
        **LIPS, "overrides": {"video.motion": True, "video.region": "face", "video.crop_share": 64 / 68},
        "sound.gain": 0.5, "sound.frequency_share": 0.2, "sound.time_masks": 1, "sound.time_share": 0.2,
    },
    "mmt_vggsound": _MMT,
    "mmt_kinetics_sounds": {**_MMT, "epochs": 300, "warmup": 30.0},
    "mmt_epic_kitchens": {**_MMT, "epochs": 100, "warmup": 10.0},
    "mmt_emotions": _EMOTIONS,
    "mmt_words": _MMT_WORDS,
    # M&M: trained as MTV is on Epic-Kitchens, from MTV-B's weights; what is done to sound is PolyViT's (ours)
    "mm_mix_epic_kitchens": {
        **MTV, "epochs": 80, "batch": 128, "lr": 0.2, "smoothing": 0.2, "stride": 1, "views": "4x1",
        **augmented(rand_layers=3, rand_magnitude=10.0),
    },
    # and elsewhere as MTV-B on Kinetics, every picture looked at, as many as its clip has
    "mm_mix": {**MTV, "stride": 1},
    # words from the mouth and from the word's sound
    "lips_sound": {
        **LIPS, "sound.gain": 0.5, "sound.frequency_share": 0.2, "sound.time_masks": 1, "sound.time_share": 0.2,
    },
}  # fmt: skip

CHOICES: dict[tuple[str, str], str] = {
    ("mbt", ""): "mbt_vggsound",
    ("mbt_base_8", ""): "mbt_8_vggsound",
    **{("mbt", name): f"mbt_{name}" for name in _MBT_COLUMNS},
    **{("mbt_base_8", name): f"mbt_8_{name}" for name in _MBT_COLUMNS},
    ("mbt", "audioset_balanced"): "mbt_audioset",
    ("mbt_base_8", "audioset_balanced"): "mbt_8_audioset",
    ("mbt", "java_sed"): "mbt_emotions",
    **{("mbt", f"grid_{name}"): "mbt_words" for name in ("digits", "commands", "lips", "words")},
    ("mmt", ""): "mmt_vggsound",
    ("mmt", "kinetics_sounds"): "mmt_kinetics_sounds",
    ("mmt", "epic_kitchens"): "mmt_epic_kitchens",
    ("mmt", "java_sed"): "mmt_emotions",
    **{("mmt", f"grid_{name}"): "mmt_words" for name in ("digits", "commands", "lips", "words")},
    ("mm_mix", ""): "mm_mix",
    ("mm_mix", "epic_kitchens"): "mm_mix_epic_kitchens",
    **{("mm_mix", f"grid_{name}"): "lips_sound" for name in ("digits", "commands", "lips", "words")},
}
