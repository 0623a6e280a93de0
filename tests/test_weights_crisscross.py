"""Published names of CrissCross and AVID-CMA: every layout read, and what does not fit named."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from encoders.audiovisual.avid_cma import AVIDCMA, AVIDCMAConfig
from encoders.audiovisual.crisscross import CrissCross, CrissCrossConfig
from encoders.errors import DataError
from encoders.registry import build, config_of
from encoders.weights.crisscross import rules
from encoders.weights.rules import convert
from encoders.weights.tables import layout_of
from runtime import cli

SMALL = {"stem_width": 4, "widths": (4, 8, 8, 8)}
SETTINGS = [part for name in ("stem_width=4", "widths=4,8,8,8") for part in ("--set", name)]


def filled(state):
    """Every tensor with numbers of its own, the counters too."""
    draw = torch.Generator().manual_seed(3)
    return {
        k: torch.rand(v.shape, generator=draw) if v.is_floating_point() else torch.tensor(7) for k, v in state.items()
    }


def crisscross(**changes):
    config = CrissCrossConfig(
        video=config_of("r2plus1d_18_crisscross", size=32, **SMALL), audio=config_of("resnet2d_18", **SMALL),
        width=8, bottleneck=4, **changes,
    )  # fmt: skip
    return CrissCross(config)


def training_state(model, prefix="module.", layers=3):
    """The model of a published training state: backbones and projectors a second time, as parts of encoders."""
    own = filled(model.state_dict())
    if layers == 2:  # published code has the middle layer all the same
        for m in ("video", "audio"):
            own |= {k.replace("layer1", "layer2"): v for k, v in own.items() if k.startswith(f"{m}_projector.layer1")}
    state = dict(own)
    for key, value in own.items():
        part, _, rest = key.partition(".")
        modality, _, kind = part.partition("_")
        if kind != "predictor":
            state[f"{modality}_encoder.{'0' if kind == 'backbone' else '2'}.{rest}"] = value.clone()
    return own, {prefix + k: v for k, v in state.items()}


def imported(tmp_path, preset, state, *options):
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "theirs.safetensors")
    out = tmp_path / "w.safetensors"
    code = cli.run(["import-weights", preset, str(tmp_path / "theirs.safetensors"), *options, "--out", str(out)])
    return code, load_file(out) if out.exists() else {}


# --- CrissCross ---


def test_a_training_state_has_744_entries_and_the_released_files_201_and_120():
    model = crisscross()
    assert len(training_state(model)[1]) == 744
    assert (len(model.video_backbone.state_dict()), len(model.audio_backbone.state_dict())) == (201, 120)


@pytest.mark.parametrize(("preset", "size"), [("r2plus1d_18_crisscross", 201), ("resnet2d_18", 120)])
def test_a_released_backbone_is_read_whole(preset, size, tmp_path, capsys):
    state = filled(build(preset, **SMALL).state_dict())
    code, weights = imported(tmp_path, preset, state, *SETTINGS)
    assert code == 0 and "read as crisscross" in capsys.readouterr().out
    assert len(weights) == size and all(torch.equal(weights[k], v) for k, v in state.items())
    build(preset, **SMALL).load_state_dict(weights)


BARE = pytest.param("", marks=pytest.mark.slow)


@pytest.mark.parametrize("prefix", ["module.", BARE])
@pytest.mark.parametrize(
    ("preset", "part"),
    [("resnet2d_18", "audio_backbone"), pytest.param("r2plus1d_18", "video_backbone", marks=pytest.mark.slow)],
)
def test_a_backbone_is_read_from_a_training_state(preset, part, prefix, tmp_path, capsys):
    own, state = training_state(crisscross(), prefix)
    code, weights = imported(tmp_path, preset, state, *SETTINGS)
    assert code == 0 and "left out: " in capsys.readouterr().out
    assert {f"{part}.{k}": v.tolist() for k, v in weights.items()} == {
        k: v.tolist() for k, v in own.items() if k.startswith(part)
    }


@pytest.mark.parametrize("prefix", ["module.", BARE])
@pytest.mark.parametrize("layers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_training_state_fills_the_whole_model(prefix, layers):
    model = crisscross(video_layers=layers, audio_layers=layers)
    own, state = training_state(model, prefix, layers)
    found = convert({k: v.numpy() for k, v in state.items()}, rules(model.config), model.state_dict(), what="state")
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[k], own[k]) for k in found)


@pytest.mark.slow
def test_pre_training_starts_from_a_training_state(tmp_path, capsys):
    changes = ["model.video.stem_width=4", "model.audio.stem_width=4", "model.width=8", "model.bottleneck=4"]
    from encoders.pretrain_crisscross import recipe

    config = recipe("crisscross_tiny", "synthetic:8", **dict(c.split("=") for c in changes))
    _, state = training_state(CrissCross(config.model))
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "state.safetensors")
    settings = [part for c in [*changes, "clips_per_video=1"] for part in ("--set", c)]
    command = ["train", "crisscross", "--preset", "crisscross_tiny", "--data", "synthetic:8", "--epochs", "1"]
    command += settings
    assert cli.run([*command, "--init", str(tmp_path / "state.safetensors"), "--out", str(tmp_path / "run")]) == 0
    del state["module.audio_predictor.layer2.bias"]
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "state.safetensors")
    capsys.readouterr()
    assert cli.run([*command, "--init", str(tmp_path / "state.safetensors"), "--out", str(tmp_path / "b")]) == 1
    assert "lacks audio_predictor.layer2.bias, which fills audio_predictor.layer2.bias" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.update({"conv6x.0.spt_conv1.weight": torch.zeros(1)}), "has conv6x.0.spt_conv1.weight, for which"),
        (lambda s: s.update({"head.weight": torch.zeros(1)}), "has head.weight, for which the model has no place"),
        (lambda s: s.pop("conv3x.0.res_conv.weight"), "lacks conv3x.0.res_conv.weight, which fills"),
        (lambda s: s.update({"conv1.0.weight": torch.zeros(4, 1, 3, 7, 7)}), "conv1.0.weight is (4, 1, 3, 7, 7)"),
        (lambda s: s["conv1.1.bias"].fill_(torch.nan), "conv1.1.bias holds a number that is not finite"),
        (lambda s: s.update({"video_backbone.conv1.1.bias": torch.zeros(4)}), "has both conv1.1.bias and"),
    ],
)
def test_what_does_not_fit_is_named(change, says, tmp_path, capsys):
    state = filled(build("r2plus1d_18", **SMALL).state_dict())
    change(state)
    code, _ = imported(tmp_path, "r2plus1d_18", state, "--layout", "crisscross", *SETTINGS)
    err = capsys.readouterr().err
    assert code == 1 and err.startswith("legato: ") and err.count("\n") == 1 and says in err


def test_a_network_of_pictures_is_no_network_of_sound(tmp_path, capsys):
    state = filled(build("r2plus1d_18", **SMALL).state_dict())
    code, _ = imported(tmp_path, "resnet2d_18", state, *SETTINGS)
    assert code == 1 and "conv1.0.weight is (4, 3, 3, 7, 7)" in capsys.readouterr().err


# --- AVID-CMA ---


def avid_cma(**video):
    config = AVIDCMAConfig(
        video=config_of("r2plus1d_18", **{**SMALL, **video}),
        audio=config_of("conv2d_10", stem_width=4, widths=(4, 8, 8, 8)), projection=(8, 8, 4),
    )  # fmt: skip
    return AVIDCMA(config)


@pytest.mark.parametrize("prefix", ["module.", BARE])
@pytest.mark.parametrize(("preset", "part"), [("r2plus1d_18", "video_model"), ("conv2d_10", "audio_model")])
def test_each_network_of_avid_cma_is_read_from_the_whole_file(preset, part, prefix, tmp_path, capsys):
    state = filled(avid_cma().state_dict())
    assert len(state) == 267
    code, weights = imported(tmp_path, preset, {prefix + k: v for k, v in state.items()}, *SETTINGS)
    out = capsys.readouterr().out
    assert code == 0 and "read as avid_cma" in out and "left out: " in out
    mine = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
    assert weights.keys() == mine.keys() and all(torch.equal(weights[k], v) for k, v in mine.items())


def test_a_shallow_network_has_no_numbers_of_blocks(tmp_path):
    state = filled(avid_cma(blocks=(1, 1, 1, 1)).state_dict())
    assert "video_model.conv3x.spt_conv1.weight" in state
    code, weights = imported(tmp_path, "r2plus1d_10", {f"module.{k}": v for k, v in state.items()}, *SETTINGS)
    assert code == 0 and torch.equal(weights["conv3x.spt_conv1.weight"], state["video_model.conv3x.spt_conv1.weight"])


def test_the_depth_of_another_model_is_named(tmp_path, capsys):
    state = {f"module.{k}": v for k, v in filled(avid_cma().state_dict()).items()}
    code, _ = imported(tmp_path, "r2plus1d_10", state, *SETTINGS)
    assert code == 1 and "has module.video_model.conv2x.0." in capsys.readouterr().err


def test_the_names_tell_the_layout():
    assert layout_of("r2plus1d_18", "huggingface", ["module.video_model.conv1.0.weight"]) == "avid_cma"
    assert layout_of("r2plus1d_18", "huggingface", ["conv1.0.weight"]) == "crisscross"
    assert layout_of("conv2d_10", "huggingface", ["anything"]) == "avid_cma"
    assert layout_of("vivit_base", "scenic") == "scenic"


def test_a_pickle_is_refused_with_the_way_out(tmp_path, capsys):
    torch.save({"conv1.0.weight": torch.zeros(1)}, tmp_path / "vid_crisscross.pth.tar")
    command = ["import-weights", "r2plus1d_18", str(tmp_path / "vid_crisscross.pth.tar")]
    assert cli.run([*command, "--out", str(tmp_path / "w.safetensors")]) == 1
    assert "is a pickle, which is not read; save it as safetensors" in capsys.readouterr().err


def test_two_names_for_one_parameter_are_refused():
    model = crisscross()
    _, state = training_state(model, "module.")
    state["video_predictor.layer2.bias"] = state["module.video_predictor.layer2.bias"]
    with pytest.raises(DataError, match=r"has both module.video_predictor.layer2.bias and video_predictor.layer2.bias"):
        convert({k: v.numpy() for k, v in state.items()}, rules(model.config), model.state_dict(), what="state")
