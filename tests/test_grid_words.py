"""GRID's words as spans of their sentences, on a small tree and on the corpus where it is at hand."""

import os
from pathlib import Path

import pytest

from encoders.datasets.corpus import open_corpus
from encoders.errors import DataError

DATA = os.environ.get("LEGATO_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="LEGATO_DATA names no folder with recordings")
COLUMNS = "file,speaker,label,split,split_within_speaker,command,digit,seconds"


def tree(folder: Path, digit: str = "two") -> Path:
    """Two speakers, three sentences, one of them never aligned."""
    rows = ["s1/bbaf2n,s1,two,train,train,bin,two,3.0", "s2/lwbz9a,s2,nine,val,test,lay,nine,3.0", "s26/pwwi4a,s26,four,train,train,place,four,3.0"]  # noqa: E501
    (folder / "labels.csv").write_text("\n".join([COLUMNS, *(f"clips/{r.replace(',', '.mp4,', 1)}" for r in rows)]))
    spoken = {"s1/bbaf2n": ["bin", "blue", "at", "f", digit, "now"], "s2/lwbz9a": ["lay", "white", "by", "z", "nine", "again"]}  # noqa: E501
    lines = ["file,start_ms,end_ms,word"]
    for name, words in spoken.items():
        lines += [f"clips/{name}.mp4,0,100,sil"]
        lines += [f"clips/{name}.mp4,{100 + 300 * i},{400 + 300 * i},{w}" for i, w in enumerate(words)]
        (folder / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "clips" / f"{name}.mp4").touch()
    (folder / "alignments.csv").write_text("\n".join(lines))
    return folder


def test_a_word_is_a_span_with_four_frames_around_it(tmp_path):
    tree(tmp_path)
    digits = open_corpus(f"grid_digits:{tmp_path}").samples
    assert [(s.label, s.split, s.speaker) for s in digits] == [("two", "train", "s1"), ("nine", "s2/test", "s2")]
    assert (digits[0].start, digits[0].seconds) == (pytest.approx(1.3 - 0.16), pytest.approx(0.62))
    commands = open_corpus(f"grid_commands:{tmp_path}", splits=["train"])
    (first,) = commands.samples
    assert (first.label, first.start, first.seconds) == ("bin", 0.0, pytest.approx(0.56))  # not before the recording
    assert commands.classes() == ("bin", "lay", "place", "set")


def test_an_alignment_that_says_another_word_is_an_error(tmp_path):
    tree(tmp_path, digit="three")
    with pytest.raises(DataError, match=r"bbaf2n.mp4 is aligned as .*'three'.* its label is 'two'"):
        open_corpus(f"grid_digits:{tmp_path}")


@needs_data
def test_the_corpus_holds_what_its_readers_say():
    from encoders.datasets.grid_words import COMMANDS, DIGITS, SPEAKERS

    for name, reader in (("grid_digits", DIGITS), ("grid_commands", COMMANDS), ("grid_speakers", SPEAKERS)):
        for split, count in reader.about.splits.items():
            corpus = open_corpus(name, splits=[split])
            assert len(corpus.samples) == count, (name, split)
            assert len(corpus.classes()) == reader.about.classes
            assert all(s.path.is_file() and (s.seconds or 3) > 0.4 for s in corpus.samples)
