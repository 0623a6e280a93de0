"""M&M: groups hold one moment of every view, a feature is of one modality alone, and what is refused."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from encoders.audiovisual.mm_mix import PRESETS, MMMix, MMMixConfig, flow_channels
from encoders.clips import AudioSpec, VideoSpec
from encoders.errors import ConfigError, DataError, UsageError
from encoders.registry import ENCODERS, build, config_of
from encoders.settings import from_dict, to_dict
from encoders.video.flow import FlowConfig, optical_flow
from encoders.video.views import parse_views
from encoders.weights.image_vit import read_image_vit
from encoders.weights.mtv import from_mtv, initialise
from tests.macs import macs, on_meta, parameters
from tests.test_mtv import image_tree

TINY = PRESETS["mm_mix_tiny"]


def awake(config=TINY):
    """A model none of whose weights is zero."""
    torch.manual_seed(0)
    model = MMMix(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def pictures(batch=2, seed=0):
    return torch.randint(0, 256, (batch, 10, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def samples(batch=2, seed=0):
    return torch.randn(batch, 6400, generator=torch.Generator().manual_seed(seed)) / 10


# --- views and time ---


def test_views_say_what_they_see():
    views = parse_views("B/2+S/4:audio+Ti/8:flow")
    assert [(v.tubelet, v.sees) for v in views] == [(8, "flow"), (4, "audio"), (2, "rgb")]


def test_an_audio_step_is_the_sound_under_its_frames():
    """64 frames in 2.56 s, 256 mel frames: 16 under 4 frames, one row of patches, eight of them over 128 bins."""
    config = PRESETS["mm_mix_base"]
    flow, audio, rgb = config.parsed
    assert config.grid(audio) == (16, 1, 8)
    assert config.grid(flow) == (8, 14, 14)
    assert config.grid(rgb) == (32, 14, 14)
    assert config.grid(replace(audio, tubelet=8)) == (8, 2, 8)
    assert config.global_steps == 56


def two_moments():
    """Ten frames as two groups: every view looks five frames far at most."""
    wide = [replace(v, tubelet=5 if v.sees != "rgb" else 1, patch=(4, 16) if v.sees == "audio" else v.patch)
            for v in TINY.parsed]  # fmt: skip
    return replace(TINY, views=tuple(wide))


def test_a_group_holds_the_same_moment_of_every_view():
    model = awake(two_moments())
    seen = model.prepare(pictures(1)) | model.prepare(samples(1), "audio")
    later = {name: x.clone() for name, x in seen.items()}
    later["rgb"][:, :, 5:] += 1
    later["flow"][:, :, 5:] += 1
    later["audio"][:, 20:] += 1
    before, after = (model.encoder(model.tokenize(given)) for given in (seen, later))
    for x, y in zip(before, after, strict=True):
        half = x.shape[1] // 2
        torch.testing.assert_close(x[:, :half], y[:, :half])
        assert (x[:, half:] - y[:, half:]).abs().amax() > 1e-3


# --- features of one modality ---


@pytest.mark.parametrize("merge", ["time", "channel"])
@pytest.mark.parametrize("fusion", ["cross", "bottleneck", "late"])
def test_a_feature_is_of_one_modality_alone(fusion, merge):
    model = awake(replace(TINY, fusion=fusion, merge=merge))
    clips = {"video": pictures(), "audio": samples()}
    alone = {m: model.encode(clips[m], m) for m in model.modalities}
    seen = {m: model.prepare(clips[m], m) for m in model.modalities}
    both = seen["video"] | seen["audio"]
    for row, m in enumerate(("video", "audio")):  # the same clip, the other modality said to be absent
        presence = torch.zeros(2, 2, dtype=torch.bool)
        presence[:, row] = True
        torch.testing.assert_close(model.features(both, presence), alone[m])
    mixed = model.features(both, torch.tensor([[True, False], [False, True]]))
    torch.testing.assert_close(mixed, torch.stack([alone["video"][0], alone["audio"][1]]))
    together = model.features(both)
    assert all((together - alone[m]).abs().amax() > 1e-3 for m in alone)
    assert alone["video"].shape == alone["audio"].shape == (2, model.dim)


def test_what_an_absent_modality_holds_does_not_matter():
    model = awake()
    seen = model.prepare(pictures()) | model.prepare(samples(), "audio")
    presence = torch.tensor([[True, False], [True, True]])
    before = model.features(seen, presence)
    seen["audio"][0] = float("nan")
    torch.testing.assert_close(model.features(seen, presence), before)


def test_a_clip_with_nothing_gives_a_finite_feature():
    model = awake()
    seen = model.prepare(pictures()) | model.prepare(samples(), "audio")
    assert model.features(seen, torch.zeros(2, 2, dtype=torch.bool)).isfinite().all()
    assert model.encode(torch.zeros_like(pictures())).isfinite().all()
    assert model.encode(torch.zeros_like(samples()), "audio").isfinite().all()


def test_rows_are_independent():
    model = awake()
    for m, clips in (("video", pictures(3)), ("audio", samples(3))):
        alone = torch.cat([model.encode(clips[i : i + 1], m) for i in range(3)])
        torch.testing.assert_close(model.encode(clips, m), alone, atol=1e-5, rtol=1e-4)


def test_it_promises_a_spec_for_each_modality():
    model = build("mm_mix_tiny")
    assert model.modalities == ("video", "audio")
    assert model.specs == {"video": VideoSpec(frames=10, size=64, crop_share=0.625), "audio": AudioSpec()}
    assert (model.spec, model.clip_seconds, model.dim) == (model.specs["video"], Fraction(2, 5), 128)
    still = build("mm_mix_tiny", views=tuple(v for v in TINY.parsed if v.sees != "audio"), drop_modality=0.0)
    assert still.modalities == ("video",)
    deaf = MMMix(
        replace(TINY, views=tuple(v for v in TINY.parsed if v.sees == "audio"), fusion="late", drop_modality=0)
    )
    assert deaf.modalities == ("audio",)
    assert deaf.spec == AudioSpec()
    assert deaf.encode(samples(), "audio").shape == (2, 128)


# --- training ---


def test_flow_is_computed_from_the_pictures_where_it_is_not_given():
    model = awake(replace(TINY, classes=3))
    clips = pictures()
    seen = model.prepare(clips) | model.prepare(samples(), "audio")
    config = model.config.flow
    fields = np.stack([optical_flow(clip, config) for clip in clips.numpy()])
    given = model(seen["rgb"], seen["audio"], flow_channels(fields, config))
    torch.testing.assert_close(model(seen["rgb"], seen["audio"]), given)
    assert given.shape == (2, 3)


def test_flow_has_three_channels_over_its_bound():
    flow = np.zeros((1, 2, 16, 16, 2), np.float32)
    flow[..., 0], flow[..., 1] = 10.0, -20.0
    x = flow_channels(flow, FlowConfig(bound=20.0))
    assert x.shape == (1, 3, 2, 16, 16)
    assert x[0, :, 0, 0, 0].tolist() == [0.5, -1.0, -0.25]


def test_training_takes_modalities_away_and_serving_does_not():
    model = MMMix(replace(TINY, drop_modality=0.5))
    torch.manual_seed(0)
    presence = model._dropped(None, [True, True], 4000, torch.device("cpu"))
    torch.testing.assert_close(presence.float().mean(0), torch.tensor([0.75, 0.75]), atol=0.03, rtol=0)
    assert presence.any(1).all()  # never both
    half = torch.tensor([[True, False]]).expand(100, 2)
    assert torch.equal(model._dropped(half, [True, True], 100, torch.device("cpu")), half)  # nor the last
    assert model._dropped(None, [True, False], 100, torch.device("cpu"))[:, 0].all()  # nor all there is
    seen = model.prepare(pictures()) | model.prepare(samples(), "audio")
    model.eval()
    torch.testing.assert_close(model.features(seen), model.features(seen))
    video = {name: seen[name] for name in ("rgb", "flow")}
    torch.testing.assert_close(model.train().features(video), model.eval().features(video))


def test_every_weight_learns():
    torch.manual_seed(0)
    model = MMMix(replace(TINY, classes=4, drop_modality=0.0))
    nn.init.normal_(model.head.weight, std=0.1)
    seen = model.prepare(pictures()) | model.prepare(samples(), "audio")
    for _ in range(2):  # the second after what was zero has moved
        model.zero_grad()
        model(seen["rgb"], seen["audio"], seen["flow"]).square().sum().backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * p.grad
    assert [n for n, p in model.named_parameters() if not p.grad.abs().sum()] == []


@pytest.mark.slow
def test_it_learns_each_modality_and_both():
    """Classes that are half in the picture and half in the sound: overfitted from both, and told apart by each."""
    torch.manual_seed(0)
    model = MMMix(replace(TINY, classes=4, drop_modality=0.5))
    labels = torch.arange(4).repeat(4)
    video, audio = torch.zeros(16, 10, 64, 64, dtype=torch.uint8), torch.zeros(16, 6400)
    time = torch.arange(6400) / 16_000
    for i, label in enumerate(labels.tolist()):
        for t in range(10):  # a bar that stands at one of four places and shakes
            video[i, t, :, 16 * label + 3 * (t % 2) : 16 * label + 8 + 3 * (t % 2)] = 200
        audio[i] = 0.3 * torch.sin(2 * torch.pi * (300 + 500 * label) * time)
    seen = model.prepare(video) | model.prepare(audio, "audio")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(seen["rgb"], seen["audio"], seen["flow"]), labels)
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for m, clips in (("video", video), ("audio", audio)):
            assert (model.head(model.encode(clips, m)).argmax(1) == labels).float().mean() == 1.0, m


# --- starting from image models ---


def test_every_view_starts_from_an_image_model():
    """Sound too: a spectrogram is cut as a picture is, so a picture's kernel is zoomed to its patch."""
    torch.manual_seed(0)
    model = MMMix(replace(TINY, channels=3))
    trees = [image_tree(view, patch=16, grid=2) for view in model.config.parsed]
    initialise(model, [read_image_vit(tree) for tree in trees])
    state = model.state_dict()
    sees = model.sees
    audio = state[f"tokens.{sees.index('audio')}.embed.project.weight"]
    kernel = torch.from_numpy(trees[sees.index("audio")]["embedding/kernel"])  # (h, w, C, D)
    assert audio.shape == (48, 3, 8, 16)
    assert torch.equal(audio[:, :, [0, -1]].permute(2, 3, 1, 0), kernel[[0, -1]])
    assert state[f"tokens.{sees.index('audio')}.positions"].shape == (1, 1 + 5 * 3, 48)
    assert state[f"tokens.{sees.index('flow')}.embed.project.weight"].shape == (48, 3, 10, 16, 16)


