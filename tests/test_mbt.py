"""MBT against its paper and public code: parameters, cost, golden vectors, who may hear whom, and what is refused."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from encoders.audiovisual.inputs import AudioInput, VideoInput
from encoders.audiovisual.mbt import MBT, PRESETS, MBTConfig
from encoders.clips import AudioSpec
from encoders.datasets.corpus import Corpus
from encoders.datasets.labelled_pairs import Span
from encoders.datasets.mixup import mix
from encoders.datasets.sample import Sample
from encoders.errors import ConfigError, DataError, UsageError
from encoders.labelled_data import Split
from encoders.objectives import StepTargets, losses_of
from encoders.readings import prepared
from encoders.recipes import recipe
from encoders.registry import ENCODERS, build, config_of
from encoders.settings import from_dict, to_dict
from encoders.tasks import LabelTask
from encoders.weights.mbt import rules
from tests.flax_fill import channels_first, fill, wave
from tests.macs import macs, on_meta, parameters

SMALL = MBTConfig(
    dim=8,
    depth=2,
    heads=2,
    mlp_dim=16,
    fusion_layer=1,
    bottlenecks=2,
    video=VideoInput(frames=4, size=16, tubelet=(2, 8, 8), clip_seconds=Fraction(8)),
    audio=AudioInput(frames=24, bins=16, patch=(8, 8), front=""),
    classes=3,
)
BASE = replace(PRESETS["mbt_base"], classes=527)
TINY = replace(PRESETS["mbt_tiny"], classes=4, drop_modality=0.0)
# Every way in which modalities can meet.
FUSIONS = {
    "bottleneck": {},
    "early": {"fusion_layer": 0},
    "late": {"fusion_layer": 2},
    "cross": {"bottlenecks": 0},
    "one sequence": {"bottlenecks": 0, "share_encoder": True},
    "shared blocks": {"share_encoder": True},
    "mean": {"pool": "mean", "positions": "sinusoidal"},
}
TASK = LabelTask(classes=("a", "b", "c"))


def awake(config=SMALL, seed=0):
    """A model none of whose weights is zero."""
    torch.manual_seed(seed)
    model = MBT(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def some(batch=3, seed=0):
    """Pictures and a spectrogram of the small model."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 4, 16, 16, generator=random), torch.randn(batch, 24, 16, generator=random)


def present(*rows):
    return torch.tensor(rows, dtype=torch.bool)


# --- the published numbers; golden logits computed with the public code of google-research/scenic ---

VIDEO, AUDIO, VIDEO_8 = (1, 3, 32, 224, 224), (1, 800, 128), (1, 3, 8, 224, 224)


@pytest.mark.parametrize(
    ("changes", "inputs", "count", "gflops"),
    [
        ({}, (VIDEO, AUDIO), 175_009_295, 493.13),
        ({"bottlenecks": 0}, (VIDEO, AUDIO), 175_005_455, 686.91),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ({"fusion_layer": 12}, (VIDEO, AUDIO), 175_009_295, 492.62),
                ({"fusion_layer": 0}, (VIDEO, AUDIO), 175_009_295, 494.14),
                ({"bottlenecks": 0, "fusion_layer": 0, "share_encoder": True}, (VIDEO, AUDIO), 89_950_991, 539.72),
                ({"audio": None}, (VIDEO,), 89_051_663, 455.21),
                ({"video": PRESETS["mbt_base_8"].video, "audio": None}, (VIDEO_8,), 87_257_615, 180.70),
                ({"video": PRESETS["mbt_base_8"].video}, (VIDEO_8, AUDIO), 173_215_247, 218.52),
            )
        ),
    ],
    ids=["bottleneck", "cross", "late", "early", "one sequence", "video", "eight pictures", "paper"],
)
def test_parameters_and_cost_are_the_public_code_s(changes, inputs, count, gflops):
    model = on_meta(lambda: MBT(replace(BASE, **changes)))
    assert parameters(model) == count
    assert macs(model, *inputs) / 1e9 == pytest.approx(gflops, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "count"), [(527, 86_360_591), (309, 86_192_949)])
