"""MViTv2's public names in, and starts of clips and of sound from a model of pictures."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from encoders.audio.mat import MAT, MATConfig
from encoders.errors import ConfigError, DataError
from encoders.layers.pooled_attention import resize_table
from encoders.registry import build
from encoders.video.mvitv2 import PRESETS, MViTv2, MViTv2Config
from encoders.weights.mvitv2 import initialise, read_start, rules
from encoders.weights.rules import convert, invert
from runtime import cli
from tests.flax_fill import filled
from tests.macs import on_meta

CLIP = MViTv2Config(
    dim=8, depth=3, pooled=(1, 2), strides=((1, 2, 2),) * 2, stride_kv=(1, 4, 4), frames=4, size=32, classes=3,
    clip_seconds=Fraction(2, 5),
)  # fmt: skip
PICTURE = replace(
    PRESETS["mvitv2_b_image"], dim=8, depth=3, pooled=(1, 2), strides=((2, 2),) * 2, size=32, classes=3
)  # fmt: skip
SOUND = MATConfig(
    dim=8, depth=3, pooled=(1, 2), strides=((2, 2), (1, 2)), bins=32, frames=48, clip_seconds=Fraction(2, 5)
)  # fmt: skip


def public(axes: int, dim: int = 8, depth: int = 3, widening: tuple[int, ...] = (1, 2), side: int = 8, **more: int):
    """What the public code saves for a model: names and shapes written out, every number by the fill rule."""
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj.bias": (dim,)}
    shapes["patch_embed.proj.weight"] = (dim, 3, 7, 7) if axes == 2 else (dim, 3, 3, 7, 7)
    if axes == 3:
        shapes["cls_token"] = (1, 1, dim)
    kernel, width, steps, stride = (1, 3, 3) if axes == 2 else (3, 3, 3), dim, more.get("steps", 2), 4
    for i in range(depth):
        out, name = width * (2 if i in widening else 1), f"blocks.{i}"
        asked = side // 2 if i in widening else side
        stride = max(stride // 2, 1) if i in widening else stride
        longer = 2 * max(asked, side // stride) - 1
        for norm, size in (("norm1", width), ("norm2", out)):
            shapes |= {f"{name}.{norm}.weight": (size,), f"{name}.{norm}.bias": (size,)}
        layers = {"attn.qkv": (3 * out, width), "attn.proj": (out, out), "mlp.fc1": (4 * out, out)}
        layers |= {"mlp.fc2": (out, 4 * out)} | ({"proj": (out, width)} if i in widening else {})
        for layer, shape in layers.items():
            shapes |= {f"{name}.{layer}.weight": shape, f"{name}.{layer}.bias": shape[:1]}
        for letter in "qkv":
            shapes[f"{name}.attn.pool_{letter}.weight"] = (dim, 1, *kernel)
            shapes |= {f"{name}.attn.norm_{letter}.{part}": (dim,) for part in ("weight", "bias")}
        shapes |= {f"{name}.attn.rel_pos_{axis}": (longer, dim) for axis in "hw"}
        if axes == 3:
            shapes[f"{name}.attn.rel_pos_t"] = (2 * steps - 1, dim)
        width, side = out, asked
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    shapes |= {"head.projection.weight": (3, width), "head.projection.bias": (3,)}
    return {key: filled(key, shape) for key, shape in shapes.items()}


def imported(config, arrays):
    model = MViTv2(config).eval()
    model.load_state_dict(convert(arrays, rules(config), model.state_dict(), what="theirs"))
    return model


# --- their names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "axes"), [(CLIP, 3), (PICTURE, 2)])
def test_every_public_name_has_its_place_and_back(config, axes):
    arrays = public(axes)
    model = imported(config, arrays)
    assert model.state_dict().keys() == convert(arrays, rules(config), model.state_dict(), what="").keys()
    back = invert(model.state_dict(), rules(config))
    assert back.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_what_lies_where():
    arrays, model = public(3), imported(CLIP, public(3))
    attention = model.blocks[1].attention
    for axis, letter in enumerate("thw"):
        theirs = arrays[f"blocks.1.attn.rel_pos_{letter}"]
        np.testing.assert_array_equal(attention.distances[axis].detach().numpy(), theirs)
    np.testing.assert_array_equal(attention.key.conv.weight.detach().numpy(), arrays["blocks.1.attn.pool_k.weight"])
    np.testing.assert_array_equal(attention.value.norm.bias.detach().numpy(), arrays["blocks.1.attn.norm_v.bias"])
    np.testing.assert_array_equal(model.blocks[1].shortcut.weight.detach().numpy(), arrays["blocks.1.proj.weight"])
    np.testing.assert_array_equal(model.head.bias.detach().numpy(), arrays["head.projection.bias"])


def test_names_of_the_published_model_of_400_classes():
    """34 537 744 numbers, under names with the shapes that the public code gives them."""
    config = replace(PRESETS["mvitv2_s_16x4"], classes=400)
    own = on_meta(lambda: MViTv2(config)).state_dict()
    shapes = {}
    for key, value in own.items():
        theirs = next(name for rule in rules(config) if (name := rule.backward(key)) is not None)
        shapes[theirs] = tuple(value.shape)
    assert shapes["blocks.0.attn.rel_pos_h"] == (111, 96) and shapes["blocks.1.attn.rel_pos_t"] == (15, 96)
    assert shapes["blocks.1.attn.qkv.weight"] == (576, 96) and shapes["blocks.1.mlp.fc1.weight"] == (768, 192)
    assert shapes["blocks.15.attn.pool_v.weight"] == (96, 1, 3, 3, 3) and shapes["cls_token"] == (1, 1, 96)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 34_537_744


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"blocks.0.attn.pool_s.weight": np.ones(3)}, "has blocks.0.attn.pool_s.weight, for which the model has no"),
        (
            {"blocks.1.attn.rel_pos_t": None},
            "lacks blocks.1.attn.rel_pos_t, which fills blocks.1.attention.distances.0",
        ),
        ({"cls_token": None}, "lacks cls_token, which fills cls"),
        ({"blocks.1.attn.rel_pos_h": np.ones((9, 8))}, "blocks.1.attn.rel_pos_h is (9, 8), which gives (9, 8) where"),
        ({"norm.weight": np.full(32, np.nan)}, "norm.weight holds a number that is not finite"),
    ],
)
def test_what_does_not_fit_is_named(change, sentence):
    arrays = {key: value for key, value in {**public(3), **change}.items() if value is not None}
    with pytest.raises(DataError) as error:
        imported(CLIP, arrays)
    assert sentence in str(error.value)


# --- from pictures ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_sound_starts_from_pictures():
    arrays, model = public(2), MAT(SOUND).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    initialise(model, read_start(arrays))
    own = model.state_dict()
    kernel = torch.from_numpy(arrays["patch_embed.proj.weight"])
    torch.testing.assert_close(own["embed.weight"], kernel.sum(1, keepdim=True))
    assert torch.equal(own["cls"], before["cls"])  # pictures have none
    for axis, letter in enumerate("hw"):
        theirs = torch.from_numpy(arrays[f"blocks.0.attn.rel_pos_{letter}"])
        ours = own[f"blocks.0.attention.distances.{axis}"]
        torch.testing.assert_close(ours, resize_table(theirs, len(ours)))
    assert [len(own[f"blocks.0.attention.distances.{axis}"]) for axis in (0, 1)] == [15, 23]
    np.testing.assert_array_equal(own["blocks.2.mlp.first.weight"].numpy(), arrays["blocks.2.mlp.fc1.weight"])
    kept = [key for key in own if torch.equal(own[key], before[key])]
    assert kept == ["cls"]


@torch.no_grad()
def test_gray_sound_is_seen_as_a_gray_picture():
    """With tables as long as the picture's, a spectrogram gives the tokens that its picture gives."""
    picture = imported(replace(PICTURE, pool="mean"), public(2))
    square = MAT(
        replace(SOUND, pool="mean", strides=((2, 2), (2, 2)), stride_kv=(4, 4), frames=32, clip_seconds=Fraction(3, 10))
    ).eval()
    initialise(square, read_start(public(2)))
    x = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(square.tokens(x), picture.tokens(x[:, :, None].expand(-1, 3, -1, -1, -1)))


