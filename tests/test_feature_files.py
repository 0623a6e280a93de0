"""Feature files: what is written is read, and a damaged one is refused by name."""

import pytest
import torch

from encoders.errors import DataError
from imputation.features import FeatureSet, Standardiser, windows


def small(**changes) -> FeatureSet:
    generator = torch.Generator().manual_seed(0)
    return FeatureSet.of(
        **{
            "features": 3 + 2 * torch.randn(6, 4, 2, 5, generator=generator),
            "label": torch.tensor([0, 1, 0, 1, 0, 1]),
            "labels": ("no", "yes"),
            "speaker": ["s1", "s1", "s2", "s2", "s3", "s3"],
            "split": ["train"] * 4 + ["test"] * 2,
            "notes": {"encoder": "r2plus1d_tiny"},
            **changes,
        }
    )


def test_what_is_written_is_read(tmp_path):
    written = small().fitted()
    written.save(tmp_path / "deep" / "a.safetensors")
    read = FeatureSet.load(tmp_path / "deep" / "a.safetensors")
    for name in ("features", "presence", "exists", "label"):
        assert torch.equal(getattr(read, name), getattr(written, name))
    assert (read.speaker, read.split, read.labels, read.notes) == (
        written.speaker,
        written.split,
        written.labels,
        written.notes,
    )
    assert torch.equal(read.standardised(), written.standardised())
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.safetensors"]


def test_standardisation_is_fitted_on_observed_training_places_only():
    presence = torch.ones(6, 4, 2, dtype=torch.bool)
    presence[0, 0] = False
    features = small().features.clone()
    features[0, 0], features[4:] = 1e6, -1e6  # absent, and of the test split
    fitted = small(features=features, presence=presence).fitted()
    train = fitted.of_split("train")
    seen = train.standardised()[train.presence.unsqueeze(-1).expand_as(train.features)]
    assert seen.mean().abs() < 1e-5 and (seen.var(unbiased=False) - 1).abs() < 1e-4


def test_absent_places_are_zero_after_standardising():
    presence = torch.ones(6, 4, 2, dtype=torch.bool)
    presence[2, 1, 0] = False
    assert not small(presence=presence).fitted().standardised()[2, 1, 0].any()


def test_a_constant_dimension_does_not_divide_by_zero():
    features = torch.randn(6, 4, 2, 5)
    features[..., 0] = 7
    assert small(features=features).fitted().standardised().isfinite().all()


def test_standardising_can_be_undone():
    scale = Standardiser(torch.randn(2, 5), torch.rand(2, 5) + 0.5)
    x = torch.randn(3, 2, 5)
    torch.testing.assert_close(scale.inverse(scale(x)), x)


def test_a_number_that_is_not_finite_is_reported_with_file_and_row(tmp_path):
    good = small(names=[f"clip-{i}" for i in range(6)])
    good.features[3, 1, 0, 2] = float("nan")
    good.save(tmp_path / "bad.safetensors")
    with pytest.raises(DataError, match=r"row 3 \(clip-3\) of .*bad.safetensors is not finite"):
        FeatureSet.load(tmp_path / "bad.safetensors")


def test_a_nan_at_an_absent_place_is_nothing():
    features, presence = torch.randn(6, 4, 2, 5), torch.ones(6, 4, 2, dtype=torch.bool)
    features[1, 1, 1], presence[1, 1, 1] = float("nan"), False
    assert small(features=features, presence=presence).features.isfinite().all()


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.safetensors"):
        FeatureSet.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label": torch.tensor([0, 1, 2, 0, 0, 0])}, "label 2 of these features has no name"),
        ({"label": torch.tensor([0, 1])}, r"label of these features has shape \(2,\)"),
        ({"speaker": ["a"]}, "speaker of these features has 1 entries for 6 rows"),
    ],
)
def test_a_set_that_disagrees_with_itself_is_refused(changes, sentence):
    with pytest.raises(DataError, match=sentence):
        small(**changes)


def test_a_split_without_windows_is_refused():
    with pytest.raises(DataError, match="split 'validation' has no windows; the file has test, train"):
        small().of_split("validation")


def test_windows_slide_by_the_hop():
    recording = torch.arange(7)
    assert windows(recording, 3, 2).tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    with pytest.raises(DataError, match="7 clips is shorter than a window of 9"):
        windows(recording, 9)
