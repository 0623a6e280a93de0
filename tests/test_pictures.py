"""What transformers are shown of pictures."""

import pytest
import torch

from encoders import registry
from encoders.errors import DataError
from encoders.layers.pictures import motion_of, signed_pictures

MOVERS = ["vivit_tiny", "mtv_tiny", "mtv_tiny_ensemble", "token_learner_tiny"]


def clips(*, shift: int = 0, gain: float = 1.0) -> torch.Tensor:
    """Two gray clips of ten pictures in which a bright square wanders over a textured ground."""
    ground = (torch.arange(64 * 64).view(64, 64) * 37 % 91).float()
    out = ground.expand(2, 10, 64, 64).clone()
    for t in range(10):
        out[:, t, 20:30, 10 + 3 * t : 20 + 3 * t] += 60
    return (out * gain + shift).clamp(0, 255).to(torch.uint8)


def test_what_stands_still_is_not_seen() -> None:
    seen = motion_of(signed_pictures(clips(), 1))
    assert seen[:, 0, :, 50:, :].abs().max() < 1e-5
    assert seen.std((1, 2, 3, 4)).tolist() == pytest.approx([1, 1], abs=0.2)
    assert seen.mean(2).abs().max() < 1e-5


def test_brightness_and_contrast_do_not_change_what_moves() -> None:
    seen, brighter = (motion_of(signed_pictures(x, 1)) for x in (clips(), clips(shift=40)))
    stronger = motion_of(signed_pictures(clips(gain=1.5), 1))
    assert (seen - brighter).abs().max() < 1e-4
    assert (seen - stronger).abs().mean() < 0.03


def test_a_still_clip_is_nothing_and_no_nan() -> None:
    assert motion_of(signed_pictures(torch.full((1, 10, 8, 8), 77, dtype=torch.uint8), 3)).abs().max() < 1e-3


@pytest.mark.parametrize("preset", MOVERS)
def test_an_encoder_may_look_at_movement_alone(preset: str) -> None:
    whole, moving = registry.build(preset), registry.build(preset, motion=True)
    moving.load_state_dict(whole.state_dict())
    assert moving.prepare(clips()).shape == whole.prepare(clips()).shape
    with torch.no_grad():
        here, brighter = moving.eval().encode(clips()), moving.encode(clips(shift=40))
    assert (here - brighter).abs().max() < 1e-3


def test_the_trunk_of_three_modalities_too() -> None:
    model = registry.build("polyvit_tiny", **{"video.motion": True})
    seen = model.prepare(clips(), "video")
    assert seen[:, 0, :, 50:, :].abs().max() < 1e-5


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(DataError, match=r"clips of 2x10x64x64 float32 are no pictures"):
        signed_pictures(clips().float())