def test_two_models_of_sound_are_the_172_m_that_polyvit_is_compared_with(classes, count):
    model = on_meta(lambda: MBT(replace(BASE, video=None, classes=classes)))
    assert parameters(model) == count
    sound = torch.empty(AUDIO, device="meta")
    assert macs(_Hearing(model), sound) / 1e9 == pytest.approx(37.41, rel=0.01)


class _Hearing(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, audio):
        return self.model(audio=audio)


GOLDEN = {
    "bottleneck": (7235, (-0.101219, -0.145967, -0.122064)),
    "early": (7235, (-0.096393, -0.142109, -0.120990)),
    "late": (7235, (-0.109090, -0.152316, -0.123906)),
    "cross": (7211, (-0.139753, -0.176921, -0.130882)),
}
CLIP, SOUND = channels_first(wave((1, 4, 16, 16, 3))), channels_first(wave((1, 24, 16, 3), 0.021))


def answers(config, sound=SOUND):
    model = MBT(config).eval()
    fill(model, rules(config))
    with torch.no_grad():
        return parameters(model), model(CLIP, sound)[0]


@pytest.mark.parametrize("fusion", GOLDEN)
def test_logits_are_those_of_the_public_code(fusion):
    count, logits = answers(replace(SMALL, **FUSIONS[fusion]))
    assert count == GOLDEN[fusion][0]
    torch.testing.assert_close(logits, torch.tensor(GOLDEN[fusion][1]), atol=2e-5, rtol=0)


def test_logits_of_one_sequence_are_those_of_the_public_code():
    count, logits = answers(replace(SMALL, bottlenecks=0, fusion_layer=0, share_encoder=True))
    assert count == 6011
    torch.testing.assert_close(logits, torch.tensor((-0.163937, -0.196050, -0.135957)), atol=2e-5, rtol=0)


def test_logits_of_av_mae_s_copy_are_those_of_the_public_code():
    """The mean over tokens, positions that are not learned, one channel of sound (projects/av_mae)."""
    config = replace(SMALL, pool="mean", positions="sinusoidal", spectrogram_channels=1)
    count, logits = answers(config, channels_first(wave((1, 24, 16, 1), 0.021)))
    assert count == 6059
    torch.testing.assert_close(logits, torch.tensor((0.075153, -0.018302, -0.103150)), atol=2e-5, rtol=0)
    big = replace(BASE, pool="mean", positions="sinusoidal", classes=309)
    assert parameters(on_meta(lambda: MBT(big))) == 172_122_165
    assert parameters(on_meta(lambda: MBT(replace(big, spectrogram_channels=1)))) == 171_728_949


# --- who may hear whom ---


def reached(model, video, audio):
    """Which modality's class token hears of which input, by gradients: {"video": {...}, ...}."""
    video, audio = video.clone().requires_grad_(), audio.clone().requires_grad_()
    found = {}
    for place, name in enumerate(("video", "audio")):
        each, _ = model.each({"rgb": video, "audio": audio})
        grads = torch.autograd.grad(each[:, place].sum(), (video, audio), allow_unused=True)
        found[name] = {m for m, g in zip(("video", "audio"), grads, strict=True) if g is not None and g.abs().sum() > 0}
    return found


@pytest.mark.parametrize("fusion", FUSIONS)
def test_modalities_meet_where_they_should(fusion):
    """With one layer left after the meeting a bottleneck has heard, but nobody has yet heard the bottleneck."""
    changes = {**FUSIONS[fusion], "depth": 3}
    if fusion == "late":
        changes["fusion_layer"] = 3
    own = {"video": {"video"}, "audio": {"audio"}}
    both = {"video": {"video", "audio"}, "audio": {"video", "audio"}}
    assert reached(awake(replace(SMALL, **changes)), *some()) == (own if fusion == "late" else both)


def test_a_last_block_tells_of_the_other_only_without_bottlenecks():
    """What a bottleneck is told in block l is heard in block l + 1; attention in full is heard at once."""
    own = {"video": {"video"}, "audio": {"audio"}}
    assert reached(awake(replace(SMALL, fusion_layer=1)), *some()) == own
    assert reached(awake(replace(SMALL, fusion_layer=1, bottlenecks=0)), *some()) != own


