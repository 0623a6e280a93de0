"""``legato datasets``: what can be read, and what is there."""

import json

import pytest

from encoders.datasets.sample import DATASETS
from runtime import cli
from tests.test_datasets_video import epic, kinetics
from tests.trees import Tree


@pytest.fixture
def tree(tmp_path, tmp_path_factory) -> Tree:
    return Tree(tmp_path, tmp_path_factory.getbasetemp())


def run(capsys, *options: str):
    assert cli.run(["datasets", *options]) == 0
    return capsys.readouterr()


def test_every_dataset_is_listed_with_its_layout(capsys):
    told = json.loads(run(capsys, "--json").out)
    assert list(told) == list(DATASETS)
    assert all(about["title"] and about["layout"] for about in told.values())
    assert told["ssv2"]["splits"] == {"train": 168_913, "val": 24_777, "test": 27_157}
    text = run(capsys).out
    assert "kinetics400: Kinetics-400 (Kay et al., 2017)\n  layout   [annotations/]train.csv" in text
    assert "  splits   train 246,534, val 19,906, test 39,805; 400 classes\n" in text
    assert "epic_kitchens" not in run(capsys, "ssv2").out


def test_what_lies_there_is_counted(capsys, tree):
    kinetics(tree)
    out = run(capsys, f"kinetics400:{tree}")
    assert out.out == f"kinetics400 in {tree}\n  train: 2 samples\n  val: 1 samples\n  2 classes\n"
    assert out.err == ""
    (tree.folder / "train/--0edUL8zmA_000092_000102.mp4").unlink()
    out = run(capsys, f"kinetics400:{tree}")
    assert "  train: 2 samples, 1 of them unusable\n" in out.out
    assert "  2 classes, 1 of them without a sample (first 'playing trumpet')\n" in out.out
    assert out.err.splitlines()[1].endswith("--0edUL8zmA_000092_000102.mp4 is missing")


def test_a_dataset_of_which_nothing_is_there_is_counted_too(capsys, tree):
    kinetics(tree)
    for file in tree.folder.rglob("*.mp4"):
        file.unlink()
    assert "  val: 1 samples, 1 of them unusable\n" in run(capsys, f"kinetics400:{tree}").out


def test_what_cannot_be_decoded_is_found_on_demand(capsys, tree):
    kinetics(tree).bytes("train/--0edUL8zmA_000092_000102.mp4", b"not a video")
    assert "unusable" not in run(capsys, f"kinetics400:{tree}").out
    out = run(capsys, f"kinetics400:{tree}", "--read", "--split", "train")
    assert out.out.endswith(
        "  train: 2 samples, 1 of them unusable\n  2 classes, 1 of them without a sample (first 'playing trumpet')\n"
    )
    assert "--0edUL8zmA_000092_000102.mp4 is not a media file that can be read" in out.err
    assert cli.run(["datasets", "kinetics400", "--read"]) == 2


def test_json_tells_heads_apart(capsys, tree):
    found = json.loads(run(capsys, f"epic_kitchens:{epic(tree)}", "--json").out)
    assert found["splits"]["train"] == {"listed": 1, "unusable": 0}
    assert found["heads"]["noun"] == {"classes": 3, "empty": ["tap"]}
    assert found["heads"]["verb"] == {"classes": 2, "empty": []}


def test_a_wrong_name_or_folder_is_one_sentence(capsys, tree):
    for options, code, reason in (
        (["kinetic400"], 2, "dataset 'kinetic400' is unknown; did you mean kinetics400"),
        (["kinetics400:/nowhere"], 1, "dataset folder /nowhere does not exist; give the folder as kinetics400:PATH"),
        ([f"pets:{__file__}"], 1, "test_datasets_command.py is a file; give the folder as pets:PATH"),
        ([f"resisc45:{tree}"], 1, "holds no class folder with .jpg files or the like; give the folder that holds them"),
        (["pets:"], 2, "dataset pets has no folder; write pets:PATH\n"),
        ([f"vggsound:{tree}"], 1, "holds no vggsound.csv"),
    ):
        assert cli.run(["datasets", *options]) == code
        err = capsys.readouterr().err
        assert reason in err and len(err.splitlines()) == 1
