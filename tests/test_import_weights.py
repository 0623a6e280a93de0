"""``legato import-weights``: published files in, our weights out, and one sentence for what does not fit."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from encoders.registry import ENCODERS, build, config_of
from encoders.weights.rules import invert
from encoders.weights.tables import TABLES, table_of
from runtime import cli
from tests.flax_fill import filled
from tests.test_weights_flax import packed

TINY = {"dim": 8, "depth": 2, "heads": 2, "mlp_dim": 16, "size": 32}
SETTINGS = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]


def tree_of(preset: str, layout: str = "scenic", **changes) -> dict[str, np.ndarray]:
    """What a published model of this preset would hold, every number by the fill rule."""
    names = invert(build(preset, **changes).state_dict(), table_of(preset, layout)(config_of(preset, **changes)))
    return {path: filled(path, array.shape) for path, array in names.items()}


def nested(flat):
    tree: dict = {}
    for path, array in flat.items():
        *folders, last = path.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = array
    return tree


def run(tmp_path, preset, *options):
    return cli.run(["import-weights", preset, *map(str, options), "--out", str(tmp_path / "w.safetensors")])


FLAX = [name for name, tables in TABLES.items() if "scenic" in tables]


@pytest.mark.parametrize(
    "preset", [n for n in ENCODERS if "tiny" in n and ENCODERS[n].partition(":")[2] in FLAX and n != "mtv_tiny_mlp"]
)
def test_every_transformer_reads_its_public_layout(preset, tmp_path, capsys):
    tree = tree_of(preset)
    (tmp_path / "checkpoint_9").write_bytes(packed({"params": nested(tree), "global_step": 9, "rng": None}))
    assert run(tmp_path, preset, tmp_path / "checkpoint_9") == 0
    out = capsys.readouterr().out
    assert "read as scenic" in out and "left out: global_step, rng" in out
    weights = load_file(tmp_path / "w.safetensors")
    build(preset).load_state_dict(weights)
    assert sum(v.numel() for v in weights.values()) == sum(a.size for a in tree.values())


def test_an_npz_with_a_head_goes_into_an_encoder_without_one(tmp_path, capsys):
    tree = tree_of("vivit_tiny_fe", **TINY, classes=4)
    np.savez(tmp_path / "vivit.npz", **{f"optimizer/target/{path}": array for path, array in tree.items()})
    assert run(tmp_path, "vivit_tiny_fe", tmp_path / "vivit.npz", *SETTINGS, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert sorted(said["left_out"]) == ["output_projection/bias", "output_projection/kernel"]
    assert said["mapped"]["over_space.encoder.blocks"]["tensors"] == 32
    assert run(tmp_path, "vivit_tiny_fe", tmp_path / "vivit.npz", *SETTINGS, "--set", "classes=4", "--json") == 0
    assert not json.loads(capsys.readouterr().out)["left_out"]
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["classes"] == 4 and file.metadata()["preset"] == "vivit_tiny_fe"


def test_names_of_transformers_are_told_from_the_file(tmp_path, capsys):
    tree = tree_of("vivit_tiny", "huggingface", **TINY)
    save_file({k: torch.from_numpy(v) for k, v in tree.items()}, tmp_path / "model.safetensors")
    assert run(tmp_path, "vivit_tiny", tmp_path, *SETTINGS) == 0
    assert "read as huggingface" in capsys.readouterr().out


def test_a_face_model_of_ours_has_a_feature_no_checkpoint_knows(tmp_path):
    np.savez(tmp_path / "vivit.npz", **tree_of("vivit_tiny", **TINY))
    assert run(tmp_path, "vivit_tiny", tmp_path / "vivit.npz", *SETTINGS, "--set", "region=face") == 0
    assert load_file(tmp_path / "w.safetensors")["no_face"].tolist() == [0] * 8


# --- starting from image ViTs -------------------------------------------------------------------------------------


def image_vit(path, dim, heads, mlp_dim, depth=2, patch=16, side=2):
    """A picture's transformer in the public layout."""
    d, e, mha = dim, dim // heads, "MultiHeadDotProductAttention_1"
    block: dict[str, tuple[int, ...]] = {f"{mha}/out/kernel": (heads, e, d), f"{mha}/out/bias": (d,)}
    for name in ("query", "key", "value"):
        block |= {f"{mha}/{name}/kernel": (d, heads, e), f"{mha}/{name}/bias": (heads, e)}
    for name in ("LayerNorm_0", "LayerNorm_2"):
        block |= {f"{name}/scale": (d,), f"{name}/bias": (d,)}
    for name, sizes in (("Dense_0", (d, mlp_dim)), ("Dense_1", (mlp_dim, d))):
        block |= {f"MlpBlock_3/{name}/kernel": sizes, f"MlpBlock_3/{name}/bias": sizes[1:]}
    shapes = {"cls": (1, 1, d), "embedding/kernel": (patch, patch, 3, d), "embedding/bias": (d,)}
    shapes |= {"Transformer/posembed_input/pos_embedding": (1, side * side + 1, d)}
    shapes |= {"Transformer/encoder_norm/scale": (d,), "Transformer/encoder_norm/bias": (d,)}
    shapes |= {"head/kernel": (d, 10), "head/bias": (10,)}
    shapes |= {f"Transformer/encoderblock_{i}/{name}": shape for i in range(depth) for name, shape in block.items()}
    np.savez(path, **{name: filled(name, shape) for name, shape in shapes.items()})
    return path


