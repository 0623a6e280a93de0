"""The bench of half-arrived clips: streams received strictly and forgiving, rules, and how estimates are ranked."""

from pathlib import Path

import numpy as np
import pytest

from bench.damage import moving_pictures
from bench.severity_policy import ABSENT, KEPT, SPOILT, Rule, paired
from bench.severity_report import binned, estimate, rank_correlation
from bench.severity_streams import Facts, Scene, coded, panned, received


def test_a_pan_moves_the_window_and_keeps_its_size():
    pictures = np.broadcast_to(np.arange(60, dtype=np.uint8), (50, 4, 60)).copy()
    moved = panned(pictures)
    assert moved.shape == pictures.shape
    assert np.array_equal(moved[0], pictures[0])  # it begins where the camera stood
    steps = np.abs(np.diff(moved[:, 0, 30].astype(int)))
    assert steps.max() <= 2 and len(np.unique(moved[:, 0, 30])) > 10


def test_a_rule_forgives_first_then_keeps_what_is_good_then_fills():
    values = {
        "has_kept": np.array([True, True, True, False]),
        "has_spoilt": np.array([True, True, True, True]),
        "coverage": np.array([0.6, 0.6, 0.2, 0.0]),
        "came": np.array([1.0, 1.0, 0.4, 1.0]),
    }
    guess = np.array([0.05, 0.5, 0.05, 0.5])
    assert Rule(coverage=0.5, forgiven=0.1).choose(values, guess).tolist() == [SPOILT, KEPT, ABSENT, ABSENT]
    assert Rule(coverage=0.5).choose(values, guess).tolist() == [KEPT, KEPT, ABSENT, ABSENT]
    assert Rule(coverage=0.0, forgiven=9).choose(values, guess).tolist() == [SPOILT] * 4
    assert str(Rule(coverage=0.5)) == "coverage > 0.5, nothing forgiven"
    assert str(Rule(coverage=0.5, forgiven=9)) == "coverage > 0.5, everything forgiven"


def test_ranks_do_not_care_for_scale_and_share_ties():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert rank_correlation(x, -(x**3)) == pytest.approx(-1)
    assert rank_correlation(np.array([1.0, 1.0, 2.0, 2.0]), x) == pytest.approx(0.8944, abs=1e-4)
    assert np.isnan(rank_correlation(np.ones(4), x))


def test_an_estimate_is_of_the_damaged_part_or_of_the_clip():
    values = {"severity": np.array([0.4]), "came": np.array([1.0]), "coverage": np.array([0.75])}
    assert estimate(values, "severity").tolist() == pytest.approx([0.4])
    assert estimate(values, "severity, times share").tolist() == pytest.approx([0.1])
    assert estimate({**values, "by_lost": np.array([0.1])}, "lost").tolist() == pytest.approx([0.4])


def test_differences_are_paired_by_speaker():
    speaker = np.array(["a", "a", "b", "b"])
    gain, error = paired(np.array([1.0, 3.0, 5.0, 5.0]), np.array([0.0, 2.0, 1.0, 1.0]), speaker)
    assert gain == pytest.approx(2.5) and error == pytest.approx(1.5)


def test_bins_compare_with_the_fill():
    n = 60
    values = {
        "corpus": np.array(["grid"] * n), "speaker": np.array(["s1", "s2"] * (n // 2)),
        **{f"error_{w}": np.full(n, e) for w, e in (("kept", 0.1), ("imputer", 0.4), ("lerp", 0.5))},
        **{f"right_{w}": np.full(n, p) for w, p in (("kept", 0.8), ("imputer", 0.4))},
        **{f"hit_{w}": np.ones(n, bool) for w in ("whole", "kept", "imputer")},
    }  # fmt: skip
    (row,) = binned(values, np.ones(n, bool), np.full(n, 0.3), (0.0, 0.2, 0.5), "kept")
    assert (row["from"], row["clips"], row["better"]) == (0.2, n, 1.0)
    assert row["gain"] == pytest.approx(np.log(2), abs=1e-6) and row["gain_error"] == pytest.approx(0, abs=1e-9)


def a_moving_scene(coding: str, path: Path) -> Path:
    """Four seconds of pictures that move, under a tone."""
    tone = 0.2 * np.sin(np.arange(64_000) / 20).astype(np.float32)
    pictures = np.stack(moving_pictures(100, (96, 128)))
    scene = Scene(corpus="grid", speaker="s1", voice="pair", pictures=pictures, sound=tone)
    return coded(scene, "still", coding, path)


@pytest.mark.slow
@pytest.mark.parametrize("coding", ["P", "B"])
def test_a_forgiving_receiver_differs_in_its_verdict_only(tmp_path: Path, coding: str):
    from runtime.pipeline import Pipeline

    pipeline = Pipeline.from_bundle("talk", device="cpu", overrides=["engine.decode_ahead=0"])
    path = a_moving_scene(coding, tmp_path / "coded.mkv")
    whole = received(pipeline, path, "", 0, forgives=False)
    assert all(c.coverage["video"] == pytest.approx(1) for c in whole.clips[:9])
    strict, lenient = (received(pipeline, path, "iid-10", 1, forgives=f) for f in (False, True))
    assert [f.time for f in strict.frames] == [f.time for f in lenient.frames]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(strict.frames, lenient.frames, strict=True))
    by_start = {c.start: c for c in lenient.clips}
    assert all(by_start[c.start].coverage["video"] >= c.coverage["video"] - 1e-9 for c in strict.clips)
    assert sum(c.coverage["video"] for c in lenient.clips) > sum(c.coverage["video"] for c in strict.clips) + 1
    spoiled = [k for k in lenient.facts.values() if isinstance(k, Facts) and k.lost]
    assert spoiled and all(0 < k.share < 1.5 and k.severity > 0 for k in spoiled if k.since)


@pytest.mark.slow
@pytest.mark.parametrize("coding", ["P", "B"])
def test_the_runtime_forgives_exactly_as_it_was_measured(tmp_path: Path, coding: str):
    from imputation.presence import PresenceRule
    from runtime.pipeline import Pipeline, receive
    from runtime.receive import Receiver
    from runtime.sources import open_source

    pipeline = Pipeline.from_bundle("talk", device="cpu", overrides=["engine.decode_ahead=0"])
    path = a_moving_scene(coding, tmp_path / "coded.mkv")
    measured = received(pipeline, path, "iid-10", 1, forgives=True).clips
    source = open_source(path, loss="iid-10", seed=1)
    everything = PresenceRule(video=0.0, audio=0.0, forgive_video=1.0, forgive_audio=1.0)
    receiver = Receiver(source.info, pipeline.engine.spec, everything, delay=pipeline.config.delay.policy)
    clips = [clip for clip in receive(source.packets(), receiver) if clip.version == 0]
    source.close()
    assert any("spoiled" in c.flags["video"] for c in clips) and any("spoiled" in c.flags["audio"] for c in clips)
    for mine, theirs in zip(clips, measured, strict=True):
        assert mine.start == theirs.start and mine.presence == theirs.presence
        for m in ("video", "audio"):
            same = getattr(mine, m), getattr(theirs, m)
            assert same[0] is same[1] is None or np.array_equal(*same)
            assert mine.coverage[m] == pytest.approx(theirs.coverage[m]) or "spoiled" in mine.flags[m]
