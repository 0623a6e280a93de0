"""The columns of models that see and hear at once: M&M (Xiong et al., 2022), and ours for words with their sound."""

from typing import Any

from encoders.recipe_tables.video import LIPS, MTV, augmented

__all__ = ["CHOICES", "RECIPES"]

RECIPES: dict[str, dict[str, Any]] = {
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
    ("mm_mix", ""): "mm_mix",
    ("mm_mix", "epic_kitchens"): "mm_mix_epic_kitchens",
    **{("mm_mix", f"grid_{name}"): "lips_sound" for name in ("digits", "commands", "lips", "words")},
}
