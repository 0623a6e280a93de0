"""Kinetics-Sounds on small trees in the layouts of Kinetics-400."""

import pytest

from encoders.datasets.corpus import classes_of, open_corpus, reader_of
from encoders.datasets.kinetics_sounds import ACTIONS
from encoders.errors import DataError
from tests.trees import Tree

HEADER = "label,youtube_id,time_start,time_end,split"
TRAIN = (
    '"playing trumpet","--0edUL8zmA",92,102,"train"',
    "tai chi,abcdefghijk,5,15,train",
    "blowing out candles,bbbbbbbbbbb,0,10,train",
)
VAL = ("tap dancing,-1IlTIWPNs4,60,70,validate", "abseiling,ccccccccccc,1,11,validate")


@pytest.fixture
def tree(tmp_path, tmp_path_factory) -> Tree:
    return Tree(tmp_path, tmp_path_factory.getbasetemp())


def labels(corpus):
    return [(s.label, s.split) for s in corpus.samples]


def test_there_are_31_of_them_in_order():
    assert len(ACTIONS) == len(set(ACTIONS)) == 31 == reader_of("kinetics_sounds").about.classes
    assert list(ACTIONS) == sorted(ACTIONS)


def test_other_actions_are_passed_over_whether_their_clips_are_there_or_not(tree):
    tree.text("annotations/train.csv", HEADER, *TRAIN).text("annotations/val.csv", HEADER, *VAL)
    tree.clips("train/--0edUL8zmA_000092_000102.mp4", "train/bbbbbbbbbbb_000000_000010.mp4")
    tree.clips("val/-1IlTIWPNs4_000060_000070.mp4", "train/abcdefghijk_000005_000015.mp4")
    corpus = open_corpus(f"kinetics_sounds:{tree}")
    assert labels(corpus) == [("playing trumpet", "train"), ("blowing out candles", "train"), ("tap dancing", "val")]
    assert corpus.classes() == ACTIONS == classes_of(f"kinetics_sounds:{tree}")
    assert [corpus.targets(s) for s in corpus.samples] == [(19,), (1,), (27,)]


def test_folders_by_label_may_have_underscores(tree):
    tree.clips("train/playing_trumpet/aaaaaaaaaaa_000001_000011.mp4", "train/tai_chi/bbbbbbbbbbb_000001_000011.mp4")
    assert labels(open_corpus(f"kinetics_sounds:{tree}")) == [("playing trumpet", "train")]


def test_a_kinetics_without_any_of_them_is_one_sentence(tree):
    tree.clips("train/tai chi/aaaaaaaaaaa_000001_000011.mp4")
    with pytest.raises(DataError, match=r"holds clips of Kinetics \(tai chi, \.\.\.\) and none of the 31 actions of"):
        open_corpus(f"kinetics_sounds:{tree}")


def test_what_is_listed_and_not_there_is_counted(tree):
    tree.text("train.csv", HEADER, *TRAIN).clips("train/--0edUL8zmA_000092_000102.mp4")
    with pytest.raises(DataError, match=r"1 of 2 samples of kinetics_sounds:.* cannot be used, the first because"):
        open_corpus(f"kinetics_sounds:{tree}")
    assert labels(open_corpus(f"kinetics_sounds:{tree}", skip_bad=True)) == [("playing trumpet", "train")]
