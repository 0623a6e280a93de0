"""The dispatcher: who is told what, and that no stream feels another; with a clock of our own where time matters."""

import random
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from runtime.batches import BatchPolicy
from runtime.clip import Clip
from runtime.config import WindowSettings
from runtime.dispatch import Answer, Dispatcher
from runtime.engine import Engine, Job, Task
from runtime.errors import LegatoError
from runtime.observe import Observer
from runtime.stream import Stream, Windows
from tests.bundles import WINDOW, write_tiny_bundle
from tests.fakes import FakeClock


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle"))


def engine_of(bundle: Any, *, deterministic: bool = False, precision: str = "fp32") -> Engine:
    task = Task.of(bundle.manifest, bundle.hash)
    return Engine(bundle.models(), task, deterministic=deterministic, precision=precision)


@pytest.fixture(scope="module")
def engine(bundle: Any) -> Engine:
    return engine_of(bundle)


def stream(name: str = "s", lookahead: int = 2) -> Stream:
    return Stream(name, Windows(WindowSettings(clips=WINDOW, lookahead=lookahead, min_clips=2)))


def clip(index: int, seed: int = 0, *, lost: str = "", version: int = 0, epoch: int = 0) -> Clip:
    """A clip of the tiny bundle's shape, drawn from its seed; ``lost`` names the modality that did not come."""
    rng = np.random.default_rng((seed, index))
    here = {m: lost not in (m, "both") for m in ("video", "audio")}
    return Clip(
        index=index,
        epoch=epoch,
        start=index * Fraction(1, 2),
        seconds=Fraction(1, 2),
        video=rng.integers(0, 256, (8, 32, 32, 3), np.uint8) if here["video"] else None,
        audio=(0.1 * rng.standard_normal(8000)).astype(np.float32) if here["audio"] else None,
        presence=here,
        coverage={m: float(h) for m, h in here.items()},
        state={m: "observed" if h else "lost" for m, h in here.items()},
        flags={"video": (), "audio": ()},
        severity={"video": 0.0, "audio": 0.0},
        version=version,
    )


class Sink(list[Answer]):
    """Keeps what a stream was told."""

    def __call__(self, answer: Answer) -> None:
        self.append(answer)

    @property
    def predictions(self) -> list[Any]:
        return [p for answer in self for p in answer.predictions]

    @property
    def clips(self) -> list[int]:
        return [answer.encoded.clip for answer in self if answer.encoded is not None]


class Seen(Observer):
    def __init__(self) -> None:
        self.batches: list[int] = []
        self.stages: dict[str, int] = defaultdict(int)
        self.filled: dict[tuple[str, str], int] = defaultdict(int)
        self.modalities: list[str] = []

    def batch(self, size: int) -> None:
        self.batches.append(size)

    def stage(self, stage: str, seconds: float) -> None:
        self.stages[stage] += 1

    def concealed(self, modality: str, rung: str, n: int = 1) -> None:
        self.filled[modality, rung] += n

    def shed(self, modality: str) -> None:
        self.modalities.append(modality)


def settled(dispatcher: Dispatcher, clock: FakeClock) -> None:
    """Rounds until nothing is left to do."""
    for _ in range(10_000):
        due = dispatcher.step()
        if due is None:
            return
        clock.sleep_until(due)
    raise AssertionError("a dispatcher that never settles")


def quiet(engine: Engine, **policy: Any) -> tuple[Dispatcher, FakeClock]:
    clock = FakeClock()
    return Dispatcher(engine, clock=clock, policy=BatchPolicy(**policy)), clock


# -- answers --------------------------------------------------------------------------------------------------------


def test_every_clip_is_answered_once_and_the_end_comes_last(engine):
    dispatcher, clock = quiet(engine)
    own, sink = stream(), Sink()
    dispatcher.attach(own, sink)
    for k in range(5):
        dispatcher.submit(own, clip(k), deadline=1.0)
    dispatcher.end(own)
    settled(dispatcher, clock)
    assert sink.clips == [0, 1, 2, 3, 4]
    assert [a.last for a in sink] == [False] * 5 + [True]
    assert [(p.clip, p.status) for p in sink[-1].predictions] == [(3, "final"), (4, "final")]
    assert dispatcher.stats().streams == 0


