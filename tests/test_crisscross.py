"""CrissCross against its paper: parameters, names, arithmetic, and the laws of its six losses."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from encoders.audiovisual.crisscross import (
    PAIRS,
    PRESETS,
    Agreement,
    AgreementConfig,
    CrissCross,
    CrissCrossConfig,
    Outputs,
    Predictor,
    cut_out,
    distance,
    spread,
    symmetric,
)
from encoders.errors import ConfigError
from tests.macs import macs, on_meta, parameters

VIEWS = ("v1", "v2", "a1", "a2")


@pytest.fixture(scope="module")
def base():
    return on_meta(lambda: CrissCross(PRESETS["crisscross_base"]))


def views(batch=2, seed=0, **sizes):
    """Clips of the tiny preset: pictures, squares, spectrograms."""
    draw = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (batch, 2, 8, 32, 32, 3), dtype=torch.uint8, generator=draw)
    return video, torch.zeros(batch, 2, 3, dtype=torch.int64), torch.randn(batch, 2, 51, 80, generator=draw)


# --- the published numbers ---


def test_parameters_are_the_paper_s(base):
    assert parameters(base.video_backbone) == 15_379_136
    assert parameters(base.audio_backbone) == 11_170_240
    assert parameters(base.video_projector) == parameters(base.audio_projector) == 9_455_616
    assert parameters(base.video_predictor) == parameters(base.audio_predictor) == 2_100_736
    assert parameters(base) == 49_662_080


def test_arithmetic_is_the_paper_s(base):
    assert macs(base.video_backbone, (1, 3, 8, 112, 112)) == pytest.approx(3.079e9, rel=0.01)
    assert macs(base.audio_backbone, (1, 1, 80, 201)) == pytest.approx(0.614e9, rel=0.01)


def test_video_stages_have_their_shapes_at_half_the_size(base):
    out = base.video_backbone.stages(torch.empty(2, 3, 8, 112, 112, device="meta"))
    widths, times, sides = (64, 64, 128, 256, 512), (8, 8, 4, 2, 1), (28, 28, 14, 7, 4)
    shapes = [(2, w, t, s, s) for w, t, s in zip(widths, times, sides, strict=True)]
    assert [tuple(x.shape) for x in out.values()] == shapes


def test_features_are_averages_as_pre_trained_and_maxima_where_asked():
    assert PRESETS["crisscross_base"].video.pool == PRESETS["crisscross_base"].audio.pool == "average"
    model = CrissCross(PRESETS["crisscross_tiny"]).eval()
    x = torch.randn(1, 3, 8, 32, 32)
    last = list(model.video_backbone.stages(x).values())[-1]
    torch.testing.assert_close(model.video_backbone(x), last.mean((2, 3, 4)))


def test_names_are_those_of_the_published_training_state(base):
    state = base.state_dict()
    twins = [n for n in state if not n.split(".")[0].endswith("predictor")]
    assert len(state) + len(twins) == 744  # there backbones and projectors are listed twice
    anchors = {
        "video_backbone.conv3x.0.spt_conv1.weight": (128, 64, 1, 3, 3),
        "audio_backbone.block2.0.downsample.0.weight": (128, 64, 1, 1),
        "video_projector.layer1.0.weight": (2048, 512),
        "video_projector.layer3.1.running_var": (2048,),
        "audio_predictor.layer1.0.weight": (512, 2048),
        "audio_predictor.layer2.bias": (2048,),
    }
    assert {name: tuple(state[name].shape) for name in anchors} == anchors


def test_a_projector_of_two_layers_keeps_the_name_of_the_last():
    model = CrissCross(CrissCrossConfig(video=PRESETS["crisscross_tiny"].video, audio=PRESETS["crisscross_tiny"].audio,
                                        width=8, bottleneck=4, video_layers=2))  # fmt: skip
    names = {n.split(".")[1] for n in model.state_dict() if n.startswith("video_projector")}
    assert names == {"layer1", "layer3"}
    assert model.video_projector(torch.randn(3, 16)).shape == (3, 8)


def test_a_projection_has_batch_norm_last_and_a_prediction_has_not():
    model = CrissCross(PRESETS["crisscross_tiny"]).train()
    outputs = model(*views(8))
    for z in outputs.z.values():
        torch.testing.assert_close(z.mean(0), torch.zeros(64), atol=1e-5, rtol=0)
        torch.testing.assert_close(z.var(0, unbiased=False), torch.ones(64), atol=2e-2, rtol=0)
    predictor = Predictor(8, 4)
    with torch.no_grad():
        predictor.layer2.weight.zero_()
    assert torch.equal(predictor.train()(torch.randn(3, 8)), predictor.layer2.bias.expand(3, 8))


# --- the losses ---


def outputs_of(z, p=None):
    return Outputs(dict(zip(VIEWS, z, strict=True)), dict(zip(VIEWS, p if p is not None else z, strict=True)))


def random_views(batch=64, dim=2048, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dim, generator=draw) for _ in range(4)]


def test_collapse_is_minus_one():
    """All clips one point, wherever it is and however long: the optimum that batch norm and predictors keep away."""
    point = torch.randn(1, 32).expand(5, 32)
    losses = Agreement(AgreementConfig())(outputs_of([point * s for s in (1, 2, 3, 4)]))
    assert all(float(x) == pytest.approx(-1, abs=1e-6) for x in losses.values())
    assert float(spread(point)) == pytest.approx(0, abs=1e-6)


def test_perfect_agreement_of_spread_clips_is_minus_one_too():
    same = random_views()[0]
    losses = Agreement(AgreementConfig())(outputs_of([same] * 4))
    assert float(losses["loss"]) == pytest.approx(-1, abs=1e-6)
    assert float(spread(same)) == pytest.approx(1, abs=0.05)


def test_independent_views_are_about_zero():
    z, p = random_views(seed=1), random_views(seed=2)
    pairs = [F.cosine_similarity(a, b, dim=1) for a, b in itertools.product(z, p)]
    assert float(torch.cat(pairs).std()) == pytest.approx(0.02, abs=0.005)
    assert float(Agreement(AgreementConfig())(outputs_of(z, p))["loss"]) == pytest.approx(0, abs=0.01)


def test_opposite_predictions_are_plus_one():
    z = random_views(4, 8)[0]
    assert float(distance(-z, z)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("x", "y"), list(PAIRS))
def test_agreement_is_symmetric(x, y):
    outputs = outputs_of(random_views(8, 16, 3), random_views(8, 16, 4))
    assert torch.equal(symmetric(outputs, x, y), symmetric(outputs, y, x))


def test_there_are_six_and_their_mean_is_the_loss():
    outputs = outputs_of(random_views(8, 16, 3), random_views(8, 16, 4))
    losses = Agreement(AgreementConfig())(outputs)
    assert set(losses) == {"loss", "v1v2", "a1a2", "v1a1", "v2a2", "v1a2", "a1v2"}
    pairs = []
    for x, y in [("v1", "v2"), ("a1", "a2"), ("v1", "a1"), ("v2", "a2"), ("v1", "a2"), ("a1", "v2")]:
        for one, other in ((x, y), (y, x)):
            p, z = outputs.p[one], outputs.z[other]
            pairs.append(-(p * z).sum(1) / p.norm(dim=1) / z.norm(dim=1))
    assert float(losses["loss"]) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)


def test_nothing_is_learned_through_a_projection_that_is_predicted():
    z = [x.requires_grad_() for x in random_views(4, 8, 5)]
    p = [x.requires_grad_() for x in random_views(4, 8, 6)]
    Agreement(AgreementConfig())(outputs_of(z, p))["loss"].backward()
    assert all(x.grad is None for x in z) and all(x.grad is not None and x.grad.any() for x in p)


def test_each_modality_predicts_with_its_own_predictor():
    """The picture's prediction of the sound moves the video network and nothing of the audio network."""
    model = CrissCross(PRESETS["crisscross_tiny"]).train()
    outputs = model(*views(4))
    distance(outputs.p["v1"], outputs.z["a2"]).backward()
    moved = {n.partition("_")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert moved == {"video"}


@pytest.mark.parametrize(
    ("coefficients", "names"),
    [
        ({"asynchronous": 0.0}, {"v1v2", "a1a2", "v1a1", "v2a2"}),
        ({"video": 0.0, "audio": 0.0}, {"v1a1", "v2a2", "v1a2", "a1v2"}),
        ({"synchronous": 0.0, "asynchronous": 0.0, "audio": 0.0}, {"v1v2"}),
    ],
)
def test_a_coefficient_of_zero_leaves_its_losses_out_of_the_mean(coefficients, names):
    outputs = outputs_of(random_views(8, 16, 3), random_views(8, 16, 4))
    losses = Agreement(AgreementConfig(**coefficients))(outputs)
    assert set(losses) == {"loss", *names}
    assert float(losses["loss"]) == pytest.approx(sum(float(losses[n]) for n in names) / len(names), abs=1e-6)


def test_a_coefficient_weighs_its_losses():
    outputs = outputs_of(random_views(8, 16, 3), random_views(8, 16, 4))
    plain, heavy = (Agreement(AgreementConfig(video=c))(outputs) for c in (1.0, 4.0))
    assert float(heavy["loss"] - plain["loss"]) == pytest.approx(3 * float(plain["v1v2"]) / 6, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: AgreementConfig(video=-1.0), "coefficient video -1.0 must be 0 or more"),
        (lambda: AgreementConfig(audio=float("nan")), "coefficient audio nan must be 0 or more"),
        (lambda: AgreementConfig(video=0.0, audio=0.0, synchronous=0.0, asynchronous=0.0), "all coefficients are 0"),
        (lambda: CrissCrossConfig(width=0), "width 0 must be at least 1"),
        (lambda: CrissCrossConfig(audio_layers=4), "audio_layers 4 of a projector is neither 2 nor 3"),
    ],
)
def test_what_cannot_be_is_one_sentence(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


# --- views ---


def test_views_go_through_the_networks_by_themselves():
    """Batch norm sees one kind of view at a time: changing the second view leaves the first as it was."""
    model = CrissCross(PRESETS["crisscross_tiny"]).train()
    video, squares, audio = views(4)
    first = model(video, squares, audio)
    video[:, 1], audio[:, 1] = 255 - video[:, 1], audio[:, 1].flip(1) * 2
    second = model(video, squares, audio)
    assert torch.equal(first.z["v1"], second.z["v1"]) and torch.equal(first.z["a1"], second.z["a1"])
    assert not torch.equal(first.z["v2"], second.z["v2"]) and not torch.equal(first.z["a2"], second.z["a2"])


def test_every_parameter_learns():
    model = CrissCross(PRESETS["crisscross_tiny"]).train()
    Agreement(AgreementConfig())(model(*views(4)))["loss"].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_a_square_is_dimmed_by_the_first_frame_s_mean_in_all_frames():
    x = torch.randn(2, 3, 4, 8, 8)
    out = cut_out(x, torch.tensor([[2, 3, 4], [0, 0, 0]]))
    wanted = x.clone()
    wanted[0, :, :, 2:6, 3:7] *= x[0, :, 0].mean()
    torch.testing.assert_close(out, wanted)
    assert torch.equal(out[1], x[1])  # side 0: none


def test_a_square_may_fill_the_picture():
    x = torch.randn(1, 1, 2, 4, 4)
    torch.testing.assert_close(cut_out(x, torch.tensor([[0, 0, 4]])), x * x[0, 0, 0].mean())
