"""The streaming law, clause by clause: which windows fall due when, what they hold, and that a final never changes."""

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtime.config import WindowSettings
from runtime.stream import FINAL, PROVISIONAL, Encoded, Window, Windows, longest_gap, observed_share


def encoded(clip: int, *, epoch: int = 0, version: int = 0, video: bool = True, audio: bool = True) -> Encoded:
    features = np.full((2, 4), clip + version / 10, np.float32)
    return Encoded(
        clip=clip,
        epoch=epoch,
        version=version,
        start_seconds=clip * 0.4,
        raw=features,
        features=features,
        presence=np.array([video, audio]),
        state={"video": "observed" if video else "lost", "audio": "observed" if audio else "late"},
        flags={"video": (), "audio": ()},
        coverage={"video": float(video), "audio": float(audio)},
    )


def windows(clips: int = 4, lookahead: int = 0, min_clips: int = 1) -> Windows:
    return Windows(WindowSettings(clips=clips, lookahead=lookahead, min_clips=min_clips))


def said(due: list[Window]) -> list[tuple[int, str, int]]:
    return [(w.clip, w.status, w.revision) for w in due]


def held(window: Window) -> tuple[list[int], list[int]]:
    return [c.clip for c in window.clips], [c.clip for c in window.ahead]


def test_without_lookahead_each_clip_gives_one_final_message():
    law = windows(lookahead=0)
    assert said(law.admit(encoded(0))) == [(0, FINAL, 0)]
    assert said(law.admit(encoded(1))) == [(1, FINAL, 0)]
    assert law.finish() == []


def test_with_lookahead_a_provisional_comes_at_once_and_the_final_when_the_lookahead_closed():
    law = windows(lookahead=2)
    assert said(law.admit(encoded(0))) == [(0, PROVISIONAL, 0)]
    assert said(law.admit(encoded(1))) == [(1, PROVISIONAL, 0)]
    assert said(law.admit(encoded(2))) == [(0, FINAL, 1), (2, PROVISIONAL, 0)]
    assert said(law.finish()) == [(1, FINAL, 1), (2, FINAL, 1)]


def test_nothing_is_predicted_before_min_clips_closed():
    law = windows(lookahead=1, min_clips=3)
    assert law.admit(encoded(0)) == law.admit(encoded(1)) == []
    assert said(law.admit(encoded(2))) == [(2, PROVISIONAL, 0)]
    assert said(law.finish()) == [(2, FINAL, 1)]


def test_a_window_holds_the_clips_up_to_its_own_and_the_imputer_sees_those_after():
    law = windows(clips=3, lookahead=2)
    for k in range(5):
        law.admit(encoded(k))
    due = law.admit(encoded(5))
    assert said(due) == [(3, FINAL, 1), (5, PROVISIONAL, 0)]
    assert held(due[0]) == ([1, 2, 3], [4, 5])
    assert held(due[1]) == ([3, 4, 5], [])


def test_a_repaired_clip_gives_one_revision_of_each_window_that_is_not_final():
    law = windows(clips=3, lookahead=2)
    for k in range(5):
        law.admit(encoded(k))
    due = law.admit(encoded(3, version=1))
    assert said(due) == [(3, PROVISIONAL, 1), (4, PROVISIONAL, 1)]
    assert held(due[0]) == ([1, 2, 3], [4])
    assert due[0].clips[-1].version == 1
    finals = law.admit(encoded(5)) + law.finish()
    assert [(w.clip, w.revision) for w in finals if w.status == FINAL] == [(3, 2), (4, 2), (5, 1)]


def test_a_repair_after_the_final_changes_nothing():
    law = windows(clips=3, lookahead=1)
    for k in range(6):
        law.admit(encoded(k))
    assert law.admit(encoded(0, version=1)) == []  # no open window holds it any more
    flat = windows(lookahead=0)
    flat.admit(encoded(0))
    assert flat.admit(encoded(0, version=1)) == []


def test_a_new_epoch_ends_the_old_windows_and_starts_empty_while_clip_numbers_go_on():
    law = windows(clips=3, lookahead=1, min_clips=2)
    law.admit(encoded(0))
    law.admit(encoded(1))
    due = law.admit(encoded(2, epoch=1))
    assert said(due) == [(1, FINAL, 1)] and due[0].epoch == 0
    assert held(due[0]) == ([0, 1], [])
    due = law.admit(encoded(3, epoch=1))
    assert said(due) == [(3, PROVISIONAL, 0)] and held(due[0]) == ([2, 3], [])
    assert law.admit(encoded(1, version=1)) == []  # its epoch is over


@given(st.integers(1, 5), st.integers(0, 3), st.integers(1, 5), st.lists(st.integers(-3, 1), max_size=25))
def test_every_clip_has_one_final_that_comes_last_and_revisions_count_up(w, f, least, steps):
    """A step of 1 closes the next clip, 0 opens a new epoch with it, a negative one repairs an earlier clip."""
    law, due, clip, epoch, start = windows(w, f, min(w, least)), [], 0, 0, 0
    expected = set()
    for step in steps:
        if step >= 0:
            if step == 0:
                epoch, start = epoch + 1, clip
            due += law.admit(encoded(clip, epoch=epoch))
            if clip - start + 1 >= min(w, least):
                expected.add(clip)
            clip += 1
        elif clip + step >= start:
            due += law.admit(encoded(clip + step, epoch=epoch, version=1))
    due += law.finish()
    by_clip = defaultdict(list)
    for window in due:
        by_clip[window.clip].append(window)
        assert [c.clip for c in window.clips] == list(range(window.clips[0].clip, window.clip + 1))
        assert len(window.clips) <= w and len(window.ahead) <= f
    assert set(by_clip) == expected
    for messages in by_clip.values():
        assert [m.revision for m in messages] == list(range(len(messages)))
        assert [m.status for m in messages] == [PROVISIONAL] * (len(messages) - 1) + [FINAL]
        assert f > 0 or len(messages) == 1


def test_shares_and_gaps_count_existing_clips_only():
    clips = [encoded(0), encoded(1, video=False), encoded(2, video=False), encoded(3, audio=False)]
    assert observed_share(clips) == {"video": 0.5, "audio": 0.75}
    assert longest_gap(clips) == 2
    assert longest_gap(clips[:1]) == 0


def test_provenance_names_the_rung_of_what_was_filled_only():
    clip = encoded(7, audio=False)
    assert clip.provenance("lerp").rung == {"video": "observed", "audio": "lerp"}
    assert clip.provenance("lerp") is clip.provenance("lerp")
