"""Catching up: a server with more to do than time looks at less of every stream, and answers in time; replays obey."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protos import stream_pb2 as pb
from runtime.clip import Clip
from runtime.packet import BACKLOG, Decision, Packet
from runtime.receive import Receiver
from runtime.recording import RecordingReader
from runtime.serve.catchup import CatchUp
from runtime.serve.convert import codec_to_wire
from runtime.skipping import Skips
from tests.desk import Desk
from tests.fakes import CODECS, INFO, SPEC, FakeDecoder, fake_parts, packet, sent, stream, track
from tests.serving import batch, config, ends, offer

DEMO = Path(__file__).parent.parent / "runtime" / "bundles" / "talk" / "demo.legato"
GROUP = 25  # pictures from one keyframe to the next: a second
LONG = {**CODECS, "video": replace(CODECS["video"], codec="h264")}


def groups(seconds: float) -> list[Packet]:
    """Both tracks, pictures in groups of a second."""
    video = [replace(p, keyframe=p.seq % GROUP == 0) for p in track("video", seconds)]
    return sent(video + track("audio", seconds))


# -- which packets are passed over ------------------------------------------------------------------------------


def test_pictures_are_passed_over_until_decoding_may_begin_outside_what_is_skipped():
    skips = Skips()
    skips.heed("video", 1, BACKLOG)
    skips.heed("video", 2, BACKLOG)
    skips.heed("video", 3, "load")
    told = [(0, True), (0, False), (1, False), (1, True), (1, False), (2, False), (3, False), (3, True), (3, False)]
    over = [skips.over("video", clip, begins=begins, alone=False) for clip, begins in told]
    assert over == [False, False, True, True, True, True, True, False, False]


def test_a_keyframe_in_the_last_skipped_clip_is_where_decoding_goes_on():
    skips = Skips()
    skips.heed("video", 1, BACKLOG)
    told = [(1, False), (1, True), (1, False), (2, False)]
    assert [skips.over("video", c, begins=b, alone=False) for c, b in told] == [True, False, False, False]


def test_packets_that_stand_alone_are_passed_over_by_their_clip_and_each_modality_by_itself():
    skips = Skips()
    skips.heed("audio", 1, BACKLOG)
    assert [skips.over("audio", c, begins=True, alone=True) for c in (0, 1, 2)] == [False, True, False]
    assert not skips.over("video", 1, begins=False, alone=False)


@pytest.mark.parametrize("hold", [0, 2])
def test_a_skipped_clip_is_shed_and_nothing_else_is_lost(hold):
    receiver = Receiver(replace(INFO, codecs=LONG), SPEC, delay=0.1, parts=fake_parts(chained=("video",), hold=hold))
    for clip in (3, 4, 5, 6, 7):  # 1.2 s to 3.2 s; keyframes at 2 s and 3 s
        decision = Decision(kind="shed", modality="video", arrival=0.0, clip=clip, reason=BACKLOG)
        assert receiver.push(decision, 0.0) == []
    clips = [c for p in groups(6.0) for c in receiver.push(p, p.arrival)] + receiver.finish()
    states = {c.index: c.state["video"] for c in clips if not c.version}
    assert [k for k, s in states.items() if s == "shed"] == [3, 4, 5, 6, 7]
    assert {s for k, s in states.items() if k not in (3, 4, 5, 6, 7)} == {"observed"}
    assert {c.state["audio"] for c in clips} == {"observed"}
    assert {c.index: c.coverage["video"] for c in clips}[2] == 1.0  # what the decoder held came out
    receiver.ledger.check()
    counts = receiver.ledger["video"].counts
    assert (counts.lost, counts.shed) == (0, 50)


def test_other_reasons_leave_decoding_alone():
    def decoded(reason: str) -> int:
        receiver = Receiver(INFO, SPEC, delay=0.1, parts=counting)
        receiver.push(Decision(kind="shed", modality="video", arrival=0.0, clip=2, reason=reason), 0.0)
        calls.clear()
        clips = [c for p in stream(2.0) for c in receiver.push(p, p.arrival)] + receiver.finish()
        assert clips[2].state["video"] == "shed"
        return calls["video"]

    calls: Counter[str] = Counter()

    def counting(modality: str, config: Any, spec: Any, sequenced: bool) -> tuple[Any, Any]:
        damage, decoder = fake_parts()(modality, config, spec, sequenced)
        inner = decoder.decode

        def decode(item: Packet, verdict: Any = None) -> Any:
            calls[modality] += 1
            return inner(item, verdict)

        decoder.decode = decode
        return damage, decoder

    assert (decoded("load"), decoded(BACKLOG)) == (50, 40)


# -- when ---------------------------------------------------------------------------------------------------------


class Grid:
    """Says which clip a packet is of."""

    def clip_of(self, item: Packet) -> int | None:
        return item.capture_time // 400


def decided(items: list[Packet], waited: float, behind: float = 0.25) -> list[tuple[str, int]]:
    catchup = CatchUp(Grid(), LONG, behind)
    return [(d.modality, d.clip) for p in items for d in catchup.decide(p, p.arrival + waited)]


def test_what_did_not_wait_long_is_decoded():
    assert decided(groups(4.0), 0.2) == []


def test_pictures_go_before_sound():
    assert {m for m, _ in decided(groups(4.0), 0.4)} == {"video"}
    assert {m for m, _ in decided(groups(4.0), 0.6)} == {"video", "audio"}


def test_each_clip_is_shed_once_and_in_order():
    clips = [c for m, c in decided(groups(8.0), 0.4) if m == "video"]
    assert clips == sorted(set(clips))
    assert clips[0] == 0


def test_pictures_stay_out_until_the_next_keyframe_though_time_was_made_up():
    catchup, items = CatchUp(Grid(), LONG, 0.25), [p for p in groups(4.0) if p.modality == "video"]
    shed = [d.clip for p in items for d in catchup.decide(p, p.arrival + (0.4 if 32 <= p.seq < 34 else 0.0))]
    assert shed == [3, 4]  # from 1.2 s to the keyframe at 2 s, which begins clip 5


def test_a_clip_that_is_half_decoded_gets_some_more_time():
    def shed(waited: float) -> list[int]:
        catchup, items = CatchUp(Grid(), LONG, 0.25), [p for p in groups(2.0) if p.modality == "video"]
        return [d.clip for p in items for d in catchup.decide(p, p.arrival + (waited if 3 <= p.seq < 8 else 0.0))]

    assert shed(0.3) == []
    assert shed(0.4) == [0, 1, 2]  # to the keyframe at 1 s, in the middle of clip 2


def test_a_burst_is_no_backlog():
    burst = [replace(p, arrival=5.0) for p in groups(10.0)]
    catchup = CatchUp(Grid(), LONG, 0.25)
    shed = [d for p in burst for d in catchup.decide(p, 5.0 + 0.4 * p.seconds)]  # at two and a half times real time
    assert shed == []
    after = [replace(p, arrival=15.0 + p.seconds) for p in groups(40.0) if p.seconds > 10]
    assert [d for p in after for d in catchup.decide(p, p.arrival + 0.1)] == []


# -- a session that cannot keep up ------------------------------------------------------------------------------


class Tap:
    """A recording in memory."""

    def __init__(self) -> None:
        self.items: list[Packet | Decision] = []
        self.packet = self.decision = self.items.append

    def close(self) -> None:
        """Nothing to close."""


def overloaded(cost: float, seconds: float, behind: float) -> tuple[list[tuple[Clip, float]], Tap, Desk]:
    """A stream on a server whose decoder takes ``cost`` seconds a picture: clips, when they closed; the recording."""
    desks: list[Desk] = []
    waiting = groups(seconds)

    def read() -> None:
        """What came meanwhile; the event loop reads while the pool decodes."""
        clock = desks[0].clock
        now = clock.now()
        while waiting and waiting[0].arrival <= now:
            clock.seconds = waiting[0].arrival
            desks[0].session.receive(batch([waiting.pop(0)]))
        clock.seconds = now

    class Slow(FakeDecoder):
        def decode(self, item: Packet, damage: Any = None) -> Any:
            desks[0].clock.move(cost if self.modality == "video" else 0.001)
            read()
            return super().decode(item, damage)

    def parts(modality: str, config: Any, spec: Any, sequenced: bool) -> tuple[Any, Any]:
        return fake_parts(chained=("video",))(modality, config, spec, sequenced)[0], Slow(modality, spec)

    request = config(origin=pb.Rational(denominator=1), codecs=[codec_to_wire(m, c) for m, c in LONG.items()])
    desk = Desk(offer(delay=0.1, parts=parts), request, behind=behind, in_flight=1000)
    desks.append(desk)
    tap, closed = Tap(), []
    desk.session._intake.tap = tap
    desk.offer.dispatcher.submit = lambda _stream, clip, _deadline: closed.append((clip, desk.clock.now()))
    while waiting or desk._jobs:
        read()
        if desk._jobs:
            desk._jobs.popleft()()
        elif waiting:
            desk.clock.seconds = waiting[0].arrival
    desk.send(*ends())
    return closed, tap, desk


def lags(closed: list[tuple[Clip, float]]) -> list[float]:
    return [at - float(clip.start + clip.seconds) for clip, at in closed]


def test_without_catching_up_an_overloaded_server_falls_behind_for_ever():
    closed, _, _ = overloaded(0.06, 20.0, float("inf"))
    assert max(lags(closed)) > 5.0


@pytest.mark.parametrize("cost", [0.05, 0.08])
def test_with_it_answers_stay_in_time_and_less_is_seen(cost):
    closed, _, desk = overloaded(cost, 20.0, 0.4)
    assert max(lags(closed)) < 1.0
    states = Counter(clip.state["video"] for clip, _ in closed)
    assert states["shed"] > 5
    assert states["observed"] > 2
    assert states["shed"] + states["observed"] == 50
    assert {clip.state["audio"] for clip, _ in closed} == {"observed"}
    desk.receiver.ledger.check()
    assert desk.of("stats")[-1].clips_shed == states["shed"]


def test_a_server_with_time_to_spare_sheds_nothing():
    closed, tap, _ = overloaded(0.02, 10.0, 0.25)
    assert {s for clip, _ in closed for s in clip.state.values()} == {"observed"}
    assert not any(isinstance(item, Decision) for item in tap.items)


def test_a_replay_sees_what_the_server_saw():
    closed, tap, desk = overloaded(0.08, 20.0, 0.4)
    receiver = Receiver(desk.plan.info, SPEC, desk.receiver.rule, delay=desk.offer.delay(desk.plan).policy,
                        parts=fake_parts(chained=("video",)))  # fmt: skip
    for item in tap.items:  # as a recording is read: these come first
        if isinstance(item, Decision):
            receiver.push(replace(item, arrival=0.0), 0.0)
    packets = [item for item in tap.items if isinstance(item, Packet)]
    replayed = [c for p in packets for c in receiver.push(p, p.arrival)] + receiver.finish()
    assert [(c.index, c.version, c.state, c.presence) for c, _ in closed] == [
        (c.index, c.version, c.state, c.presence) for c in replayed
    ]
    for (ours, _), theirs in zip(closed, replayed, strict=True):
        assert (ours.video is None) == (theirs.video is None)
        assert ours.video is None or (ours.video == theirs.video).all()


def test_decisions_are_kept_as_a_replay_needs_them():
    _, tap, _ = overloaded(0.08, 10.0, 0.4)
    decisions = [item for item in tap.items if isinstance(item, Decision)]
    assert {(d.kind, d.modality, d.reason) for d in decisions} == {("shed", "video", BACKLOG)}
    arrivals = [item.arrival for item in tap.items]
    assert arrivals == sorted(arrivals)


def test_a_packet_of_an_unknown_place_sheds_nothing():
    catchup = CatchUp(Receiver(INFO, SPEC, parts=fake_parts()), CODECS, 0.25)
    assert list(catchup.decide(replace(packet(), arrival=0.0), 5.0)) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_real_pictures_and_sound_are_skipped_alike_in_a_replay(seed):
    from encoders.clips import AudioSpec, ClipSpec, VideoSpec

    spec = ClipSpec(seconds=SPEC.seconds, video=VideoSpec(frames=10, size=48), audio=AudioSpec(sample_rate=16_000))
    reader, rng = RecordingReader(DEMO), np.random.default_rng(seed)
    packets = [p for p in reader.packets() if isinstance(p, Packet) and p.decode_seconds < 12.0]
    live, tape = Receiver(reader.info, spec, delay=0.1), []
    catchup, clips, waited = CatchUp(live, reader.info.codecs, 0.25), [], 0.0
    for item in packets:
        waited = min(max(waited + rng.normal(0.0, 0.05), 0.0), 0.8)
        for decision in catchup.decide(item, item.arrival + waited):
            tape.append(decision)
            clips += live.push(decision, item.arrival)
        clips += live.push(item, item.arrival)
    clips += live.finish()
    again = Receiver(reader.info, spec, delay=0.1)
    for decision in tape:
        again.push(replace(decision, arrival=packets[0].arrival), packets[0].arrival)
    replayed = [c for item in packets for c in again.push(item, item.arrival)] + again.finish()
    assert {m for c in clips for m, s in c.state.items() if s == "shed"} == {"video", "audio"}
    assert [(c.index, c.version, c.state) for c in clips] == [(c.index, c.version, c.state) for c in replayed]
    for ours, theirs in zip(clips, replayed, strict=True):
        for a, b in ((ours.video, theirs.video), (ours.audio, theirs.audio)):
            assert (a is None) == (b is None) and (a is None or a.tobytes() == b.tobytes())
    live.ledger.check()
