"""AVID-CMA against its paper: parameters, names, arithmetic, shapes, memory, negatives, agreement."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from encoders.audiovisual.avid_cma import AVIDCMA, PRESETS, MemoryBank, Objective, ObjectiveConfig
from encoders.errors import ConfigError, DataError
from encoders.losses import BinaryNCE, info_nce
from encoders.registry import build


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def base():
    with torch.device("meta"):
        return AVIDCMA(PRESETS["avid_cma_base"])


def multiply_adds(module, *shape):
    """As the paper counts: one for each multiply-add of a convolution, batch norm ignored."""
    total = 0

    def add(layer, _, out):
        nonlocal total
        total += out.numel() * layer.weight[0].numel()

    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    hooks = [m.register_forward_hook(add) for m in convolutions]
    module(torch.empty(shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return total


# --- the published numbers ---


def test_parameters_are_the_paper_s(base):
    assert count(base.video_model) == 15_379_136
    assert count(base.audio_model) == 4_725_696
    assert count(base) == 21_286_784


def test_state_dict_bears_the_names_of_the_published_checkpoint(base):
    state = base.state_dict()
    assert len(state) == 267
    anchors = {
        "video_model.conv1.0.weight": (64, 3, 3, 7, 7),
        "video_model.conv3x.0.spt_conv1.weight": (128, 64, 1, 3, 3),
        "video_model.conv3x.0.tmp_conv1.weight": (128, 128, 3, 1, 1),
        "video_model.conv4x.0.res_conv.weight": (256, 128, 1, 1, 1),
        "video_model.conv5x.1.out_bn.running_var": (512,),
        "audio_model.conv1.0.weight": (64, 1, 7, 7),
        "audio_model.block4.conv2.weight": (512, 512, 3, 3),
        "video_proj.projection.0.weight": (512, 512),
        "audio_proj.projection.4.bias": (128,),
    }
    assert {name: tuple(state[name].shape) for name in anchors} == anchors
    assert [name for name in state if "res_conv" in name] == [
        f"video_model.conv{i}x.0.res_conv.weight" for i in (3, 4, 5)
    ]


def test_objective_s_buffers_bear_the_published_names():
    objective = Objective(ObjectiveConfig(stage="cma", negatives=8, positives=3, within_negatives=4), 10, 4)
    objective.expect_positives()
    assert sorted(objective.state_dict()) == [
        "criterion.avg_exp_score",
        "nce_average.positive_set",
        "nce_average.view1_mem",
        "nce_average.view2_mem",
    ]


@pytest.mark.parametrize(("frames", "size", "giga"), [(8, 224, 12.126), (8, 112, 3.079), (32, 224, 48.503)])
def test_video_arithmetic_is_the_paper_s(base, frames, size, giga):
    assert multiply_adds(base.video_model, 1, 3, frames, size, size) == pytest.approx(giga * 1e9, abs=5e5)


@pytest.mark.parametrize(("columns", "giga"), [(200, 1.440), (40, 0.318), (50, 0.424)])
def test_audio_arithmetic_is_the_paper_s(base, columns, giga):
    assert multiply_adds(base.audio_model, 1, 1, columns, 257) == pytest.approx(giga * 1e9, abs=5e5)


@pytest.mark.parametrize(("frames", "times"), [(8, (8, 8, 4, 2, 1)), (6, (6, 6, 3, 2, 1)), (32, (32, 32, 16, 8, 4))])
def test_video_stages_have_the_paper_s_shapes(base, frames, times):
    out = base.video_model.stages(torch.empty(2, 3, frames, 224, 224, device="meta"))
    widths, sides = (64, 64, 128, 256, 512), (56, 56, 28, 14, 7)
    assert [tuple(x.shape) for x in out.values()] == [
        (2, width, time, side, side) for width, time, side in zip(widths, times, sides, strict=True)
    ]


def test_audio_stages_have_the_paper_s_shapes(base):
    out = base.audio_model.stages(torch.empty(2, 1, 200, 257, device="meta"))
    assert [tuple(x.shape[1:]) for x in out.values()] == [
        (64, 100, 129),
        (64, 50, 65),
        (128, 25, 33),
        (256, 13, 17),
        (512, 13, 17),
    ]


@pytest.mark.parametrize("seconds", [Fraction(2, 5), Fraction(1, 2)])
def test_short_clips_of_curri_mae_fit(seconds):
    """6 or 8 frames at 16 a second, 40 or 50 columns: section (e) 3 and 4."""
    frames = int(seconds * 16)
    video = build("r2plus1d_10", frames=frames, size=32).eval()
    audio = build("conv2d_10", clip_seconds=seconds, widths=(4, 8), strides=((2, 2), (2, 2))).eval()
    pictures = torch.zeros(1, frames, 32, 32, 3, dtype=torch.uint8)
    samples = torch.zeros(1, int(seconds * 24_000))
    with torch.no_grad():
        assert video.encode(pictures).shape == (1, 512)
        assert audio.prepare(samples).shape == (1, 1, int(seconds * 100), 257)
        assert audio.encode(samples).shape == (1, 8)


# --- the loss ---


@pytest.mark.parametrize(("score", "negatives"), [(0.0, 7), (1.5, 64)])
def test_equal_scores_give_the_closed_form(score, negatives):
    criterion = BinaryNCE()
    loss = criterion(torch.full((3, 1), score), torch.full((3, negatives), score))
    k = negatives
    assert criterion.avg_exp_score.item() == pytest.approx(math.exp(score))
    assert loss.item() == pytest.approx(math.log(1 + k) + k * math.log(1 + 1 / k), rel=1e-5)


def test_loss_is_a_mean_over_positives_and_a_sum_over_negatives():
    criterion = BinaryNCE()
    criterion.avg_exp_score.fill_(2.0)
    positives, negatives = torch.tensor([[0.3, -0.2]]), torch.tensor([[0.1, 0.5, -1.0]])
    noise = 3 * 2.0
    own = -(positives.exp() / (positives.exp() + noise)).log().mean()
    other = -(noise / (negatives.exp() + noise)).log().sum()
    assert criterion(positives, negatives).item() == pytest.approx((own + other).item(), rel=1e-6)


def test_partition_constant_is_frozen_after_the_first_batch():
    criterion = BinaryNCE()
    criterion(torch.zeros(2, 1), torch.full((2, 5), 1.0))
    criterion(torch.zeros(2, 1), torch.full((2, 5), 3.0))
    assert criterion.avg_exp_score.item() == pytest.approx(math.e)


def test_large_scores_do_not_overflow():
    loss = BinaryNCE()
    loss.avg_exp_score.fill_(1.0)
    assert torch.isfinite(loss(torch.full((1, 1), -200.0), torch.full((1, 4), 200.0)))


def test_info_nce_of_equal_scores_is_the_logarithm_of_the_batch():
    same = torch.ones(8, 4)
    assert info_nce(same, same).item() == pytest.approx(math.log(8))
    assert info_nce(torch.eye(8), torch.eye(8)).item() < 1e-4


# --- the memory ---


def embeddings(batch, dim=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(batch, dim, generator=draw), dim=1) for _ in range(2)]


def test_memory_moves_halfway_and_stays_on_the_sphere():
    bank, (video, audio) = MemoryBank(6, 4), embeddings(2)
    before = bank.view1_mem.clone()
    bank.update(torch.tensor([4, 1]), video, audio, 0.5)
    torch.testing.assert_close(bank.view1_mem[4], F.normalize((before[4] + video[0]) / 2, dim=0))
    assert torch.equal(bank.view1_mem[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    for memory in (bank.view1_mem, bank.view2_mem):
        torch.testing.assert_close(memory.norm(dim=1), torch.ones(6))


def test_an_instance_twice_in_a_batch_leaves_its_last_reading():
    once, twice = MemoryBank(3, 4, torch.Generator().manual_seed(1)), MemoryBank(3, 4, torch.Generator().manual_seed(1))
    video, audio = embeddings(3)
    twice.update(torch.tensor([2, 0, 2]), video, audio, 0.5)
    once.update(torch.tensor([0, 2]), video[1:], audio[1:], 0.5)
    assert torch.equal(once.view1_mem, twice.view1_mem)
    assert torch.equal(once.view2_mem, twice.view2_mem)


def test_scoring_leaves_the_memory_alone_until_update():
    objective = Objective(ObjectiveConfig(negatives=5), 8, 4)
    (video, audio), ids = embeddings(2), torch.tensor([0, 7])
    before = objective.nce_average.view1_mem.clone()
    objective(video, audio, ids)
    assert torch.equal(objective.nce_average.view1_mem, before)
    objective.update(ids, video, audio)
    assert not torch.equal(objective.nce_average.view1_mem, before)


def test_avid_scores_across_modalities_only():
    objective = Objective(ObjectiveConfig(negatives=5), 8, 4)
    (video, audio), ids = embeddings(2), torch.tensor([0, 7])
    bank = objective.nce_average
    losses = objective(video, audio, ids, torch.Generator().manual_seed(3))
    others = objective.draw_negatives(ids, torch.Generator().manual_seed(3))
    own = (video * bank.view2_mem[ids]).sum(1, keepdim=True) / 0.07
    other = torch.einsum("bd,bkd->bk", video, bank.view2_mem[others]) / 0.07
    assert losses["v2a"].item() == pytest.approx(objective.criterion(own, other).item(), rel=1e-6)
    assert losses["loss"].item() == pytest.approx((losses["v2a"] + losses["a2v"]).item() / 2, rel=1e-6)


def test_avid_negatives_are_all_others_and_never_oneself():
    objective = Objective(ObjectiveConfig(negatives=4000), 5, 4)
    ids = torch.arange(5)
    drawn = objective.draw_negatives(ids, torch.Generator().manual_seed(0))
    for own, row in zip(ids, drawn, strict=True):
        counts = torch.bincount(row, minlength=5)
        assert counts[own] == 0
        assert (counts[torch.arange(5) != own] > 900).all()


# --- agreement ---


def cma(size=12, positives=3, negatives=6, **changes):
    config = ObjectiveConfig(stage="cma", positives=positives, negatives=negatives, within_negatives=2, **changes)
    return Objective(config, size, 4, torch.Generator().manual_seed(5))


@pytest.mark.parametrize("agreement", ["consensus", "union", "video", "audio"])
def test_agreeing_instances_are_the_most_similar_without_oneself(agreement):
    objective = cma(agreement=agreement)
    bank = objective.nce_average
    objective.resample()
    video, audio = bank.view1_mem @ bank.view1_mem.T, bank.view2_mem @ bank.view2_mem.T
    both = {"consensus": torch.minimum(video, audio), "union": torch.maximum(video, audio)}
    similarity = both.get(agreement, video if agreement == "video" else audio)
    for i, row in enumerate(bank.positive_set.tolist()):
        best = sorted((j for j in range(12) if j != i), key=lambda j: -similarity[i, j])[:3]
        assert row == sorted(best)


def test_agreement_does_not_depend_on_the_size_of_the_chunks():
    bank = cma().nce_average
    bank.find_positives(3, "consensus", chunk=5)
    first = bank.positive_set.clone()
    bank.find_positives(3, "consensus")
    assert torch.equal(first, bank.positive_set)


def test_twins_do_not_count_as_oneself():
    bank = cma().nce_average
    bank.view1_mem[1:4] = bank.view1_mem[0]
    bank.view2_mem[1:4] = bank.view2_mem[0]
    bank.find_positives(3, "consensus")
    assert bank.positive_set[:4].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_cma_negatives_are_uniform_over_all_that_are_no_positives():
    objective = cma(negatives=9000)
    objective.nce_average.positive_set = torch.tensor([[0, 1, 11]] * 4 + [[4, 5, 6]] * 8, dtype=torch.int32)
    drawn = objective.draw_negatives(torch.tensor([2, 9]), torch.Generator().manual_seed(0))
    for row, taken in zip(drawn, ([0, 1, 11], [4, 5, 6]), strict=True):
        counts = torch.bincount(row, minlength=12)
        assert (counts[taken] == 0).all()
        assert (counts[[i for i in range(12) if i not in taken]] > 850).all()  # oneself included, as published


def test_cma_adds_agreement_within_a_modality_with_the_first_negatives():
    objective = cma()
    objective.resample()
    bank, (video, audio), ids = objective.nce_average, embeddings(2), torch.tensor([3, 8])
    losses = objective(video, audio, ids, torch.Generator().manual_seed(3))
    few = objective.draw_negatives(ids, torch.Generator().manual_seed(3))[:, :2]
    own = torch.einsum("bd,bpd->bp", video, bank.view1_mem[bank.positive_set[ids].long()]) / 0.07
    other = torch.einsum("bd,bkd->bk", video, bank.view1_mem[few]) / 0.07
    assert losses["v2v"].item() == pytest.approx(objective.criterion(own, other).item(), rel=1e-6)
    pairs = [losses[k].item() for k in ("v2a", "a2v", "v2v", "a2a")]
    assert losses["loss"].item() == pytest.approx(sum(pairs) / 4, rel=1e-6)


def test_cma_takes_over_memory_and_partition_constant():
    first = Objective(ObjectiveConfig(negatives=6), 12, 4)
    first.criterion.avg_exp_score.fill_(1.75)
    second = cma()
    second.continue_from(first.state_dict())
    assert second.criterion.avg_exp_score == 1.75
    assert torch.equal(second.nce_average.view2_mem, first.nce_average.view2_mem)
    assert second.nce_average.positive_set.shape == (12, 3)


def test_memory_of_other_videos_is_refused():
    with pytest.raises(DataError, match="memory view1_mem of stage 1 is 9x4, this data needs 12x4"):
        cma().continue_from(Objective(ObjectiveConfig(negatives=6), 9, 4).state_dict())


def test_contradicting_settings_are_refused():
    with pytest.raises(ConfigError, match="stage 'cmaa' is unknown"):
        ObjectiveConfig(stage="cmaa")
    with pytest.raises(ConfigError, match="within_negatives 64 must lie in"):
        ObjectiveConfig(stage="cma", negatives=32)
    with pytest.raises(DataError, match="3 instances leave no negatives"):
        Objective(ObjectiveConfig(stage="cma", positives=3), 3, 4)


def test_embeddings_have_length_one_and_reach_every_parameter():
    model = AVIDCMA(PRESETS["avid_cma_tiny"])
    pictures = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8)
    video, audio = model(pictures, torch.randn(2, 8000) / 10)
    torch.testing.assert_close(video.norm(dim=1), torch.ones(2))
    (video[:, 0].sum() + audio[:, 0].sum()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