def test_a_clips_model_starts_from_a_pictures(tmp_path):
    vit = image_vit(tmp_path / "vit.npz", dim=8, heads=2, mlp_dim=16)
    assert run(tmp_path, "vivit_tiny_fe", vit, "--layout", "image_vit", *SETTINGS) == 0
    weights = load_file(tmp_path / "w.safetensors")
    build("vivit_tiny_fe", **TINY).load_state_dict(weights)
    kernel = weights["embed.project.weight"]  # (D, C, t, h, w): the central frame sees the picture
    assert not kernel[:, :, 0].any() and kernel[:, :, 1].any()
    assert run(tmp_path, "vivit_tiny_fe", vit, "--layout", "image_vit", *SETTINGS, "--inflation", "average") == 0
    again = load_file(tmp_path / "w.safetensors")
    torch.testing.assert_close(again["embed.project.weight"].sum(2), kernel.sum(2))
    drawn = "over_time.encoder.blocks.0.mlp.first.weight"
    assert torch.equal(again[drawn], weights[drawn])  # the same seed


def test_a_model_of_many_modalities_starts_from_one_picture_model(tmp_path):
    c = config_of("polyvit_tiny")
    vit = image_vit(tmp_path / "vit.npz", c.dim, c.heads, c.mlp_dim, c.depth)
    assert run(tmp_path, "polyvit_tiny", vit, "--layout", "image_vit") == 0
    build("polyvit_tiny").load_state_dict(load_file(tmp_path / "w.safetensors"))


def test_attention_in_time_may_start_as_nothing(tmp_path, capsys):
    vit = image_vit(tmp_path / "vit.npz", dim=8, heads=2, mlp_dim=16)
    options = [vit, "--layout", "image_vit", *SETTINGS, "--time", "zero"]
    assert run(tmp_path, "vivit_tiny_fsa", *options) == 0
    assert not load_file(tmp_path / "w.safetensors")["transformer.encoder.blocks.1.time.out.weight"].any()
    assert run(tmp_path, "vivit_tiny_fe", *options) == 2
    assert "--time zero is for factorised self-attention" in capsys.readouterr().err


def test_a_multiview_model_takes_one_picture_model_per_view(tmp_path, capsys):
    views = config_of("mtv_tiny").parsed
    files = [
        image_vit(tmp_path / f"v{i}.npz", view.width, view.heads, view.mlp, view.layers) for i, view in enumerate(views)
    ]
    assert run(tmp_path, "mtv_tiny", *files, "--layout", "image_vit") == 0
    build("mtv_tiny").load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert run(tmp_path, "mtv_tiny", files[0], "--layout", "image_vit") == 1
    assert f"{len(views)} views cannot start from 1 image models" in capsys.readouterr().err


# --- what does not fit --------------------------------------------------------------------------------------------


