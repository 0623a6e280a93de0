"""``legato features --dataset``: equally spaced clips of every recording of a dataset."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from encoders.clips import ClipSpec, VideoSpec
from encoders.datasets.sample import list_samples
from imputation.features import FeatureSet
from runtime import cli
from runtime.shown import Shower
from tests.bundles import write_tiny_bundle
from tests.trees import Tree

TAKES = ("01-01-03-01-01-01-01", "01-01-05-01-01-01-04", "01-02-01-01-01-01-02")  # val, test, train


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny").path


@pytest.fixture
def tree(tmp_path, tmp_path_factory) -> Tree:
    tree = Tree(tmp_path / "ravdess", tmp_path_factory.getbasetemp())
    return tree.clips(*(f"Actor_{take[-2:]}/{take}.mp4" for take in TAKES))


@pytest.fixture
def features(bundle, tmp_path, capsys):
    def call(*options: object, code: int = 0) -> tuple[FeatureSet | None, str]:
        out = tmp_path / "out.safetensors"
        out.unlink(missing_ok=True)
        command = ["features", "--bundle", str(bundle), "--out", str(out), "--device", "cpu", *map(str, options)]
        assert cli.run(command) == code
        said = capsys.readouterr()
        return (FeatureSet.load(out) if out.exists() else None), said.err if code else said.out + said.err

    return call


def test_every_recording_gives_as_many_clips_with_what_the_dataset_knows(features, tree):
    rows, said = features("--dataset", f"ravdess:{tree}", "--clips", 2)
    assert rows.features.shape[:3] == (3, 2, 2) and rows.presence.all() and rows.exists.all()
    assert rows.names == TAKES and rows.speaker == ("01", "04", "02") and rows.split == ("val", "test", "train")
    assert [rows.labels[i] for i in rows.label] == ["happy", "angry", "neutral"] and len(rows.labels) == 8
    assert rows.notes["clips"] == 2 and rows.notes["dataset"] == "ravdess" and rows.notes["overlapping"] == 0
    assert said.startswith("2 clips of 3 recordings, in ")
    again, _ = features("--dataset", f"ravdess:{tree}", "--clips", 2)
    assert torch.equal(rows.features, again.features)


def test_clips_that_lie_on_the_grid_are_those_of_a_replay(features, tree):
    """Two clips of half a second in a recording of one second: the same pictures and samples by either way."""
    by_dataset, _ = features("--dataset", f"ravdess:{tree}", "--clips", 2, "--split", "train")
    by_replay, _ = features(tree.folder / "Actor_02" / f"{TAKES[2]}.mp4")
    torch.testing.assert_close(by_dataset.features[0], by_replay.features[0, :2], rtol=1e-5, atol=1e-5)


def test_a_short_recording_has_overlapping_clips_and_says_so(features, tree):
    rows, said = features("--dataset", f"ravdess:{tree}?neutral=false", "--split", "val,test")
    assert rows.length == 10 and len(rows) == 2 and rows.notes["overlapping"] == 2  # as published: 10 clips
    assert said.startswith("10 clips of 2 recordings, overlapping in 2 that are too short, in ")


def test_clips_apart_end_where_the_recording_does(features, tree):
    rows, said = features("--dataset", f"ravdess:{tree}", "--clips", 3, "--apart")
    assert rows.exists.tolist() == [[True, True]] * 3 and rows.notes["apart"] and rows.notes["overlapping"] == 0
    assert said.startswith("at most 3 clips of 3 recordings, in ")
    later, _ = features("--dataset", f"ravdess:{tree}", "--clips", 2, "--later", 0.1)
    assert later.notes["later"] == 0.1


def test_what_was_decoded_is_kept_and_found_again(features, tree, tmp_path, monkeypatch):
    keep = tmp_path / "keep"
    fresh, _ = features("--dataset", f"ravdess:{tree}", "--clips", 2)
    first, _ = features("--dataset", f"ravdess:{tree}", "--clips", 2, "--keep", keep)
    assert len(list(keep.iterdir())) == 3
    read = []
    monkeypatch.setattr("runtime.shown.read_sample", lambda sample, *a, **k: read.append(sample) or 1 / 0)
    again, _ = features("--dataset", f"ravdess:{tree}", "--clips", 2, "--keep", keep)
    assert not read and torch.equal(first.features, fresh.features) and torch.equal(again.features, fresh.features)


def test_a_file_that_changed_or_a_keep_that_is_damaged_is_decoded_anew(features, tree, tmp_path):
    keep = tmp_path / "keep"
    first, _ = features("--dataset", f"ravdess:{tree}", "--clips", 2, "--keep", keep)
    for file in keep.iterdir():
        file.write_bytes(b"no safetensors")
    again, _ = features("--dataset", f"ravdess:{tree}", "--clips", 2, "--keep", keep)
    assert torch.equal(first.features, again.features)
    taken = tree.folder / "Actor_04" / f"{TAKES[1]}.mp4"
    taken.write_bytes(b"no film")
    rows, said = features("--dataset", f"ravdess:{tree}", "--clips", 2, "--keep", keep, code=1)
    assert len(rows) == 2 and str(taken) in said


def test_what_other_encoders_ask_for_is_kept_apart(tree):
    def shower(**changes: object) -> Shower:
        spec = ClipSpec(video=VideoSpec(**{"frames": 2, "size": 8, **changes}))
        return Shower(SimpleNamespace(spec=spec, models=SimpleNamespace(face=None)))

    sample = list_samples(f"ravdess:{tree}")[0]
    keys = {shower()._key(sample, (0.0,)), shower()._key(sample, (0.1,)), shower(size=9)._key(sample, (0.0,)),
            shower(region="face")._key(sample, (0.0,)), shower(lift=0.1)._key(sample, (0.0,))}  # fmt: skip
    assert len(keys) == 5 and shower()._key(sample, (0.0,)) in keys


def test_a_clip_is_looked_at_by_itself():
    """A face is searched for anew in each clip: the box before does not move the next, nor help to find it."""
    asked = []

    def locate(clip, state):
        asked.append(state)
        return (None, None, False) if clip.video.max() == 0 else (clip.video[:, :8, :8], None, True)

    spec = ClipSpec(video=VideoSpec(frames=2, size=8, region="face"))
    engine = SimpleNamespace(spec=spec, looks_at_faces=True, initial_face=lambda: "nothing known",
                             models=SimpleNamespace(face=SimpleNamespace(locate=locate)))  # fmt: skip
    light, dark = np.full((2, 16, 16), 9, np.uint8), np.zeros((2, 16, 16), np.uint8)
    video, found = Shower(engine)._seen([light, dark, None, light], np.array([True, True, False, True]))
    assert asked == ["nothing known"] * 3 and found.tolist() == [True, False, False, True]
    assert video.shape == (4, 2, 8, 8) and [clip.max() for clip in video] == [9, 0, 0, 9]


def test_a_dataset_of_sounds_alone_lacks_its_pictures(features, tmp_path, tmp_path_factory):
    tree = Tree(tmp_path / "crema", tmp_path_factory.getbasetemp()).clips("AudioWAV/1001_DFA_ANG_XX.wav")
    rows, _ = features("--dataset", f"crema_d:{tree}", "--clips", 2)
    assert rows.presence[0].tolist() == [[False, True], [False, True]] and not rows.features[0, :, 0].any()


def test_one_bad_file_neither_ends_the_run_nor_goes_unnamed(features, tree):
    (tree.folder / "Actor_04" / f"{TAKES[1]}.mp4").write_bytes(b"no film")
    rows, said = features("--dataset", f"ravdess:{tree}", "--clips", 2, code=1)
    assert rows.names == (TAKES[0], TAKES[2])
    assert f"left out: {tree}/Actor_04/{TAKES[1]}.mp4" in said and said.count("left out") == 1
    rows, said = features("--dataset", f"ravdess:{tree}", "--clips", 2, "--skip-bad")
    assert len(rows) == 2 and "left out: " in said
    for take in TAKES:
        (tree.folder / f"Actor_{take[-2:]}" / f"{take}.mp4").write_bytes(b"no film")
    rows, said = features("--dataset", f"ravdess:{tree}", "--clips", 2, "--skip-bad", code=1)
    assert rows is None and f"no recording of ravdess:{tree} gave 2 clips; nothing was written" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--dataset", "ravdess:TREE", "--clips", "1"],
            "--clips 1 leaves nothing to fill a lost clip from; use at least 2",
        ),
        (["--dataset", "esc10:TREE"], "how many clips of a recording of esc10 are wanted is not known; give --clips"),
        (
            ["--dataset", "ravdess:TREE", "film.mp4"],
            "--dataset ravdess:TREE and film.mp4 do not go together; leave one out",
        ),
        (["--dataset", "ravdess:TREE", "--loss", "iid-10"], "and --loss iid-10 do not go together; leave one out"),
        (["--dataset", "ravdess:TREE", "--split", "all"], "has no sample of split all; it has test, train, val"),
        (["--dataset", "ravdess:TREE/none"], "does not exist; give the folder as ravdess:PATH"),
        (["--dataset", "ravdes:TREE"], "dataset 'ravdes' is unknown; did you mean ravdess"),
        (["--dataset", "ravdess:TREE", "--later", "inf"], "--later inf is no number of seconds; use 0 or more"),
        (["--dataset", "ravdess:TREE", "--keep", __file__], "is a file, and a folder is needed; choose another name"),
        (["film.mp4", "--clips", "3"], "--clips is for a dataset; add --dataset NAME:PATH"),
        (["film.mp4", "--skip-bad"], "--skip-bad is for a dataset; add --dataset NAME:PATH"),
        (["film.mp4", "--later", "0.1"], "--later is for a dataset; add --dataset NAME:PATH"),
        (["film.mp4", "--apart"], "--apart is for a dataset; add --dataset NAME:PATH"),
        (["film.mp4", "--keep", "folder"], "--keep is for a dataset; add --dataset NAME:PATH"),
        ([], "name a SOURCE or --dataset NAME:PATH"),
    ],
)
def test_a_wrong_wish_is_one_sentence(tree, bundle, tmp_path, capsys, options, sentence):
    made = [option.replace("TREE", str(tree)) for option in options]
    assert cli.run(["features", "--bundle", str(bundle), "--out", str(tmp_path / "o.safetensors"), *made]) in (1, 2)
    err = capsys.readouterr().err
    assert sentence.replace("TREE", str(tree)) in err and err.count("\n") == 1
