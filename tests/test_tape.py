"""The tape: nothing is lost or moved, and what was shed stands before the item that closed its clip."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.packet import Decision
from runtime.pipeline import receive
from runtime.receive import Receiver
from runtime.tape import Item, Tape
from tests.fakes import INFO, SPEC, fake_parts, packet, stream


def shed(clip: int, modality: str = "video") -> Decision:
    return Decision(kind="shed", modality=modality, arrival=99.0, clip=clip, reason="busy")


def items(count: int) -> list[Item]:
    return [packet(seq=i, arrival=0.04 * i) for i in range(count)]


def test_an_item_is_held_until_the_next_comes_for_clips_may_still_close_on_it():
    out: list[Item] = []
    tape, (first, second) = Tape(out.append), items(2)
    tape.item(first)
    assert out == []
    tape.item(second)
    assert out == [first]
    tape.close()
    assert out == [first, second]


def test_what_was_shed_stands_before_the_item_that_closed_it_at_the_arrival_before():
    out: list[Item] = []
    tape, four = Tape(out.append), items(4)
    for item in four[:3]:
        tape.item(item)
    tape.closed(7)
    tape.item(four[3])
    assert out == four[:2]
    tape.shed(shed(7))
    tape.answered(7)
    assert out[2].kind == "shed" and out[2].clip == 7 and out[2].arrival == four[1].arrival
    assert out[3:] == [four[2]]


def test_a_repaired_version_is_waited_for_by_itself():
    out: list[Item] = []
    tape, three = Tape(out.append), items(3)
    tape.item(three[0])
    tape.closed(4)
    tape.item(three[1])
    tape.closed(4, version=1)
    tape.item(three[2])
    tape.answered(4)
    assert out == three[:1]
    tape.answered(4, version=1)
    assert out == three[:2]


def test_answers_that_nobody_waits_for_change_nothing():
    out: list[Item] = []
    tape = Tape(out.append)
    tape.answered(3)
    tape.shed(shed(3))
    tape.closed(3)
    tape.close()
    assert out == []


@given(st.data())
def test_every_item_is_handed_on_once_and_in_order(data):
    out: list[Item] = []
    tape, all_items, open_clips, clip = Tape(out.append), items(20), [], 0
    for item in all_items:
        tape.item(item)
        for _ in range(data.draw(st.integers(0, 2))):
            tape.closed(clip)
            open_clips.append(clip)
            clip += 1
        while open_clips and data.draw(st.booleans()):
            done = open_clips.pop(0)
            if data.draw(st.booleans()):
                tape.shed(shed(done))
            tape.answered(done)
    tape.close()
    assert [i for i in out if not isinstance(i, Decision)] == all_items


def test_a_replay_of_the_tape_closes_shed_clips_as_shed():
    """Clips 2 and 5 lose their picture after they closed; the replay of the tape knows when it closes them."""
    out: list[Item] = []
    tape = Tape(out.append)
    live = Receiver(INFO, SPEC, parts=fake_parts())
    for item in stream(4.0):
        tape.item(item)
        for clip in live.push(item, item.arrival):
            tape.closed(clip.index)
            if clip.index in (2, 5):
                tape.shed(shed(clip.index))
            tape.answered(clip.index)
    tape.close()
    states = {c.index: c.state for c in receive(out, Receiver(INFO, SPEC, parts=fake_parts())) if c.version == 0}
    assert [k for k, state in states.items() if state["video"] == "shed"] == [2, 5]
    assert all(state["audio"] == "observed" for state in states.values())
