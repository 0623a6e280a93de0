"""CrissCross's audio network and its spectrogram: published sizes, and numbers that others compute too."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from encoders.audio.resnet2d import PRESETS, ResNet2D, ResNet2DConfig
from encoders.audio.slaney_mel import SlaneyMel, slaney_filters
from encoders.clips import ClipSpec
from encoders.errors import ConfigError
from encoders.registry import build
from encoders.serving import served
from tests.macs import macs, on_meta, parameters

FRONT = SlaneyMel()


@pytest.fixture(scope="module")
def base():
    return on_meta(lambda: ResNet2D(PRESETS["resnet2d_18"]))


# --- the network ---


def test_parameters_are_resnet_18_s_without_classifier_and_two_input_channels(base):
    assert parameters(base) == 11_170_240
    assert len(base.state_dict()) == 120


def test_arithmetic_is_the_paper_s(base):
    assert macs(base, (1, 1, 80, 201)) == pytest.approx(0.614e9, rel=0.01)


@pytest.mark.parametrize(("columns", "times"), [(201, (51, 26, 13, 7)), (200, (50, 25, 13, 7))])
def test_stages_have_the_paper_s_shapes(base, columns, times):
    out = base.stages(torch.empty(2, 1, 80, columns, device="meta"))
    heights, widths = (20, 10, 5, 3), (64, 128, 256, 512)
    shapes = {name: tuple(x.shape[1:]) for name, x in out.items() if name != "conv1"}
    assert shapes == {
        f"conv{i + 2}x": (w, h, t) for i, (w, h, t) in enumerate(zip(widths, heights, times, strict=True))
    }


def test_state_dict_bears_the_names_of_the_published_checkpoint(base):
    state = base.state_dict()
    anchors = {
        "conv1.0.weight": (64, 1, 7, 7),
        "conv1.1.running_var": (64,),
        "block1.1.conv2.weight": (64, 64, 3, 3),
        "block2.0.downsample.0.weight": (128, 64, 1, 1),
        "block4.0.downsample.1.num_batches_tracked": (),
        "block4.1.bn2.bias": (512,),
    }
    assert {name: tuple(state[name].shape) for name in anchors} == anchors
    assert not any(name.startswith("block1.0.downsample") for name in state)


@pytest.mark.slow
def test_it_computes_what_another_resnet_18_computes():
    """transformers' ResNet with basic layers, every weight carried over, batch statistics far from their start."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic"
    )
    torch.manual_seed(0)
    theirs = transformers.ResNetModel(config)
    ours = build("resnet2d_tiny", blocks=(2, 2))
    with torch.no_grad():
        for tensor in ours.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    theirs.load_state_dict({_their_name(k): v for k, v in ours.state_dict().items()})
    x = torch.randn(2, 1, 80, 51)
    with torch.no_grad():
        out = ours.eval()(x)
        torch.testing.assert_close(out, theirs.eval()(x).pooler_output.flatten(1), atol=1e-5, rtol=1e-5)


def _their_name(name: str) -> str:
    kind = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}
    parts = name.split(".")
    if parts[0] == "conv1":
        return f"embedder.embedder.{kind[parts[1]]}.{parts[2]}"
    where = f"encoder.stages.{int(parts[0][-1]) - 1}.layers.{parts[1]}"
    if parts[2] == "downsample":
        return f"{where}.shortcut.{kind[parts[3]]}.{parts[4]}"
    return f"{where}.layer.{int(parts[2][-1]) - 1}.{kind[parts[2][:-1]]}.{parts[3]}"


@pytest.mark.parametrize("pool", ["average", "max"])
def test_pooling_can_be_chosen_and_is_over_both_axes(pool):
    encoder = build("resnet2d_tiny", pool=pool).eval()
    x = torch.randn(1, 1, 80, 51)
    last = encoder.stages(x)["conv3x"]
    torch.testing.assert_close(encoder(x), last.mean((2, 3)) if pool == "average" else last.amax((2, 3)))


