"""How wrong references travel, by hand: recovery points, leading pictures, anchors, slots, H.264's lists."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from runtime.h264_references import H264References
from runtime.picture import Lists, Picture
from runtime.references import Alone, Anchors, Chain, References, Slots


def walk(state: References, events) -> list[bool]:
    """Verdicts on pictures (time, picture); a number loses so many packets."""
    out = []
    for event in events:
        if isinstance(event, int):
            state = state.lose(event)
        else:
            time, picture = event
            wrong, state = state.step(picture, time)
            out.append(wrong)
    return out


IDR = Picture(kind="I", reset=True, independent=True)
P = Picture(kind="P")
B = Picture(kind="B", disposable=True)


def test_a_lost_packet_spoils_everything_until_a_reset():
    assert walk(Chain(), [(0, IDR), (1, P), 1, (3, P), (4, B), (5, IDR), (6, P)]) == [
        False, False, True, True, False, False,
    ]  # fmt: skip


def test_a_stream_that_begins_in_the_middle_has_lost_nothing_we_know_of():
    assert walk(Chain(), [(0, P), (1, P)]) == [False, False]


def test_leading_pictures_of_a_recovery_point_stay_wrong():
    recovery = Picture(kind="I", recovery=0, independent=True)
    events = [(0, IDR), 1, (8, recovery), (6, B), (7, B), (9, P)]
    assert walk(Chain(), events) == [False, False, True, True, False]


def test_a_recovery_point_without_a_loss_has_no_wrong_leading_pictures():
    recovery = Picture(kind="I", recovery=0, independent=True)
    assert walk(Chain(), [(0, IDR), (1, P), (8, recovery), (6, B), (9, P)]) == [False] * 5


def test_a_skipped_leading_picture_of_h265_is_wrong_whatever_its_time():
    access = Picture(kind="I", recovery=0, independent=True)
    rasl = Picture(kind="P", leading=True)
    assert walk(Chain(), [(0, IDR), 1, (8, access), (9, rasl)]) == [False, False, True]


def test_a_refresh_must_run_its_whole_course():
    start = Picture(kind="P", recovery=3)
    events = [(0, IDR), 1, (2, start), (3, P), (4, P), (5, P), (6, P)]
    assert walk(Chain(), events) == [False, True, True, True, False, False]


def test_a_loss_inside_a_refresh_starts_it_over():
    start = Picture(kind="P", recovery=2)
    events = [(0, IDR), 1, (2, start), (3, P), 1, (5, P), (6, start), (7, P), (8, P)]
    assert walk(Chain(), events) == [False, True, True, True, True, True, False]


def test_with_a_single_reference_any_intra_picture_is_clean():
    intra = Picture(kind="I", independent=True, references=1)
    assert walk(Chain(), [(0, IDR), 1, (2, P), (3, intra), (4, P)]) == [False, True, False, False]
    assert walk(Chain(), [(0, IDR), 1, (2, P), (3, replace(intra, references=2))])[-1]


def test_intra_only_pictures_need_nobody():
    assert walk(Alone(), [(0, P), 5, (6, P)]) == [False, False]


# ------------------------------------------------------------------------------------------------------------- anchors


def mpeg(kind: str, order: int, group: bool = False, closed: bool = False) -> tuple[int, Picture]:
    picture = Picture(kind=kind, disposable=kind == "B", order=order, order_size=1024, new_group=group, closed=closed)
    return order, picture


def test_only_b_pictures_were_lost_if_the_count_says_so():
    start = [mpeg("I", 0, group=True), mpeg("P", 3)]
    assert walk(Anchors(), [*start, 2, mpeg("P", 6), mpeg("B", 4)]) == [False] * 4
    assert walk(Anchors(), [*start, 1, mpeg("B", 2), mpeg("P", 6)]) == [False] * 4
    assert walk(Anchors(), [*start, 3, mpeg("P", 9)]) == [False, False, True]  # one more: an anchor
    assert walk(Anchors(), [*start, 1, mpeg("B", 5)]) == [False, False, True]  # of the next pair


def test_a_closed_group_has_clean_leading_pictures():
    start = [mpeg("I", 0, group=True), 1]
    assert walk(Anchors(), [*start, mpeg("I", 2, True, closed=False), mpeg("B", 0)])[-1]
    assert not walk(Anchors(), [*start, mpeg("I", 2, True, closed=True), mpeg("B", 0)])[-1]


def test_times_number_the_pictures_where_headers_do_not():
    def at(kind: str, time: int) -> tuple[int, Picture]:
        return time, Picture(kind=kind, disposable=kind == "B")

    learning = [at("I", 0), at("P", 120), at("B", 40), at("B", 80), at("P", 240), at("B", 160), at("B", 200)]
    start = [*learning, at("P", 360)]
    assert walk(Anchors(), [*start, 2, at("P", 480), at("B", 400)]) == [False] * 10
    assert walk(Anchors(), [*start, 3, at("P", 600)])[-1]


# --------------------------------------------------------------------------------------------------------------- slots


def test_slots_pass_on_exactly_what_they_hold():
    key = Picture(kind="I", reset=True, writes=0xFF, resets_contexts=True)
    state: References = Slots()
    _, state = state.step(key, 0)
    bad = Picture(kind="P", reads=(0,), writes=0b10)
    _, state = state.step(bad, 1)
    state = state.spoil(bad)
    assert not state.step(Picture(kind="P", reads=(0, 2)), 2)[0]
    assert state.step(Picture(kind="P", reads=(1,), writes=0b100), 2)[0]
    _, healed = state.step(Picture(kind="P", reads=(0,), writes=0b10), 2)
    assert not healed.broken


def test_a_lost_frame_may_have_written_any_slot():
    key = Picture(kind="I", reset=True, writes=0xFF, resets_contexts=True)
    inter = Picture(kind="P", reads=(3,), writes=1)
    assert walk(Slots(), [(0, key), 1, (2, inter), (3, key), (4, inter)]) == [False, True, False, False]


# --------------------------------------------------------------------------------------------------------------- H.264


def h264(kind: str, frame_num: int, order: int, *, kept: bool = True, active: int = 1, **lists) -> tuple[int, Picture]:
    """A frame of a stream that keeps four references, 16 frame numbers; time is the order of presentation."""
    count = "IPB".index(kind)
    given = {"moves": ((),) * count, "forgets": ()} | lists
    return order, Picture(
        kind=kind,
        reset=kind == "I",
        disposable=not kept,
        frame_num=frame_num % 16,
        max_frame_num=16,
        order=order % 64,
        order_size=64,
        references=4,
        lists=Lists((active,) * count, given["moves"], given["forgets"]),
    )


def test_a_lost_p_picture_spoils_what_is_predicted_from_it():
    events = [h264("I", 0, 0), h264("P", 1, 2), 1, h264("P", 3, 6), h264("P", 4, 8), h264("I", 0, 64)]
    assert walk(H264References(), events) == [False, False, True, True, False]


def test_a_lost_disposable_picture_spoils_nothing():
    events = [h264("I", 0, 0), h264("P", 1, 4), 1, h264("P", 2, 8), h264("B", 3, 6, kept=False)]
    assert walk(H264References(), events) == [False] * 4


def test_a_lost_reference_that_the_list_does_not_reach_spoils_nothing():
    """A pyramid: P4, its middle B2 lost; P8 names P4 by its number and has room for one."""
    events = [
        h264("I", 0, 0), h264("P", 1, 8), 1,
        h264("B", 3, 2, kept=False),  # beside the lost one
        h264("P", 3, 16, moves=((-2,),)),
        h264("P", 4, 24),
    ]  # fmt: skip
    assert walk(H264References(), events) == [False, False, True, False, False]
    events[4] = h264("P", 3, 16, active=2)  # two references: the lost one is among them
    assert walk(H264References(), events)[3:] == [True, True]


def test_a_picture_named_outright_that_is_not_there_is_wrong():
    events = [h264("I", 0, 0), h264("P", 1, 2), h264("P", 2, 4, moves=((-1,),)), h264("P", 3, 6, moves=((-3,),))]
    assert walk(H264References(), events) == [False] * 4
    assert walk(H264References(), [*events[:3], 1, h264("P", 4, 8, moves=((-1,),))])[-1]


def test_a_corrupt_picture_spoils_those_that_use_it_only():
    state: References = H264References()
    for time, picture in (h264("I", 0, 0), h264("P", 1, 2), h264("P", 2, 4)):
        _, state = state.step(picture, time)
    state = state.spoil(picture)
    assert not state.step(h264("P", 3, 6, moves=((-2,),))[1], 6)[0]
    assert state.step(h264("P", 3, 6)[1], 6)[0]


def test_a_frame_number_that_jumps_without_a_gap_breaks_all_references():
    assert walk(H264References(), [h264("I", 0, 0), h264("P", 1, 2), h264("P", 5, 4)]) == [False, False, True]


def test_a_lost_idr_is_not_taken_for_a_lost_b_picture():
    """The frame number fits by chance; the order of presentation does not."""
    events = [h264("I", 0, 0), h264("P", 1, 2), h264("P", 2, 4), 4]
    _, picture = h264("P", 3, 6)
    assert walk(H264References(), [*events, (14, picture)])[-1]  # 14 on the clock, 6 in the picture
    assert not walk(H264References(), [*events, (6, picture)])[-1]


def test_a_header_without_lists_goes_back_to_caution():
    bare = replace(h264("P", 3, 6)[1], lists=None)
    events = [h264("I", 0, 0), h264("P", 1, 2), 1, (6, bare), h264("P", 4, 8, moves=((-1,),))]
    assert walk(H264References(), events)[-2:] == [True, True]


def test_interlaced_fields_go_by_caution():
    field = replace(h264("P", 1, 2)[1], field=True, lists=None)
    events = [h264("I", 0, 0), (2, field), (2, field), 1, (6, replace(field, frame_num=3)), h264("I", 0, 64)]
    assert walk(H264References(), events) == [False, False, False, True, False]


PICTURES = st.one_of(
    st.integers(1, 3),
    st.tuples(st.integers(0, 100), st.builds(
        Picture,
        kind=st.sampled_from("IPB"),
        reset=st.booleans(),
        recovery=st.one_of(st.none(), st.integers(0, 3)),
        disposable=st.booleans(),
        independent=st.booleans(),
        frame_num=st.integers(0, 15),
        max_frame_num=st.just(16),
        order=st.integers(0, 63),
        order_size=st.just(64),
        references=st.integers(0, 4),
        new_group=st.booleans(),
        reads=st.tuples(st.integers(0, 7)),
        writes=st.integers(0, 255),
        lists=st.one_of(st.none(), st.builds(
            Lists,
            active=st.just((1, 2)),
            moves=st.tuples(st.lists(st.integers(-3, 3), max_size=2).map(tuple), st.just(())),
            forgets=st.lists(st.integers(1, 5), max_size=2).map(tuple),
        )),
    )),
)  # fmt: skip


@given(st.lists(PICTURES, max_size=30))
def test_any_headers_are_followed_without_an_error_and_states_are_values(events):
    for start in (Chain(), Anchors(), Slots(), H264References(), Alone()):
        first = walk(start, events)
        assert walk(start, events) == first  # nothing was changed in place


@given(st.lists(PICTURES, max_size=20), st.lists(PICTURES, max_size=8))
def test_after_a_reset_nothing_before_it_matters(before, after):
    reset = (50, Picture(kind="I", reset=True, writes=0xFF, resets_contexts=True, frame_num=0, max_frame_num=16))
    tail = [e for e in after if not isinstance(e, int)]
    for start in (Chain(), Slots()):
        assert walk(start, [*before, reset, *tail])[-len(tail) - 1 :][0] is False
        if isinstance(start, Slots):
            assert walk(start, [*before, reset, *tail])[-len(tail) - 1 :] == walk(start, [reset, *tail])
