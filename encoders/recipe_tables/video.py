"""The columns of video models: ViViT (Arnab et al., ICCV 2021), MTV (Yan et al., CVPR 2022) and TokenLearner (Ryoo et
al., NeurIPS 2021), with the values of google-research/scenic where code and appendix differ; MViTv2 (Li et al., CVPR
2022) with those of facebookresearch/SlowFast; and ours for lips.
"""

from typing import Any

__all__ = ["CHOICES", "LIPS", "MTV", "RECIPES", "augmented"]


def augmented(**changes: Any) -> dict[str, Any]:
    """What is done to training pictures, as settings of a run."""
    return {f"augment.{name}": value for name, value in changes.items()}


_RAND_2_15 = augmented(rand_layers=2, rand_magnitude=15.0)
_SSV2 = {"stride": 1, **augmented(mirror=0.0)}
MTV = {"stochastic_depth": 0.1}
_IMAGE = {"views": "1x1", "stride": 1, "clip_where": "mean", **augmented(colour=0.0, grayscale=0.0, area=(0.05, 1.0))}
# MViTv2 from nothing. A batch is that of a machine of eight devices: the public code multiplies lr by the number of
# machines. Its RandAugment also moves the picture and draws magnitudes around 7; ours (scenic's) does neither. Its
# warm-up starts at a hundredth of lr, ours at nothing.
_MVITV2: dict[str, Any] = {
    "epochs": 200, "batch": 16, "repeats": 2, "optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.05, "warmup": 30.0,
    "floor": 0.01, "clip_where": "mean", "smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "fps": 30, "views": "5x1",
    "overrides": {"dropout": 0.5}, "stochastic_depth": 0.3,
    **augmented(area=(0.08, 1.0), colour=0.0, grayscale=0.0, rand_layers=4, rand_magnitude=7.0, erase=0.25),
}  # fmt: skip
LIPS: dict[str, Any] = {
    "overrides": {"motion": True, "region": "face", "crop_share": 64 / 68},
    "stride": 0, "epochs": 24, "batch": 32, "optimizer": "adamw", "lr": 1e-3, "betas": (0.9, 0.98),
    "weight_decay": 0.05, "warmup": 2.5, "cache": "memory", "workers": 0, "views": "1x1", "eval_every": 6,
    "save_every": 12,
    **augmented(scale=(1.0, 1.0), colour=0.0, grayscale=0.0, mirror=0.5),
}  # fmt: skip

