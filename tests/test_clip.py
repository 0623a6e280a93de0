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

    def __init__(self, rule: PresenceRule | None = None, **options: Any) -> None:
        self.settled: list[tuple[str, str, int]] = []
        super().__init__(
            SPEC,
            rule or PresenceRule(),
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

    def hear(self, first: int, last: int, damaged: bool = False, level: float = 0.5) -> None:
        """Blocks number ``first`` to ``last`` of 20 ms."""
        for seq in range(first, last):
            fate = self.packet("audio", seq, seq * 20 * MS)
            self.block(seq * 20 * MS, np.full(20, level, np.float32), damaged, 0.5, [fate] if fate else [])


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


FORGIVING = PresenceRule(video=0.5, audio=0.25, forgive_video=1.0, forgive_audio=0.5)


def test_a_forgiven_clip_is_looked_at_as_it_came_and_says_so() -> None:
    a = Assembled(FORGIVING)
    a.see(0, 2)
    a.see(2, 8, damaged=True)
    a.gap("video", 320 * MS, 400 * MS)
    a.hear(0, 4)
    a.hear(4, 12, damaged=True, level=0.25)
    a.gap("audio", 240 * MS, 400 * MS)
    clip = a.close()[0]
    assert clip.presence == {"video": True, "audio": True} and clip.state == {"video": "observed", "audio": "observed"}
    assert clip.coverage == pytest.approx({"video": 0.2, "audio": 0.2})  # what came undamaged, as ever
    assert clip.severity == pytest.approx({"video": 0.5, "audio": 0.5})
    assert clip.flags == {"video": ("spoiled",), "audio": ("spoiled",)}
    assert clip.video is not None and clip.audio is not None
    shown = clip.video[:, 0, 0].tolist()
    assert shown == sorted(shown) and shown[0] <= 1 and shown[-1] == 7  # the hole is closed with the last that came
    assert clip.audio[70] == 0.5 and clip.audio[150] == 0.25 and not clip.audio[241:].any()
    a.finish()
    outcomes = {(m, o): sum(s[:2] == (m, o) for s in a.settled) for m, o, _ in a.settled}
    assert outcomes == {("video", "used"): 2, ("video", "damaged"): 6, ("audio", "used"): 4, ("audio", "damaged"): 8}


def test_too_much_that_is_spoiled_is_not_forgiven_and_the_good_part_counts_alone() -> None:
    a = Assembled(FORGIVING)
    a.hear(0, 6)
    a.hear(6, 20, damaged=True)
    clip = a.close()[0]
    assert clip.presence["audio"] and clip.flags["audio"] == ()
    assert clip.audio is not None and not clip.audio[121:].any()  # holes closed as if nothing had come
    a.hear(20, 24)
    a.hear(24, 40, damaged=True)
    assert a.close()[0].state["audio"] == "damaged"


def test_what_was_lost_is_forgiven_nobody() -> None:
    def closed(rule: PresenceRule) -> Any:
        a = Assembled(rule)
        a.see(0, 4)
        a.gap("video", 160 * MS, 400 * MS)
        a.hear(0, 4)
        a.gap("audio", 80 * MS, 400 * MS)
        clip = a.close()[0]
        return clip.presence, clip.state, clip.coverage, clip.flags, clip.severity

    everything = PresenceRule(video=0.5, audio=0.25, forgive_video=1.0, forgive_audio=1.0)
    assert closed(everything) == closed(PresenceRule(video=0.5, audio=0.25))
    assert closed(everything)[1] == {"video": "lost", "audio": "lost"}


def test_a_whole_clip_has_nothing_to_forgive() -> None:
    a = Assembled(FORGIVING)
    a.see(0, 10)
    a.hear(0, 20)
    assert a.close()[0].flags == {"video": (), "audio": ()}


def test_a_good_block_wins_over_a_damaged_one_at_the_same_time() -> None:
    a = Assembled(FORGIVING)
    a.hear(0, 10)
    a.hear(10, 12, damaged=True, level=0.25)
    a.block(190 * MS, np.full(40, 1.0, np.float32), True, 0.5, [])  # overlaps what came before
    clip = a.close()[0]
    assert clip.audio is not None and clip.audio[195] == 0.5 and clip.audio[225] != 0


def test_a_late_repair_takes_the_place_of_what_was_forgiven() -> None:
    a = Assembled(FORGIVING, lookahead=1)
    a.see(0, 4)
    a.see(4, 10, damaged=True)
    a.hear(0, 20)
    first = a.close()[0]
    assert first.presence["video"] and first.flags["video"] == ("spoiled",)
    for seq in range(4, 10):
        a.frame(seq * 40 * MS, 40 * MS, PICTURE + 100, False, 0.0, [])
    (mended,) = a.repairs()
    assert (mended.version, mended.coverage["video"], mended.flags["video"]) == (1, 1.0, ())
    assert mended.video is not None and mended.video[-1, 0, 0] == 100
