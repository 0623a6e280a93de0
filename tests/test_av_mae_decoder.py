"""AV-MAE's other half: masks, decoders, objectives, against the public code and against laws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from encoders.audiovisual.av_mae import PRESETS
from encoders.audiovisual.av_mae_decoder import (
    DecoderConfig,
    MaskedAutoencoder,
    Masks,
    ObjectiveConfig,
    draw_masks,
    patches_of,
)
from encoders.errors import ConfigError
from encoders.weights.av_mae import pretraining_rules
from tests.flax_fill import fill
from tests.macs import on_meta, parameters
from tests.test_av_mae import seen, small

SMALL = DecoderConfig(dim=4, depth=1, heads=2, mlp_dim=8)
NOTHING = ObjectiveConfig(hidden_video=0.0, hidden_audio=0.0)
ALLOWED = [(e, d) for e in ("early", "separate", "mid", "shared") for d in ("shared", "separate", "early", "mid")
           if (e, d) != ("separate", "separate")]  # fmt: skip


def model(encoder="separate", kind="shared", objective=None, **changes) -> MaskedAutoencoder:
    decoder = replace(SMALL, kind=kind, **({"depth": 2, "joint_depth": 1} if kind == "mid" else {}))
    made = MaskedAutoencoder(small(encoder, **changes), decoder, objective or ObjectiveConfig(hidden_video=0.5))
    with torch.no_grad():  # as drawn it would draw nothing, and every law would hold
        for layer in made.decoder.regressors.values():
            layer.weight.normal_(0, 0.1)
        for token in made.decoder.mask_tokens.values():
            token.normal_()
    return made.eval()


def masks_of(made: MaskedAutoencoder, batch=1, seed=0) -> Masks:
    counts = made.encoder.config.counts
    return draw_masks(counts, made.objective, batch, torch.Generator().manual_seed(seed))


# Georgescu et al. (ICCV 2023): predictions with nothing hidden, token 0's first four values and the sum of all, as
# google-research/scenic (projects/av_mae/vivit_multimodal.py) computes them on filled weights.
GOLDEN = {
    ("separate", "shared"): (8532, (0.228953, 0.254247, 0.159965, -0.009552, -1.16085),
                             (0.050031, -0.131711, -0.251507, -0.253016, 0.53502)),
    ("mid", "shared"): (7948, (0.224914, 0.251994, 0.160557, -0.006392, -1.13774),
                        (0.049058, -0.133704, -0.253583, -0.254198, 0.53134)),
    ("early", "early"): (7316, (0.227946, 0.268004, 0.182016, 0.010423, -1.05441),
                         (0.044581, -0.125527, -0.236598, -0.236393, 0.51458)),
}  # fmt: skip


@pytest.mark.parametrize(("encoder", "kind"), GOLDEN)
def test_the_whole_draws_what_the_public_one_does(encoder, kind):
    made = model(encoder, kind)
    fill(made, pretraining_rules(made.encoder.config, replace(SMALL, kind=kind), "RGB"))
    masks = draw_masks(made.encoder.config.counts, NOTHING, 1)
    with torch.no_grad():
        drawn = made.draw(seen(), masks)
    count, *golden = GOLDEN[encoder, kind]
    assert parameters(made) == count
    for one, values in zip(drawn.values(), golden, strict=True):
        np.testing.assert_allclose(one.patches[0, 0, :4].tolist(), values[:4], atol=2e-5)
        np.testing.assert_allclose(float(one.patches.sum()), values[4], atol=1e-3)  # of up to 3072 numbers


# The same code at sizes B and L, 8 s of sound: parameters, and billions of multiply-adds of a masked forward pass.
LARGE = DecoderConfig(dim=512, heads=8, mlp_dim=2048)
ROWS = [
    ("base", "shared", 179_869_696, 56.8), ("base_early", "shared", 94_813_696, 58.0),
    ("base_shared", "separate", 101_912_320, 56.8), ("base_mid", "shared", 165_695_488, 57.0),
    ("base_early", "early", 94_813_696, 61.9),
    ("large", "shared", 621_040_384, 151.1), ("large_early", "shared", 318_728_960, 154.3),
    ("large_shared", "separate", 331_339_520, 151.1), ("large_mid", "shared", 595_849_984, 151.4),
    ("large_early", "early", 318_728_960, 159.5),
]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "kind", "count", "billions"),
    [row if row[0] == "base_mid" else pytest.param(*row, marks=pytest.mark.slow) for row in ROWS],
)
def test_parameters_and_multiply_adds_are_the_published_model_s(size, kind, count, billions):
    config = PRESETS[f"av_mae_{size}"]
    decoder = replace(DecoderConfig() if size.startswith("base") else LARGE, kind=kind)
    made = on_meta(lambda: MaskedAutoencoder(config, decoder))
    assert parameters(made) == count
    shapes = {"video": (1, 3, 16, 224, 224), "audio": (1, 1, 800, 128)}
    clip = {m: torch.empty(shape, device="meta") for m, shape in shapes.items()}
    masks = draw_masks(config.counts, made.objective, 1).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        made.draw(clip, masks)
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, rel=0.01)


# --- masks ---


def test_as_many_are_hidden_as_published():
    masks = draw_masks({"video": 1568, "audio": 400}, ObjectiveConfig(), 2)
    assert (masks.hidden["video"].shape, masks.visible["video"].shape) == ((2, 1411), (2, 157))
    assert (masks.hidden["audio"].shape, masks.visible["audio"].shape) == ((2, 200), (2, 200))
    audioset = draw_masks({"video": 1568, "audio": 496}, ObjectiveConfig(hidden_audio=0.7), 1)
    assert (audioset.hidden["audio"].shape[1], audioset.visible["audio"].shape[1]) == (347, 149)


def test_hidden_and_visible_are_all_there_is_each_row_its_own_and_repeatable():
    draw = lambda: draw_masks({"video": 80, "audio": 30}, ObjectiveConfig(), 3, torch.Generator().manual_seed(4))  # noqa: E731
    masks, again = draw(), draw()
    for m, count in (("video", 80), ("audio", 30)):
        rows = torch.cat([masks.hidden[m], masks.visible[m]], 1)
        assert torch.equal(rows.sort(1).values, torch.arange(count).expand(3, -1))
        assert not torch.equal(rows[0], rows[1]) and torch.equal(masks.hidden[m], again.hidden[m])


def test_every_place_is_hidden_as_often():
    masks = draw_masks({"video": 20, "audio": 10}, ObjectiveConfig(), 4000, torch.Generator().manual_seed(0))
    share = torch.zeros(20).scatter_add_(0, masks.hidden["video"].flatten(), torch.ones(4000 * 18)) / 4000
    assert (share - 0.9).abs().max() < 0.03


# --- what counts ---


def by_hand(made: MaskedAutoencoder, x, masks: Masks, modality: str) -> float:
    """The loss of a modality in float64, place by place."""
    with torch.no_grad():
        drawn = made.draw(x, masks)[modality]
    wanted = patches_of(made.encoder.config, modality, x[modality]).double()
    errors = [
        ((drawn.patches[row, place].double() - wanted[row, place]) ** 2).mean()
        for row, places in enumerate(drawn.places.tolist()) for place in places
    ]  # fmt: skip
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize("inpaint", [False, True])
@pytest.mark.parametrize(("encoder", "kind"), ALLOWED)
def test_the_loss_is_the_mean_square_of_what_was_hidden(encoder, kind, inpaint):
    torch.manual_seed(0)
    made = model(encoder, kind, ObjectiveConfig(inpaint=inpaint, hidden_video=0.75, hidden_audio=0.5))
    x, masks = seen(2), masks_of(made, 2)
    with torch.no_grad():
        losses = made(x, masks)
    for m in ("video", "audio"):
        assert float(losses[m]) == pytest.approx(by_hand(made, x, masks, m), rel=1e-5)
    assert float(losses["loss"]) == pytest.approx((float(losses["video"]) + float(losses["audio"])) / 2, rel=1e-6)


@pytest.mark.parametrize(("encoder", "kind"), ALLOWED)
def test_the_loss_never_sees_a_visible_patch(encoder, kind):
    """Its gradient at what was drawn of visible patches is zero; so is that of hidden pixels through the network."""
    torch.manual_seed(0)
    made, x = model(encoder, kind), seen(2)
    masks = masks_of(made, 2)
    drawn = made.draw(x, masks)
    for m, one in drawn.items():
        one.patches.retain_grad()
        made._loss(m, x[m], one).backward(retain_graph=True)
        gradient = one.patches.grad
        assert gradient.gather(1, masks.visible[m][..., None].expand(-1, -1, gradient.shape[-1])).abs().max() == 0
        assert gradient.gather(1, masks.hidden[m][..., None].expand(-1, -1, gradient.shape[-1])).abs().min() > 0


@pytest.mark.parametrize(("encoder", "kind"), ALLOWED)
def test_what_is_hidden_cannot_be_seen_by_what_draws_it(encoder, kind):
    torch.manual_seed(0)
    made, x = model(encoder, kind), seen()
    masks = masks_of(made)
    before = made.draw(x, masks)
    hidden = patches_of(made.encoder.config, "video", torch.ones_like(x["video"]))
    mark = torch.zeros_like(hidden).scatter_(1, masks.hidden["video"][..., None].expand(-1, -1, hidden.shape[-1]), 1.0)
    noise = _whole(mark * torch.randn_like(mark))
    after = made.draw({**x, "video": x["video"] + noise}, masks)
    assert all(torch.equal(before[m].patches, after[m].patches) for m in before)


def _whole(patches: torch.Tensor) -> torch.Tensor:
    """Patches of the small clip put back together."""
    from einops import rearrange

    sizes = {"n": 2, "y": 2, "x": 2, "t": 2, "h": 8, "w": 8}
    return rearrange(patches, "b (n y x) (t h w c) -> b c (n t) (y h) (x w)", **sizes)


def test_patches_put_back_together_are_the_clip():
    x = seen()["video"]
    assert torch.equal(_whole(patches_of(small(), "video", x)), x)


def test_standardised_targets_have_no_mean_and_unit_deviation():
    made = model(objective=ObjectiveConfig(standardise=("video",), hidden_video=0.5))
    plain = model(objective=ObjectiveConfig(hidden_video=0.5))
    plain.load_state_dict(made.state_dict())
    x, masks = seen(), masks_of(made)
    louder = {**x, "video": 3 * x["video"] + 1}
    zero = {m: torch.zeros_like(p) for m, p in plain.decoder.regressors["video"].named_parameters()}
    for one in (made, plain):
        one.decoder.regressors["video"].load_state_dict(zero)
        one.requires_grad_(False)
    assert float(made(x, masks)["video"]) == pytest.approx(1.0, abs=1e-3)  # nothing drawn: the variance is lost
    assert float(made(louder, masks)["video"]) == pytest.approx(1.0, abs=1e-3)
    assert float(plain(louder, masks)["video"]) > 2 * float(plain(x, masks)["video"])


# --- inpainting ---


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("target", ["video", "audio"])
@pytest.mark.parametrize("encoder", ["separate", "shared"])
def test_a_modality_is_drawn_from_the_other_alone(encoder, target, shuffle):
    torch.manual_seed(0)
    made = model(encoder, "shared", ObjectiveConfig(inpaint=True, targets=(target,), shuffle=shuffle))
    x, masks = seen(), masks_of(made)
    other = "audio" if target == "video" else "video"
    before = made.draw(x, masks)
    assert list(before) == [target]
    own = made.draw({**x, target: x[target] + torch.randn_like(x[target])}, masks)
    foreign = made.draw({**x, other: x[other] + torch.randn_like(x[other])}, masks)
    assert torch.equal(before[target].patches, own[target].patches)
    assert not torch.allclose(before[target].patches, foreign[target].patches)
    losses = made(x, masks)
    assert set(losses) == {"loss", target} and losses["loss"] == losses[target]


def test_foreign_tokens_take_the_first_places_and_those_are_not_drawn():
    made = model("early", "shared", ObjectiveConfig(inpaint=True, hidden_video=0.5, hidden_audio=0.5))
    drawn = made.draw(seen(), masks_of(made))
    assert drawn["video"].places.tolist() == [[3, 4, 5, 6, 7]]  # three of six audio tokens are visible
    assert drawn["audio"].places.tolist() == [[4, 5]]  # four of eight video tokens
    full = ObjectiveConfig(inpaint=True)
    sizes = {m: n - full.hidden(m, n) for m, n in PRESETS["av_mae_base"].counts.items()}
    assert (1568 - sizes["audio"], 400 - sizes["video"]) == (1368, 243)  # mask tokens, as published


def test_shuffled_foreign_tokens_take_any_places():
    made = model("early", "shared", ObjectiveConfig(inpaint=True, shuffle=True))
    drawn = [made.draw(seen(), masks_of(made, seed=seed))["video"].places for seed in range(8)]
    assert len({tuple(places[0].sort().values.tolist()) for places in drawn}) > 4


def test_a_target_that_is_not_asked_for_is_not_decoded():
    made = model("mid", "shared", ObjectiveConfig(inpaint=True, targets=("audio",)))
    made(seen(), masks_of(made))["loss"].backward()
    assert made.decoder.regressors["video"].weight.grad is None
    assert made.decoder.regressors["audio"].weight.grad.abs().sum() > 0


# --- one modality ---


@pytest.mark.parametrize(("kept", "dropped"), [("video", "audio"), ("audio", "video")])
def test_one_modality_alone_is_the_baseline(kept, dropped):
    made = model(objective=ObjectiveConfig(targets=(kept,)), **{dropped: None})
    x = {kept: seen()[kept]}
    assert set(made(x, masks_of(made))) == {"loss", kept}
    assert set(MaskedAutoencoder(small(**{dropped: None}), SMALL)(x, masks_of(made))) == {"loss", kept}


# --- learning ---


@pytest.mark.parametrize(
    "objective",
    [ObjectiveConfig(hidden_video=0.5),
     pytest.param(ObjectiveConfig(inpaint=True, hidden_video=0.5), marks=pytest.mark.slow)],
)  # fmt: skip
def test_it_overfits_a_batch(objective):
    torch.manual_seed(0)
    decoder = replace(SMALL, dim=16, mlp_dim=32)
    made = MaskedAutoencoder(small("mid", dim=16, mlp_dim=32), decoder, objective)
    x, masks = seen(2), masks_of(made, 2)
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    first = float(made(x, masks)["loss"].detach())
    for _ in range(60):
        loss = made(x, masks)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 * first


def test_at_first_nothing_is_drawn():
    made = MaskedAutoencoder(small(), SMALL)
    x, masks = seen(), masks_of(made)
    hidden = [patches_of(small(), m, x[m]).gather(1, masks.hidden[m][..., None].expand(-1, -1, n)) for m, n in
              (("video", 384), ("audio", 64))]  # fmt: skip
    expected = float(sum(h.square().mean() for h in hidden)) / 2
    assert float(made(x, masks)["loss"].detach()) == pytest.approx(expected, rel=1e-5)


# --- bad input ---


@pytest.mark.parametrize(
    ("config", "decoder", "objective", "sentence"),
    [
        (small(), {"kind": "separate"}, {}, "a separate encoder with a separate decoder is two models that never meet"),
        (small(), {"kind": "late"}, {}, "decoder 'late' is unknown; use early, separate, mid or shared"),
        (small(), {"kind": "mid"}, {}, "2 of 1 blocks cannot be the joint ones of a mid decoder"),
        (small(audio=None), {}, {}, "audio is to be drawn by a model of video alone; set objective.targets=video"),
        (small(audio=None), {}, {"targets": ("video",), "inpaint": True}, "inpainting draws a modality from another"),
        (small(audio=None), {"kind": "early"}, {"targets": ("video",)}, "its decoder cannot be early"),
        (small(), {}, {"hidden_audio": 0.1}, "hidden_audio 0.1 hides none of 6 tokens; hide more"),
        (small(), {}, {"inpaint": True, "hidden_video": 0.1}, "8 visible tokens of video leave no place to draw"),
    ],
)
def test_what_cannot_be_learned_is_refused(config, decoder, objective, sentence):
    with pytest.raises(ConfigError, match=sentence):
        MaskedAutoencoder(config, replace(SMALL, **decoder), ObjectiveConfig(**objective))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_video": 1.0}, r"hidden_video 1.0 must lie in \[0, 1\); something must stay visible"),
        ({"targets": ()}, "targets is empty; name video, audio or both"),
        ({"targets": ("video", "video")}, r"targets \['video', 'video'\] is no choice of video and audio"),
        ({"standardise": ("flow",)}, r"standardise \['flow'\] is no choice of video and audio"),
        ({"shuffle": True}, "shuffle moves the foreign tokens of inpainting; set inpaint too"),
    ],
)
def test_an_objective_that_contradicts_itself_is_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ObjectiveConfig(**changes)


def test_a_decoder_that_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match="decoder heads 5 do not divide dim 384"):
        DecoderConfig(heads=5)
    with pytest.raises(ConfigError, match="decoder depth 0 must be at least 1"):
        DecoderConfig(depth=0)
