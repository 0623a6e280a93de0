"""Serving: rearranged networks give the features of the networks they were made of."""

from typing import Any

import pytest
import torch

from encoders import registry
from encoders.serving import served

PRESETS = ("r2plus1d_talk", "r2plus1d_tiny", "conv2d_talk", "conv2d_tiny")


def trained(model: Any, seed: int = 0) -> Any:
    """With weights and running statistics as training might leave them."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if "running_var" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=draw))
    return model.requires_grad_(False).eval()


def clips(encoder: Any, count: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    if "audio" in encoder.modalities:
        samples = round(encoder.clip_seconds * encoder.spec.sample_rate)
        return 0.1 * torch.randn(count, samples, generator=draw)
    spec = encoder.spec
    shape = (count, spec.frames, spec.size, spec.size) + ((3,) if spec.pixel_format == "rgb24" else ())
    return torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_served_encoder_gives_the_same_features(preset):
    encoder = trained(registry.build(preset))
    given = clips(encoder, 3)
    with torch.inference_mode():
        expected, found = encoder.encode(given), served(encoder).encode(given)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_a_served_deep_encoder_with_pooled_stem_gives_the_same_features():
    encoder = trained(registry.build("r2plus1d_tiny", blocks=(2, 3), stem_pool=True))
    given = clips(encoder, 2)
    with torch.inference_mode():
        expected, found = encoder.encode(given), served(encoder).encode(given)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_served_encoder_promises_what_the_original_promises(preset):
    encoder = trained(registry.build(preset))
    fast = served(encoder)
    for name in ("modalities", "dim", "clip_seconds", "context_seconds", "spec"):
        assert getattr(fast, name) == getattr(encoder, name)
    assert fast.no_face is getattr(encoder, "no_face", None)


def test_a_clip_gives_the_same_bits_every_time():
    encoder = served(trained(registry.build("r2plus1d_talk")))
    given = clips(encoder, 1)
    with torch.inference_mode():
        assert torch.equal(encoder.encode(given), encoder.encode(given.clone()))


def test_an_encoder_of_another_kind_is_left_alone():
    other = torch.nn.Linear(2, 2)
    assert served(other) is other
