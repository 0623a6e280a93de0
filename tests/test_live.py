"""Live runs: deadlines that pass while nothing comes, a recording that replays to the same, loss, overload."""

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imputation.profiles import open_profile
from runtime.batches import BatchPolicy
from runtime.errors import OutputError
from runtime.live import ImpairedLive, LiveRun, Recorder, receive_live
from runtime.packet import Decision, Packet
from runtime.pipeline import Pipeline, receive
from runtime.receive import Receiver
from runtime.recording import RecordingReader
from runtime.sources import LiveSource, open_source
from tests.bundles import write_tiny_bundle
from tests.fakes import INFO, SPEC, fake_parts, packet, sent, stream, track
from tests.scripts import DESK, Item, Script, desk


def receiver(**options: Any) -> Receiver:
    return Receiver(INFO, SPEC, parts=fake_parts(), stopwatch=lambda: 0.0, **options)


def told(clips: Any) -> list[tuple[Any, ...]]:
    return [(c.index, c.version, c.state, c.coverage, c.flags, round(c.wait_ms, 6)) for c in clips]


def live(items: Sequence[Item], stop: threading.Event | None = None, **options: Any) -> tuple[list[Any], list[Item]]:
    """Clips of a live run, and what a recording of it holds."""
    source, tape = Script(items), []
    return list(receive_live(source, receiver(**options), source.clock, stop, tape.append)), tape


# -- the receiver, live ---------------------------------------------------------------------------------------------


def test_a_script_is_a_live_source():
    assert isinstance(Script([]), LiveSource) and not isinstance(open_source, LiveSource)


def test_clips_close_at_their_deadline_although_nothing_comes():
    """Both modalities stop after a second: the third clip closes by time alone, before the last packet is read."""
    source = Script([*stream(1.0), packet(seq=100, ms=4000, arrival=4.04)])
    closed: list[tuple[int, float]] = []
    for clip in receive_live(source, receiver(delay=0.1), source.clock):
        closed.append((clip.index, source.clock.seconds))
    assert closed[2][0] == 2 and 1.2 < closed[2][1] < 1.5
    assert [index for index, _ in closed] == list(range(len(closed)))


def test_a_live_run_and_the_replay_of_what_it_recorded_close_the_same_clips():
    items = stream(4.0, lambda p: 0.3 if p.seq % 7 == 0 else 0.01)
    clips, tape = live([i for i in items if i.seq % 11])
    assert told(clips) == told(receive(tape, receiver()))


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), stop_after=st.floats(0.2, 3.0))
def test_so_do_runs_with_any_loss_delay_outage_and_end(seed, stop_after):
    chance = random.Random(seed)
    silent = {m: (a := chance.uniform(0, 2), a + chance.uniform(0, 3)) for m in ("video", "audio")}
    items: list[Item] = [
        replace(p, arrival=p.arrival + chance.expovariate(30))
        for p in stream(3.0)
        if chance.random() > 0.1 and not silent[p.modality][0] < p.seconds < silent[p.modality][1]
    ]
    items += [Decision(kind="device_lost", modality=m, arrival=a + 2) for m, (a, _) in silent.items()]
    stop = threading.Event()
    source, tape = Script(items), []
    clips = []
    ours = receiver(lookahead=chance.randint(0, 2))
    for clip in receive_live(source, ours, source.clock, stop, tape.append):
        clips.append(clip)
        if source.clock.seconds >= stop_after:
            stop.set()
    again = receiver(lookahead=ours.lookahead)
    assert told(clips) == told(receive(tape, again))
    assert ours.ledger.as_dict() == again.ledger.as_dict()
    ours.ledger.check()


def test_a_packet_stamped_before_the_time_that_passed_counts_as_come_now():
    """A source that stamps before it queues: the recording holds what the receiver was told."""

    class Tardy(Script):
        def read(self, timeout: float) -> Item | None:
            item = super().read(timeout)
            return replace(item, arrival=item.arrival - 0.5) if isinstance(item, Packet) and item.seq > 60 else item

    source, tape = Tardy(sent(track("video", 4.0), lambda p: 0.4 if 20 < p.seq < 60 else 0.0)), []
    clips = list(receive_live(source, receiver(), source.clock, None, tape.append))
    assert told(clips) == told(receive(tape, receiver()))


def test_the_end_is_kept_so_that_silence_before_it_is_silence_in_a_replay():
    stop = threading.Event()
    source, tape = Script([*stream(1.2), packet(seq=999, ms=99_000, arrival=99.0)]), []
    clips = []
    for clip in receive_live(source, receiver(delay=0.1), source.clock, stop, tape.append):
        clips.append(clip)
        if source.clock.seconds > 2.0:
            stop.set()
    assert [i.kind for i in tape if isinstance(i, Decision)] == ["device_lost", "device_lost"]
    assert len(clips) > 3 and told(clips) == told(receive(tape, receiver(delay=0.1)))


# -- loss -----------------------------------------------------------------------------------------------------------