@torch.no_grad()
@pytest.mark.parametrize("inflation", ["central", "average"])
def test_clips_start_from_pictures(inflation):
    arrays, model = public(2), MViTv2(CLIP).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    initialise(model, read_start(arrays), inflation=inflation)
    own = model.state_dict()
    kept = [key for key in own if torch.equal(own[key], before[key])]
    assert kept == [
        "cls", *(f"blocks.{i}.attention.distances.0" for i in range(3)), "head.weight", "head.bias"
    ]  # fmt: skip
    pool = own["blocks.0.attention.key.conv.weight"]
    assert pool[:, :, 0].any() == (inflation == "average")
    torch.testing.assert_close(pool.sum(2), torch.from_numpy(arrays["blocks.0.attn.pool_k.weight"])[:, 0])
    torch.testing.assert_close(own["embed.weight"].sum(2), torch.from_numpy(arrays["patch_embed.proj.weight"]))


@pytest.mark.parametrize(
    ("model", "changes", "sentence"),
    [
        (
            SOUND,
            {"depth": 4, "pooled": (1, 2)},
            "has no weights for blocks.3.norm1.weight; choose the preset of its de",
        ),
        (SOUND, {"depth": 2, "pooled": (1,), "strides": ((2, 2),)}, "norm.weight is (32,) where norm.weight is (16,)"),
        (SOUND, {"dim": 16}, "embed.weight is (8, 3, 7, 7) where embed.weight is (16, 1, 7, 7); choose the preset of"),
    ],
)
def test_a_start_that_does_not_fit_is_named(model, changes, sentence):
    with pytest.raises(DataError) as error:
        initialise(MAT(replace(model, **changes)), read_start(public(2)))
    assert sentence in str(error.value)


