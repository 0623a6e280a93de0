"""AV-MAE's encoder: what the public code computes, its fusions, what it refuses, and its weights."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from encoders.audiovisual.av_mae import AVMAE, PRESETS, AVMAEConfig
from encoders.audiovisual.inputs import AudioInput, VideoInput
from encoders.errors import ConfigError, DataError
from encoders.registry import build
from encoders.weights.av_mae import pretraining_rules, rules
from encoders.weights.rules import convert, invert
from encoders.weights.tables import table_of
from tests.flax_fill import channels_first, fill, wave
from tests.macs import on_meta, parameters

VIDEO = VideoInput(frames=4, size=16, tubelet=(2, 8, 8), clip_seconds=Fraction(2, 5))
AUDIO = AudioInput(frames=24, bins=16, patch=(8, 8), clip_seconds=Fraction(2, 5), front="")
FUSIONS = ("separate", "early", "shared", "mid")


def small(encoder="separate", **changes) -> AVMAEConfig:
    sizes = {"dim": 8, "depth": 2, "heads": 2, "mlp_dim": 16, "joint_depth": 1}
    return AVMAEConfig(**{"video": VIDEO, "audio": AUDIO, "encoder": encoder, **sizes, **changes})


def seen(batch=1) -> dict[str, torch.Tensor]:
    video, audio = wave((batch, 4, 16, 16, 3)), wave((batch, 24, 16, 1), 0.021)
    return {"video": channels_first(video), "audio": channels_first(audio)}


# Georgescu et al. (ICCV 2023): token 0's first four values and the sum of all, as google-research/scenic
# (projects/av_mae/vivit_multimodal.py) computes them on filled weights.
GOLDEN = {
    "separate": (6032, (-1.344429, 0.721687, -1.249993, 1.050951, -0.85814),
                 (-1.033801, 1.222481, -0.543555, 1.164231, -1.06159)),
    "early": (4816, (-0.098892, 1.217208, -0.950783, 0.258752, 1.29635),
              (-0.012457, 1.525212, -0.627700, 0.488097, 0.21113)),
    "shared": (4816, (-0.045279, 1.254883, -0.918289, 0.249811, 1.28069),
               (-0.085124, 1.488421, -0.672222, 0.507165, 0.21867)),
    "mid": (5448, (-1.382752, 0.448236, -1.169847, 1.050581, 2.72705),
            (-1.187888, 0.913349, -0.598867, 1.231846, 1.36450)),
}  # fmt: skip


@pytest.mark.parametrize("encoder", FUSIONS)
def test_the_encoder_computes_what_the_public_one_does(encoder):
    model = AVMAE(small(encoder)).eval()
    # The public code spelled the picture RGB when these were computed, and the fill follows names.
    fill(model, [rule for rule in rules(model.config) if "rgb" not in rule.pattern and rule.target])
    with torch.no_grad():
        found = model(seen())
    count, *golden = GOLDEN[encoder]
    assert parameters(model) == count
    for tokens, values in zip(found.values(), golden, strict=True):
        np.testing.assert_allclose(tokens[0, 0, :4].tolist(), values[:4], atol=2e-5)
        np.testing.assert_allclose(float(tokens.sum()), values[4], atol=2e-4)  # of up to 64 numbers


# --- sizes ---


def test_tokens_are_as_many_as_published():
    assert PRESETS["av_mae_base"].counts == {"video": 1568, "audio": 400}
    assert PRESETS["av_mae_large_audioset"].counts == {"video": 1568, "audio": 496}
    assert AVMAE(small()).places["video"].sinusoids.shape == (1, 8, 8)


@pytest.mark.parametrize("preset", [p if "base" in p else pytest.param(p, marks=pytest.mark.slow) for p in PRESETS])
def test_every_preset_is_built_and_serves_a_modality(preset):
    model = on_meta(lambda: build(preset))
    assert set(model.modalities) <= set(model.specs) and model.dim == model.config.dim


def test_the_tiny_one_encodes_what_a_stream_brings():
    model = build("av_mae_tiny").eval()
    assert (model.modalities, model.clip_seconds) == (("video", "audio"), Fraction(2, 5))
    clips = torch.randint(0, 256, (2, 10, 64, 64, 3), dtype=torch.uint8)
    assert model.encode(clips, "video").shape == (2, 128)
    assert model.encode(torch.randn(2, 6400) * 0.1, "audio").shape == (2, 128)
    assert torch.isfinite(model.encode(torch.zeros(2, 6400), "audio")).all()  # silence


# --- laws of fusion ---


@pytest.mark.parametrize("encoder", FUSIONS)
def test_modalities_meet_only_where_the_encoder_fuses(encoder):
    torch.manual_seed(0)
    model, x = AVMAE(small(encoder)).eval(), seen()
    alone = model({"video": x["video"]})["video"]
    together = model(x)["video"]
    assert torch.allclose(alone, together, atol=1e-6) == (encoder in ("separate", "shared"))


@pytest.mark.parametrize("encoder", FUSIONS)
def test_only_visible_tokens_are_looked_at(encoder):
    torch.manual_seed(0)
    model, x = AVMAE(small(encoder)).eval(), seen()
    visible = {"video": torch.tensor([[6, 1]]), "audio": torch.tensor([[0, 5, 2]])}
    before = model(x, visible)
    assert (before["video"].shape, before["audio"].shape) == ((1, 2, 8), (1, 3, 8))
    changed = {"video": x["video"].clone(), "audio": x["audio"].clone()}
    changed["video"][:, :, :2, :8, :8] += 1  # token 0
    changed["audio"][:, :, 8:16, 8:] += 1  # token 3
    after = model(changed, visible)
    assert all(torch.equal(before[m], after[m]) for m in before)
    changed["audio"][:, :, :8, :8] += 1  # token 0, which is visible
    assert not torch.equal(before["audio"], model(changed, visible)["audio"])


def test_the_order_of_visible_tokens_does_not_matter():
    torch.manual_seed(0)
    model, x = AVMAE(small("mid")).double().eval(), {m: v.double() for m, v in seen().items()}
    one = model(x, {"video": torch.tensor([[6, 1, 3]]), "audio": torch.tensor([[0, 5]])})
    other = model(x, {"video": torch.tensor([[3, 6, 1]]), "audio": torch.tensor([[5, 0]])})
    torch.testing.assert_close(one["video"][:, [2, 0, 1]], other["video"])
    torch.testing.assert_close(one["audio"][:, [1, 0]], other["audio"])


def test_one_shared_transformer_is_one():
    model = AVMAE(small("shared"))
    assert list(model.trunks) == ["joint"]
    assert list(AVMAE(small("mid")).trunks) == ["video", "audio", "joint"]


def test_a_modality_token_is_added_to_every_place():
    plain, named = AVMAE(small()).eval(), AVMAE(small(modality_tokens=True)).eval()
    named.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(plain(seen())["video"], named(seen())["video"])  # it starts as nothing
    with torch.no_grad():
        named.places["video"].token += 1
    torch.testing.assert_close(named.tokens(seen())["video"], plain.tokens(seen())["video"] + 1)


def test_a_feature_is_the_mean_of_one_modality_s_tokens():
    model = build("av_mae_tiny").eval()
    sound = torch.randn(1, 6400) * 0.1
    tokens = model({"audio": model.prepare(sound, "audio")})["audio"]
    torch.testing.assert_close(model.encode(sound, "audio"), tokens.mean(1))


# --- weights ---


@pytest.mark.parametrize("encoder", FUSIONS)
@pytest.mark.parametrize("picture", ["rgb", "RGB"])
def test_a_pretraining_file_gives_its_encoder(encoder, picture):
    from encoders.audiovisual.av_mae_decoder import DecoderConfig, MaskedAutoencoder

    torch.manual_seed(0)
    config = small(encoder, modality_tokens=True)
    for kind in ("shared", "early", *(["separate"] if encoder != "separate" else [])):
        decoder = DecoderConfig(kind=kind, dim=4, depth=1, heads=2, mlp_dim=8)
        whole = MaskedAutoencoder(config, decoder)
        file = invert(whole.state_dict(), pretraining_rules(config, decoder, picture))
        assert f"Decoder_modality_token_{picture}" in file
        own = AVMAE(config).state_dict()
        weights = convert(file, rules(config), own, what="the file")
        assert weights.keys() == own.keys()
        assert all(torch.equal(weights[name], whole.encoder.state_dict()[name]) for name in own)


def test_a_key_without_a_place_and_a_hole_are_named():
    model = AVMAE(small())
    table = [rule for rule in rules(model.config) if "RGB" not in rule.pattern]
    file = invert(model.state_dict(), [rule for rule in table if rule.target])
    with pytest.raises(DataError, match="Transformer_concat/encoder_norm/scale, for which the model has no place"):
        convert({**file, "Transformer_concat/encoder_norm/scale": np.ones(8)}, table, model.state_dict(), what="it")
    del file["Transformer_spectrogram/encoder_norm/bias"]
    with pytest.raises(DataError, match="lacks Transformer_spectrogram/encoder_norm/bias"):
        convert(file, table, model.state_dict(), what="it")
    assert table_of("av_mae_tiny", "scenic") is rules


# --- bad input ---


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dim": 9}, "heads 2 do not divide dim 9; use a divisor"),
        ({"depth": 0}, "depth 0 must be at least 1"),
        ({"video": None, "audio": None}, "video and audio are both none; keep at least one"),
        ({"encoder": "late"}, "encoder 'late' is unknown; use early, separate, mid or shared"),
        ({"encoder": "mid", "joint_depth": 2}, "2 of 2 blocks cannot be the joint ones of a mid encoder; use 1 to 1"),
        ({"encoder": "early", "audio": None}, "one modality has nothing to fuse: its encoder cannot be early; use"),
        ({"audio": AudioInput(frames=7, bins=16, patch=(8, 8), front="")}, "7 mel frames cannot be cut into patches"),
        ({"video": replace(VIDEO, frames=3)}, "3 frames cannot be cut into patches of 2"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        AVMAE(small(**changes))


def test_input_of_another_size_is_refused_in_one_sentence():
    model, x = AVMAE(small()), seen()
    with pytest.raises(DataError, match=r"video of 3x4x16x8 came to a tokenizer of 3x4x16x16; sample and resize it"):
        model({"video": x["video"][..., :8]})
    with pytest.raises(DataError, match="audio of 3x24x16 came to a tokenizer of 1x24x16"):
        model({"audio": x["audio"].expand(-1, 3, -1, -1)})
    with pytest.raises(DataError, match="2 of video and 1 of audio are not the same clips"):
        model({"video": seen(2)["video"], "audio": x["audio"]})
    with pytest.raises(DataError, match="there is nothing to see or hear; give video or audio"):
        model({})
    with pytest.raises(DataError, match="flow is no modality of this model; name video or audio"):
        model({"flow": x["video"]})
    with pytest.raises(DataError, match="no name is no modality of this model"):
        build("av_mae_tiny").encode(torch.zeros(1, 6400))
    with pytest.raises(DataError, match=r"sound of shape \(1, 100\) came to a tokenizer of \(batch, 6400\) floats"):
        build("av_mae_tiny").encode(torch.zeros(1, 100), "audio")
    with pytest.raises(DataError, match=r"the model takes spectrograms, not samples; set audio\.front"):
        model.encode(torch.zeros(1, 6400), "audio")
