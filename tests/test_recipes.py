"""The papers' columns as presets: values as published, chosen by encoder and dataset."""

import pytest

from encoders import cotrain
from encoders.cotrain_recipes import TASKS, run_of
from encoders.errors import ConfigError, UsageError
from encoders.recipes import RECIPES, FinetuneConfig, recipe, recipe_name
from encoders.registry import ENCODERS, config_of
from encoders.settings import from_dict, to_dict


def of(preset, dataset, **changes):
    return recipe(preset, f"{dataset}:x", **changes)


@pytest.mark.parametrize(
    ("preset", "dataset", "name"),
    [
        ("vivit_b_16x2", "kinetics400", "vivit_kinetics400"),
        ("vivit_b_16x2_fe", "kinetics400", "vivit_kinetics400_fe_b"),
        ("vivit_l_16x2_fe", "kinetics400", "vivit_kinetics400"),
        ("vivit_l_16x2_320", "kinetics600", "vivit_kinetics600"),
        ("vivit_l_16x2", "moments", "vivit_moments"),
        ("vivit_l_16x2_fe", "epic_kitchens", "vivit_epic_kitchens"),
        ("vivit_l_16x2_fe", "ssv2", "vivit_ssv2"),
        ("mtv_b", "kinetics600", "mtv_b_kinetics600"),
        ("mtv_b", "kinetics700", "mtv_b_kinetics700"),
        ("mtv_l", "kinetics700", "mtv_l_kinetics"),
        ("mtv_l", "moments", "mtv_l_moments"),
        ("token_learner_b_16", "imagenet", "token_learner_imagenet"),
        ("vivit_tiny", "grid_digits", "lips_vivit"),
        ("token_learner_tiny", "grid_lips", "lips_tokens"),
        ("mvitv2_tiny", "grid_lips", "lips"),
        ("mvitv2_s_16x4", "kinetics600", "mvitv2_s_kinetics"),
        ("mvitv2_b_32x3", "ssv2", "mvitv2_b_ssv2"),
        ("mvitv2_base", "kinetics400", "mvitv2_b_kinetics"),
        ("mvitv2_b_16x4", "kinetics400", "mvitv2_b_16_kinetics"),
        ("mvitv2_b_image", "imagenet", "mvitv2_imagenet"),
        ("mat_base", "vggsound", "mat"),
        ("mat_base", "kinetics_sounds", "mat_kinetics_sounds"),
        ("r2plus1d_tiny", "grid_digits", "words"),
        ("r2plus1d_18", "kinetics400", "vivit_kinetics400"),
    ],
)
def test_encoder_and_dataset_choose_the_column(preset, dataset, name):
    assert recipe_name(preset, f"{dataset}:x") == name


def test_mvitv2_is_trained_as_published():
    small, base = of("mvitv2_s_16x4", "kinetics400"), of("mvitv2_b_32x3", "kinetics400")
    assert (base.epochs, base.warmup, base.batch, base.repeats, base.lr, base.floor) == (200, 30, 16, 2, 1e-4, 0.01)
    assert (base.optimizer, base.betas, base.weight_decay, base.clip) == ("adamw", (0.9, 0.999), 0.05, 1.0)
    assert (base.mixup, base.cutmix, base.smoothing, base.augment.erase) == (0.8, 1.0, 0.1, 0.25)
    assert (base.augment.area, base.augment.rand_layers, base.augment.rand_magnitude) == ((0.08, 1.0), 4, 7)
    assert (small.stride, base.stride, base.fps, base.views) == (4, 3, 30, "5x1")
    assert (small.encoder, base.encoder) == (
        {"dropout": 0.5, "stochastic_depth": 0.2}, {"dropout": 0.5, "stochastic_depth": 0.3}
    )  # fmt: skip
    ssv2 = of("mvitv2_b_32x3", "ssv2")
    assert (ssv2.stride, ssv2.views, ssv2.augment.mirror) == (0, "1x3", 0)
    image = of("mvitv2_b_image", "imagenet")
    assert (image.epochs, image.warmup, image.lr, image.repeats) == (300, 70, 2.5e-4, 1)


def test_mat_is_trained_as_its_paper_says():
    sounds = of("mat_base", "kinetics_sounds")
    assert (sounds.epochs, sounds.batch, sounds.optimizer, sounds.lr) == (300, 64, "adamw", 1e-4)
    assert (of("mat_base", "vggsound").epochs, of("mat_base", "epic_kitchens").epochs) == (50, 100)
    assert (sounds.weight_decay, sounds.clip, sounds.encoder["stochastic_depth"]) == (0.05, 1, 0.3)


