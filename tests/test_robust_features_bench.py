"""Feature files of real recordings: how windows are put together, and what a probe reads from them."""

import argparse
from pathlib import Path

import pytest
import torch

from bench import robust_encoders, robust_features
from bench.face_components import FaceComponents, fitted
from bench.robust_features import CUTS, joined, others, wanted, widths
from bench.robust_probe import probe
from encoders.errors import DataError, LegatoError, UsageError
from imputation.features import FeatureSet


def windows(n: int = 6, length: int = 3, dim: int = 4, **about: object) -> FeatureSet:
    generator = torch.Generator().manual_seed(0)
    values = {"names": [f"a/{i}" for i in range(n)], "speaker": ["s1", "s2"] * (n // 2),
              "split": (["train", "train", "validation", "test"] * n)[:n], **about}  # fmt: skip
    return FeatureSet.of(torch.randn(n, length, 2, dim, generator=generator), torch.arange(n) % 2, "ab", **values)


def test_other_cuts_are_to_learn_from_and_never_tested_on():
    data = windows()
    more = others(windows(), data, 2)
    assert more.names[0] == "a/0@2" and set(more.split) == {"train", "extra"}
    assert [s for s, own in zip(more.split, data.split, strict=True) if own != "train"] == ["extra"] * 2
    whole = joined([data, more])
    assert len(whole) == 12 and whole.names[6:] == more.names and len(whole.of_split("test")) == 1
    whole.check("it")


def test_windows_of_different_lengths_end_in_places_that_do_not_exist():
    whole = joined([windows(length=2), windows(length=5)])
    assert whole.length == 5 and whole.exists[:6].sum(1).tolist() == [2] * 6 and whole.exists[6:].all()
    assert not whole.features[0, 2:].any() and not whole.presence[0, 2:].any()


def test_widths_leave_out_the_zeros_at_the_end():
    data = windows()
    data.features[:, :, 1, 3:] = 0
    assert widths(data) == {"video": 4, "audio": 3}
    data.features[:, :, 1] = 0
    assert widths(data)["audio"] == 0


def test_wishes_are_encoders_or_pairs():
    assert wanted("talk:java_sed") == [("talk", "java_sed")]
    assert wanted("talk") == [("talk", name) for name in CUTS] and len(wanted("")) == 5 * len(CUTS)
    for text in ("tolk", "talk:java", "talk:java_sed,x"):
        with pytest.raises(UsageError, match="is not ENCODER:DATASET; encoders are external"):
            wanted(text)


def test_epochs_are_of_runs():
    assert robust_encoders.epochs_of("avid=2,cma=1") == {"avid": 2, "cma": 1} and robust_encoders.epochs_of("") == {}
    for text in ("avid=x", "avid", "talk=3", "cma=0", "cma=-1"):
        with pytest.raises(UsageError, match="is not RUN=N; runs are avid, cma and crisscross"):
            robust_encoders.epochs_of(text)


def test_a_command_that_fails_ends_the_run_in_one_sentence(capsys):
    with pytest.raises(LegatoError, match="legato bundle show ended with"):
        robust_encoders.legato("bundle", "show", "no such bundle")


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    made = []

    def make(made_by: object, name: str, args: object) -> FeatureSet:
        made.append(name)
        return windows(16, speaker=["01", "06", "02", "07"] * 4).rows(torch.arange(16))

    monkeypatch.setattr(robust_features, "windows", make)
    monkeypatch.setattr(robust_features, "ENCODERS", {"talk": lambda args: None})
    monkeypatch.setattr(robust_features, "probe", lambda data, folds, **how: {"both": {"top1": 0.5, "std": 0.0}})
    args = argparse.Namespace(out=tmp_path)
    assert robust_features.make("talk", "grid_within", args)["windows"] == 16
    assert robust_features.make("talk", "grid_within", args)["probe"]["both"]["top1"] == 0.5 and len(made) == 1


def test_a_probe_reads_what_there_is_to_read_and_leaves_other_cuts_alone():
    data = windows(80, dim=3, split=["train"] * 40 + ["validation"] * 10 + ["test"] * 30)
    data.features[:, 1, 0, 1] = 5.0 * data.label  # in one place of the picture
    data.features[:, :, 1] = 0
    found = probe(data, in_place=True, decays=(1e-2,))
    assert found["video"]["top1"] == 1.0 and found["both"]["top1"] == 1.0 and found["audio"]["top1"] < 0.7
    other = others(windows(80, dim=3), data, 1)
    other.features.fill_(1e6)
    assert probe(joined([data, other]), in_place=True, decays=(1e-2,)) == found


def test_a_probe_of_emotions_holds_actors_out():
    speakers = [f"0{i}" for i in (1, 2, 3, 4, 6, 7, 8, 9)]
    data = windows(80, dim=3, speaker=(speakers * 10), split=["train"] * 80)
    label = torch.arange(80) // 8 % 2
    data = joined([FeatureSet.of(data.features, label, "ab", names=data.names, speaker=data.speaker)])
    data.features[:, :, 0, 0] += 4.0 * label[:, None]
    found = probe(data, CUTS["java_sed"].folds, decays=(1e-2,))
    assert found["video"]["top1"] > 0.95 > 0.75 > found["audio"]["top1"] and found["video"]["windows"] == 80


# --- components of faces ---


def test_components_are_those_of_the_faces_and_white():
    generator = torch.Generator().manual_seed(0)
    shapes = torch.rand(6, 16, 16, generator=generator)
    weights = torch.rand(200, 6, generator=generator)
    clips = (torch.einsum("bc,chw->bhw", weights, shapes) * 60)[:, None].expand(-1, 4, -1, -1).byte()
    encoder = fitted(clips, components=4)
    said = (encoder.pixels(clips) - encoder.middle) @ encoder.basis
    cov = said.flatten(0, 1).T.double().cov()
    torch.testing.assert_close(cov, torch.eye(4).double(), atol=0.02, rtol=0.0)


def test_a_feature_is_mean_deviation_and_step_and_light_says_nothing():
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(40, 200, (80, 5, 16, 16), generator=generator, dtype=torch.uint8)
    encoder = fitted(clips, components=6)
    still = clips[:2, :1].expand(-1, 5, -1, -1)
    feature = encoder.encode(still)
    assert feature.shape == (2, 18) == (2, encoder.dim) and feature[:, 6:].abs().max() < 1e-4
    darker = encoder.encode((still // 2).byte())
    torch.testing.assert_close(darker[:, :6], feature[:, :6], atol=0.3, rtol=0.1)
    torch.testing.assert_close(encoder.encode(clips)[:3], encoder.encode(clips[:3]), atol=1e-4, rtol=1e-4)
    assert not encoder.no_face.any() and encoder.encode(torch.zeros(1, 5, 16, 16)).isfinite().all()


def test_too_few_faces_are_one_sentence():
    with pytest.raises(DataError, match="2 clips are too few for 48 components"):
        fitted(torch.zeros(2, 10, 16, 16, dtype=torch.uint8))


def test_components_serve_in_a_bundle_from_outside(monkeypatch, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    from encoders.checkpoint import save_weights
    from runtime import cli
    from runtime.bundle import Bundle

    monkeypatch.setenv("LEGATO_TRUST", "bench.face_components")
    weights = tmp_path / "faces.safetensors"
    clips = torch.randint(40, 200, (30, 10, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    save_weights(weights, fitted(clips).state_dict())
    bundle = tmp_path / "hand"
    assert cli.run(["bundle", "make", "--video", "external:bench.face_components:FaceComponents", "--video-weights",
                    str(weights), "--labels", "a,b", "--out", str(bundle)]) == 0  # fmt: skip
    video = Bundle.load(Path(bundle)).models().video_encoder
    assert video.dim == 144 and torch.equal(video.basis, fitted(clips).basis)
    assert video.spec == FaceComponents().spec