def test_frequency_is_the_height_and_time_the_width():
    encoder = build("resnet2d_tiny")
    heard = encoder.heard(torch.arange(6.0).reshape(1, 3, 2))
    assert heard.tolist() == [[[[0, 2, 4], [1, 3, 5]]]]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"widths": (8,)}, r"name \[1, 4\] stages"),
        ({"widths": (), "blocks": (), "strides": ()}, r"name \[0\] stages"),
        ({"blocks": (0, 1, 1, 1)}, "must all be at least 1"),
        ({"stem_kernel": 4}, "stem_kernel 4 has no middle"),
        ({"front": "mel"}, "front 'mel' is unknown; use one of"),
        ({"pool": "mean"}, "pool 'mean' is unknown; use 'average' or 'max'"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(wrong, says):
    with pytest.raises(ConfigError, match=says):
        ResNet2DConfig(**wrong)


@pytest.mark.parametrize("name", ["resnet2d_tiny", "r2plus1d_tiny_average"])
def test_the_served_form_gives_the_same_features(name):
    torch.manual_seed(0)
    encoder = build(name).eval()
    with torch.no_grad():
        for tensor in encoder.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
        pictures = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8)
        clips = torch.randn(2, 8000) / 10 if "resnet" in name else pictures
        torch.testing.assert_close(served(encoder).encode(clips), encoder.encode(clips), atol=1e-5, rtol=1e-4)


# --- the spectrogram ---


@pytest.mark.slow
@pytest.mark.parametrize(("bins", "n_fft", "rate"), [(80, 1024, 16_000), (40, 512, 8_000), (128, 2048, 22_050)])
def test_filters_are_librosa_s(bins, n_fft, rate):
    audio = pytest.importorskip("transformers.audio_utils")
    theirs = audio.mel_filter_bank(n_fft // 2 + 1, bins, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(slaney_filters(bins, n_fft, rate), theirs, atol=1e-9)


def test_the_scale_is_linear_to_1000_hertz_and_27_mels_more_at_6400():
    """Slaney's two points: 15 mel at 1 kHz, 42 at 6.4 kHz; triangles stand at whole mels of a matrix of that many."""
    filters = slaney_filters(41, 8_192, 12_800)
    assert (filters.argmax(0) * 12_800 / 8_192)[[0, 14]].tolist() == pytest.approx([200 / 3, 1000], abs=2)
    assert (filters.argmax(0) * 12_800 / 8_192)[27] == pytest.approx(1000 * 6.4 ** (13 / 27), abs=2)


def test_each_triangle_has_the_area_of_one_hertz():
    areas = slaney_filters(40, 65_536, 16_000).sum(0) * 16_000 / 65_536
    np.testing.assert_allclose(areas, 1.0, atol=1e-2)


@pytest.mark.parametrize(("seconds", "frames"), [("2", 201), ("1", 101), ("1/2", 51), ("2/5", 41)])
def test_there_is_one_mel_frame_more_than_hops(seconds, frames):
    assert FRONT.shape(Fraction(seconds)) == (frames, 80)
    assert FRONT(torch.zeros(2, int(Fraction(seconds) * 16_000))).shape == (2, frames, 80)


def test_a_clip_equals_the_definition_written_out():
    clip = np.random.default_rng(0).standard_normal(6_400).astype(np.float32) / 10
    padded = np.pad(clip.astype(np.float64), 512, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    power = np.stack([np.abs(np.fft.rfft(padded[t * 160 : t * 160 + 1024] * window)) ** 2 for t in range(41)])
    mel = np.log((power + np.finfo(float).eps) @ slaney_filters(80, 1024, 16_000) + np.finfo(np.float32).eps)
    expected = (mel + 5.3688107) / 4.410007
    np.testing.assert_allclose(FRONT(torch.from_numpy(clip)[None])[0].numpy(), expected, atol=1e-4)


def test_silence_is_flat_and_finite():
    out = FRONT(torch.zeros(1, 6_400))
    np.testing.assert_allclose(out.numpy(), (np.log(np.finfo(np.float32).eps) + 5.3688107) / 4.410007, rtol=1e-5)


def test_too_little_sound_is_one_sentence():
    with pytest.raises(ConfigError, match="an audio clip of 512 samples is too short for a window of 1024"):
        FRONT(torch.zeros(1, 512))


def test_a_clip_of_the_grid_is_heard_whole():
    encoder = build("resnet2d_18", clip_seconds="2/5")
    assert ClipSpec(seconds=encoder.clip_seconds, audio=encoder.spec).samples == 6_400