def test_clips_of_all_streams_go_in_one_batch(engine):
    seen, clock = Seen(), FakeClock()
    dispatcher = Dispatcher(engine, clock=clock, observer=seen)
    for n in range(5):
        own = stream(str(n))
        dispatcher.attach(own, Sink())
        dispatcher.submit(own, clip(0, n, lost="video" if n == 4 else ""), deadline=1.0)
    settled(dispatcher, clock)
    assert seen.batches == [5] and dispatcher.stats().batch_sizes == {5: 1}
    assert dict(seen.stages) == {"queue": 5, "encode": 5, "fill": 5}
    assert dispatcher.stats().latencies["encode"].p99 > 0


def test_queueing_is_part_of_the_total(engine):
    dispatcher, clock = quiet(engine, max_wait_seconds=0.25)
    own, sink = stream(), Sink()
    dispatcher.attach(own, sink)
    for k in range(2):
        dispatcher.submit(own, clip(k), deadline=9.0)
    settled(dispatcher, clock)
    timings = sink.predictions[-1].timings
    assert sink[-1].encoded is not None and sink[-1].encoded.queue_ms == pytest.approx(250)
    assert timings.total_ms == pytest.approx(250 + timings.encode_ms + timings.fill_ms)


def test_what_was_filled_is_counted_once_for_each_clip(engine):
    seen, clock = Seen(), FakeClock()
    dispatcher, own = Dispatcher(engine, clock=clock, observer=seen), stream()
    dispatcher.attach(own, Sink())
    for k in range(6):
        dispatcher.submit(own, clip(k, lost="audio" if k in (2, 3) else ""), deadline=1.0)
    dispatcher.end(own)
    settled(dispatcher, clock)
    assert sum(seen.filled.values()) == 2 and {m for m, _ in seen.filled} == {"audio"}


def test_a_clip_of_a_stream_that_is_not_attached_is_ignored(engine):
    dispatcher, clock = quiet(engine)
    own, sink = stream(), Sink()
    dispatcher.submit(own, clip(0), deadline=1.0)
    dispatcher.attach(own, sink)
    dispatcher.end(own)
    settled(dispatcher, clock)
    dispatcher.submit(own, clip(0), deadline=1.0)  # after the end
    settled(dispatcher, clock)
    assert [a.last for a in sink] == [True] and dispatcher.stats().counters["ignored"] == 2


# -- ending early ---------------------------------------------------------------------------------------------------


def test_a_detached_stream_is_dropped_at_once_and_never_called_again(engine):
    dispatcher, clock = quiet(engine)
    one, other, gone, stays = stream("one"), stream("other"), Sink(), Sink()
    dispatcher.attach(one, gone)
    dispatcher.attach(other, stays)
    for k in range(3):
        for own in (one, other):
            dispatcher.submit(own, clip(k), deadline=1.0)
    dispatcher.detach(one)
    dispatcher.detach(one)  # again is harmless
    settled(dispatcher, clock)
    assert gone == [] and stays.clips == [0, 1, 2] and one.windows.total == 0
    assert dispatcher.stats().queued == 0 and dispatcher.stats().queued_bytes == 0


def test_a_stream_that_goes_while_its_batch_runs_costs_nothing_more(engine, monkeypatch):
    dispatcher, clock = quiet(engine)
    one, other = stream("one"), stream("other")
    dispatcher.attach(one, Sink())
    dispatcher.attach(other, stays := Sink())
    for own in (one, other):
        dispatcher.submit(own, clip(0), deadline=1.0)
    rows: list[int] = []
    for modality, forward in engine.together.forwards.items():

        def watched(clips: Any, modality: str = modality, forward: Any = forward) -> Any:
            if modality == "video":
                dispatcher.detach(one)  # hangs up while the first modality is encoded
            rows.append(len(clips))
            return forward(clips)

        monkeypatch.setitem(engine.together.forwards, modality, watched)
    settled(dispatcher, clock)
    assert rows == [2, 1] and one.windows.total == 0 and stays.clips == [0]