def test_bottlenecks_that_nobody_may_attend_to_are_late_fusion():
    """Masked, not zeroed: a zeroed value would still take its share of attention."""
    model = awake(replace(SMALL, depth=4))
    late = MBT(replace(model.config, fusion_layer=4)).eval()
    late.load_state_dict(model.state_dict())
    apart = MBT(replace(model.config, test_with_bottlenecks=False)).eval()
    apart.load_state_dict(model.state_dict())
    video, audio = some()
    torch.testing.assert_close(apart(video, audio), late(video, audio), rtol=0, atol=0)
    x = {"video": model.tokens["video"](video), "audio": model.tokens["audio"](audio[:, None].expand(-1, 3, -1, -1))}
    # Every token is there, and the rows say that one modality is not: what is left is the mask on the bottlenecks.
    masked = model.encoder.forward(x, {"video": None, "audio": torch.zeros(3, 7, dtype=torch.bool)})
    alone = late.encoder.forward(x, {"video": None, "audio": None})
    torch.testing.assert_close(masked["video"], alone["video"])
    assert (model(video, audio) - late(video, audio)).abs().amax() > 1e-3


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_order_of_modalities_does_not_matter(fusion):
    model = awake(replace(SMALL, **FUSIONS[fusion]))
    video, audio = some()
    x = {"video": model.tokens["video"](video), "audio": model.tokens["audio"](audio[:, None].expand(-1, 3, -1, -1))}
    none = {"video": None, "audio": None}
    forth, back = model.encoder(x, none), model.encoder(dict(reversed(x.items())), none)
    for m in x:
        torch.testing.assert_close(forth[m], back[m])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_tokens_without_positions_may_come_in_any_order(fusion):
    model = awake(replace(SMALL, **FUSIONS[fusion]))
    x = {"video": torch.randn(2, 9, 8), "audio": torch.randn(2, 7, 8)}
    order = torch.tensor([0, 3, 1, 2, 8, 7, 4, 6, 5])
    none = {"video": None, "audio": None}
    plain, mixed = model.encoder(x, none), model.encoder({**x, "video": x["video"][:, order]}, none)
    torch.testing.assert_close(mixed["video"], plain["video"][:, order])
    torch.testing.assert_close(mixed["audio"], plain["audio"])


# --- what is absent ---


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_an_absent_modality_leaves_the_model_of_the_other(fusion, modality):
    """Logits, not features alone: and the model of one modality is built without the other."""
    model = awake(replace(SMALL, **FUSIONS[fusion]))
    names = {"video": "rgb", "audio": "audio"}
    other = {"video": "audio", "audio": "video"}[modality]
    single = MBT(replace(model.config, **{other: None})).eval()
    state = model.state_dict()
    single.load_state_dict(
        {k: state[k.replace(f"blocks.{modality}", "blocks.both") if model.encoder.shared else k]
         for k in single.state_dict()}
    )  # fmt: skip
    seen = dict(zip(("rgb", "audio"), some(), strict=True))
    alone = single.logits({names[modality]: seen[names[modality]]})
    torch.testing.assert_close(model.logits({names[modality]: seen[names[modality]]}), alone, rtol=0, atol=0)
    column = torch.tensor([modality == "video", modality == "audio"]).expand(3, 2)
    torch.testing.assert_close(model.logits(seen, column), alone, rtol=0, atol=0)
    # beside clips that have both, in one batch
    mixed = present((True, True), column[0].tolist(), (True, True))
    found = model.logits(seen, mixed)
    torch.testing.assert_close(found[1], alone[1])
    torch.testing.assert_close(found[[0, 2]], model.logits(seen)[[0, 2]])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_an_absent_modality_or_token_holds_does_not_matter(fusion):
    model = awake(replace(SMALL, **FUSIONS[fusion]))
    video, audio = some()
    clips = present((True, False), (True, True), (False, True))
    tokens = {"video": torch.rand(3, 8) < 0.6, "audio": torch.rand(3, 6) < 0.6}
    for presence in (clips, tokens):
        before = model(video, audio, presence)
        spoilt = audio.clone(), video.clone()
        if presence is clips:
            spoilt[0][0], spoilt[1][2] = float("nan"), float("nan")
        else:
            for row, place in (~tokens["audio"]).nonzero().tolist():
                t, f = divmod(place, 2)
                spoilt[0][row, 8 * t : 8 * t + 8, 8 * f : 8 * f + 8] = float("nan")
        torch.testing.assert_close(model(spoilt[1], spoilt[0], presence), before)
        assert before.isfinite().all()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_absent_tokens_are_as_if_they_had_never_been(fusion):
    """A mask of tokens gives what the tokens that are left give by themselves."""
    model = awake(replace(SMALL, **FUSIONS[fusion]))
    x = {"video": torch.randn(2, 9, 8), "audio": torch.randn(2, 7, 8)}
    kept = torch.tensor([True, True, False, True, False, True, True, False, True])
    none = {"video": None, "audio": None}
    less = model.encoder({**x, "video": x["video"][:, kept]}, none)
    masked = model.encoder(x, {"video": kept.expand(2, -1), "audio": None})
    torch.testing.assert_close(masked["video"][:, kept], less["video"])
    torch.testing.assert_close(masked["audio"], less["audio"])


