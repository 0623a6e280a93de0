"""Resuming: by the state that is still there, or from what a client kept; nothing lost, nothing said twice."""

import asyncio
from typing import Any

import pytest

from protos import stream_pb2 as pb
from runtime.packet import Packet
from runtime.serve.resume import Resumes
from runtime.serve.status import Refused
from tests.fakes import stream
from tests.serving import (
    FakeDispatcher,
    Heard,
    ack,
    batch,
    config,
    connected,
    ends,
    hear,
    in_batches,
    offer,
    serving,
    talk,
)
from tests.test_servicer import run

SECONDS, CLIPS = 6.0, 15


class State:
    """Something that can be kept."""

    def __init__(self, acknowledged: bool = False) -> None:
        self.acknowledged = acknowledged


# -- the store ---------------------------------------------------


def test_a_token_names_its_stream_once():
    resumes, state = Resumes[State](), State()
    first = resumes.issue(state, "anna")
    second = resumes.issue(state, "anna")
    assert len(first) == len(second) == 16 and first != second
    assert resumes.take(first, "anna", rebuildable=False) is None
    assert resumes.take(second, "anna", rebuildable=False) is state


def test_a_token_is_worth_nothing_to_another_caller():
    resumes, state = Resumes[State](), State()
    token = resumes.issue(state, "anna")
    with pytest.raises(Refused, match="another caller") as caught:
        resumes.take(token, "bert", rebuildable=True)
    assert caught.value.code == "PERMISSION_DENIED"
    assert resumes.take(token, "anna", rebuildable=False) is state


def test_a_stream_is_kept_for_thirty_seconds_and_no_longer():
    resumes, state = Resumes[State](30.0), State(acknowledged=True)
    token = resumes.issue(state, "anna")
    assert resumes.expire(1000.0) == []  # its connection lives
    resumes.detach(state, 1000.0)
    assert resumes.expire(1029.9) == []
    assert resumes.expire(1030.0) == [state]
    with pytest.raises(Refused) as caught:
        resumes.take(token, "anna", rebuildable=False)
    assert caught.value.code == "DATA_LOSS"
    assert resumes.take(token, "anna", rebuildable=True) is None


def test_a_stream_given_up_before_anything_was_acknowledged_is_no_loss():
    resumes, state = Resumes[State](30.0), State(acknowledged=False)
    token = resumes.issue(state, "anna")
    resumes.detach(state, 0.0)
    resumes.expire(30.0)
    assert resumes.take(token, "anna", rebuildable=False) is None


def test_no_more_streams_are_kept_than_there_is_room_for():
    resumes = Resumes[State](30.0, capacity=2)
    states = [State() for _ in range(3)]
    for number, state in enumerate(states):
        resumes.issue(state, "anna")
        gone = resumes.detach(state, float(number))
    assert gone == [states[0]]
    assert resumes.detached() == 2


def test_tokens_are_not_kept_as_they_are():
    resumes = Resumes[State]()
    token = resumes.issue(State(), "anna")
    assert token not in resumes._by_digest
    assert all(len(digest) == 32 for digest in resumes._by_digest)


# -- a client that comes back ---------------------------------------------------


