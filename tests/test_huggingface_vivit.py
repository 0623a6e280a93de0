"""Parity with `transformers`: the same random weights, the same answers, under the names of either of its versions."""

import re

import pytest
import torch

from encoders.errors import DataError, UsageError
from encoders.video.vivit import PRESETS, ViViT, ViViTConfig
from encoders.weights.files import read
from encoders.weights.huggingface_vivit import rules
from encoders.weights.rules import convert, invert
from tests.flax_fill import parameters

transformers = pytest.importorskip("transformers")

SIZES = {"dim": 24, "depth": 2, "heads": 3, "mlp_dim": 40}
CONFIG = ViViTConfig(**SIZES, tubelet=(2, 8, 8), frames=6, size=24, classes=5)


@pytest.fixture(scope="module")
def oracle():
    """Their classifier with every parameter drawn, so that no zero hides a mistake."""
    config = transformers.VivitConfig(
        image_size=24, num_frames=6, tubelet_size=[2, 8, 8], hidden_size=24, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=40, num_labels=5,
    )  # fmt: skip
    model = transformers.VivitForVideoClassification(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    return model


def imported(tensors, config=CONFIG, what="theirs"):
    model = ViViT(config).eval()
    own = model.state_dict()
    model.load_state_dict(convert({k: v.numpy() for k, v in tensors.items()}, rules(config), own, what=what))
    return model


def version_4(key: str) -> str:
    """A key as version 4 named it."""
    key = re.sub(r"\blayers\.(\d+)", r"encoder.layer.\1", key)
    for new, old in (
        (
            r"attention\.([qkv])_proj",
            lambda m: f"attention.attention.{ {'q': 'query', 'k': 'key', 'v': 'value'}[m[1]] }",
        ),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    ):
        key = re.sub(new, old, key)
    return key


def test_random_weights_give_their_logits(oracle):
    ours = imported(oracle.state_dict())
    video = torch.rand(2, 6, 3, 24, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1  # (B, T, C, H, W)
    with torch.no_grad():
        theirs, own = oracle(video).logits, ours(video.transpose(1, 2))
    torch.testing.assert_close(own, theirs, atol=1e-5, rtol=0)
    assert theirs.abs().max() > 0.1  # the parity is of something
    assert parameters(ours) == parameters(oracle)


def test_the_model_without_a_head_gives_their_first_token(oracle):
    bare = {k.removeprefix("vivit."): v for k, v in oracle.state_dict().items() if not k.startswith("classifier")}
    bare |= {"pooler.dense.weight": torch.ones(24, 24), "pooler.dense.bias": torch.ones(24)}  # VivitModel has one
    ours = imported(bare, ViViTConfig(**SIZES, tubelet=(2, 8, 8), frames=6, size=24))
    video = torch.rand(1, 6, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = oracle.vivit(video).last_hidden_state[:, 0]
        torch.testing.assert_close(ours(video.transpose(1, 2)), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", ["vivit.", ""])
def test_names_of_version_4_fill_the_same_places(oracle, prefix):
    tensors = {version_4(k).replace("vivit.", prefix): v for k, v in oracle.state_dict().items()}
    assert f"{prefix}encoder.layer.1.attention.attention.key.weight" in tensors
    ours, same = imported(tensors).state_dict(), imported(oracle.state_dict()).state_dict()
    assert all(torch.equal(ours[k], same[k]) for k in same)


def test_what_they_saved_is_read_from_the_folder(oracle, tmp_path):
    oracle.save_pretrained(tmp_path / "saved")
    found = read(tmp_path / "saved")
    assert found.layout == "huggingface"
    back = convert(found.arrays, rules(CONFIG), ViViT(CONFIG).state_dict(), what="saved")
    assert torch.equal(back["head.weight"], oracle.classifier.weight)


def test_our_weights_written_under_their_names_load_there(oracle):
    ours = ViViT(CONFIG)
    tensors = {k: torch.from_numpy(v) for k, v in invert(ours.state_dict(), rules(CONFIG)).items()}
    assert tensors.keys() == oracle.state_dict().keys()


def test_names_of_both_versions_at_once_are_refused(oracle):
    tensors = {**oracle.state_dict(), **{version_4(k): v for k, v in oracle.state_dict().items()}}
    with pytest.raises(
        DataError, match=r"theirs has both .*q_proj.* and .*attention\.query.* for .*; keep one of them"
    ):
        imported(tensors)


@pytest.mark.parametrize("preset", ["vivit_tiny_fe", "vivit_tiny_fsa", "vivit_b_uniform8"])
def test_they_have_the_joint_encoder_only(preset):
    with pytest.raises(UsageError, match=r"only with tubelets, joint attention and a class token, .*; name a preset"):
        rules(PRESETS[preset])
