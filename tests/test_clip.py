"""One epoch's grid: pieces in, closed clips out."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from encoders.clips import FLICKS
from imputation.presence import PresenceRule
from runtime.clip import ClipAssembler
from tests.fakes import SIZE, SPEC

MS = FLICKS // 1000
PICTURE = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)


class Assembled(ClipAssembler):
    """An assembler that notes what it settles."""

    def __init__(self, **options: Any) -> None:
        self.settled: list[tuple[str, str, int]] = []
        super().__init__(
            SPEC,
            PresenceRule(),
            Fraction(0),
            ("video", "audio"),
            settle=lambda m, outcome, seqs: self.settled.extend((m, outcome, seq) for seq in seqs),
            **options,
        )

    def see(self, first: int, last: int, damaged: bool = False) -> None:
        """Frames number ``first`` to ``last`` of 25 per second."""
        for seq in range(first, last):
            fate = self.packet("video", seq, seq * 40 * MS)
            self.frame(seq * 40 * MS, 40 * MS, PICTURE + seq, damaged, 0.5, [fate] if fate else [])

    def hear(self, first: int, last: int) -> None:
        """Blocks number ``first`` to ``last`` of 20 ms."""
        for seq in range(first, last):
            fate = self.packet("audio", seq, seq * 20 * MS)
            self.block(seq * 20 * MS, np.full(20, 0.5, np.float32), False, 0.0, [fate] if fate else [])


def test_a_clip_is_complete_when_both_watermarks_passed_its_end() -> None:
    a = Assembled()
    a.see(0, 10)
    a.hear(0, 19)
    assert (a.complete("video"), a.complete("audio")) == (True, False)
    a.hear(19, 20)
    assert a.complete("audio")


def test_the_largest_cause_names_the_state_and_severity_is_that_of_the_damage() -> None:
    a = Assembled()
    a.see(0, 2)
    a.see(2, 6, damaged=True)
    a.gap("video", 240 * MS, 400 * MS)
    a.late("video", 240 * MS, 360 * MS)
    clip = a.close()[0]
    assert clip.coverage["video"] == pytest.approx(0.2)
    assert clip.state == {"video": "damaged", "audio": "lost"}
    assert clip.severity["video"] == pytest.approx(0.5)


def test_packets_are_settled_once_when_their_clip_is_final() -> None:
    a = Assembled(lookahead=1)
    a.see(0, 20)
    a.hear(0, 5)
    a.close()
    assert a.settled == []
    a.close()
    assert a.settled == [("video", "used", i) for i in range(10)] + [("audio", "unused", i) for i in range(5)]


def test_a_block_across_a_line_is_used_if_either_clip_is() -> None:
    a = Assembled()
    fate = a.packet("audio", 0, 390 * MS)
    assert fate is not None
    a.block(390 * MS, np.ones(20, np.float32), False, 0.0, [fate])
    for i in range(20):
        a.block((410 + 20 * i) * MS, np.ones(20, np.float32), False, 0.0, [])
    first, second = a.close()[0], a.close()[0]
    assert (first.presence["audio"], second.presence["audio"]) == (False, True)
    assert a.settled == [("audio", "used", 0)]


def test_a_repaired_clip_comes_once_more_before_the_clip_that_makes_it_final() -> None:
    a = Assembled(lookahead=1)
    a.see(0, 4)
    a.hear(0, 20)
    assert a.close()[0].state["video"] == "lost"
    a.see(4, 9)
    assert a.repairs() == []  # one frame may still come
    repaired, following = a.close()
    assert (repaired.index, repaired.version, following.index) == (0, 1, 1)
    assert repaired.coverage["video"] == pytest.approx(0.9)
    assert repaired.audio is not None and repaired.presence["audio"]


def test_a_clip_that_is_whole_again_does_not_wait() -> None:
    a = Assembled(lookahead=2)
    a.see(0, 4)
    a.hear(0, 20)
    a.close()
    a.see(4, 10)
    assert [(c.index, c.version) for c in a.repairs()] == [(0, 1)]
    a.close(), a.close()
    assert [o for m, o, _ in a.settled if m == "video"] == ["used"] * 10


def test_what_comes_after_the_final_is_late() -> None:
    a = Assembled()
    a.close()
    a.close()
    assert a.packet("video", 3, 120 * MS) is None
    assert a.settled == [("video", "late", 3)]


def test_a_shed_clip_may_be_named_after_it_closed() -> None:
    a = Assembled(lookahead=1)
    a.see(0, 10)
    a.hear(0, 20)
    a.close()
    assert a.shed("video", 0)
    shed = a.close()[0]
    assert (shed.index, shed.state["video"], shed.video) == (0, "shed", None)
    assert not a.shed("video", 0)


def test_sound_whose_times_are_rounded_has_no_clicks() -> None:
    a = Assembled()
    for i in range(20):
        at = i * 20 * MS + (MS if i % 2 else 0)  # every other block a millisecond late
        a.block(at, np.ones(20, np.float32), False, 0.0, [])
    clip = a.close()[0]
    assert clip.audio is not None and clip.coverage["audio"] == 1.0
    assert clip.audio.min() == 1.0


def test_clip_numbers_and_times_go_on_from_where_an_epoch_starts() -> None:
    a = Assembled(first_index=40, epoch=3, first_cell=2)
    clip = a.close()[0]
    assert (clip.index, clip.epoch, clip.start) == (40, 3, Fraction(4, 5))


def test_the_end_settles_what_reaches_only_into_a_clip_that_does_not_exist() -> None:
    a = Assembled()
    for seq, at in enumerate((0, 390, 800)):  # the second begins in the first clip, by 10 ms, though sent for the next
        fate = a.packet("audio", seq, max(at, 400 * (seq > 0)) * MS)
        assert fate is not None
        a.block(at * MS, np.full(390, 0.1, np.float32), False, 0.0, [fate])
    a.close()
    a.finish()
    assert a.settled == [("audio", "used", 0), ("audio", "used", 1), ("audio", "unused", 2)]