def test_vivit_is_trained_as_published():
    k400, fe = of("vivit_b_16x2", "kinetics400"), of("vivit_b_16x2_fe", "kinetics400")
    assert (k400.epochs, k400.batch, k400.lr, fe.lr, k400.warmup) == (30, 64, 0.1, 0.05, 2.5)
    assert (k400.optimizer, k400.momentum, k400.weight_decay) == ("sgd", 0.9, 0)
    assert (k400.clip, k400.clip_where) == (1, "process")
    assert (k400.stride, k400.fps, k400.views, k400.schedule) == (2, 25, "4x3", "cosine")
    augment = k400.augment
    assert (augment.mirror, augment.scale, augment.colour, augment.grayscale) == (0.5, (0.9, 1.33), 0.8, 0.1)
    assert (k400.smoothing, k400.mixup, augment.rand_layers, k400.stochastic_depth) == (0, 0, 0, None)
    moments = of("vivit_l_16x2", "moments")
    assert (moments.epochs, moments.lr) == (10, 0.25)
    epic = of("vivit_l_16x2_fe", "epic_kitchens")
    assert (epic.epochs, epic.lr, epic.stride, epic.smoothing, epic.mixup, epic.views) == (50, 0.5, 1, 0.2, 0.1, "4x1")
    assert (epic.augment.rand_layers, epic.augment.rand_magnitude, epic.encoder["stochastic_depth"]) == (2, 15, 0.2)
    ssv2 = of("vivit_l_16x2_fe", "ssv2")
    assert (ssv2.epochs, ssv2.lr, ssv2.stride, ssv2.smoothing, ssv2.mixup) == (35, 0.4, 1, 0.3, 0.3)
    assert ssv2.short_side == 288
    assert (ssv2.augment.mirror, ssv2.augment.rand_magnitude, ssv2.encoder["stochastic_depth"]) == (0, 20, 0.3)
    assert config_of(ssv2.preset, **ssv2.encoder).size == 256
    assert config_of("vivit_l_16x2_320").size == 320


def test_mtv_is_trained_as_published():
    rows = {
        "mtv_b": {"kinetics400": (30, 64, 0.1), "kinetics600": (30, 64, 0.2), "kinetics700": (30, 64, 0.1),
                  "epic_kitchens": (80, 128, 0.2), "ssv2": (60, 256, 0.2)},
        "mtv_l": {"kinetics600": (30, 64, 0.1), "kinetics700": (30, 64, 0.1), "moments": (20, 256, 0.2)},
    }  # fmt: skip
    for preset, columns in rows.items():
        for dataset, (epochs, batch, lr) in columns.items():
            config = of(preset, dataset)
            assert (config.epochs, config.batch, config.lr) == (epochs, batch, lr), (preset, dataset)
    depth = {d: of("mtv_b", d).stochastic_depth for d in ("kinetics400", "kinetics700", "epic_kitchens", "ssv2")}
    assert depth == {"kinetics400": 0.1, "kinetics700": 0.0, "epic_kitchens": 0.1, "ssv2": 0.1}
    assert of("mtv_l", "kinetics700").stochastic_depth == 0.1
    epic, ssv2, moments = of("mtv_b", "epic_kitchens"), of("mtv_b", "ssv2"), of("mtv_l", "moments")
    assert (epic.encoder["frames"], epic.augment.rand_layers, epic.augment.rand_magnitude) == (64, 3, 10)
    assert (ssv2.encoder["frames"], ssv2.augment.rand_layers, ssv2.augment.rand_magnitude) == (48, 1, 15)
    assert (ssv2.mixup, ssv2.smoothing, ssv2.augment.mirror) == (0.3, 0.2, 0)
    assert (moments.stride, moments.mixup, moments.augment.rand_layers, moments.views) == (3, 0.2, 0, "1x3")


def test_token_learner_is_trained_as_published():
    preset = next(name for name in ENCODERS if name.startswith("token_learner") and config_of(name).frames == 1)
    config = of(preset, "imagenet")
    assert (config.optimizer, config.lr, config.weight_decay, config.batch) == ("adamw", 5e-3, 0.3, 4096)
    assert (config.epochs, config.warmup_steps, config.schedule, config.loss) == (90, 10_000, "linear", "sigmoid")
    assert config.floor * config.lr == pytest.approx(1e-5)
    assert config.encoder["head_bias"] == -10


