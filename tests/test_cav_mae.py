"""CAV-MAE against the numbers of the paper and of the public code (YuanGongND/cav-mae), and as an encoder."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from encoders.audio.log_mel import FRONTS
from encoders.audiovisual.cav_mae import CAVMAE, CAVMAEConfig, grid_positions
from encoders.audiovisual.cav_mae_pretraining import CAVMAEPretraining, PatchDecoderConfig, draw_masks
from encoders.audiovisual.inputs import AudioInput, VideoInput
from encoders.classifier import build_classifier, load_encoder, start_from
from encoders.cost import clip_macs
from encoders.errors import ConfigError, DataError
from encoders.layers.modality_block import ModalityBlock
from encoders.registry import build
from tests.macs import on_meta, parameters


def tiny(**changes) -> CAVMAE:
    torch.manual_seed(0)
    model = build("cav_mae_tiny", dim=32, depth=2, mlp_dim=64, **changes).eval()
    with torch.no_grad():  # norms that differ, or one way through would pass for another
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def seen(batch: int = 4, seed: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"rgb": torch.randn(batch, 3, 64, 64, generator=g), "audio": torch.randn(batch, 40, 48, generator=g)}


# --- numbers ---


@pytest.fixture(scope="module")
def whole() -> CAVMAEPretraining:
    return on_meta(lambda: CAVMAEPretraining(CAVMAEConfig(), PatchDecoderConfig()))


@pytest.fixture(scope="module")
def classifier() -> CAVMAE:
    return on_meta(lambda: build("cav_mae_base", classes=527))


def test_the_model_that_is_pre_trained_has_the_published_parameters(whole):
    assert parameters(whole) == 191_036_160
    assert sum(p.numel() for p in whole.parameters() if p.requires_grad) == 190_129_920
    frozen = {name for name, p in whole.named_parameters() if not p.requires_grad}
    assert frozen == {f"{which}pos_embed_{m}" for which in ("", "decoder_") for m in "av"}


def test_the_classifier_has_the_published_parameters(classifier):
    assert parameters(classifier) == sum(p.numel() for p in classifier.parameters() if p.requires_grad) == 164_907_023
    assert parameters(classifier.mlp_head) == 406_799
    assert parameters(classifier.blocks_a[0]) == parameters(classifier.blocks_u[0]) == 7_094_016


def test_a_decoder_block_has_the_published_parameters(whole):
    assert parameters(whole.decoder_blocks[7]) == 3_156_480


def test_norms_that_no_way_uses_are_as_many_as_published():
    """Counted at paper scale, found by what gets no gradient in the smallest model."""
    sizes = {"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
    model = CAVMAEPretraining(build("cav_mae_tiny", **sizes).config, PatchDecoderConfig(dim=16, depth=1, heads=2))
    model(seen(2), draw_masks(model.config, model.objective, 2))["loss"].backward()
    idle = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    blocks = ("blocks_a.0", "blocks_v.0", "decoder_blocks.0")
    ends = {f"norm{i}_{m}.{part}" for i in "12" for m in "av" for part in ("weight", "bias")}
    assert idle == {f"{block}.{end}" for block in blocks for end in ends}
    assert (2 * 11 * 768 + 8 * 512) * 4 * 2 == 167_936  # four norms a block, each a weight and a bias


def test_it_costs_what_is_published(classifier):
    macs = clip_macs(classifier, classifier.spec)
    assert macs == pytest.approx(66.2e9, rel=1e-3)
    d, a, v = 768, 512, 196
    blocks = sum(times * (12 * n * d**2 + 2 * n**2 * d) for times, n in ((11, a), (11, v), (1, a + v)))
    assert macs == blocks + a * 256 * d + v * 768 * d + 527 * d


def test_positions_are_where_they_were():
    table = grid_positions((8, 64), 768)[0]  # bands, times
    assert table.shape == (512, 768) and table[0, :4].tolist() == [0, 0, 0, 0]
    assert table[1, :2].tolist() == pytest.approx([0.8415, 0.8153], abs=1e-4)  # the second time
    assert table[64, 384:386].tolist() == pytest.approx([0.8415, 0.8153], abs=1e-4)  # the second band
    assert torch.equal(table[64, :384], table[0, :384]) and torch.equal(table[1, 384:], table[0, 384:])
    assert table[0, 192] == table[0, 576] == 1  # cosines


def test_sound_is_standardised_by_its_own_statistics_and_filled_up():
    front = FRONTS["cav_mae"]
    heard = front(torch.randn(1, 160_000).clamp(-1, 1) / 10)
    assert heard.shape == (1, 1024, 128) and front.shape(Fraction(10)) == (1024, 128)
    assert heard[0, 998:].unique().item() == pytest.approx(5.081 / 4.4849)


def test_patches_of_sound_lie_band_by_band():
    model = tiny()
    x = torch.zeros(1, 40, 48)
    quiet = model.tokens(x, "audio")
    x[0, 8:16, 16:24] = 1.0  # the second time, the third band
    changed = (model.tokens(x, "audio") - quiet).abs().sum(-1)[0].nonzero()[:, 0].tolist()
    assert changed == [2 * 5 + 1]


def test_first_values_are_the_paper_s():
    torch.manual_seed(0)
    model = build("cav_mae_tiny")
    bound = (6 / (128 + 3 * 256)) ** 0.5
    weight = model.patch_embed_v.proj.weight
    assert weight.abs().max() <= bound and weight.abs().max() > 0.99 * bound
    assert not model.blocks_u[0].attn.qkv.bias.any() and model.modality_a.std().item() == pytest.approx(0.02, rel=0.2)
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}


# --- ways through ---


def test_each_way_through_a_block_has_norms_of_its_own():
    torch.manual_seed(0)
    block = ModalityBlock(16, 2).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    same = block(x)
    assert torch.equal(block(x, modality="audio"), same) and torch.equal(block(x, modality="video"), same)
    torch.nn.init.normal_(block.norm2_v.weight)
    assert torch.equal(block(x, modality="audio"), same) and not torch.allclose(block(x, modality="video"), same)


@torch.no_grad()
def test_a_clip_that_lacks_a_modality_is_the_mean_of_two_ways():
    model, x = tiny(classes=3), seen()
    x["rgb"][2] = torch.nan  # whatever lies where nothing is goes nowhere
    presence = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    found = model.features(x, presence)
    v, a = model.own(model.tokens(x["rgb"], "video"), "video"), model.own(model.tokens(x["audio"], "audio"), "audio")
    joint = model.norm(model.blocks_u[0](torch.cat([a, v], 1))).mean(1)
    lone = {}
    for m, y in (("video", v), ("audio", a)):
        own = getattr(model, f"norm_{m[0]}")(model.blocks_u[0](y, modality=m)).mean(1)
        lone[m] = (own + model.norm(model.blocks_u[0](y)).mean(1)) / 2
    torch.testing.assert_close(found[:3], torch.stack([joint[0], lone["video"][1], lone["audio"][2]]))
    assert not found[3].any()
    torch.testing.assert_close(model(x, presence), model.mlp_head(found))
    torch.testing.assert_close(model.features({"audio": x["audio"]}), lone["audio"])


@torch.no_grad()
def test_one_mode_is_that_modality_s_own_way():
    model, x = tiny(classes=3), seen()
    audio, video = (tiny(classes=3, mode=mode) for mode in ("audio", "video"))
    for other in (audio, video):
        other.load_state_dict(model.state_dict())  # whatever the mode, the weights are the same
    assert (audio.modalities, video.modalities, model.modalities) == (("audio",), ("video",), ("video", "audio"))
    a = model.unified(model.own(model.tokens(x["audio"], "audio"), "audio"), "audio").mean(1)
    torch.testing.assert_close(audio(x["audio"]), model.mlp_head(a))
    torch.testing.assert_close(video.features({"rgb": x["rgb"]}), video.features(x))


@torch.no_grad()
def test_unified_blocks_follow_each_other():
    """The public code passes each from the same input, which is right only where there is one."""
    model, x = tiny(unified_depth=2), torch.randn(2, 5, 32)
    y = model.blocks_u[1](model.blocks_u[0](x, modality="audio"), modality="audio")
    torch.testing.assert_close(model.unified(x, "audio"), model.norm_a(y))


@torch.no_grad()
def test_as_an_encoder_each_modality_is_by_itself():
    model = tiny()
    frames = torch.randint(0, 256, (2, 1, 64, 64, 3), dtype=torch.uint8)
    sound = torch.randn(2, 6400) / 10
    prepared = model.prepare(frames, "video")["rgb"]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(prepared, ((frames[:, 0] / 255 - mean) / std).movedim(-1, 1), atol=1e-5, rtol=1e-5)
    v = model.unified(model.own(model.tokens(prepared, "video"), "video"), "video").mean(1)
    torch.testing.assert_close(model.encode(frames, "video"), v)
    assert model.encode(sound, "audio").shape == (2, 32)
    gray = frames[..., :1]
    torch.testing.assert_close(model.encode(gray[..., 0], "video"), model.encode(gray.expand_as(frames), "video"))


def test_a_classifier_starts_from_an_encoder_and_leaves_one():
    encoder = build("cav_mae_tiny")
    model = build_classifier("cav_mae_tiny", 3, {})
    assert not start_from(model, encoder.state_dict(), "cav_mae_tiny", {})
    again = load_encoder("cav_mae_tiny", {}, model.state_dict())
    assert torch.equal(again.blocks_u[0].norm1_v.weight, encoder.blocks_u[0].norm1_v.weight)


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"video": VideoInput(frames=4, tubelet=(2, 16, 16), size=64)}, "more than the one picture that CAV-MAE looks"),
        ({"video.motion": True}, "video.motion leaves nothing of a single picture; leave it out"),
        ({"video.clip_seconds": Fraction(1)}, "clips of 1 s for video and 0.4 s for audio are not the same clips"),
        ({"dim": 36, "heads": 5}, "dim 36 is no multiple of heads 5 and of 4"),
        ({"depth": 0}, "depth 0 must be at least 1"),
        ({"classes": -1}, "classes -1 must not be negative; use 0 for features"),
        ({"video.size": 60}, "60 rows cannot be cut into patches of 16; use 48 or 64"),
        ({"audio": AudioInput(frames=40, bins=48, clip_seconds=Fraction(2, 5), front="log_mel_talk")}, "40 mel frames"),
    ],
)
def test_contradictions_are_one_sentence(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build("cav_mae_tiny", **changes)


def test_inputs_that_do_not_fit_are_one_sentence():
    model, x = tiny(classes=3), seen()
    with pytest.raises(DataError, match="there is nothing to see or hear; give rgb or audio"):
        model.features({})
    with pytest.raises(DataError, match=r"video of 3x32x32 came to a model of 3x64x64; sample and resize it"):
        model.features({"rgb": torch.zeros(1, 3, 32, 32)})
    with pytest.raises(DataError, match="2 of video and 4 of audio are not the same clips"):
        model.features({"rgb": x["rgb"][:2], "audio": x["audio"]})
    with pytest.raises(DataError, match=r"presence \(4, 3\) bool is not \(clips, 2\) bool of 4 clips"):
        model.features(x, torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(DataError, match="one input came to a model that sees and hears; name each"):
        model(x["audio"])
    with pytest.raises(DataError, match="no name is no modality of this model; name video or audio"):
        model.encode(torch.zeros(1, 6400))
    with pytest.raises(DataError, match="clips of 2 pictures came to a model that looks at one"):
        model.encode(torch.zeros(1, 2, 64, 64, dtype=torch.uint8), "video")
    with pytest.raises(DataError, match="flow came to a model that sees none"):
        model.prepare(torch.zeros(1, 1, 64, 64, dtype=torch.uint8), "video", flow=torch.zeros(1))
    with pytest.raises(DataError, match=r"sound of shape \(1, 6399\) came to a tokenizer of \(batch, 6400\)"):
        model.encode(torch.from_numpy(np.zeros((1, 6399), np.float32)), "audio")