def test_all_tokens_there_is_as_if_nothing_were_said():
    model = awake()
    video, audio = some()
    whole = {"video": torch.ones(3, 8, dtype=torch.bool), "audio": torch.ones(3, 6, dtype=torch.bool)}
    for presence in (torch.ones(3, 2, dtype=torch.bool), whole, {"audio": whole["audio"]}):
        torch.testing.assert_close(model(video, audio, presence), model(video, audio), rtol=0, atol=0)


def test_no_token_of_a_modality_is_no_modality():
    model = awake()
    video, audio = some()
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1] = False
    rows = present((True, True), (True, False), (True, True))
    torch.testing.assert_close(model(video, audio, {"audio": mask}), model(video, audio, rows), rtol=0, atol=0)


def test_a_clip_with_nothing_gives_finite_logits():
    model = awake()
    for rows in (torch.zeros(3, 2, dtype=torch.bool), present((False, False), (True, True), (False, True))):
        found = model(*some(), rows)
        torch.testing.assert_close(found[0], model.head.bias)
        assert found.isfinite().all()


def test_rows_are_independent():
    model = awake()
    video, audio = some(4)
    rows = present((True, True), (True, False), (False, True), (True, True))
    alone = torch.cat([model(video[i : i + 1], audio[i : i + 1], rows[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(model(video, audio, rows), alone)


# --- training ---


def step_of(targets, **more):
    return StepTargets(task=TASK, targets=targets, **more)


def test_each_modality_has_its_own_loss():
    model = awake()
    video, audio = some()
    x = {"rgb": video, "audio": audio, "presence": present((True, True), (True, False), (True, True))}
    targets = torch.eye(3)
    found = losses_of(model, x, step_of(targets, smoothing=0.1))
    each, _ = model.each({"rgb": video, "audio": audio}, x["presence"])
    logits = model.head(each)
    assert list(found) == ["video", "audio"]
    torch.testing.assert_close(found["video"], TASK.compute_loss(logits[:, 0], targets, 0.1) / 2)
    torch.testing.assert_close(found["audio"], TASK.compute_loss(logits[[0, 2], 1], targets[[0, 2]], 0.1) / 2)


def test_the_paper_s_words_average_the_logits():
    model = awake(replace(SMALL, training_loss="averaged"))
    video, audio = some()
    x = {"rgb": video, "audio": audio, "presence": present((True, True), (True, False), (False, True))}
    found = losses_of(model, x, step_of(torch.eye(3)))
    torch.testing.assert_close(found["task"], TASK.compute_loss(model(video, audio, x["presence"]), torch.eye(3)))


def test_where_nothing_is_there_the_loss_is_nothing_and_has_a_gradient():
    model = awake()
    video, audio = some()
    x = {"rgb": video, "audio": audio, "presence": torch.zeros(3, 2, dtype=torch.bool)}
    found = losses_of(model, x, step_of(torch.eye(3)))
    assert float(found["task"].detach()) == 0
    found["task"].backward()


def test_mixmod_mixes_each_modality_by_itself_and_its_labels_with_it():
    model = awake(replace(SMALL, mixmod=0.5))
    video, audio = some()
    seen, targets = {"rgb": video, "audio": audio}, torch.eye(3)
    torch.manual_seed(7)
    outputs = model.training_outputs(seen)
    shares = outputs["shares"].tolist()
    assert shares[0] != shares[1]
    clips, seen_targets = mix(video, targets, shares[0])
    sounds, heard_targets = mix(audio, targets, shares[1])
    logits = model.head(model.each({"rgb": clips, "audio": sounds})[0])
    found = model.training_losses(outputs, step_of(targets))
    torch.testing.assert_close(found["video"], TASK.compute_loss(logits[:, 0], seen_targets) / 2)
    torch.testing.assert_close(found["audio"], TASK.compute_loss(logits[:, 1], heard_targets) / 2)
    with pytest.raises(ConfigError, match=r"mixup 0\.5 would mix again what mixmod 0\.5 mixes by modality; set one"):
        model.check_run(_Run)


class _Run:
    mixup = 0.5


def test_training_takes_modalities_away_and_serving_does_not():
    model = awake(replace(SMALL, drop_modality=1.0))
    seen = dict(zip(("rgb", "audio"), some(64), strict=True))
    has = model.training_outputs(seen)["has"]
    assert (has.sum(1) == 1).all() and 16 < int(has[:, 0].sum()) < 48
    torch.testing.assert_close(model.logits(seen), model.logits(seen))
    only = torch.tensor([True, False]).expand(64, 2)
    assert torch.equal(model.training_outputs(seen, only)["has"], only)  # nobody loses all there is


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_weight_learns(fusion):
    model = awake(replace(SMALL, depth=3, stochastic_depth=0.1, **FUSIONS[fusion])).train()
    torch.manual_seed(1)
    sum(losses_of(model, dict(zip(("rgb", "audio"), some(), strict=True)), step_of(torch.eye(3))).values()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert idle == (["encoder.bottleneck"] if fusion == "late" and model.config.fusion_layer == 3 else [])


@pytest.mark.slow
def test_it_learns_each_modality_and_both():
    """Classes that both modalities show: overfitted together, and told apart by each alone."""
    torch.manual_seed(0)
    model = MBT(replace(TINY, drop_modality=0.5))
    labels = torch.arange(4).repeat(4)
    video, audio = torch.zeros(16, 10, 64, 64, dtype=torch.uint8), torch.zeros(16, 6400)
    time = torch.arange(6400) / 16_000
    for i, label in enumerate(labels.tolist()):
        video[i] = 200 * ((torch.arange(64) // 2**label) % 2)  # stripes, ever wider
        audio[i] = 0.3 * torch.sin(2 * torch.pi * (300 + 500 * label) * time)
    seen = model.prepare(video) | model.prepare(audio, "audio")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = StepTargets(task=LabelTask(classes=tuple("abcd")), targets=nn.functional.one_hot(labels).float())
    for _ in range(40):
        optimizer.zero_grad()
        sum(losses_of(model, seen, step).values()).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert (model.logits(seen).argmax(1) == labels).all()
        for m, clips in (("video", video), ("audio", audio)):
            assert (model.head(model.encode(clips, m)).argmax(1) == labels).all(), m


# --- as an encoder ---


def test_it_promises_a_spec_for_each_modality():
    model = build("mbt_tiny")
    assert (model.modalities, model.dim, model.clip_seconds) == (("video", "audio"), 128, Fraction(2, 5))
    assert model.specs == {"video": model.config.video.spec, "audio": AudioSpec()}
    assert model.spec == model.specs["video"]
    deaf = MBT(replace(model.config, audio=None, drop_modality=0.0))
    assert (deaf.modalities, deaf.sees) == (("video",), ["rgb"])
    assert deaf.encode(torch.zeros(1, 10, 64, 64, dtype=torch.uint8)).shape == (1, 128)
    blind = MBT(replace(model.config, video=None, drop_modality=0.0))
    assert (blind.modalities, blind.spec) == (("audio",), AudioSpec())
    assert blind.encode(torch.zeros(1, 6400)).shape == (1, 128)


def test_a_feature_is_of_one_modality_alone():
    model = awake(TINY)
    clips = {"video": torch.randint(0, 256, (2, 10, 64, 64), dtype=torch.uint8), "audio": torch.randn(2, 6400) / 10}
    seen = model.prepare(clips["video"]) | model.prepare(clips["audio"], "audio")
    for column, m in enumerate(clips):
        rows = torch.zeros(2, 2, dtype=torch.bool)
        rows[:, column] = True
        torch.testing.assert_close(model.encode(clips[m], m), model.features(seen, rows), rtol=0, atol=0)


def test_presets_are_registered_and_read_back():
    for name, config in PRESETS.items():
        assert name in ENCODERS
        assert from_dict(MBTConfig, to_dict(config)) == config
    assert config_of("mbt_tiny", **{"video.motion": True}).video.motion


# --- bad input ---


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fusion_layer": 13}, r"fusion_layer 13 of 12 blocks cannot be; use 0 \(early\) to 12 \(late\)"),
        ({"fusion_layer": -1}, "fusion_layer -1 of 12 blocks cannot be"),
        ({"bottlenecks": -1}, "bottlenecks -1 cannot be; use 0 for attention to each other in full"),
        ({"heads": 7}, "heads 7 do not divide dim 768; use a divisor"),
        ({"depth": 0, "fusion_layer": 0}, "depth 0 must be at least 1"),
        ({"video": None, "audio": None}, "video and audio are both none; keep at least one of them"),
        ({"pool": "max"}, "pool 'max' is unknown; use token or mean"),
        ({"positions": "none"}, "positions 'none' are unknown; use learned or sinusoidal"),
        ({"classes": -1}, "classes -1 must not be negative; use 0 for features"),
        ({"spectrogram_channels": 2}, "spectrogram_channels 2 cannot be; use 1 or 3"),
        ({"stochastic_depth": 1.0}, r"stochastic_depth 1\.0 must lie in \[0, 1\); use 0 to drop nothing"),
        ({"training_loss": "sum"}, "training_loss 'sum' is unknown; use each or averaged"),
        ({"mixmod": 0.5, "training_loss": "averaged"}, r"mixmod 0\.5 with training_loss averaged cannot be, for no"),
        ({"drop_modality": 2.0}, r"drop_modality 2\.0 is no share; use a number from 0 to 1"),
        ({"video": None, "drop_modality": 0.5}, "drop_modality takes away audio, all there is; use 0"),
        ({"video": VideoInput(frames=9, tubelet=(2, 16, 16))}, "9 frames cannot be cut into patches of 2; use 8 or 10"),
        ({"video": VideoInput()}, r"clips of 2\.56 s for video and 8 s for audio are not the same clips; make"),
        ({"audio": AudioInput(frames=10, front="")}, "10 mel frames cannot be cut into patches of 16; use 16"),
    ],
)
def test_contradictions_are_one_sentence(changes, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        MBTConfig(**changes)
    assert "\n" not in str(error.value)


def test_clips_that_do_not_fit_are_one_sentence():
    model = build("mbt_tiny")
    pictures = torch.zeros(2, 10, 64, 64, dtype=torch.uint8)
    with pytest.raises(DataError, match="clips of which modality; name one of video, audio"):
        model.encode(pictures)
    with pytest.raises(ConfigError, match="'touch' is no modality of this model; use video or audio"):
        model.encode(pictures, "touch")
    with pytest.raises(DataError, match=r"sound of shape \(1, 320\) came to a tokenizer of \(batch, 6400\) floats"):
        model.encode(torch.zeros(1, 320), "audio")
    with pytest.raises(DataError, match="video of 3x10x32x32 came to a tokenizer of 3x10x64x64; sample and resize it"):
        model.encode(pictures[:, :, :32, :32], "video")
    with pytest.raises(DataError, match="audio of 3x4x48 came to a tokenizer of 3x40x48"):
        model(audio=torch.zeros(1, 4, 48))
    with pytest.raises(DataError, match="there is nothing to see or hear; give one of audio, rgb"):
        model()
    with pytest.raises(DataError, match="flow came to a model that sees none; leave it out, or train mm_mix"):
        model.prepare(pictures, flow=torch.zeros(1))
    with pytest.raises(DataError, match="the model has no head to train; build it with classes"):
        model.training_outputs(model.prepare(pictures))
    with pytest.raises(UsageError, match="setting 'tubelets' is unknown"):
        config_of("mbt_base", tubelets=2)


@pytest.mark.parametrize(
    ("presence", "sentence"),
    [
        (torch.ones(3, 1, dtype=torch.bool), r"presence \(3, 1\) bool is not \(clips, 2\) bool of 3 clips; give video"),
        (torch.ones(3, 2), r"presence \(3, 2\) float32 is not \(clips, 2\) bool of 3 clips"),
        ({"video": torch.ones(3, 9, dtype=torch.bool)}, r"presence of video \(3, 9\) bool is not \(3, 8\) bool"),
        ({"touch": torch.ones(3, 9, dtype=torch.bool)}, "modality 'touch' is unknown"),
    ],
)
def test_presence_that_does_not_fit_is_one_sentence(presence, sentence):
    with pytest.raises((DataError, UsageError), match=sentence):
        awake()(*some(), presence)


def test_as_many_of_each():
    video, audio = some()
    with pytest.raises(DataError, match="2 of rgb and 3 of audio are not the same clips; give as many of each"):
        awake().logits({"rgb": video[:2], "audio": audio})


def test_a_model_of_sound_alone_is_trained_on_spectrograms():
    model = awake(replace(SMALL, video=None))
    x = prepared(model, some()[1])
    found = losses_of(model, x, step_of(torch.eye(3)))
    torch.testing.assert_close(found["audio"], TASK.compute_loss(model.logits(x), torch.eye(3)))
    assert list(found) == ["audio"]


def test_silence_and_a_black_clip_give_finite_features():
    model = awake(TINY)
    assert model.encode(torch.zeros(1, 6400), "audio").isfinite().all()
    assert model.encode(torch.zeros(1, 10, 64, 64, dtype=torch.uint8), "video").isfinite().all()


# --- recipes ---


@pytest.mark.parametrize(
    ("preset", "data", "name", "values"),
    [
        ("mbt_base", "audioset_balanced", "mbt_audioset", (50, 64, 0.5, 0.5, 0.3, 2)),
        ("mbt_base", "audioset_500k", "mbt_audioset_500k", (30, 64, 0.5, 0.3, 0.0, 2)),
        ("mbt_base", "vggsound", "mbt_vggsound", (50, 64, 0.5, 0.3, 0.0, 2)),
        ("mbt_base", "kinetics_sounds", "mbt_vggsound", (50, 64, 0.5, 0.3, 0.0, 2)),
        ("mbt_base_8", "vggsound", "mbt_8_vggsound", (50, 64, 0.5, 0.3, 0.0, 25)),
        ("mbt_base_8", "epic_kitchens", "mbt_8_epic_kitchens", (50, 64, 0.5, 0.3, 0.3, 25)),
        ("mbt_tiny", "grid_lips", "mbt_words", (24, 32, 1e-3, 0.0, 0.0, 0)),
    ],
)
def test_the_paper_s_columns_are_chosen_by_dataset(preset, data, name, values):
    run = recipe(preset, f"{data}:nowhere")
    assert (run.recipe, run.epochs, run.batch, run.lr, run.mixup, run.smoothing, run.stride) == (name, *values)
    assert run.encoder.get("stochastic_depth", 0.0) == (0.3 if preset != "mbt_tiny" else 0.0)


@pytest.mark.parametrize("apart", [True, False])
def test_sound_may_last_longer_than_the_pictures_that_are_looked_at(apart, tmp_path):
    """The public configuration looks at 2.56 s and hears the 8 s around them."""
    config = recipe("mbt_base", "vggsound:nowhere")
    corpus = Corpus("vggsound", tmp_path, [Sample(path=tmp_path / "a.mp4", seconds=10.0)], (), None, [])
    with torch.device("meta"):
        model = build("mbt_base", sound_apart=apart)
    pairs = Split(config, corpus).open_for(model)
    asked = []

    def read(sample, start, seconds, frames):
        asked.append((round(start, 6), float(seconds)))
        return Span(None, torch.zeros(int(seconds * 16_000)).numpy())

    pairs.read_span = read
    pairs.span(0, Fraction(372, 100))
    assert asked == ([(1.0, 8.0), (3.72, 2.56)] if apart else [(3.72, 2.56)])
