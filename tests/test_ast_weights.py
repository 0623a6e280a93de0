"""AST's published weights: parity with `transformers`, its authors' names, and starting from pictures or an AST."""

import json
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from encoders.audio.filterbank import Filterbank
from encoders.audio.spectrogram_transformer import AST, SPECIAL, ASTConfig
from encoders.errors import DataError
from encoders.weights.ast_published import rules
from encoders.weights.ast_start import fit_axis, fit_grid, initialise, read_start
from encoders.weights.rules import convert, invert
from runtime.cli import run as legato

SIZES = {"dim": 24, "depth": 2, "heads": 3, "mlp_dim": 40}
CONFIG = ASTConfig(**SIZES, classes=5, front=Filterbank(bins=48, frames=64))
SETS = [f"{k}={v}" for k, v in {**SIZES, "front.bins": 48, "front.frames": 64}.items()]


def drawn(model, seed=0):
    """Every parameter drawn, so that no zero hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def oracle():
    transformers = pytest.importorskip("transformers")
    config = transformers.ASTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, num_labels=5, max_length=64,
        num_mel_bins=48, layer_norm_eps=1e-6,
    )  # fmt: skip
    model = transformers.ASTForAudioClassification(config)
    model.classifier.layernorm.eps = 1e-5  # as its authors' head has it
    return drawn(model)


def arrays(tensors):
    return {key: value.detach().numpy() for key, value in tensors.items()}


def imported(tensors, config=CONFIG):
    model = AST(config).eval()
    model.load_state_dict(convert(arrays(tensors), rules(config), model.state_dict(), what="theirs"))
    return model


def own_names(model):
    """A state of ours under its authors' names."""
    state, out = model.state_dict(), {}
    plain = {"cls": "v.cls_token", "distillation": "v.dist_token", "positions": "v.pos_embed"}
    parts = {"embed": "v.patch_embed.proj", "encoder.norm": "v.norm", "head_norm": "mlp_head.0", "head": "mlp_head.1",
             "attention.out": "attn.proj", "mlp.first": "mlp.fc1", "mlp.second": "mlp.fc2"}  # fmt: skip
    for key, value in state.items():
        name, _, leaf = key.rpartition(".")
        block = re.fullmatch(r"encoder\.blocks\.(\d+)\.(.+)", name)
        if key in plain:
            out[plain[key]] = value
        elif block and block[2] in ("attention.query", "attention.key", "attention.value"):
            three = [state[f"encoder.blocks.{block[1]}.attention.{n}.{leaf}"] for n in ("query", "key", "value")]
            out[f"v.blocks.{block[1]}.attn.qkv.{leaf}"] = torch.cat(three)
        elif block:
            out[f"v.blocks.{block[1]}.{parts.get(block[2], block[2])}.{leaf}"] = value
        else:
            out[f"{parts[name]}.{leaf}"] = value
    return out


