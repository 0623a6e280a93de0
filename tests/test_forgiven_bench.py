"""The bench of forgiven damage: pairs of answers, and what is said of them."""

import pytest

from bench.forgiven import RULES, lines_of, strangers, summary_of
from runtime.bundle import Bundle


def answer(right, confidence=0.8):
    likelihood = confidence if right else 1 - confidence
    return {"right": right, "confidence": confidence, "likelihood": likelihood, "observed": 0.5, "spoiled": 0.25}


def rows():
    """Two people; one gains half of the answers under loss, the other nothing."""
    known = {"voice": "pair", "camera": "still", "coding": "P", "label": 1}
    return [
        {**known, "speaker": who, "loss": loss, "clip": clip,
         **{rule: answer(clip % 2 == 0 or (who == "a" and loss != "none" and rule == "both")) for rule in RULES}}
        for who in "ab" for loss in ("none", "iid-1", "iid-5") for clip in range(20)
    ]  # fmt: skip


def test_gains_are_paired_and_their_errors_are_over_people():
    found = summary_of(rows())
    assert list(found) == ["none", "iid-1", "iid-5", "all losses"]
    assert (found["none"]["both"]["points"], found["none"]["both"]["points_error"]) == (0, 0)
    every = found["all losses"]
    assert (every["answers"], every["speakers"]) == (80, 2)
    assert every["both"]["points"] == pytest.approx(25) and every["both"]["points_error"] == pytest.approx(25)
    assert every["sound"]["points"] == 0 and "points" not in every["before"]
    assert every["before"]["right"] == 0.5 and every["both"]["right"] == 0.75
    assert every["before"]["calibration"] == pytest.approx(0.3, abs=0.1)


def test_the_page_says_what_was_found():
    page = "\n".join(lines_of(summary_of(rows())))
    assert "+25.0 ± 25.0 points" in page and "| iid-5, both | 40 | 75.0 % |" in page


def test_nobody_is_judged_on_who_was_trained_on_or_had_a_say(tmp_path, monkeypatch):
    everybody = {"grid": {"s1": [], "s3": [], "s32": [], "s33": []}, "java_sed": {"01": [], "02": []}}
    monkeypatch.setattr("bench.forgiven.streams.recordings", lambda _data, corpus: everybody[corpus])
    found = {corpus: new for corpus, _, new in strangers(Bundle.load("talk"), tmp_path)}
    assert found == {"grid": ["s32", "s33"], "java_sed": ["02"]}