def test_a_model_starts_from_one_of_shorter_clips():
    source = awake()
    longer = MMMix(replace(TINY, frames=20, clip_seconds=Fraction(4, 5)))
    longer.load_state_dict(from_mtv(longer, source.state_dict()))
    assert longer.encode(torch.zeros(1, 20, 64, 64, dtype=torch.uint8)).shape == (1, 128)
    assert longer.encode(torch.zeros(1, 12_800), "audio").shape == (1, 128)


# --- presets ---


def test_presets_are_registered_and_read_back():
    for name, config in PRESETS.items():
        assert name in ENCODERS
        assert from_dict(MMMixConfig, to_dict(config)) == config


@pytest.mark.slow
def test_the_base_model_is_mtv_of_three_kinds():
    """RGB, audio and flow encoders of the sizes the report compares; one more modality costs little."""
    config = PRESETS["mm_mix_base"]
    model = on_meta(lambda: MMMix(config))
    rgb, sound, flow = (1, 3, 64, 224, 224), (1, 256, 128), (1, 3, 64, 224, 224)
    whole = macs(model, rgb, sound, flow)
    without = on_meta(lambda: MMMix(PRESETS["mm_mix_base_rgb"]))
    assert 200e6 < parameters(model) < parameters(without)
    assert whole < macs(without, rgb)


