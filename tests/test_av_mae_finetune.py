"""From AV-MAE to the MBT that classifies: sizes, what each stream starts from, rates by layer, a whole run."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from encoders.audiovisual.av_mae import AVMAE
from encoders.audiovisual.mbt import MBT, MBTConfig
from encoders.audiovisual.mbt_av_mae import PRESETS
from encoders.checkpoint import save_weights
from encoders.classifier import build_classifier
from encoders.errors import ConfigError, DataError
from encoders.finetune import finetune, make_optimizer
from encoders.labelled_data import open_splits
from encoders.layer_decay import layer_of, with_layer_decay
from encoders.pretrain_mae import pretrain
from encoders.pretrain_mae import recipe as pretraining
from encoders.recipes import recipe
from encoders.starts import carried
from encoders.weights.av_mae_start import carry
from tests.macs import on_meta, parameters
from tests.moving import moving
from tests.test_av_mae import AUDIO, VIDEO, small
from tests.test_pretrain_mae import two_seconds

FUSIONS = ("separate", "early", "shared", "mid")
# The public code (google-research/scenic, projects/av_mae/mbt.py): parameters, and billions of multiply-adds. Models of
# one modality have an unused table of four bottlenecks there.
ROWS = [
    ("large", 309, 607_302_965, 1575.8), ("large_audioset", 527, 607_002_127, 1608.7),
    ("large_video", 309, 304_206_133 - 4096, 1445.2), ("large_audio", 309, 303_419_701 - 4096, 129.4),
    ("base", 309, 172_122_165, 492.8),
]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "classes", "count", "billions"),
    [row if row[0] == "base" else pytest.param(*row, marks=pytest.mark.slow) for row in ROWS],
)
def test_parameters_and_multiply_adds_are_the_published_model_s(size, classes, count, billions):
    config = replace(PRESETS[f"mbt_av_mae_{size}"], classes=classes)
    model = on_meta(lambda: MBT(config))
    assert parameters(model) == count
    shapes = {"rgb": config.video and config.video.shape, "audio": config.audio and config.audio.shape[1:]}
    seen = {name: torch.empty(1, *shape, device="meta") for name, shape in shapes.items() if shape}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.logits(seen)
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, rel=0.01)


def test_one_channel_saves_what_the_public_code_says():
    for size, count in (("large", 606_778_677), ("large_audio", 302_895_413 - 4096), ("base", 171_728_949)):
        config = replace(PRESETS[f"mbt_av_mae_{size}"], classes=309, spectrogram_channels=1)
        if size == "base":
            assert parameters(on_meta(lambda config=config: MBT(config))) == count
        else:  # 2 * 16 * 16 of 1024, less than the presets have
            assert dict((row[0], row[2]) for row in ROWS)[size] - 2 * 256 * 1024 == count


# --- what each stream starts from ---


def classifier(**changes) -> MBT:
    sizes = {"dim": 8, "depth": 2, "heads": 2, "mlp_dim": 16, "fusion_layer": 1, "bottlenecks": 2, "classes": 3}
    torch.manual_seed(1)
    fixed = {"pool": "mean", "positions": "sinusoidal", "video": VIDEO, "audio": AUDIO}
    return MBT(MBTConfig(**{**sizes, **fixed, **changes}))


def pretrained(encoder="separate", **changes) -> AVMAE:
    torch.manual_seed(0)
    model = AVMAE(small(encoder, **changes))
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)):
        torch.nn.init.normal_(norm.weight, 1.0, 0.1)
    return model


def given() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {"video": torch.randn(2, 3, 4, 16, 16), "audio": torch.randn(2, 1, 24, 16)}


@pytest.mark.parametrize("modality", ["video", "audio"])
@pytest.mark.parametrize("encoder", ["separate", "early", "shared"])
def test_a_stream_alone_computes_what_its_encoder_did(encoder, modality):
    """With one modality there is one last norm, so that features are those of the frozen encoder."""
    source, x = pretrained(encoder).eval(), given()
    other = "audio" if modality == "video" else "video"
    model = classifier(**{other: None}, spectrogram_channels=1, classes=0).eval()
    carry(model, source.state_dict(), source.config)
    seen = {"rgb": x["video"]} if modality == "video" else {"audio": x["audio"][:, 0]}
    expected = source({modality: x[modality]})[modality].mean(1)
    torch.testing.assert_close(model.features(seen), expected, atol=1e-5, rtol=1e-4)


def test_a_mid_encoder_s_joint_blocks_are_in_both_streams():
    source, model = pretrained("mid"), classifier()
    head = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(("head", "encoder.bottleneck"))}
    carry(model, source.state_dict(), source.config)
    own, weights = model.state_dict(), source.state_dict()
    for m in ("video", "audio"):
        for part in ("attention.query.weight", "mlp.second.bias", "norm1.weight"):
            assert torch.equal(own[f"encoder.blocks.{m}.0.{part}"], weights[f"trunks.{m}.blocks.0.{part}"])
            assert torch.equal(own[f"encoder.blocks.{m}.1.{part}"], weights[f"trunks.joint.blocks.0.{part}"])
    assert torch.equal(own["encoder.norm.weight"], weights["trunks.joint.norm.weight"])
    assert all(torch.equal(own[k], v) for k, v in head.items())  # new


def test_separate_encoders_leave_the_last_norm_alone():
    model = classifier()
    source = pretrained("separate")
    carry(model, source.state_dict(), source.config)
    assert torch.equal(model.encoder.norm.weight, torch.ones(8))
    assert torch.equal(model.encoder.blocks["audio"][1].norm1.weight, source.trunks["audio"].blocks[1].norm1.weight)


def test_a_kernel_of_one_channel_is_repeated_and_not_divided():
    source, model = pretrained(), classifier(spectrogram_channels=3)
    carry(model, source.state_dict(), source.config)
    kernel = model.state_dict()["tokens.audio.embed.project.weight"]
    assert kernel.shape[1] == 3
    for channel in range(3):
        assert torch.equal(kernel[:, channel], source.embed["audio"].project.weight[:, 0])


def test_what_was_added_to_every_token_goes_into_the_bias():
    source = pretrained("separate", modality_tokens=True).eval()
    with torch.no_grad():
        source.places["video"].token.normal_()
    model, x = classifier(audio=None, classes=0).eval(), given()["video"]
    carry(model, source.state_dict(), source.config)
    torch.testing.assert_close(
        model.features({"rgb": x}), source({"video": x})["video"].mean(1), atol=1e-5, rtol=1e-4
    )


def test_one_modality_s_encoder_starts_both_streams():
    source, model = pretrained(audio=None), classifier()
    fresh = model.state_dict()["tokens.audio.embed.project.weight"].clone()
    carry(model, source.state_dict(), source.config)
    own, blocks = model.state_dict(), source.state_dict()
    for m in ("video", "audio"):
        name = "attention.value.weight"
        assert torch.equal(own[f"encoder.blocks.{m}.1.{name}"], blocks[f"trunks.video.blocks.1.{name}"])
    assert torch.equal(own["tokens.audio.embed.project.weight"], fresh)
    assert torch.equal(own["encoder.norm.weight"], blocks["trunks.video.norm.weight"])


def test_a_shared_stack_starts_from_a_shared_encoder():
    source, model = pretrained("shared"), classifier(share_encoder=True)
    carry(model, source.state_dict(), source.config)
    name = "attention.out.weight"
    own, theirs = model.state_dict(), source.state_dict()
    assert torch.equal(own[f"encoder.blocks.both.0.{name}"], theirs[f"trunks.joint.blocks.0.{name}"])


@pytest.mark.parametrize(
    ("changes", "encoder", "sentence"),
    [
        ({"dim": 16}, "separate", "the pre-trained encoder has dim 8 and the model 16; choose the preset of its size"),
        ({"depth": 3, "fusion_layer": 3}, "separate", "has depth 2 and the model 3"),
        ({"pool": "token"}, "separate", "knows pool mean and the model has token; name a preset that begins with"),
        ({"positions": "learned"}, "mid", "knows positions sinusoidal and the model has learned"),
        ({"share_encoder": True}, "separate", "has blocks for each modality and the model one stack"),
        ({"video": replace(VIDEO, tubelet=(4, 8, 8))}, "early", r"patches of \(2, 8, 8\) of video and the model of"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(changes, encoder, sentence):
    source, model = pretrained(encoder), classifier(**changes)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(DataError, match=sentence):
        carry(model, source.state_dict(), source.config)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_half_an_encoder_is_refused():
    source, model = pretrained(), classifier()
    weights = source.state_dict()
    del weights["embed.audio.project.bias"]
    with pytest.raises(DataError, match=r"it lacks embed.audio.project.bias; give the encoder of a finished run"):
        carry(model, weights, source.config, what="it")
    weights = {k: v for k, v in source.state_dict().items() if "audio.blocks.1.mlp" not in k}
    with pytest.raises(DataError, match=r"it lacks block 1\.mlp\.first\.weight"):
        carry(model, weights, source.config, what="it")


# --- learning rates by layer ---


def test_learning_rates_fall_layer_by_layer():
    model = classifier()
    names = {name: layer_of(name, 2) for name, _ in model.named_parameters()}
    assert names["tokens.video.embed.project.weight"] == 0
    assert names["encoder.blocks.audio.0.norm1.weight"] == 1 and names["encoder.blocks.video.1.mlp.first.bias"] == 2
    assert {names[k] for k in ("encoder.bottleneck", "encoder.norm.weight", "head.weight")} == {3}
    groups = with_layer_decay([{"params": list(model.parameters()), "weight_decay": 0.1}], model, 0.75)
    assert [g["scale"] for g in groups] == [0.75**3, 0.75**2, 0.75, 1.0]
    assert sum(len(g["params"]) for g in groups) == len(names) and {g["weight_decay"] for g in groups} == {0.1}
    same = [{"params": list(model.parameters())}]
    assert with_layer_decay(same, model, 1.0) is same
    with pytest.raises(ConfigError, match=r"layer_decay 0.5 needs a model of numbered blocks, which this is not"):
        with_layer_decay([{"params": []}], torch.nn.Linear(2, 2), 0.5)


def test_the_recipes_are_the_paper_s():
    vgg = recipe("mbt_av_mae_large", "vggsound:x")
    assert (vgg.optimizer, vgg.lr, vgg.batch, vgg.epochs, vgg.warmup) == ("sgd", 0.8, 64, 50, 2.5)
    assert (vgg.layer_decay, vgg.clip, vgg.clip_where, vgg.smoothing) == (0.75, 1.0, "mean", 0.3)
    assert (vgg.encoder["mixmod"], vgg.encoder["stochastic_depth"], vgg.stride, vgg.mixup) == (0.5, 0.3, 2, 0.0)
    assert (vgg.sound.frequency_masks, vgg.sound.time_masks) == (1, 4)
    assert vgg.sound.masks(800, 128).frequency_width == 48 == vgg.sound.masks(800, 128).time_width
    aud = recipe("mbt_av_mae_large_audioset", "audioset_500k:x")
    masks = aud.sound.masks(992, 128)
    assert (aud.lr, aud.batch, masks.frequency_masks, masks.frequency_width, masks.time_width) == (1.6, 128, 2, 36, 48)
    large, audioset = PRESETS["mbt_av_mae_large"], PRESETS["mbt_av_mae_large_audioset"]
    assert (large.fusion_layer, audioset.fusion_layer, large.tokens_between) == (16, 18, 4)
    assert (large.spectrogram_channels, audioset.spectrogram_channels) == (3, 1)
    with pytest.raises(ConfigError, match=r"layer_decay 0.0 must lie in \(0, 1\]; use 1 for none"):
        recipe("mbt_av_mae_tiny", "vggsound:x", layer_decay=0.0)


def test_an_optimizer_has_the_layers_rates_and_the_loop_heeds_them():
    config = recipe("mbt_av_mae_tiny", "vggsound:x")
    optimizer = make_optimizer(config, build_classifier("mbt_av_mae_tiny", 3, {}))
    assert [g["scale"] for g in optimizer.param_groups] == pytest.approx([0.75**k for k in (5, 4, 3, 2, 1, 0)])


# --- a whole run ---

TINY = {
    "model.dim": 16, "model.depth": 2, "model.heads": 2, "model.mlp_dim": 32, "model.video.size": 32,
    "model.video.frames": 4,
}  # fmt: skip


def test_pretraining_then_fine_tuning_from_its_folder(tmp_path):
    """Without labels on recordings with sound, then as a classifier of pictures alone."""
    few = {"batch": 2, "epochs": 1, "warmup": 0.0, "workers": 0, "cache": "none", "decoder.dim": 16,
           "decoder.mlp_dim": 16, "decoder.heads": 2, "objective.hidden_video": 0.5,
           "model.joint_depth": 1}  # fmt: skip
    run = pretrain(pretraining("av_mae_tiny", two_seconds(tmp_path / "data"), **few, **TINY), tmp_path / "mae")
    data = moving(tmp_path / "moving")
    config = recipe(
        "mbt_av_mae_tiny", data, **TINY, **{"model.audio": None, "model.fusion_layer": 2, "model.drop_modality": 0.0},
        epochs=1, batch=2, lr=1e-6, warmup=0.0, workers=0, views="1x1", stride=1,
    )  # fmt: skip
    said: list[str] = []
    out = finetune(config, tmp_path / "tuned", init=run, say=said.append)
    assert f"{run} without its head" in said[0]
    tuned, encoder = load_file(out / "model.safetensors"), load_file(run / "encoder.safetensors")
    name = "attention.query.weight"
    torch.testing.assert_close(
        tuned[f"encoder.blocks.video.1.{name}"], encoder[f"trunks.joint.blocks.0.{name}"], atol=1e-4, rtol=1e-3
    )


def test_weights_of_its_own_kind_are_not_carried(tmp_path):
    model = classifier()
    save_weights(tmp_path / "model.safetensors", model.state_dict())
    assert not carried(model, tmp_path) and not carried(model, tmp_path / "model.safetensors")
    assert not carried(model, tmp_path / "nowhere")
    save_weights(tmp_path / "encoder.safetensors", {}, {"preset": "av_mae_tiny", "config": "no config"})
    with pytest.raises(DataError, match=r"encoder.safetensors cannot be read \(.*\); name the folder of a run"):
        carried(model, tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"encoder.safetensors cannot be read"):
        carried(model, tmp_path)


def test_pictures_of_less_than_a_clip_are_heard_with_the_whole_clip_around(tmp_path):
    config = recipe("mbt_av_mae_tiny", moving(tmp_path / "moving"), stride=1, workers=0, validation_splits=())
    _, train, _ = open_splits(config)
    for apart in (True, False):
        pairs = train.open_for(build_classifier("mbt_av_mae_tiny", 2, {"video.frames": 4, "sound_apart": apart}))
        assert pairs.hearing.apart == apart