def test_random_weights_give_the_logits_of_transformers(oracle):
    x = torch.randn(2, 64, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs, ours = oracle(x).logits, imported(oracle.state_dict())(x)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert theirs.abs().max() > 0.1  # the parity is of something


def test_the_model_without_a_head_gives_their_pooled_feature(oracle):
    bare = {k.removeprefix("audio_spectrogram_transformer."): v for k, v in oracle.state_dict().items()}
    ours = imported(bare, ASTConfig(**SIZES, front=CONFIG.front))  # whose table leaves the head out
    x = torch.randn(1, 64, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = oracle.audio_spectrogram_transformer(x).pooler_output
        torch.testing.assert_close(ours(x), theirs, atol=1e-5, rtol=0)


def test_names_of_version_4_fill_the_same_places(oracle):
    def older(key):
        key = re.sub(r"\blayers\.(\d+)", r"encoder.layer.\1", key)
        for new, old in (("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value"),
                         ("o_proj", "output.dense"), ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense")):  # fmt: skip  # noqa: E501
            key = key.replace(new, old)
        return key

    tensors = {older(k): v for k, v in oracle.state_dict().items()}
    assert "audio_spectrogram_transformer.encoder.layer.1.attention.attention.key.weight" in tensors
    ours, same = imported(tensors).state_dict(), imported(oracle.state_dict()).state_dict()
    assert all(torch.equal(ours[k], same[k]) for k in same)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_its_authors_names_fill_the_same_places_and_their_unused_heads_nothing(prefix):
    model = drawn(AST(CONFIG))
    tensors = {prefix + k: v for k, v in own_names(model).items()}
    tensors |= {f"{prefix}v.{head}.weight": torch.ones(10, 24) for head in ("head", "head_dist")}
    same = imported(tensors).state_dict()
    assert all(torch.equal(same[k], v) for k, v in model.state_dict().items())


def test_what_was_read_can_be_written_again(oracle):
    state = imported(oracle.state_dict()).state_dict()
    written = invert(state, rules(CONFIG))
    assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in oracle.state_dict().items()}
    assert all(np.array_equal(written[k], v.numpy()) for k, v in oracle.state_dict().items())


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda t: t.pop("v.dist_token"), "theirs lacks audio_spectrogram_transformer.embeddings.distillation_token"),
        (lambda t: t.update(extra=torch.ones(1)), "theirs has extra, for which the model has no place"),
        (lambda t: t.update({"v.pos_embed": torch.ones(1, 9, 24)}), r"v.pos_embed is \(1, 9, 24\), which gives"),
        (lambda t: t.update({"v.blocks.0.attn.qkv.bias": torch.ones(71)}), r"qkv.bias is \(71,\), where \(3 x width"),
    ],
)
def test_what_does_not_fit_is_named(break_it, sentence):
    tensors = own_names(drawn(AST(CONFIG)))
    break_it(tensors)
    with pytest.raises(DataError, match=sentence):
        imported(tensors)


# --- starting ---------------------------------------------------------------------------------------------------


def deit(side=4, dim=24, depth=2):
    """A distilled vision transformer's arrays, by timm's names."""
    generator = torch.Generator().manual_seed(3)
    like = AST(ASTConfig(**{**SIZES, "dim": dim, "depth": depth}, front=CONFIG.front))
    out = {k.removeprefix("v."): torch.randn(v.shape, generator=generator) for k, v in own_names(like).items()}
    out["patch_embed.proj.weight"] = torch.randn(dim, 3, 16, 16, generator=generator)
    out["pos_embed"] = torch.randn(1, side * side + 2, dim, generator=generator)
    return out | {f"{head}.weight": torch.ones(9, dim) for head in ("head", "head_dist")}


def test_pictures_kernels_are_summed_and_positions_cut_or_zoomed():
    start, model = deit(), AST(CONFIG)
    assert CONFIG.grid == (4, 5)
    initialise(model, read_start(arrays(start)))
    torch.testing.assert_close(model.embed.weight, start["patch_embed.proj.weight"].sum(1, keepdim=True))
    torch.testing.assert_close(model.positions[:, :SPECIAL], start["pos_embed"][:, :SPECIAL])
    torch.testing.assert_close(model.distillation, start["dist_token"])
    grid = start["pos_embed"][:, SPECIAL:].unflatten(1, (4, 4))
    at = (torch.arange(5) + 0.5) * 4 / 5 - 0.5  # centres of five places among four
    low = at.clamp(0, 3).floor().long()
    share = (at.clamp(0, 3) - low)[:, None]
    zoomed = grid[:, :, low] * (1 - share) + grid[:, :, (low + 1).clamp(max=3)] * share
    torch.testing.assert_close(model.positions[:, SPECIAL:].unflatten(1, (4, 5)), zoomed)
    torch.testing.assert_close(model.encoder.blocks[1].attention.key.weight, start["blocks.1.attn.qkv.weight"][24:48])


