"""Every input that a fuzzer found worth keeping, once more: what was mended stays mended."""

import importlib
from pathlib import Path

import pytest

CORPORA = Path(__file__).parent / "data" / "fuzz"
TARGETS = sorted(path.stem for path in (Path(__file__).parent / "fuzz").glob("*.py") if "def one(" in path.read_text())
MOST_BYTES = 600_000  # of all corpora together: they are cloned with the repository


def test_every_corpus_has_its_target_and_every_target_its_corpus():
    assert sorted(path.name for path in CORPORA.iterdir() if path.is_dir()) == TARGETS
    assert sum(path.stat().st_size for path in CORPORA.rglob("*")) < MOST_BYTES


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_is_survived(target):
    one = importlib.import_module(f"tests.fuzz.{target}").one
    inputs = sorted((CORPORA / target).iterdir())
    assert inputs
    for path in inputs:
        try:
            one(path.read_bytes())
        except Exception as error:
            raise AssertionError(f"tests/data/fuzz/{target}/{path.name}") from error


@pytest.mark.parametrize("target", TARGETS)
def test_short_and_empty_inputs_are_survived(target):
    one = importlib.import_module(f"tests.fuzz.{target}").one
    for length in range(4):
        for value in (b"\0", b"\1", b"\xff"):
            one(value * length)
