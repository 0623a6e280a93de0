"""The registry walked once: every preset is built, keeps its promise, and refuses what it does not know."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from encoders.adapters import adapted
from encoders.clips import AudioSpec, ClipSpec, VideoSpec
from encoders.errors import UsageError
from encoders.registry import ENCODERS, build, config_of

SMALL = [name for name in ENCODERS if {"tiny", "talk"} & set(name.split("_"))]  # presets that run in a moment


def clips_for(encoder, batch):
    """A batch of clips as the encoder's own spec describes them."""
    if isinstance(encoder.spec, VideoSpec):
        spec = encoder.spec
        shape = (batch, spec.frames, spec.size, spec.size) + ((3,) if spec.pixel_format == "rgb24" else ())
        return torch.randint(0, 256, shape, dtype=torch.uint8)
    samples = ClipSpec(seconds=Fraction(encoder.clip_seconds), audio=encoder.spec).samples
    return torch.randn(batch, samples) / 10


def each_modality(name):
    """The encoder of a preset as it stands for each of its modalities."""
    encoder = build(name).eval()
    return [adapted(encoder, modality, encoder.dim) for modality in encoder.modalities]


@pytest.mark.parametrize("name", ENCODERS)
def test_every_preset_promises_what_an_encoder_promises(name):
    with torch.device("meta"):
        encoders = each_modality(name)
    assert [e.modalities[0] for e in encoders] == [
        m for m in ("video", "audio") if (m,) in [e.modalities for e in encoders]
    ]
    for encoder in encoders:
        assert isinstance(encoder.spec, VideoSpec if encoder.modalities == ("video",) else AudioSpec)
        assert encoder.dim >= 1
        assert Fraction(encoder.clip_seconds) > 0
        assert encoder.context_seconds >= 0


@pytest.mark.parametrize("name", SMALL)
def test_small_presets_encode_row_by_row(name):
    torch.manual_seed(0)
    for encoder in each_modality(name):
        clips = clips_for(encoder, 3)
        with torch.no_grad():
            together = encoder.encode(clips)
            alone = torch.cat([encoder.encode(clips[i : i + 1]) for i in range(3)])
        assert together.shape == (3, encoder.dim)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def big_presets():
    """Every preset too big to run; of each class the first is walked always, the others are slow."""
    seen = set()
    for name, target in ENCODERS.items():
        if name not in SMALL:
            yield pytest.param(name, marks=pytest.mark.slow if target in seen else ())
            seen.add(target)


@pytest.mark.parametrize("name", list(big_presets()))
def test_big_presets_have_their_shape_on_the_meta_device(name):
    with torch.device("meta"):
        encoders = each_modality(name)
    for encoder in encoders:
        assert encoder.encode(clips_for(encoder, 2).to("meta")).shape == (2, encoder.dim)


@pytest.mark.parametrize("name", SMALL)
def test_empty_clips_give_finite_features(name):
    """Black pictures and digital silence are evidence, not errors."""
    for encoder in each_modality(name):
        with torch.no_grad():
            assert torch.isfinite(encoder.encode(torch.zeros_like(clips_for(encoder, 1)))).all()


def test_overrides_change_the_config_and_nothing_else():
    assert config_of("r2plus1d_tiny", widths=[4, 8]).widths == (4, 8)
    assert config_of("r2plus1d_tiny", widths=[4, 8]).size == config_of("r2plus1d_tiny").size


def test_what_is_unknown_is_one_sentence():
    with pytest.raises(UsageError, match="encoder 'r2plus1d_tine' is unknown; did you mean r2plus1d_tiny"):
        build("r2plus1d_tine")
    with pytest.raises(UsageError, match="setting 'stem_widht' is unknown; did you mean stem_width"):
        build("conv2d_tiny", stem_widht=4)
    with pytest.raises(UsageError, match="stem_width='wide' is not of type int"):
        build("conv2d_tiny", stem_width="wide")


def test_looking_a_name_up_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, encoders.registry as r; assert len(r.ENCODERS) > 5; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_gray_clip_is_normalised_by_itself():
    """Brightness and contrast of a whole clip do not reach the network."""
    encoder = build("r2plus1d_talk")
    frames = np.random.default_rng(0).integers(60, 120, (1, 10, 40, 40), dtype=np.uint8)
    plain = encoder.prepare(torch.from_numpy(frames))
    brighter = encoder.prepare(torch.from_numpy(frames + np.uint8(100)))
    torch.testing.assert_close(plain, brighter, atol=2e-3, rtol=1e-3)