def test_a_stream_can_be_attached_again_and_goes_on(engine):
    dispatcher, clock = quiet(engine)
    own, first, second = stream(), Sink(), Sink()
    dispatcher.attach(own, first)
    dispatcher.submit(own, clip(0), deadline=1.0)
    settled(dispatcher, clock)
    dispatcher.detach(own)
    dispatcher.attach(own, second)
    dispatcher.submit(own, clip(1), deadline=1.0)
    settled(dispatcher, clock)
    assert (first.clips, second.clips) == ([0], [1]) and second.predictions[0].clip == 1


# -- faults ---------------------------------------------------------------------------------------------------------


def faulty(engine: Engine, monkeypatch: pytest.MonkeyPatch, modality: str, fault: Callable[[Any], Any]) -> None:
    """The encoder fails, or says nonsense, whenever the clip that is all 7 is in its batch."""
    inner = engine.together.forwards[modality]

    def forward(clips: list[np.ndarray]) -> np.ndarray:
        features = inner(clips)
        for row, pixels in enumerate(clips):
            if (pixels == 7).all():
                features[row] = fault(features[row])
        return features

    monkeypatch.setitem(engine.together.forwards, modality, forward)


def crash(_feature: Any) -> Any:
    raise RuntimeError("the kernel was not in the mood\nand more")


@pytest.mark.parametrize("fault", [crash, lambda feature: feature * np.nan])
def test_a_fault_ends_its_own_stream_and_no_other(engine, monkeypatch, fault):
    faulty(engine, monkeypatch, "video", fault)
    dispatcher, clock = quiet(engine)
    streams = {name: stream(name) for name in ("good", "bad", "fine")}
    sinks = {name: Sink() for name in streams}
    for name, own in streams.items():
        dispatcher.attach(own, sinks[name])
        for k in range(3):
            made = clip(k)
            if name == "bad" and k == 1:
                made = replace(made, video=np.full_like(made.video, 7))
            dispatcher.submit(own, made, deadline=1.0)
    settled(dispatcher, clock)
    assert sinks["good"].clips == sinks["fine"].clips == [0, 1, 2]
    assert [(a.last, a.error is None) for a in sinks["bad"]][-1] == (True, False)
    assert "clip 1" in str(sinks["bad"][-1].error) and "\n" not in str(sinks["bad"][-1].error)
    assert dispatcher.stats().counters["failed"] == 1
    alone = Sink()
    dispatcher.attach(own := stream("good"), alone)
    for k in range(3):
        dispatcher.submit(own, clip(k), deadline=1.0)
    settled(dispatcher, clock)
    close(sinks["good"].predictions, alone.predictions)


def test_a_fault_in_a_window_is_tracked_to_its_stream(engine, monkeypatch):
    inner = engine.together.classify

    def classify(windows: Any) -> Any:
        if any(w.clips[-1].start_seconds == 99 for w in windows):
            raise ValueError("no such window")
        return inner(windows)

    monkeypatch.setattr(engine.together, "classify", classify)
    dispatcher, clock = quiet(engine)
    good, bad = Sink(), Sink()
    for sink, start in ((good, Fraction(0)), (bad, Fraction(99))):
        own = stream(str(start), lookahead=0)
        dispatcher.attach(own, sink)
        dispatcher.submit(own, clip(0), deadline=1.0)
        dispatcher.submit(own, replace(clip(1), start=start), deadline=1.0)
    settled(dispatcher, clock)
    assert len(good.predictions) == 1 and good[-1].error is None
    assert "ValueError: no such window" in str(bad[-1].error)