def test_a_start_that_is_none_is_refused():
    with pytest.raises(DataError, match=r"lacks patch_embed.proj.weight; give a MViTv2 of pictures, as SlowFast names"):
        read_start({"embedding/kernel": np.ones((16, 16, 3, 8))})
    with pytest.raises(DataError, match=r"patch_embed.proj.weight is \(8, 3, 3, 7, 7\), where 4 axes are expected"):
        read_start(public(3))
    with pytest.raises(ConfigError, match="inflation 'wide' is unknown; use 'central' or 'average'"):
        initialise(MAT(SOUND), read_start(public(2)), inflation="wide")


# --- the command --------------------------------------------------------------------------------------------------


def run(tmp_path, preset, file, *options):
    out = ["--out", str(tmp_path / "w.safetensors")]
    return cli.run(["import-weights", preset, str(file), *map(str, options), *out])


def saved(path, arrays):
    save_file({key: torch.from_numpy(value.copy()) for key, value in arrays.items()}, path)
    return path


SETTINGS = [
    part for key, value in (("dim", 8), ("depth", 3), ("pooled", "1,2"), ("size", 32), ("frames", 4),
                            ("strides", "[[1,2,2],[1,2,2]]"), ("stride_kv", "1,4,4"))
    for part in ("--set", f"{key}={value}")
]  # fmt: skip


def test_the_layout_is_told_from_the_preset(tmp_path, capsys):
    file = saved(tmp_path / "k400.safetensors", public(3))
    assert run(tmp_path, "mvitv2_tiny", file, *SETTINGS, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["layout"] == "slowfast" and said["left_out"] == ["head.projection.bias", "head.projection.weight"]
    assert run(tmp_path, "mvitv2_tiny", file, *SETTINGS, "--set", "classes=3", "--layout", "slowfast") == 0
    np.testing.assert_array_equal(load_file(tmp_path / "w.safetensors")["cls"].numpy(), public(3)["cls_token"])


def test_sound_starts_from_pictures_by_the_command(tmp_path, capsys):
    file = saved(tmp_path / "in1k.safetensors", public(2, dim=32, depth=4, widening=(1, 2, 3), side=8))
    assert run(tmp_path, "mat_tiny", file, "--layout", "image_vit") == 0
    build("mat_tiny").load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert "read as image_vit" in capsys.readouterr().out
    assert run(tmp_path, "mat_tiny", file) == 2
    assert "preset mat_tiny has no published weights of layout 'huggingface'" in capsys.readouterr().err