class Sender:
    """A client as the wire asks for one: keeps what is above ``ack_through_seq``, drops what it has heard before."""

    def __init__(self, packets: list[Packet], acks: bool = True, **fields: Any) -> None:
        self.packets, self.acks, self.fields = packets, acks, fields
        self.heard: dict[tuple[int, int, str], pb.Prediction] = {}
        self.doubles = 0
        self.through: dict[str, int] = {}
        self.point: pb.ResumePoint | None = None
        self.token = b""
        self.resumed: list[bool] = []
        self.code = ""

    async def connect(self, server: Any, *, stop_after: int | None = None, upto: int | None = None) -> None:
        """One connection: until everything was said, or ``stop_after`` finals were heard on it."""
        async with connected(server) as stub:
            call = stub.Stream()
            fields: dict[str, Any] = {"resume_token": self.token, **self.fields}
            await call.write(config(**fields, resume_point=self.point))
            heard, read = Heard(), 0
            last = list(self.heard.values())[-1] if self.heard else None

            async def send() -> None:
                if last is not None and self.acks:
                    await call.write(ack(last))
                kept = [p for p in self.packets[:upto] if p.seq > self.through.get(p.modality, -1)]
                for request in in_batches(kept):
                    await call.write(request)
                    await asyncio.sleep(0)
                if upto is None:
                    for request in ends():
                        await call.write(request)

            sending = asyncio.create_task(send())
            while True:
                size = len(heard.responses)
                heard = await hear(call, heard, until=lambda h, size=size: len(h.responses) > size)
                if heard.error is not None or len(heard.responses) == size:
                    break
                read += self._take(heard.responses[-1])
                if stop_after is not None and read >= stop_after:
                    call.cancel()
                    break
            sending.cancel()
            await asyncio.wait((sending,))
            self.code = heard.code

    def _take(self, response: pb.StreamResponse) -> int:
        kind = response.WhichOneof("response")
        if kind == "started":
            self.token = response.started.resume_token
            self.resumed.append(response.started.resumed)
        elif kind == "going_away":
            self.token = response.going_away.resume_token
        elif kind == "prediction":
            said = response.prediction
            key = (said.epoch, said.clip, said.head)
            if key in self.heard:
                self.doubles += 1
            else:
                self.heard[key] = said
        self.through.update(response.ack_through_seq)
        if response.HasField("resume_point"):
            self.point = response.resume_point
        return kind == "prediction"


def plain(said: pb.Prediction) -> dict[str, Any]:
    """What of a prediction must not depend on how often its client was cut off."""
    return {
        "clip": said.clip, "epoch": said.epoch, "head": said.head, "label": said.label,
        "start": said.start_seconds, "end": said.end_seconds, "probabilities": dict(said.probabilities),
        "states": [(c.clip, dict(c.state), dict(c.coverage)) for c in said.clips],
    }  # fmt: skip


async def uninterrupted(**fields: Any) -> list[dict[str, Any]]:
    async with serving() as server:
        heard = await talk(server, [config(**fields), *in_batches(stream(SECONDS)), *ends()])
    return [plain(p) for p in heard.of("prediction")]


@pytest.mark.parametrize("acks", [True, False])
@pytest.mark.parametrize("cuts", [(1,), (3, 4, 2), (7, 1, 1, 1, 5)])
def test_a_surviving_server_goes_on_as_if_nothing_had_happened(cuts, acks):
    async def scenario() -> None:
        expected = await uninterrupted()
        async with serving() as server:
            sender = Sender(stream(SECONDS), acks)
            for cut in cuts:
                await sender.connect(server, stop_after=cut)
            await sender.connect(server)
            assert sender.resumed == [False, *[True] * len(cuts)]
            assert [plain(p) for p in sender.heard.values()] == expected
            assert sender.code == "OK"

    run(scenario)


@pytest.mark.parametrize("cuts", [(1,), (9,), (21,), (3, 6, 4)])
def test_a_fresh_server_rebuilds_from_what_the_client_kept(cuts):
    async def scenario() -> None:
        expected = await uninterrupted()
        sender = Sender(stream(SECONDS))
        for cut in cuts:
            async with serving() as server:
                await sender.connect(server, stop_after=cut)
        async with serving() as server:
            await sender.connect(server)
        assert sender.resumed == [False] * (len(cuts) + 1)
        assert [plain(p) for p in sender.heard.values()] == expected
        assert len({p.stream for p in sender.heard.values()}) == 1

    run(scenario)


def test_a_client_may_forget_what_was_acknowledged():
    async def scenario() -> None:
        async with serving() as server:
            sender = Sender(stream(SECONDS))
            await sender.connect(server, stop_after=24)
        assert sender.through["video"] > 20
        async with serving() as server:
            await sender.connect(server)
        assert len(sender.heard) == 2 * (CLIPS - 1)

    run(scenario)


def test_totals_of_a_resumed_stream_are_those_of_one_that_was_never_cut():
    async def scenario() -> None:
        async with serving() as server:
            sender = Sender(stream(SECONDS))
            await sender.connect(server, stop_after=5)
            async with connected(server) as stub:
                call = stub.Stream()
                await call.write(config(resume_token=sender.token))
                for request in [*in_batches(stream(SECONDS)), *ends()]:
                    await call.write(request)
                heard = await hear(call)
            counts = heard.of("stats")[-1].packets
            assert (counts["video"].received, counts["video"].duplicate) == (150, 0)
            assert (counts["audio"].received, counts["audio"].used) == (300, 300)

    run(scenario)