def test_a_sink_that_raises_ends_its_own_stream(engine):
    dispatcher, clock = quiet(engine)

    def broken(_answer: Answer) -> None:
        raise OSError("gone")

    dispatcher.attach(bad := stream("bad"), broken)
    dispatcher.attach(good := stream("good"), sink := Sink())
    for k in range(2):
        for own in (bad, good):
            dispatcher.submit(own, clip(k), deadline=1.0)
    settled(dispatcher, clock)
    assert sink.clips == [0, 1] and dispatcher.stats().counters["sinks_failed"] == 1
    assert dispatcher.stats().streams == 1


def test_a_device_that_is_gone_ends_all_streams_and_readiness(engine, monkeypatch):
    def dead(*_: Any) -> Any:
        raise RuntimeError("device lost")

    for modality in engine.together.forwards:
        monkeypatch.setitem(engine.together.forwards, modality, dead)
    dispatcher, clock = quiet(engine)
    dispatcher.attach(busy := stream("busy"), told := Sink())
    dispatcher.attach(stream("idle"), idle := Sink())
    dispatcher.submit(busy, clip(0), deadline=1.0)
    settled(dispatcher, clock)
    assert told[-1].error is not None and "no longer run on cpu" in str(idle[-1].error)
    assert not dispatcher.ready


# -- shedding and bounds --------------------------------------------------------------------------------------------


def test_what_is_shed_is_told_as_a_decision_and_the_clip_is_filled(engine):
    seen, clock = Seen(), FakeClock()
    dispatcher = Dispatcher(engine, clock=clock, observer=seen)
    own, sink = stream(), Sink()
    dispatcher.attach(own, sink)
    for k in range(8):
        dispatcher.submit(own, clip(k), deadline=clock.seconds + 1)
        settled(dispatcher, clock)
    dispatcher.costs._rows.clear()
    dispatcher.costs.observe("video", 1, 0.1)  # what the device is believed to take
    dispatcher.costs.observe("audio", 1, 0.1)
    other = stream("other")
    dispatcher.attach(other, Sink())
    now = clock.seconds
    dispatcher.submit(own, clip(8), deadline=now + 0.25)
    dispatcher.submit(other, clip(0, lost="video"), deadline=now + 0.25)
    settled(dispatcher, clock)
    shed = [a.shed for a in sink if a.shed is not None]
    assert [(d.kind, d.modality, d.clip, d.reason) for d in shed] == [("shed", "video", 8, "load")]
    assert sink[-1].encoded.state == {"video": "shed", "audio": "observed"} and seen.modalities == ["video"]
    assert sink.predictions[-1].clips[-1].rung["video"] != "observed"
    assert sink.clips == list(range(9))


def test_a_stream_that_floods_gives_up_content_and_is_still_answered(engine):
    dispatcher, clock = quiet(engine, per_stream=3, shed=False)
    dispatcher.attach(own := stream(), sink := Sink())
    dispatcher.attach(calm := stream("calm"), other := Sink())
    for k in range(6):
        dispatcher.submit(own, clip(k), deadline=1.0)
    dispatcher.submit(calm, clip(0), deadline=1.0)
    settled(dispatcher, clock)
    assert sink.clips == list(range(6)) and other.clips == [0]
    states = [set(a.encoded.state.values()) for a in sink if a.encoded is not None]
    assert states == [{"shed"}] * 3 + [{"observed"}] * 3
    assert [(a.shed.clip, a.shed.modality) for a in sink if a.shed is not None] == [
        (k, m) for k in range(3) for m in ("video", "audio")
    ]


def test_a_stream_whose_line_is_full_is_told_and_over(engine):
    dispatcher, clock = quiet(engine, max_line=4)
    dispatcher.attach(own := stream(), sink := Sink())
    for k in range(6):
        dispatcher.submit(own, clip(k), deadline=1.0)
    settled(dispatcher, clock)
    assert len(sink) == 1 and sink[0].last and "4 clips waiting" in str(sink[0].error)


# -- the canary -----------------------------------------------------------------------------------------------------


