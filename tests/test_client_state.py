"""What a restarted client goes by: what was had is known, files are whole, wrong ones are told."""

import json
import os
import stat
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import OutputError, UsageError
from runtime.prediction import Prediction
from runtime.serve.client_state import Progress, ResumedFile, StateFile


def prediction(clip, status="final", revision=0, head="count"):
    return Prediction(
        stream="s", epoch=0, clip=clip, start_seconds=0.0, end_seconds=0.4, head=head, label=None, probabilities={},
        confidence=0.5, status=status, revision=revision, abstained=False, observed_share={},
    )  # fmt: skip


def had(progress, *items):
    """Which of (clip, status, revision) were news, with their revision as told."""
    out = []
    for clip, status, revision in items:
        news = progress.admit(prediction(clip, status, revision))
        out.append(None if news is None else news.revision)
    return out


P, F = "provisional", "final"


def test_each_statement_is_news_once():
    progress = Progress()
    assert had(progress, (0, P, 0), (0, P, 1), (0, F, 2), (0, F, 2), (0, P, 3)) == [0, 1, 2, None, None]


def test_what_a_fresh_server_repeats_is_dropped():
    progress = Progress()
    had(progress, (0, P, 0), (0, F, 1), (1, P, 0))
    assert had(progress, (0, P, 0), (0, F, 1), (1, P, 0), (1, F, 1)) == [None, None, None, 1]


def test_a_final_whose_number_was_used_goes_on_counting():
    progress = Progress()
    had(progress, (5, P, 0), (5, P, 1))  # repaired by a late packet, which the fresh server gets in time
    assert had(progress, (5, P, 0), (5, F, 1)) == [None, 2]


def test_heads_are_told_apart():
    progress = Progress()
    assert progress.admit(prediction(0)) is not None
    assert progress.admit(prediction(0, head="other")) is not None
    assert progress.admit(prediction(0, head="other")) is None


PROGRESS = st.builds(
    Progress,
    source=st.dictionaries(st.text("ab\n☂", max_size=3), st.text(max_size=3), max_size=3),
    token=st.binary(max_size=16),
    point=st.binary(max_size=16),
    acknowledged=st.dictionaries(st.sampled_from(["video", "audio"]), st.integers(0, 2**64), max_size=2),
    finals=st.dictionaries(st.text("abc", max_size=3), st.integers(0, 2**64), max_size=3),
    revisions=st.dictionaries(
        st.text("abc", max_size=3), st.dictionaries(st.integers(0, 99), st.integers(0, 99), max_size=3), max_size=3
    ),
    written=st.integers(0, 2**40),
    complete=st.booleans(),
)


@settings(max_examples=50)
@given(PROGRESS)
def test_a_progress_comes_back_whole(progress):
    assert Progress.from_dict(json.loads(json.dumps(progress.as_dict()))) == progress


def test_a_state_file_is_its_owners_and_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "run.state"
    with StateFile(path) as file:
        assert file.load() is None
        file.save(Progress(finals={"count": 3}))
        file.save(Progress(finals={"count": 4}))
        assert file.load() == Progress(finals={"count": 4})
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == [".run.state.lock", "run.state"]


def test_a_second_client_with_the_same_state_is_turned_away(tmp_path):
    with StateFile(tmp_path / "s"), pytest.raises(UsageError, match="in use by another legato send"), \
            StateFile(tmp_path / "s"):  # fmt: skip
        pass
    with StateFile(tmp_path / "s"):
        pass


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "[]", "{}", '{"version": 2}', "null", "[" * 100_000, "\xff", '{"version": 1, "source": 3}'],
)
def test_what_is_no_state_file_is_told(tmp_path, text):
    path = tmp_path / "s"
    path.write_bytes(text.encode("latin-1"))
    with StateFile(path) as file, pytest.raises(UsageError, match="delete it to start anew"):
        file.load()


@settings(max_examples=60)
@given(PROGRESS, st.data())
def test_an_altered_state_file_never_raises_anything_else(progress, data):
    values = progress.as_dict()
    key = data.draw(st.sampled_from(sorted(values)))
    values[key] = data.draw(st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()))
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        Progress.from_dict(values)


def test_a_folder_is_no_state_file(tmp_path):
    with pytest.raises(OutputError, match="is a folder"), StateFile(tmp_path):
        pass


def test_results_are_hidden_until_they_are_complete(tmp_path):
    path = tmp_path / "out.jsonl"
    with ResumedFile(path) as file:
        file.write_json({"a": 1})
        assert not path.exists()
        file.finish()
    assert path.read_text() == '{"a":1}\n'
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_results_are_cut_back_to_what_the_state_covers(tmp_path):
    path = tmp_path / "out.jsonl"
    with ResumedFile(path) as file:
        file.write_json(1)
        at = file.position
        file.write_json(2)
    with ResumedFile(path, at) as file:
        file.write_json(3)
        file.finish()
    assert path.read_text() == "1\n3\n"


def test_results_that_are_gone_are_told(tmp_path):
    with pytest.raises(OutputError, match="delete both to start anew"), ResumedFile(tmp_path / "out", 10):
        pass
