"""CAV-MAE fine-tuned: in its three modes, from its own pre-training, with the head's learning rate and mixed clips."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from encoders.audio.log_mel import FRONTS
from encoders.classifier import build_classifier, load_encoder
from encoders.datasets.augment import Augment
from encoders.datasets.labelled import Look
from encoders.datasets.labelled_pairs import Hearing, LabelledPairs, Span, Spectrograms
from encoders.datasets.mixup import unmixed
from encoders.datasets.sample import Sample
from encoders.datasets.views import ClipSampling
from encoders.errors import ConfigError, SourceError
from encoders.finetune import finetune, make_optimizer
from encoders.pretrain_cav_mae import recipe as pretraining
from encoders.pretrain_mae import pretrain
from encoders.recipe_tables.cav_mae import FINETUNED
from encoders.recipes import recipe, recipe_name
from encoders.video.flow import FlowConfig
from tests.test_finetune_pairs import heard

SIZES = {"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
FEW = {"epochs": 2, "batch": 4, "workers": 0, "log_every": 1, "precision": "fp32", "average": (0, 0), "views": "2x1"}


def small(data: str, **changes):
    sizes = {f"model.{key}": value for key, value in SIZES.items()} | {"model.video.size": 32}
    return recipe("cav_mae_tiny", data, **{"validation_splits": ("val",), **FEW, **sizes, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return heard(tmp_path_factory.mktemp("heard"), train=4, val=2, deaf={("train", 2), ("val", 0)})


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_pre_trained_encoder_is_fine_tuned_and_serves(data, tmp_path):
    few = {"epochs": 1, "batch": 2, "workers": 0, "cache": "none", "model.video.size": 32,
           **{f"{part}.{key}": v for part in ("model", "decoder") for key, v in SIZES.items()}}  # fmt: skip
    pretrain(pretraining("cav_mae_tiny", "synthetic:4", **few), tmp_path / "pre")
    said: list[str] = []
    init = tmp_path / "pre" / "encoder.safetensors"
    out = finetune(small(data), tmp_path / "run", init=init, say=said.append)
    assert f"{init} without its head" in said[0]
    last = log(out)[-1]
    assert {"top1", "video_top1", "audio_top1"} <= set(last) and log(out)[0]["without_audio"] == 1
    with safe_open(out / "encoder.safetensors", "pt") as file:
        about = file.metadata()
    encoder = load_encoder(about["preset"], json.loads(about["config"]), load_file(out / "encoder.safetensors"))
    assert encoder.encode(torch.zeros(2, 6400), "audio").shape == (2, 16)


@pytest.mark.parametrize("mode", ["audio", pytest.param("video", marks=pytest.mark.slow)])
def test_one_modality_is_fine_tuned_by_itself(mode, data, tmp_path):
    sound = {"sound.mixup": 0.0} if mode == "video" else {}
    out = finetune(small(data, **{"model.mode": mode, "epochs": 1, "views": "1x1"}, **sound), tmp_path / "run")
    assert log(out)[-1]["top1"] >= 0
    weights = load_file(out / f"{mode}.safetensors")
    fresh, other = ("a", "v") if mode == "video" else ("v", "a")
    assert weights[f"blocks_{fresh}.0.norm1.weight"].eq(1).all()  # whatever the other modality had, it has
    assert not weights[f"blocks_{other}.0.norm1.weight"].eq(1).all()


def test_the_head_learns_faster():
    config = replace(small("kinetics400:x", average=(0, 0)), head_lr=10.0)
    model = build_classifier(config.preset, 3, config.encoder)
    groups = make_optimizer(config, model).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: group["scale"] for group in groups for p in group["params"]}
    assert {name for name, scale in scales.items() if scale == 10} == {
        f"mlp_head.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")
    }
    assert set(scales) == set(names.values())
    with pytest.raises(ConfigError, match=r"head_lr 0.0 must be more than 0"):
        replace(config, head_lr=0.0)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("cav_mae_audioset_balanced", (5e-5, 100, 36, 15, 5, (3, 15), "uniform", "sigmoid_mean")),
        ("cav_mae_audioset", (1e-5, 50, 48, 10, 2, (1, 10), "balanced", "sigmoid_mean")),
        ("cav_mae_finetune_vggsound", (1e-4, 10, 48, 10, 2, (3, 10), "balanced", "")),
    ],
)
def test_columns_are_the_paper_s(name, values):
    c = recipe("cav_mae_base", "vggsound:x", name=name)
    found = c.lr, c.head_lr, c.batch, c.epochs, c.decay_from, c.average, c.sampling, c.loss
    assert found == values
    assert (c.optimizer, c.betas, c.weight_decay, c.decay, c.decay_every) == ("adam", (0.95, 0.999), 5e-7, 0.5, 1)
    sound = c.sound
    assert (sound.mixup, sound.mixup_alpha, c.mixup, c.smoothing) == (0.5, 10, 0, 0.1)
    assert (round(sound.frequency_share * 128), round(sound.time_share * 1024)) == (48, 192)


def test_a_dataset_chooses_its_column():
    names = ("audioset", "audioset_balanced", "vggsound", "epic_kitchens", "java_sed")
    assert [recipe_name("cav_mae_base", f"{name}:x") for name in names] == [
        "cav_mae_audioset", "cav_mae_audioset_balanced", "cav_mae_finetune_vggsound", "cav_mae_finetune_vggsound",
        "cav_mae_finetune_vggsound",
    ]  # fmt: skip
    assert recipe_name("cav_mae_tiny", "java_sed:x") == "cav_mae_faces"
    assert all(recipe("cav_mae_tiny", "vggsound:x", name=name).recipe == name for name in FINETUNED)


# --- clips that are mixed as they are read ---


def pairs(deaf=(), mixup=1.0, **changes) -> LabelledPairs:
    """Four recordings, each a picture and a sound of one number."""
    rate = 16_000

    def span(sample, start, seconds, frames):
        number = int(sample.path.stem)
        wave = np.sin(2 * np.pi * 400 * (number + 1) * np.arange(int(seconds * rate)) / rate).astype(np.float32)
        return Span(np.full((frames, 8, 8, 3), 60 * number, np.uint8), None if number in deaf else wave)

    still = Augment(mirror=0.0, scale=(1.0, 1.0), colour=0.0, grayscale=0.0)
    sound = Spectrograms(frequency_masks=0, time_masks=0, warp=0, mixup=mixup)
    return LabelledPairs(
        [Sample(path=Path(f"{i}.mp4"), seconds=1.0) for i in range(4)], ClipSampling(frames=1, stride=1),
        Look(size=8, short_side=8),
        Hearing(front=FRONTS["log_mel_talk"], seconds=Fraction(2, 5), augment=sound, apart=True),
        still, read_span=span, **changes,
    )  # fmt: skip


def test_pictures_and_sound_are_mixed_alike_and_with_their_labels():
    readings, mixed = pairs(), 0
    plain = pairs(mixup=0.0)
    for i in range(12):
        found = readings.train(0, np.random.default_rng(i))
        partner, share = int(found["partner"][0]), float(found["share"][0])
        assert found["video"].max() == found["video"].min() == round((1 - share) * 60 * partner)
        mixed += partner > 0
        if partner == 0:
            assert share == 1
            np.testing.assert_allclose(found["audio"], plain.train(0, np.random.default_rng(0))["audio"], atol=1e-4)
        else:  # the partner's tone is heard as well
            assert 0.1 < share < 0.9
            assert found["audio"].shape == (40, 48)
    assert mixed >= 6
    batch = {k: torch.from_numpy(np.stack([v])) for k, v in found.items()}
    x, targets = unmixed(batch, lambda at: torch.eye(4)[list(at)], torch.tensor([0]))
    assert set(x) == {"video", "audio", "presence"} and targets.sum() == pytest.approx(1)
    assert targets[0, 0] == pytest.approx(share) or partner == 0


def test_only_recordings_that_have_as_much_are_mixed():
    readings = pairs(deaf=(1, 2, 3))
    assert {int(readings.train(0, np.random.default_rng(i))["partner"][0]) for i in range(12)} == {0}
    deaf = {int(readings.train(1, np.random.default_rng(i))["partner"][0]) for i in range(12)}
    assert deaf <= {1, 2, 3} and len(deaf) > 1
    assert not readings.train(1, np.random.default_rng(0))["audio"].any()


def test_a_partner_that_cannot_be_read_leaves_a_clip_as_it_is():
    readings = pairs()
    read = readings.read_span
    assert read is not None

    def broken(sample, start, seconds, frames):
        if sample.path.stem != "0":
            raise SourceError(f"{sample.path} is no recording")
        return read(sample, start, seconds, frames)

    readings.read_span = broken
    assert {float(readings.train(0, np.random.default_rng(i))["share"][0]) for i in range(8)} == {1.0}


def test_flow_cannot_be_mixed():
    with pytest.raises(ConfigError, match=r"mixup 1.0 of sound mixes pictures that flow cannot follow"):
        pairs(flow=FlowConfig())
    with pytest.raises(ConfigError, match="repeat False of sound is for models of sound alone; leave it out"):
        Hearing(front=FRONTS["log_mel_talk"], seconds=Fraction(2, 5), augment=Spectrograms(repeat=False))