def test_a_lossy_channel_loses_live_what_it_loses_in_a_file():
    from runtime.impair import impair

    items = stream(10.0)
    profile = open_profile("wifi-poor")
    wanted = [(p.modality, p.seq, p.arrival) for p in impair(items, profile, 3, codecs=INFO.codecs)]
    source = ImpairedLive(Script(items), profile, 3)
    assert isinstance(source, LiveSource)
    got = [(p.modality, p.seq, p.arrival) for p in source.packets()]
    assert sorted(got) == sorted(wanted) and len(got) < len(items)
    assert [a for *_, a in got] == sorted(a for *_, a in got)


def test_what_a_channel_holds_back_is_handed_out_when_it_arrives():
    script = Script(stream(2.0))
    source, seen = ImpairedLive(script, open_profile("wifi-burst"), 0), 0
    while not script.ended:
        item = source.read(0.05)
        assert item is None or source.clock.now() >= item.arrival - 1e-9 or script.ended
        seen += item is not None
    assert seen > 50 and source.clock.now() < 2.1


# -- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny").path


def made(bundle: Path, lookahead: int) -> Pipeline:
    return Pipeline.from_bundle(bundle, device="cpu", preset="interactive", lookahead=lookahead)


def without_timings(predictions: Any) -> list[dict[str, Any]]:
    return [p.as_dict(timings=False) | {"stream": ""} for p in predictions]


@pytest.mark.parametrize(("lookahead", "profile"), [(0, ""), (2, ""), (1, "wifi-poor")])
def test_a_live_run_says_what_the_replay_of_its_recording_says(bundle, tmp_path, lookahead, profile):
    pipeline = made(bundle, lookahead)
    source: Any = Script(desk(6.0), DESK)
    if profile:
        source = ImpairedLive(source, open_profile(profile), 1)
    recorder = Recorder(tmp_path / "desk.legato", source.info)
    with LiveRun(pipeline, source, tap=recorder) as run:
        said = list(run.predictions())
    recorder.close()
    again = list(made(bundle, lookahead).run(open_source(tmp_path / "desk.legato")))
    assert without_timings(said) == without_timings(again)
    assert {s for p in said for c in p.clips for s in c.state.values()} >= {"observed", "lost"}
    run.stream.receiver.ledger.check()
    assert run.tally.closed == run.stream.windows.total and run.tally.windows == len(said)


def test_models_that_cannot_keep_up_shed_clips_and_a_replay_sheds_the_same(bundle, tmp_path, monkeypatch):
    """The models stand still until the script has played, and one clip may wait: most of what comes overflows."""
    source, pipeline, nobody = Script(desk(8.0), DESK), made(bundle, 0), threading.Event()
    serve = pipeline.engine.serve

    def late(*arguments: Any, **options: Any) -> Any:
        while not source.ended:
            nobody.wait(0.001)
        return serve(*arguments, **options)

    monkeypatch.setattr(pipeline.engine, "serve", late)
    recorder = Recorder(tmp_path / "desk.legato", source.info)
    with LiveRun(pipeline, source, tap=recorder, policy=BatchPolicy(per_stream=1)) as run:
        said = list(run.predictions())
    recorder.close()
    shed = {(d.modality, d.clip) for d in RecordingReader(tmp_path / "desk.legato").packets() if kind(d) == "shed"}
    assert shed and shed == {(m, c.clip) for p in said for c in p.clips for m, s in c.state.items() if s == "shed"}
    again = list(made(bundle, 0).run(open_source(tmp_path / "desk.legato")))
    assert without_timings(said) == without_timings(again)


def kind(item: Item) -> str:
    return item.kind if isinstance(item, Decision) else "packet"


def test_a_run_that_is_stopped_ends_at_once_with_its_last_answers(bundle, tmp_path):
    source = Script(desk(6.0), DESK)
    recorder = Recorder(tmp_path / "desk.legato", source.info)
    with LiveRun(made(bundle, 2), source, tap=recorder) as run:
        said = []
        for prediction in run.predictions():
            said.append(prediction)
            if len(said) == 3:
                run.stop()
    recorder.close()
    assert said[-1].status == "final" and not source.closed
    assert without_timings(said) == without_timings(made(bundle, 2).run(open_source(tmp_path / "desk.legato")))


def test_what_the_model_raises_is_raised_where_predictions_are_read(bundle):
    class Breaks(Script):
        def read(self, timeout: float) -> Item | None:
            raise OutputError("the disk went away")

    with (
        pytest.raises(OutputError, match="the disk went away"),
        LiveRun(made(bundle, 0), Breaks(stream(1.0), DESK)) as run,
    ):
        list(run.predictions())


def test_a_disk_that_fills_up_ends_the_recording_not_the_run(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path / "a.legato", INFO)
    monkeypatch.setattr(recorder._writer, "append", lambda item: (_ for _ in ()).throw(OutputError("disk full")))
    for item in stream(1.0):
        recorder(item)
    recorder.close()
    assert recorder.failure == "disk full" and not recorder.running


def test_a_pipeline_takes_a_live_source_as_any_other(bundle):
    said = list(made(bundle, 0).run(Script(desk(6.0), DESK)))
    assert len(said) > 8
    early = made(bundle, 0).run(Script(desk(6.0), DESK))
    next(early)
    early.close()  # its threads end
    assert not [t for t in threading.enumerate() if t.name == "legato-decode" and t.is_alive() and _still(t)]


def _still(thread: threading.Thread) -> bool:
    thread.join(2)
    return thread.is_alive()