def cast(count: int) -> dict[str, list[Clip]]:
    """Clips of ``count`` streams that differ in content, loss, length, repairs and epochs."""
    made: dict[str, list[Clip]] = {}
    for n in range(count):
        rng, clips, epoch = random.Random(n), list[Clip](), 0
        for k in range(3 + n % 4):
            lost = rng.choices(["", "video", "audio", "both"], [10 - n % 8, 2, 2, n % 4])[0]
            epoch += n % 7 == 3 and k == 2
            clips.append(clip(k, n, lost=lost, epoch=epoch))
            if lost and rng.random() < 0.5:
                clips.append(clip(k, n, version=1, epoch=epoch))
        made[f"stream {n}"] = clips
    return made


def play(engine: Engine, streams: dict[str, list[Clip]], order: random.Random) -> dict[str, list[Any]]:
    """All streams through one dispatcher, their clips in a random interleaving, with rounds at random moments."""
    clock = FakeClock()
    dispatcher = Dispatcher(engine, clock=clock, policy=BatchPolicy(shed=False, max_batch=8, max_wait_seconds=0.01))
    sinks = {name: Sink() for name in streams}
    states = {name: stream(name, lookahead=2) for name in streams}
    for name in streams:
        dispatcher.attach(states[name], sinks[name])
    left = {name: list(clips) for name, clips in streams.items()}
    while left:
        name = order.choice(list(left))
        if left[name]:
            dispatcher.submit(states[name], left[name].pop(0), deadline=clock.seconds + order.random())
        else:
            dispatcher.end(states[name])
            del left[name]
        if order.random() < 0.3:
            due = dispatcher.step()
            clock.move(0.0 if due is None else order.random() * 0.02)
    settled(dispatcher, clock)
    assert all(sink[-1].last and sink[-1].error is None for sink in sinks.values())
    return {name: sink.predictions for name, sink in sinks.items()}


def facts(predictions: list[Any]) -> list[dict[str, Any]]:
    """Everything but the numbers that may round."""
    rounding = ("timings", "probabilities", "confidence")
    return [{k: v for k, v in p.as_dict().items() if k not in rounding} for p in predictions]


def close(found: list[Any], expected: list[Any], within: float = 1e-4) -> None:
    assert facts(found) == facts(expected)
    for one, other in zip(found, expected, strict=True):
        assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=within)


def test_twenty_mixed_streams_each_hear_what_they_would_hear_alone(engine):
    streams = cast(20)
    alone = {name: play(engine, {name: clips}, random.Random(0))[name] for name, clips in streams.items()}
    for seed in range(2):
        together = play(engine, streams, random.Random(seed))
        for name in streams:
            close(together[name], alone[name])


def test_twenty_mixed_streams_are_byte_equal_to_their_replay_when_deterministic(bundle):
    exact, streams = engine_of(bundle, deterministic=True), cast(20)
    together = play(exact, streams, random.Random(1))
    for name, clips in streams.items():
        own, replayed = stream(name), []
        for item in clips:
            exact.submit(own, item)
            replayed += exact.run()
        exact.end(own)
        replayed += exact.run()
        assert [p.as_dict(timings=False) for p in together[name]] == [p.as_dict(timings=False) for p in replayed]


def test_batched_and_deterministic_serving_agree_within_rounding(bundle, engine):
    exact, streams = engine_of(bundle, deterministic=True), cast(8)
    found, expected = (play(e, streams, random.Random(2)) for e in (engine, exact))
    for name in streams:
        close(found[name], expected[name])


def test_bf16_stays_within_two_hundredths(bundle, engine):
    half, streams = engine_of(bundle, precision="bf16"), cast(8)
    assert half.dtype == torch.bfloat16
    found, expected = (play(e, streams, random.Random(2)) for e in (half, engine))
    for name in streams:
        strip = [[{**f, "label": None} for f in facts(side[name])] for side in (found, expected)]
        assert strip[0] == strip[1]
        for one, other in zip(found[name], expected[name], strict=True):
            assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=2e-2)