def test_the_new_connection_of_a_client_ends_its_old_one():
    async def scenario() -> None:
        async with serving() as server, connected(server) as stub:
            old = stub.Stream()
            await old.write(config())
            first = await hear(old, until=lambda h: True)
            await old.write(batch(stream(0.4)))
            new = stub.Stream()
            await new.write(config(resume_token=first.started.resume_token))
            assert (await hear(new, until=lambda h: True)).started.resumed
            assert (await hear(old, first)).code == "ABORTED"
            assert server.service.streams == 1
            for request in [*in_batches(stream(SECONDS)), *ends()]:
                await new.write(request)
            assert len((await hear(new)).finals) == 2 * (CLIPS - 1)

    run(scenario)


def test_a_stream_cannot_be_resumed_as_another():
    async def scenario() -> None:
        async with serving([offer(), offer(name="other")]) as server:
            sender = Sender(stream(SECONDS))
            await sender.connect(server, stop_after=2)
            heard = await talk(server, [config(bundle="other", resume_token=sender.token)])
            assert heard.code == "INVALID_ARGUMENT"

    run(scenario)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stream", "../../etc"),
        ("stream", ""),
        ("next_clip", 1),
        ("first_clip", (1 << 64) - 1),
        ("oldest_clip", 3),
        ("origin", None),
    ],
)
def test_a_resume_point_that_makes_no_sense_is_refused_by_its_field(field, value):
    point = pb.ResumePoint(
        stream="abc", epoch=1, first_clip=7, oldest_clip=8, next_clip=9, origin=pb.Rational(denominator=1)
    )
    point.ClearField(field) if value is None else setattr(point, field, value)

    async def scenario() -> None:
        async with serving() as server:
            heard = await talk(server, [config(resume_point=point)])
            assert heard.code == "INVALID_ARGUMENT"
            assert "resume_point" in heard.error.details()

    run(scenario)


def test_a_token_that_is_no_token_is_refused_and_an_unknown_one_begins_anew():
    async def scenario() -> None:
        async with serving() as server:
            assert (await talk(server, [config(resume_token=b"short")])).code == "INVALID_ARGUMENT"
            heard = await talk(server, [config(resume_token=bytes(16)), *in_batches(stream(SECONDS)), *ends()])
            assert not heard.started.resumed
            assert heard.code == "OK"

    run(scenario)


def test_what_was_on_its_way_to_the_model_is_answered_while_nobody_listens():
    async def scenario() -> None:
        dispatcher = FakeDispatcher(held=True)
        async with serving([offer(dispatcher)]) as server:
            async with connected(server) as stub:
                call = stub.Stream()
                await call.write(config())
                token = (await hear(call, until=lambda h: True)).started.resume_token
                for request in in_batches(stream(2.0)):
                    await call.write(request)
                while len(dispatcher.submitted) < 4:
                    await asyncio.sleep(0.01)
                call.cancel()
            while server.service.streams:
                await asyncio.sleep(0.01)
            dispatcher.release()
            dispatcher.held = False
            heard = await talk(server, [config(resume_token=token), *in_batches(stream(SECONDS)), *ends()])
            assert heard.started.resumed
            assert heard.finals == [(clip, head) for clip in range(1, CLIPS) for head in ("gru", "linear")]

    run(scenario)


def test_a_client_whose_token_was_lost_on_the_way_goes_on_under_its_streams_name():
    async def scenario() -> None:
        expected = await uninterrupted()
        async with serving() as server:
            sender = Sender(stream(SECONDS))
            await sender.connect(server, stop_after=9)
            sender.token = bytes(16)  # the server rotated it, and the answer never came
            await sender.connect(server)
            assert sender.resumed == [False, False]
            assert [plain(p) for p in sender.heard.values()] == expected
            assert len({p.stream for p in sender.heard.values()}) == 1
            assert server.service.kept == 0  # the state before is not kept twice

    run(scenario)