RECIPES: dict[str, dict[str, Any]] = {
    # ViViT, the columns of its training table (google-research/scenic, projects/vivit/configs)
    "vivit_kinetics400": {},
    "vivit_kinetics400_fe_b": {"lr": 0.05},
    "vivit_kinetics600": {"lr": 0.05},
    "vivit_moments": {"epochs": 10, "lr": 0.25},
    "vivit_epic_kitchens": {
        "epochs": 50, "lr": 0.5, "stride": 1, "views": "4x1",
        "stochastic_depth": 0.2, "smoothing": 0.2, "mixup": 0.1, **_RAND_2_15,
    },
    "vivit_ssv2": {
        **_SSV2, "epochs": 35, "lr": 0.4, "stochastic_depth": 0.3, "smoothing": 0.3, "mixup": 0.3,
        "overrides": {"size": 256, "crop_share": 256 / 288}, "short_side": 288,
        **augmented(rand_layers=2, rand_magnitude=20.0),
    },
    # MTV (projects/mtv/configs)
    "mtv_b_kinetics400": {**MTV},
    "mtv_b_kinetics600": {**MTV, "lr": 0.2},
    "mtv_b_kinetics700": {"stochastic_depth": 0.0},
    "mtv_l_kinetics": {**MTV},
    "mtv_l_moments": {**MTV, "epochs": 20, "batch": 256, "lr": 0.2, "mixup": 0.2, "stride": 3, "views": "1x3"},
    "mtv_b_epic_kitchens": {
        **MTV, "epochs": 80, "batch": 128, "lr": 0.2, "smoothing": 0.2, "stride": 1, "views": "4x1",
        "overrides": {"frames": 64}, **augmented(rand_layers=3, rand_magnitude=10.0),
    },
    "mtv_b_ssv2": {
        **MTV, **_SSV2, "epochs": 60, "batch": 256, "lr": 0.2, "smoothing": 0.2, "mixup": 0.3,
        "overrides": {"frames": 48}, **augmented(rand_layers=1, rand_magnitude=15.0),
    },
    # TokenLearner (projects/token_learner/configs): B/16 from scratch on ImageNet, sigmoids
    "token_learner_imagenet": {
        **_IMAGE, "epochs": 90, "batch": 4096, "optimizer": "adamw", "lr": 5e-3, "weight_decay": 0.3,
        "schedule": "linear", "warmup_steps": 10_000, "floor": 1e-5 / 5e-3, "loss": "sigmoid",
        "overrides": {"head_bias": -10.0},
    },
    # ViT's fine-tuning protocol, which the paper says it follows (Dosovitskiy et al., ICLR 2021, table 4)
    "token_learner_imagenet_finetune": {
        **_IMAGE, "steps": 20_000, "batch": 512, "lr": 0.03, "warmup_steps": 500,
    },
    "token_learner_kinetics": {},
    # MViTv2 (configs/Kinetics and ImageNet of SlowFast); on Something-Something from Kinetics' weights
    "mvitv2_s_kinetics": {**_MVITV2, "stride": 4, "stochastic_depth": 0.2},
    "mvitv2_b_kinetics": {**_MVITV2, "stride": 3},
    "mvitv2_b_16_kinetics": {**_MVITV2, "stride": 4},
    "mvitv2_s_ssv2": {**_MVITV2, "stride": 0, "stochastic_depth": 0.2, "views": "1x3", **augmented(mirror=0.0)},
    "mvitv2_b_ssv2": {**_MVITV2, "stride": 0, "views": "1x3", **augmented(mirror=0.0)},
    "mvitv2_imagenet": {
        **_MVITV2, "epochs": 300, "warmup": 70.0, "batch": 256, "repeats": 1, "lr": 2.5e-4, "floor": 0.004,
        "views": "1x1", "stride": 1, "overrides": {}, **augmented(rand_layers=6, rand_magnitude=9.0),
    },
    # ours, for single words seen on a face: small data, decoded once
    "words": {
        "stride": 1, "epochs": 60, "batch": 32, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "warmup": 5.0,
        "cache": "memory", "workers": 0, "smoothing": 0.1, "views": "3x1", "eval_every": 5, "save_every": 10,
        **augmented(scale=(0.9, 1.1), colour=0.8, grayscale=0.0, mirror=0.5),
    },
    # the same from the mouth that a face net finds, by what moves in it: a transformer learns nothing from the rest
    "lips": LIPS,
    # patches of 8 pixels are slower to learn from
    "lips_tokens": {**LIPS, "epochs": 48},
    "lips_vivit": {**LIPS, "overrides": {**LIPS["overrides"], "pool": "mean"}},
}  # fmt: skip

# (family, dataset) to a recipe; the family's longest match counts, "" is any dataset.
CHOICES: dict[tuple[str, str], str] = {
    ("vivit", ""): "vivit_kinetics400",
    ("vivit_b_16x2_fe", "kinetics400"): "vivit_kinetics400_fe_b",
    ("vivit", "kinetics600"): "vivit_kinetics600",
    ("vivit", "moments"): "vivit_moments",
    ("vivit", "epic_kitchens"): "vivit_epic_kitchens",
    ("vivit", "ssv2"): "vivit_ssv2",
    ("mtv", ""): "mtv_b_kinetics400",
    ("mtv", "kinetics600"): "mtv_b_kinetics600",
    ("mtv", "kinetics700"): "mtv_b_kinetics700",
    ("mtv", "epic_kitchens"): "mtv_b_epic_kitchens",
    ("mtv", "ssv2"): "mtv_b_ssv2",
    ("mtv_l", ""): "mtv_l_kinetics",
    ("mtv_h", ""): "mtv_l_kinetics",
    **{(family, f"kinetics{n}"): "mtv_l_kinetics" for family in ("mtv_l", "mtv_h") for n in (600, 700)},
    ("mtv_l", "moments"): "mtv_l_moments",
    ("mtv_h", "moments"): "mtv_l_moments",
    ("token_learner", ""): "token_learner_kinetics",
    ("token_learner", "imagenet"): "token_learner_imagenet",
    ("mvitv2", ""): "mvitv2_b_kinetics",
    ("mvitv2_b_16x4", ""): "mvitv2_b_16_kinetics",
    ("mvitv2_s", ""): "mvitv2_s_kinetics",
    ("mvitv2", "ssv2"): "mvitv2_b_ssv2",
    ("mvitv2_s", "ssv2"): "mvitv2_s_ssv2",
    ("mvitv2", "imagenet"): "mvitv2_imagenet",
    ("", ""): "vivit_kinetics400",
    **{(family, f"grid_{name}"): recipe
       for family, recipe in (("vivit", "lips_vivit"), ("mtv", "lips"), ("token_learner", "lips_tokens"),
                              ("mvitv2", "lips"))
       for name in ("digits", "commands", "lips", "words")},
    ("", "grid_words"): "words",
    ("", "grid_lips"): "words",
    ("", "grid_digits"): "words",
    ("", "grid_commands"): "words",
}