def test_a_gray_picture_repeated_for_each_colour_is_the_same_patch():
    start = read_start(arrays(deit()))
    model = AST(CONFIG)
    initialise(model, start)
    patch = torch.randn(1, 1, 16, 16)
    theirs = torch.nn.functional.conv2d(patch.expand(-1, 3, -1, -1), start.state["embed.weight"])
    torch.testing.assert_close(torch.nn.functional.conv2d(patch, model.embed.weight), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("there", "wanted", "first"), [(24, 12, 6), (24, 24, 0), (101, 50, 25), (101, 12, 44), (12, 5, 4)]
)
def test_an_axis_is_cut_around_its_middle(there, wanted, first):
    grid = torch.arange(there, dtype=torch.float).expand(1, 1, 2, there)
    assert fit_axis(grid, 3, wanted)[0, 0, 0].tolist() == list(range(first, first + wanted))


def test_time_is_zoomed_and_frequency_cut_as_for_ten_seconds():
    table = torch.randn(1, 24 * 24, 3)
    fitted = fit_grid(table, (24, 24), (12, 101)).unflatten(1, (12, 101))
    assert torch.equal(fit_grid(table, (24, 24), (24, 24)), table)
    middle = table.unflatten(1, (24, 24))[:, 6:18].movedim(-1, 1)
    along = torch.nn.functional.interpolate(middle, (12, 101), mode="bilinear")
    torch.testing.assert_close(fitted, along.movedim(1, -1))


def test_an_ast_of_short_recordings_starts_from_one_of_long_ones():
    long = drawn(AST(ASTConfig(**SIZES, classes=7, front=Filterbank(bins=48, frames=128))))
    short = AST(CONFIG)
    initialise(short, read_start(arrays(long.state_dict())))
    (rows, old), (_, new) = long.config.grid, CONFIG.grid
    theirs = long.positions[:, SPECIAL:].unflatten(1, (rows, old))[:, :, old // 2 - new // 2 :][:, :, :new]
    torch.testing.assert_close(short.positions[:, SPECIAL:].unflatten(1, (rows, new)), theirs)
    same = AST(ASTConfig(**SIZES, front=CONFIG.front))
    initialise(same, read_start(arrays(own_names(drawn(AST(CONFIG))))))
    torch.testing.assert_close(same.positions, drawn(AST(CONFIG)).positions)


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (deit(dim=12), "has dim 12 and the model 24; choose the preset of its size"),
        (deit(depth=1), "has depth 1 and the model 2; choose"),
        ({k: v for k, v in deit().items() if k != "pos_embed"}, "has nothing that fills positions; give a DeiT"),
        ({**deit(), "pos_embed": torch.ones(1, 19, 24)}, "17 positions do not make a square"),
        ({**deit(), "more": torch.ones(1)}, "has more, for which the model has no place"),
    ],
)
def test_what_cannot_be_started_from_is_one_sentence(start, sentence):
    with pytest.raises(DataError, match=sentence):
        initialise(AST(CONFIG), read_start(arrays(start)))


def test_the_command_reads_both_and_a_published_file_keeps_its_head_when_asked(tmp_path, capsys):
    model = drawn(AST(CONFIG))
    save_file({f"module.{k}": v.contiguous() for k, v in own_names(model).items()}, tmp_path / "theirs.safetensors")
    save_file({k: v.contiguous() for k, v in deit().items()}, tmp_path / "deit.safetensors")
    command = ["import-weights", "ast_base_10", "--json", *(x for s in SETS for x in ("--set", s))]
    out = tmp_path / "out.safetensors"
    assert legato([*command, str(tmp_path / "theirs.safetensors"), "--out", str(out), "--set", "classes=5"]) == 0
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in load_file(out).items())
    assert legato([*command, str(tmp_path / "theirs.safetensors"), "--out", str(out)]) == 0
    assert "module.mlp_head.1.bias" in json.loads(capsys.readouterr().out.splitlines()[-1])["left_out"]
    started = [*command, str(tmp_path / "deit.safetensors"), "--layout", "image_vit", "--out", str(out)]
    assert legato(started) == 0
    assert load_file(out)["positions"].shape == (1, CONFIG.tokens + SPECIAL, 24)


def test_clip_seconds_and_front_say_how_long_it_is():
    assert ASTConfig(**SIZES, clip_seconds=Fraction(1), front=Filterbank()).shape == (98, 128)
