"""CAV-MAE's weights by their published names: read, refused, started from, and carried into curri-MAE."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from encoders.audiovisual.cav_mae_pretraining import CAVMAEPretraining, PatchDecoderConfig
from encoders.errors import DataError
from encoders.registry import build, config_of
from encoders.weights.cav_mae import initialise, pretraining_rules, read_start, rules, start
from encoders.weights.rules import convert
from imputation.features import FeatureSet
from runtime import cli
from tests.flax_fill import filled

SIZES = {"dim": 32, "depth": 1, "heads": 2, "mlp_dim": 128}  # those of curri_mae_tiny
SETTINGS = [part for key, value in SIZES.items() for part in ("--set", f"{key}={value}")]


def published(kind: str = "pretraining", prefix: str = "module.") -> dict[str, np.ndarray]:
    """A file of the public code, every number by the fill rule."""
    return {prefix + name: array for name, array in numbers(kind).items()}


@cache
def numbers(kind: str) -> dict[str, np.ndarray]:
    with torch.device("meta"):
        config = config_of("cav_mae_tiny", **SIZES)
        whole = CAVMAEPretraining(config, PatchDecoderConfig(**SIZES)) if kind == "pretraining" else None
        model = whole or build("cav_mae_tiny", classes=5, **SIZES)
    return {k: filled(k, tuple(v.shape)) for k, v in model.state_dict().items()}


def saved(folder, arrays, name="w.safetensors"):
    save_file({k: torch.from_numpy(v) for k, v in arrays.items()}, folder / name)
    return folder / name


def imported(tmp_path, file, *options):
    out = str(tmp_path / "out.safetensors")
    return cli.run(["import-weights", "cav_mae_tiny", str(file), *SETTINGS, *map(str, options), "--out", out])


# --- legato import-weights ---


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_pre_trained_weights_give_an_encoder(tmp_path, capsys, prefix):
    arrays = published(prefix=prefix)
    arrays |= {f"{prefix}cls_token_{m}": np.zeros((1, 1, 32), np.float32) for m in ("a", "v", "av")}
    assert imported(tmp_path, saved(tmp_path, arrays), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    weights = load_file(tmp_path / "out.safetensors")
    build("cav_mae_tiny", **SIZES).load_state_dict(weights)
    assert said["layout"] == "cav_mae" and {prefix + k for k in weights} | set(said["left_out"]) == set(arrays)
    left = [name for name in said["left_out"] if not name.startswith((f"{prefix}decoder_", f"{prefix}mask_token"))]
    assert sorted(left) == [f"{prefix}cls_token_{m}" for m in ("a", "av", "v")]
    for name in ("blocks_v.0.norm2_a.bias", "pos_embed_a", "patch_embed_a.proj.weight"):
        np.testing.assert_array_equal(weights[name], arrays[prefix + name])


def test_fine_tuned_weights_bring_their_head_where_it_is_wanted(tmp_path, capsys):
    file = saved(tmp_path, published("fine-tuned"))
    assert imported(tmp_path, file, "--layout", "cav_mae", "--set", "classes=5", "--json") == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == []
    assert load_file(tmp_path / "out.safetensors")["mlp_head.1.weight"].shape == (5, 32)
    assert imported(tmp_path, file, "--json") == 0
    left = json.loads(capsys.readouterr().out)["left_out"]
    assert sorted(left) == [f"module.mlp_head.{i}.{part}" for i in (0, 1) for part in ("bias", "weight")]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: a.pop("module.blocks_u.0.norm1_a.weight"), "lacks module.blocks_u.0.norm1_a.weight"),
        (lambda a: a.update({"module.blocks_a.1.norm1.weight": np.zeros(32, np.float32)}), "blocks_a.1.norm1.weight"),
        (lambda a: a.update({"module.extra": np.zeros(1, np.float32)}), "has module.extra, for which the model has no"),
        (lambda a: a.update({"norm.weight": np.zeros(32, np.float32)}), "has both module.norm.weight and norm.weight"),
        (lambda a: a.update({"module.pos_embed_a": np.zeros((1, 512, 32), np.float32)}), "pos_embed_a is (1, 512, 32)"),
        (lambda a: a.update({"module.norm.bias": np.full(32, np.nan, np.float32)}), "module.norm.bias holds a number"),
    ],
)
def test_what_does_not_fit_is_named_in_one_sentence(tmp_path, capsys, change, sentence):
    arrays = published()
    change(arrays)
    assert imported(tmp_path, saved(tmp_path, arrays)) == 1
    err = capsys.readouterr().err
    assert err.startswith("legato: ") and err.count("\n") == 1 and sentence in err
    assert not (tmp_path / "out.safetensors").exists()


def test_a_pickle_is_not_read(tmp_path, capsys):
    torch.save({k: torch.from_numpy(v) for k, v in published().items()}, tmp_path / "cav.pth")
    assert imported(tmp_path, tmp_path / "cav.pth") == 1
    assert "is a pickle, which is not read; save it as safetensors" in capsys.readouterr().err


# --- a start ---


def model_of(**changes) -> CAVMAEPretraining:
    torch.manual_seed(0)
    config = config_of("cav_mae_tiny", **{**SIZES, **changes}, audio=SQUARE)
    return CAVMAEPretraining(config, PatchDecoderConfig(dim=16, depth=1, heads=2, mlp_dim=64))


SQUARE = {"frames": 48, "bins": 48, "front": "", "clip_seconds": "2/5"}


def vision_mae(blocks=2, prefix="") -> dict[str, np.ndarray]:
    """The names of facebookresearch/mae, of a picture of 64 pixels."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 32), "pos_embed": (1, 17, 32), "mask_token": (1, 1, 16), "decoder_pos_embed": (1, 17, 16),
        "patch_embed.proj.weight": (32, 3, 16, 16), "patch_embed.proj.bias": (32,),
    }  # fmt: skip
    layers = {"norm": (32,), "decoder_embed": (16, 32), "decoder_norm": (16,), "decoder_pred": (768, 16)}
    for stack, width, depth in (("blocks", 32, blocks), ("decoder_blocks", 16, 1)):
        for i in range(depth):
            inner = {"norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width),
                     "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}  # fmt: skip
            layers |= {f"{stack}.{i}.{name}": shape for name, shape in inner.items()}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {prefix + name: filled(name, shape) for name, shape in shapes.items()}


def test_pre_training_starts_from_a_vision_mae():
    arrays, model, fresh = vision_mae(), model_of(), model_of()
    assert start(model, arrays) == "a vision MAE"
    new, own = model.state_dict(), fresh.state_dict()
    for m in "av":
        np.testing.assert_array_equal(new[f"blocks_{m}.0.attn.qkv.weight"], arrays["blocks.0.attn.qkv.weight"])
        np.testing.assert_array_equal(new[f"blocks_u.0.norm2_{m}.bias"], arrays["blocks.1.norm2.bias"])
        np.testing.assert_array_equal(new[f"norm_{m}.weight"], arrays["norm.weight"])
    np.testing.assert_array_equal(new["pos_embed_v"], arrays["pos_embed"][:, 1:])
    summed = arrays["patch_embed.proj.weight"].sum(1, keepdims=True)
    np.testing.assert_allclose(new["patch_embed_a.proj.weight"], summed, rtol=1e-5)
    np.testing.assert_array_equal(new["decoder_pred_a.weight"], arrays["decoder_pred.weight"][:256])
    unchanged = {name for name in new if torch.equal(new[name], own[name])}
    stays = ("modality_", "decoder_modality_", "pos_embed_a", "decoder_pos_embed_a")
    assert all(name.startswith(stays) or "_a." in name or "_v." in name for name in unchanged)
    assert {"modality_a", "pos_embed_a", "blocks_a.0.norm1_a.weight", "decoder_blocks.0.norm2_v.bias"} <= unchanged


def test_an_encoder_alone_starts_from_one_without_its_decoder(tmp_path):
    arrays = {k: v for k, v in vision_mae().items() if not k.startswith(("decoder", "mask"))}
    encoder = build("cav_mae_tiny", **SIZES, audio=SQUARE)
    initialise(encoder, read_start(arrays))
    np.testing.assert_array_equal(encoder.norm.weight.detach(), arrays["norm.weight"])
    with pytest.raises(DataError, match=r"has nothing for decoder_blocks.0.attn.proj.bias; give a vision MAE with its"):
        start(model_of(), arrays)
    options = ["--layout", "image_vit", "--set", f"audio={json.dumps(SQUARE)}"]
    assert imported(tmp_path, saved(tmp_path, arrays), *options) == 0
    weights = load_file(tmp_path / "out.safetensors")
    assert torch.equal(weights["norm.weight"], encoder.norm.weight)


@pytest.mark.parametrize(
    ("arrays", "changes", "sentence"),
    [
        (vision_mae(3), {}, "has 3 blocks and the model 1 and 1 after each other; choose the preset of its depth"),
        (vision_mae(), {"dim": 48, "heads": 3}, r"gives \(1, 16, 32\) where pos_embed_v is \(1, 16, 48\); choose"),
        (vision_mae() | {"head.weight": np.zeros(2, np.float32)}, {}, "has head.weight, for which the model has no"),
        (vision_mae() | {"norm.bias": np.full(32, np.nan)}, {}, "norm.bias holds what is no finite number"),
        (vision_mae() | {"pos_embed": np.zeros(3)}, {}, r"gives \(3,\) where pos_embed_v is"),
        (vision_mae() | {"blocks.x.norm1.bias": np.zeros(32)}, {}, "has 3 blocks"),
        ({"x": np.zeros(2, np.float32)}, {}, "the checkpoint has x, for which the model has no place"),
        ({"cls_token": np.zeros(2, np.float32)}, {}, "has 0 blocks"),
    ],
)
def test_a_start_that_does_not_fit_is_one_sentence(arrays, changes, sentence):
    with pytest.raises(DataError, match=sentence):
        start(model_of(**changes), arrays)


def test_pre_training_goes_on_from_a_published_file_and_tells_what_it_left():
    config = config_of("cav_mae_tiny", **SIZES)
    model = CAVMAEPretraining(config, PatchDecoderConfig(**SIZES))
    arrays = published() | {"module.cls_token_av": np.zeros((1, 1, 32), np.float32)}
    assert start(model, arrays) == "a CAV-MAE, of which module.cls_token_av are left out"
    np.testing.assert_array_equal(model.decoder_pred_v.weight.detach(), arrays["module.decoder_pred_v.weight"])
    assert set(convert(published(), pretraining_rules(), model.state_dict(), what="x")) == set(model.state_dict())
    assert set(convert(published(), rules(config), build("cav_mae_tiny", **SIZES).state_dict(), what="x"))


# --- curri-MAE ---


@pytest.fixture
def features(tmp_path):
    g = torch.Generator().manual_seed(0)
    values = torch.randn(24, 4, 2, 16, generator=g)
    data = FeatureSet.of(values, torch.arange(24) % 2, ("no", "yes"), split=["train"] * 16 + ["validation"] * 8,
                         speaker=["a", "b"] * 12)  # fmt: skip
    data.save(tmp_path / "f.safetensors")
    return tmp_path / "f.safetensors"


def curri(features, init, *options):
    out = features.parent / "mae"
    return cli.run(["train", "curri-mae", "--features", str(features), "--out", str(out), "--device", "cpu", "--steps",
                    "1", "--preset", "curri_mae_tiny", "--init", str(init), *options])  # fmt: skip


def test_curri_mae_starts_from_cav_mae_and_tells_what_could_not_be_loaded(features, capsys):
    arrays = published()
    assert curri(features, saved(features.parent, arrays), "--set", "lr=1e-12") == 0
    out = capsys.readouterr().out
    left = {"patch_embed_a.proj.weight", "patch_embed_v.proj.bias", "pos_embed_a", "decoder_pos_embed_v",
            "decoder_pred_a.weight", "decoder_pred_v.bias"}  # fmt: skip
    assert all(name in out for name in left) and "not loaded (12)" in out
    assert "1x30x32" in out  # what sound's positions are, where curri-MAE has clips
    assert "new (10): decoder_pred_a.bias" in out and "register_v" in out
    assert f"loaded {len(arrays) - 12} of {len(arrays)} tensors" in out and "blocks_u" in out
    trained = load_file(features.parent / "mae" / "imputer.safetensors")
    for name in ("blocks_u.0.norm1_a.weight", "mask_token", "decoder_blocks.0.mlp.fc2.bias", "modality_v"):
        np.testing.assert_allclose(trained[f"model.{name}"], arrays[f"module.{name}"], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        (lambda a: a.pop("module.decoder_norm.weight"), 1, "lacks decoder_norm.weight; name weights of CAV-MAE's pre-"),
        (lambda a: a.update({"module.modality_a": np.zeros((1, 1, 8), np.float32)}), 1, "modality_a is (1, 1, 8) in"),
        (lambda a: a.clear() or a.update({"x": np.zeros(2, np.float32)}), 1, "holds no CAV-MAE; name its pre-training"),
    ],
)
def test_weights_that_do_not_fit_curri_mae_are_one_sentence(features, capsys, change, code, sentence):
    arrays = published()
    change(arrays)
    assert curri(features, saved(features.parent, arrays)) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("legato: ") and sentence in said
    assert not (features.parent / "mae").exists()
