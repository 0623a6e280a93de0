"""Encoders side by side: one modality each, all of one width; a joint one stands for both."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from encoders.adapters import Adapted, adapted, spec_of
from encoders.clips import AudioSpec, VideoSpec
from encoders.errors import ConfigError
from encoders.registry import build
from encoders.serving import served


class Joint(nn.Module):
    """A network of both modalities, whose features say which it was asked for."""

    modalities = ("video", "audio")
    dim, clip_seconds, context_seconds, config = 3, Fraction(2, 5), 0.0, None
    specs = {"video": VideoSpec(frames=2, size=4), "audio": AudioSpec()}  # noqa: RUF012

    def encode(self, clips, modality):
        return clips.float().flatten(1)[:, :3] + (100 if modality == "audio" else 0)


def test_an_encoder_that_stands_already_is_left_alone():
    encoder = build("conv2d_tiny")
    assert adapted(encoder, "audio", encoder.dim) is encoder


def test_a_narrow_feature_ends_in_zeros():
    encoder = build("conv2d_tiny").eval()
    wide = adapted(encoder, "audio", 20)
    sound = torch.randn(2, 8000)
    with torch.no_grad():
        features = wide.encode(sound)
        assert torch.equal(features[:, :16], encoder.encode(sound))
    assert features.shape == (2, 20) and not features[:, 16:].any()
    assert (wide.modalities, wide.dim, wide.spec) == (("audio",), 20, encoder.spec)


def test_it_is_served_as_what_it_holds_is_served():
    torch.manual_seed(0)
    encoder = build("conv2d_tiny").eval()
    fast = served(adapted(encoder, "audio", 20), dtype=torch.bfloat16, batched=True)
    assert isinstance(fast, Adapted) and type(fast.encoder).__name__ == "ServedConv2D"
    assert fast.dtype == torch.bfloat16  # it computes so by itself: nobody lowers it once more
    assert not hasattr(adapted(encoder, "audio", 20), "dtype")


def test_a_joint_encoder_stands_for_each_modality_over_the_same_weights():
    joint = Joint()
    eye, ear = (adapted(joint, m, 4) for m in ("video", "audio"))
    assert eye.encoder is ear.encoder and eye.spec == joint.specs["video"] and ear.spec == AudioSpec()
    assert eye.encode(torch.ones(1, 5)).tolist() == [[1, 1, 1, 0]]
    assert ear.encode(torch.ones(1, 5)).tolist() == [[101, 101, 101, 0]]


def test_the_feature_of_no_face_is_as_wide_as_the_rest_and_a_pictures_own():
    encoder = build("r2plus1d_talk")
    nn.init.ones_(encoder.no_face)
    wide = adapted(encoder, "video", encoder.dim + 2)
    assert wide.no_face.shape == (encoder.dim + 2,) and wide.no_face[-3:].tolist() == [1, 0, 0]
    assert Adapted(Joint(), "audio", 3).no_face is None


def test_what_does_not_fit_is_one_sentence():
    with pytest.raises(ConfigError, match="an encoder of audio has no video; name another preset"):
        spec_of(build("conv2d_tiny"), "video")
    with pytest.raises(ConfigError, match="width 16 does not fit into 8; give dim >= 16"):
        Adapted(build("conv2d_tiny"), "audio", 8)