@pytest.fixture
def vivit(tmp_path):
    tree = tree_of("vivit_tiny", **TINY)

    def write(**changes):
        np.savez(tmp_path / "vivit.npz", **{**tree, **changes})
        return tmp_path / "vivit.npz"

    return write


@pytest.mark.parametrize(
    ("preset", "options", "sentence"),
    [
        ("vivit_tinny", [], "encoder 'vivit_tinny' is unknown; did you mean vivit_tiny"),
        ("conv2d_tiny", [], "preset conv2d_tiny has no published weights of layout 'scenic'"),
        ("mtv_tiny", ["--layout", "huggingface"], "preset mtv_tiny has no published weights of layout 'huggingface'"),
        ("vivit_tiny", ["--layout", "tf"], "layout 'tf' is unknown; choose from auto, "),
        ("vivit_tiny_fe", SETTINGS, "has cls"),
        ("vivit_tiny", [*SETTINGS[:-1], "size=48"], "pos_embedding is (1, 21, 8), which gives"),
        ("vivit_tiny", [*SETTINGS, "--set", "heads=4"], "is (8, 2, 4), where (in, 4 heads, head_dim) is"),
        ("vivit_tiny", [*SETTINGS, "--set", "classes=3"], "lacks output_projection/kernel, which fills head.weight"),
        ("vivit_tiny", [*SETTINGS, "--set", "depth=3"], "lacks Transformer/encoderblock_2/LayerNorm_0/scale"),
        ("vivit_tiny", [*SETTINGS, "--set", "depth=1"], "has Transformer/encoderblock_1/LayerNorm_0/scale and 15 more"),
        (
            "vivit_tiny",
            [*SETTINGS, "--layout", "huggingface"],
            "has embedding/kernel and 37 more, for which the model has no",
        ),
        ("token_learner_tiny", ["--layout", "image_vit"], "token_learner_tiny does not start from an image ViT"),
        ("vivit_tiny", [*SETTINGS, "--layout", "image_vit"], "embedding/kernel is (2, 16, 16, 3, 8), where 4 axes"),
    ],
)
def test_what_does_not_fit_is_one_sentence(preset, options, sentence, vivit, tmp_path, capsys):
    assert run(tmp_path, preset, vivit(), *options) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("legato: ") and err.count("\n") == 1
    assert sentence in err
    assert not (tmp_path / "w.safetensors").exists()


def test_an_unmatched_key_is_named_with_how_many_more(vivit, tmp_path, capsys):
    extra = {"pre_logits/kernel": np.ones(3), "pre_logits/bias": np.ones(3), "xyz": np.ones(1)}
    assert run(tmp_path, "vivit_tiny", vivit(**extra), *SETTINGS) == 1
    err = capsys.readouterr().err
    assert "has pre_logits/kernel and 2 more, for which the model has no place; choose the preset" in err


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04 no zip", b"\x80\x04pickle", b"hello", b"\x00" * 20, b"\x10" * 8 + b"{"]
)
def test_a_file_of_something_else_is_one_sentence(data, tmp_path, capsys):
    (tmp_path / "w").write_bytes(data)
    assert run(tmp_path, "vivit_tiny", tmp_path / "w") == 1
    err = capsys.readouterr().err
    assert err.startswith(f"legato: {tmp_path}/w ") and err.count("\n") == 1


def test_a_file_that_is_not_there_and_a_pickle_are_refused(tmp_path, capsys):
    assert run(tmp_path, "vivit_tiny", tmp_path / "nowhere") == 1
    assert "could not be read (No such file or directory); name a Flax msgpack or npz" in capsys.readouterr().err
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert run(tmp_path, "vivit_tiny", tmp_path / "pytorch_model.bin") == 1
    assert "is a pickle, which is not read; save it as safetensors" in capsys.readouterr().err


def test_two_files_are_for_views_only(vivit, tmp_path, capsys):
    assert run(tmp_path, "vivit_tiny", vivit(), vivit()) == 2
    assert "2 files are given and layout auto reads one" in capsys.readouterr().err
    assert run(tmp_path, "vivit_tiny", vivit(), vivit(), "--layout", "image_vit") == 2
    assert "preset vivit_tiny starts from one image ViT and 2 are given" in capsys.readouterr().err