def test_a_batch_may_hold_a_clip_and_its_repair(engine):
    own = stream(lookahead=2)
    jobs = [Job(own, clip(0)), Job(own, clip(1, lost="video")), Job(own, clip(1, version=1)), Job(own, None)]
    done = engine.serve(jobs).done
    assert [(p.clip, p.revision, p.status) for d in done for p in d.predictions] == [
        (1, 0, "provisional"),
        (1, 1, "provisional"),
        (1, 2, "final"),
    ]


# -- the thread -----------------------------------------------------------------------------------------------------


def test_the_thread_warms_up_serves_and_drains(engine):
    dispatcher = Dispatcher(engine)
    assert not dispatcher.ready
    dispatcher.start()
    assert dispatcher.ready and dispatcher.stats().ready
    ended = threading.Event()
    own, sink = stream(), Sink()

    def told(answer: Answer) -> None:
        sink(answer)
        if answer.last:
            ended.set()

    dispatcher.attach(own, told)
    for k in range(4):
        dispatcher.submit(own, clip(k), deadline=dispatcher.clock.now() + 5)
    dispatcher.end(own)
    assert ended.wait(30) and sink.clips == [0, 1, 2, 3]
    dispatcher.stop(grace=5.0)
    assert not dispatcher.ready and sum(n * size for size, n in dispatcher.stats().batch_sizes.items()) == 4


def test_stopping_drains_within_its_grace_and_tells_who_was_left(engine):
    dispatcher = Dispatcher(engine, policy=BatchPolicy(max_wait_seconds=60.0))
    dispatcher.start()
    dispatcher.attach(own := stream(), sink := Sink())
    for k in range(3):
        dispatcher.submit(own, clip(k), deadline=dispatcher.clock.now() + 100)
    dispatcher.stop(grace=30.0)
    assert sink.clips == [0, 1, 2] and sink[-1].last and "stopped before the stream ended" in str(sink[-1].error)
    dispatcher.submit(own, clip(3), deadline=0.0)
    assert len(sink) == 4


def test_stopping_without_grace_drops_what_waits(engine):
    dispatcher = Dispatcher(engine, policy=BatchPolicy(max_wait_seconds=60.0))
    dispatcher.start()
    dispatcher.attach(own := stream(), sink := Sink())
    dispatcher.submit(own, clip(0), deadline=dispatcher.clock.now() + 100)
    dispatcher.stop()
    assert [a.last for a in sink][-1] and len(sink.clips) <= 1


def test_a_failed_warm_up_is_raised_where_it_was_started(engine, monkeypatch):
    def refuse() -> None:
        raise LegatoError("no such device; use cpu")

    monkeypatch.setattr(engine, "warm_up", refuse)
    dispatcher = Dispatcher(engine)
    with pytest.raises(LegatoError, match="no such device"):
        dispatcher.start()
    assert not dispatcher.ready


def test_many_threads_submit_and_hang_up_at_random_and_everyone_else_is_served(engine):
    dispatcher = Dispatcher(engine)
    dispatcher.start()
    ends: dict[int, Sink] = {}

    def client(n: int) -> None:
        own, sink, over = stream(str(n)), Sink(), threading.Event()
        ends[n] = sink

        def told(answer: Answer) -> None:
            sink(answer)
            if answer.last:
                over.set()

        dispatcher.attach(own, told)
        for k in range(6):
            dispatcher.submit(own, clip(k, n), deadline=dispatcher.clock.now() + 5)
            if n % 3 == 0 and k == 3:
                dispatcher.detach(own)
                sink.append(Answer(last=True))  # nothing may follow it
                return
        dispatcher.end(own)
        assert over.wait(60)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    dispatcher.stop(grace=5.0)
    for n, sink in ends.items():
        assert [a.last for a in sink].index(True) == len(sink) - 1
        assert sink.clips == list(range(len(sink.clips))) and (n % 3 == 0 or len(sink.clips) == 6)