def test_polyvit_s_tasks_are_the_table_s():
    table = {
        "imagenet": (512, 0.03, 20_000), "cifar100": (512, 0.03, 10_000), "cifar10": (512, 0.03, 10_000),
        "pets": (512, 0.03, 500), "resisc45": (512, 0.1, 2_500), "kinetics400": (64, 0.1, 30),
        "moments": (64, 0.25, 10), "audioset_balanced": (64, 0.5, 50), "vggsound": (64, 0.5, 50),
    }  # fmt: skip
    run = run_of("polyvit_base", [f"{name}:x" for name in table])
    for task in run.tasks:
        batch, lr, length = table[task.name]
        assert (task.batch, task.lr, task.steps or task.epochs) == (batch, lr, length), task.name
    by_name = {task.name: task for task in run.tasks}
    assert all(t.loss == "sigmoid" and t.clip_where == "mean" for t in run.tasks if t.modality == "image")
    assert [by_name[n].mixup for n in ("audioset_balanced", "vggsound", "kinetics400")] == [0.3, 0.3, 0]
    assert [by_name[n].stochastic_depth for n in ("vggsound", "moments")] == [0.3, 0]
    assert (run.momentum, run.momentum_precision, run.plan.schedule) == (0.9, "bf16", "weighted")
    spec = by_name["vggsound"].spec_augment
    assert (spec.frequency_masks, spec.frequency_width) == (1, 48)
    assert (spec.time_masks, spec.time_width, spec.warp) == (4, 48, 1)


def test_the_published_run_is_as_long_as_the_paper_s():
    """417 920 steps, 47 330 of them warm-up, from the published sizes of the training sets."""
    sizes = {"kinetics400": 214_834, "moments": 791_297, "audioset_balanced": 20_361, "vggsound": 172_427}
    images = ("imagenet", "cifar100", "cifar10", "pets", "resisc45")
    run = run_of("polyvit_base", [f"{name}:x" for name in (*images, *sizes)])
    tasks = [cotrain._Task(task, None, range(sizes.get(task.name, 512)), ()) for task in run.tasks]
    assert sum(task.steps for task in tasks) == 417_920
    assert cotrain._warmup(tasks) == pytest.approx(47_330, abs=5)


def test_data_names_a_modality_and_keys_reach_a_task():
    run = run_of("polyvit_tiny", ["grid_digits", "audio=grid_digits"], **{"batch": 8, "grid_digits_audio.lr": 0.2})
    assert [(t.name, t.modality, t.batch, t.lr) for t in run.tasks] == [
        ("grid_digits", "video", 8, 0.05),
        ("grid_digits_audio", "audio", 8, 0.2),
    ]
    changed = run_of("polyvit_tiny", ["esc10"], **{"plan.schedule": "uniform", "model.depth": "2"})
    assert (changed.plan.schedule, changed.overrides) == ("uniform", {"depth": 2})
    with pytest.raises(UsageError, match="asks for modality 'smell'"):
        run_of("polyvit_tiny", ["smell=esc10"])
    with pytest.raises(ConfigError, match="task esc10 is given twice"):
        run_of("polyvit_tiny", ["esc10", "esc10"])
    with pytest.raises(UsageError, match="did you mean esc10"):
        run_of("polyvit_tiny", ["esc1"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_sound_and_is_read_back(name):
    preset = "mtv_b" if name.startswith("mtv") else "vivit_b_16x2_fe"
    config = recipe(preset, "kinetics400:x", name=name)
    assert from_dict(FinetuneConfig, to_dict(config)) == config


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_sound(task):
    assert run_of("polyvit_tiny", [task]).tasks[0].name == task


def test_contradictions_are_one_sentence():
    with pytest.raises(UsageError, match="recipe 'vivit_kinetics40' is unknown; did you mean vivit_kinetics400"):
        recipe("vivit_tiny", "kinetics400:x", name="vivit_kinetics40")
    with pytest.raises(ConfigError, match=r"preset r2plus1d_tiny has no stochastic depth to set to 0.5"):
        recipe("r2plus1d_tiny", "kinetics400:x", stochastic_depth=0.5)
    with pytest.raises(ConfigError, match=r"ema 1.0 must lie in"):
        recipe("vivit_tiny", "kinetics400:x", ema=1.0)
    assert recipe("r2plus1d_tiny", "epic_kitchens:x").encoder == {}  # a recipe's own is left out where it cannot be
