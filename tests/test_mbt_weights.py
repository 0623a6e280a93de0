"""MBT by the public code's names, also older ones and those of one modality; and one that starts from pictures."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from encoders.audiovisual.inputs import AudioInput, VideoInput
from encoders.audiovisual.mbt import MBT, PRESETS, MBTConfig
from encoders.errors import DataError
from encoders.weights.image_vit import read_image_vit
from encoders.weights.mbt import initialise, rules
from encoders.weights.rules import convert, invert
from encoders.weights.tables import start_of, table_of
from tests.test_polyvit_weights import image_vit, zoom

SMALL = MBTConfig(
    dim=8,
    depth=3,
    heads=2,
    mlp_dim=16,
    fusion_layer=1,
    video=VideoInput(frames=8, size=32, tubelet=(4, 8, 8), clip_seconds=Fraction(8)),
    audio=AudioInput(frames=40, bins=16, patch=(8, 8), front=""),
    classes=3,
)
VARIANTS = {
    "both": {},
    "no bottlenecks": {"bottlenecks": 0},
    "one stack": {"share_encoder": True},
    "video": {"audio": None},
    "audio": {"video": None},
    "eight pictures": {"video": VideoInput(frames=8, size=32, tubelet=(1, 8, 8), clip_seconds=Fraction(8))},
    "means": {"pool": "mean", "positions": "sinusoidal", "spectrogram_channels": 1},
    "means of sound": {"pool": "mean", "positions": "sinusoidal", "video": None},
    "features": {"classes": 0},
}
SOURCE = image_vit()


def tree_of(config):
    torch.manual_seed(0)
    own = MBT(config).state_dict()
    return own, invert(own, rules(config))


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_go_to_the_public_names_and_back(variant):
    config = replace(SMALL, **VARIANTS[variant])
    own, tree = tree_of(config)
    assert len(tree) == len(own)
    back = convert(tree, rules(config), own, what="the tree")
    assert all(torch.equal(back[key], own[key]) for key in own)


def test_the_names_are_those_of_the_public_code():
    _, tree = tree_of(SMALL)
    assert tree["embedding/kernel"].shape == (4, 8, 8, 3, 8)
    assert tree["embedding_spectrogram/kernel"].shape == (8, 8, 3, 8)
    assert tree["bottleneck"].shape == (1, 5, 8)
    assert tree["Transformer/posembed_input/pos_embedding"].shape == (1, 33, 8)
    assert tree["Transformer/posembed_input_spectrogram/pos_embedding"].shape == (1, 11, 8)
    assert {"cls", "clsspectrogram", "output_projection/kernel", "Transformer/encoder_norm/scale"} < set(tree)
    assert "Transformer/encoderblock_2_spectrogram/LayerNorm_0/scale" in tree
    shared = tree_of(replace(SMALL, share_encoder=True))[1]
    assert not any("encoderblock" in name and "spectrogram" in name for name in shared)
    alone = tree_of(replace(SMALL, video=None))[1]
    assert "cls" in alone and "Transformer/encoderblock_0_spectrogram/LayerNorm_0/scale" in alone
    assert "bottleneck" not in alone and "embedding/kernel" not in alone
    flat = tree_of(replace(SMALL, **VARIANTS["eight pictures"]))[1]
    assert flat["embedding/kernel"].shape == (8, 8, 3, 8)


def test_the_names_are_those_of_av_mae_s_copy():
    _, tree = tree_of(replace(SMALL, **VARIANTS["means"]))
    assert tree["bottleneck"].shape == (1, 4, 8)
    assert tree["embedding_spectrogram/kernel"].shape == (8, 8, 1, 8)
    assert "Transformer/encoderblock_0_spec/LayerNorm_0/scale" in tree
    assert "ProjectionHeadAndClassifier_0/output_projection/kernel" in tree
    assert not any("posembed" in name or name.startswith("cls") for name in tree)
    alone = tree_of(replace(SMALL, **VARIANTS["means of sound"]))[1]
    assert "Transformer/encoderblock_0/LayerNorm_0/scale" in alone and "embedding_spectrogram/kernel" in alone


@pytest.mark.parametrize("variant", ["both", "audio", "means"])
def test_older_checkpoints_say_spec(variant):
    config = replace(SMALL, **VARIANTS[variant])
    own, tree = tree_of(config)
    older = {name.replace("_spectrogram", "_spec").replace("clsspectrogram", "clsspec"): x for name, x in tree.items()}
    back = convert(older, rules(config), own, what="the tree")
    assert all(torch.equal(back[key], own[key]) for key in own)


def test_what_is_missing_double_or_unknown_is_named():
    own, tree = tree_of(SMALL)
    table = rules(SMALL)
    with pytest.raises(DataError, match="the file lacks"):
        convert({k: v for k, v in tree.items() if k != "bottleneck"}, table, own, what="the file")
    double = {**tree, "embedding_spec/kernel": tree["embedding_spectrogram/kernel"]}
    with pytest.raises(DataError, match="the file has both embedding_spectrogram/kernel and embedding_spec/kernel for"):
        convert(double, table, own, what="the file")
    with pytest.raises(DataError, match="the file has lonely, for which the model has no place"):
        convert({**tree, "lonely": np.zeros(1)}, table, own, what="the file")
    with pytest.raises(DataError, match="bottleneck"):  # of four tokens, where there is one more
        convert({**tree, "bottleneck": tree["bottleneck"][:, 1:]}, table, own, what="the file")


def test_the_command_finds_the_table():
    assert table_of("mbt_base", "scenic") is rules
    assert start_of("mbt_base", 1) is not None


# --- from a picture's transformer ---


def started(**changes):
    model = MBT(replace(SMALL, **changes))
    initialise(model, read_image_vit(SOURCE))
    return model


@pytest.mark.parametrize("shared", [False, True])
def test_both_modalities_get_the_blocks_of_the_picture(shared):
    model = started(share_encoder=shared)
    for layer in range(3):
        path = f"Transformer/encoderblock_{layer}/MlpBlock_0/Dense_0/kernel"
        for stack in model.encoder.blocks.values():
            np.testing.assert_array_equal(stack[layer].mlp.first.weight.detach().numpy().T, SOURCE[path])
    np.testing.assert_array_equal(model.encoder.norm.weight.detach().numpy(), SOURCE["Transformer/encoder_norm/scale"])
    assert not model.head.weight.any()


def test_class_tokens_kernels_and_positions_are_the_picture_s():
    model = started()
    kernel = torch.from_numpy(SOURCE["embedding/kernel"]).permute(3, 2, 0, 1)  # (D, C, h, w)
    video, audio = model.tokens["video"], model.tokens["audio"]
    for part in (video, audio):
        np.testing.assert_array_equal(part.cls.detach().numpy(), SOURCE["cls"])
        np.testing.assert_array_equal(part.embed.project.bias.detach().numpy(), SOURCE["embedding/bias"])
    torch.testing.assert_close(video.embed.project.weight[:, :, 2], kernel)
    assert not video.embed.project.weight[:, :, [0, 1, 3]].any()
    torch.testing.assert_close(audio.embed.project.weight, kernel)
    table = SOURCE["Transformer/posembed_input/pos_embedding"]
    grid = table[0, 1:].reshape(4, 4, 8)
    np.testing.assert_array_equal(video.positions[0, 0].detach().numpy(), table[0, 0])
    for t in range(2):  # the picture's places at every step
        np.testing.assert_allclose(video.positions[0, 1 + 16 * t : 17 + 16 * t].detach().numpy(), grid.reshape(16, 8))
    np.testing.assert_allclose(audio.positions[0, 1:].detach().numpy(), zoom(grid, 5, 2), atol=1e-6)


def test_bottlenecks_start_as_places_of_the_picture():
    """Four of them as its corners, the class position first; a number that is no square stays as it was drawn."""
    table = SOURCE["Transformer/posembed_input/pos_embedding"]
    corners = table[0, [0, 1, 4, 13, 16]]  # the class position, then the grid's
    np.testing.assert_allclose(started().encoder.bottleneck[0].detach().numpy(), corners, atol=1e-6)
    means = started(pool="mean", positions="sinusoidal")
    np.testing.assert_allclose(means.encoder.bottleneck[0].detach().numpy(), corners[1:], atol=1e-6)
    torch.manual_seed(3)
    drawn = MBT(replace(SMALL, bottlenecks=3)).encoder.bottleneck.detach().clone()
    torch.manual_seed(3)
    assert torch.equal(started(bottlenecks=3).encoder.bottleneck.detach(), drawn)


def test_one_channel_of_sound_is_the_sum_of_the_picture_s():
    kernel = torch.from_numpy(SOURCE["embedding/kernel"]).permute(3, 2, 0, 1).sum(1, keepdim=True)
    torch.testing.assert_close(started(spectrogram_channels=1).tokens["audio"].embed.project.weight, kernel)


@pytest.mark.parametrize(("field", "value"), [("dim", 16), ("depth", 2), ("mlp_dim", 8)])
def test_sizes_that_differ_are_one_sentence(field, value):
    theirs = {"dim": 8, "depth": 3, "mlp_dim": 16}[field]
    changes = {"fusion_layer": 1} if field == "depth" else {}
    with pytest.raises(DataError, match=f"the image ViT has {field} {theirs} and the model {value}; choose the preset"):
        started(**{field: value}, **changes)


def test_the_paper_s_preset_starts_from_its_picture_s_sizes():
    config = PRESETS["mbt_base"]
    assert (config.dim, config.depth, config.heads, config.mlp_dim) == (768, 12, 12, 3072)