# --- bad input ---


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"views": "B/2+S/4:smell"}, "a view of smell is unknown; use rgb, flow, audio"),
        ({"views": "B/2+S/3:audio"}, "64 frames cannot be cut into patches of 3; use 63 or 66"),
        ({"views": "B/2+S/2:audio"}, "8 mel frames under 2 frames cannot be cut into patches of 16; use 16"),
        (
            {"clip_seconds": Fraction(1)},
            "100 mel frames of 1 s cannot be shared by 16 time steps; choose clip_seconds, or another tubelet",
        ),
        ({"front": "log_mel_talk"}, None),
        ({"front": "log_mell"}, "front 'log_mell' is unknown; did you mean log_mel"),
        ({"classifier": "gap"}, "views of other modalities have no places in common; use classifier 'token'"),
        ({"drop_modality": 1.5}, r"drop_modality 1\.5 is no share; use a number from 0 to 1"),
        ({"views": "B/2+Ti/8:flow", "drop_modality": 0.5}, "drop_modality takes away video, all there is; use 0"),
        ({"fusion": "mlp"}, "fusion 'mlp' cannot lay 16x8 tokens beside 8x196"),
        ({"global_width": 100}, "global_heads 8 cannot share a width of 100"),
    ],
)
def test_contradictions_are_one_sentence(changes, sentence):
    if sentence is None:
        assert MMMixConfig(**changes).grid(MMMixConfig(**changes).parsed[1]) == (16, 1, 3)
        return
    with pytest.raises((ConfigError, UsageError), match=sentence) as error:
        MMMixConfig(**changes)
    assert "\n" not in str(error.value)


def test_clips_that_do_not_fit_are_one_sentence():
    model = build("mm_mix_tiny")
    with pytest.raises(ConfigError, match="'touch' is no modality of this model; use video or audio"):
        model.encode(pictures(), "touch")
    with pytest.raises(DataError, match=r"a spectrogram of 20x48 \(mel frames, bins\) came to a model of 40x48"):
        model.encode(torch.zeros(1, 3200), "audio")
    with pytest.raises(DataError, match=r"a clip of 3x10x32x32 .* came to a model of 3x10x64x64"):
        model.encode(pictures()[:, :, :32, :32])
    with pytest.raises(DataError, match=r"a clip of 3x5x64x64 .* came to a model of 3x10x64x64"):
        model.features({"flow": torch.zeros(1, 3, 5, 64, 64)})
    with pytest.raises(DataError, match="there is nothing to see or hear; give one of audio, flow, rgb"):
        model()
    seen = model.prepare(pictures(2)) | model.prepare(samples(3), "audio")
    with pytest.raises(DataError, match="2 of rgb and 2 of flow and 3 of audio are not the same clips"):
        model.features(seen)
    with pytest.raises(DataError, match=r"presence \(2, 3\) is not \(clips, 2\); give video and audio of each clip"):
        model.features(model.prepare(pictures(2)), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(UsageError, match="setting 'tubelets' is unknown"):
        config_of("mm_mix_base", tubelets=2)
