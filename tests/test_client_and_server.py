"""Our client and our server, over real gRPC, with a model that counts: whatever dies, every final prediction once."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from runtime.config import DelaySettings, RuntimeConfig, WindowSettings
from runtime.errors import ServiceError
from runtime.prediction import Prediction
from runtime.serve.client import Client
from runtime.serve.client_session import Retrying, Started
from runtime.serve.client_state import Progress
from runtime.serve.refusals import Backoff
from tests.fakes import INFO, ListSource, stream
from tests.serving import Host, offer

SECONDS = 8.0
WINDOW = WindowSettings(clips=4, lookahead=2, min_clips=2)


def patient_host(**settings: Any) -> Host:
    """A server that waits for everything, so that nothing is late."""
    patient = RuntimeConfig(window=WINDOW, delay=DelaySettings(floor=5.0, cap=10.0))
    return Host(lambda: {"fake": offer(window=WINDOW, config=patient)}, grace=2.0, **settings)


@pytest.fixture
def host():
    made = patient_host()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(Backoff, "FIRST", 0.001)
    monkeypatch.setattr(Backoff, "MOST", 0.05)


HEADS = ("gru", "linear")

# Nothing of it is lost: a hole would be waited for in the server's time, which passes otherwise each time.
PACKETS = [replace(p, keyframe=p.modality == "audio" or p.seq % 12 == 0) for p in stream(SECONDS)]


def source() -> ListSource:
    return ListSource(PACKETS, INFO)


class Unhurried(ListSource):
    """Takes more than half a second to be read, so that a stream is not over before a test does something to it."""

    def packets(self) -> Any:
        for packet in super().packets():
            time.sleep(0.001)
            yield packet


def unhurried() -> ListSource:
    return Unhurried(PACKETS, INFO)


def told(predictions: list[Prediction]) -> list[Any]:
    return [(p.head, p.clip, p.epoch, p.label, p.observed_share, p.clips) for p in predictions if p.status == "final"]


def play(host: Host, disturb: Callable[[int], object] = lambda count: None, **options: Any) -> list[Prediction]:
    """Everything that is told; ``disturb`` is called with how much was, after each."""
    predictions = []
    for prediction in Client(host.address, patience=20.0).run(unhurried, heads=HEADS, **options):
        predictions.append(prediction)
        disturb(len(predictions))
    return predictions


@pytest.fixture(scope="module")
def undisturbed():
    host = patient_host()
    try:
        return told(play(host))
    finally:
        host.close()


def test_each_window_of_each_head_is_final_once(undisturbed):
    clips = round(SECONDS / 0.4)
    first = WINDOW.min_clips - 1
    assert [clip for head, clip, *_ in undisturbed if head == "gru"] == list(range(first, clips))
    assert [clip for head, clip, *_ in undisturbed if head == "linear"] == list(range(first, clips))
    assert {state for *_, provenance in undisturbed for c in provenance for state in c.state.values()} == {"observed"}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_a_server_killed_at_random_moments_loses_and_doubles_nothing(host, undisturbed, seed):
    moments = set(random.Random(seed).sample(range(1, 70), 3))
    assert told(play(host, lambda count: host.kill() if count in moments else None)) == undisturbed


def test_a_drained_server_hands_its_streams_on(host, undisturbed):
    events = []
    assert told(play(host, lambda count: host.drain() if count == 20 else None, observe=events.append)) == undisturbed
    assert any(isinstance(event, Retrying) for event in events)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kill", [False, True], ids=["the server survives", "the server dies too"])
def test_a_client_killed_at_random_moments_loses_and_doubles_nothing(host, undisturbed, seed, kill, monkeypatch):
    monkeypatch.setattr("runtime.serve.client_session.STORE_SECONDS", 0.0)
    rng = random.Random(seed)
    everything: list[Prediction] = []
    saved: tuple[Progress, int] = (Progress(), 0)

    def store(progress: Progress) -> None:
        nonlocal saved
        if rng.random() < 0.5:  # else it dies before that
            saved = (Progress.from_dict(progress.as_dict()), len(everything))

    for _ in range(4):
        progress, count = saved
        del everything[count:]  # the results file is cut back
        until = len(everything) + rng.randrange(5, 40)
        client = Client(host.address, patience=20.0)
        predictions = client.run(source, heads=HEADS, progress=Progress.from_dict(progress.as_dict()), stored=store)
        for prediction in predictions:
            everything.append(prediction)
            if len(everything) >= until:
                break
        predictions.close()
        if kill:
            host.kill()
    progress, count = saved
    del everything[count:]
    if not progress.complete:
        everything += Client(host.address, patience=20.0).run(source, heads=HEADS, progress=progress)
    assert told(everything) == undisturbed


def test_the_first_head_speaks_where_none_is_asked_for(host):
    assert {p.head for p in Client(host.address).run(source)} == {"gru"}


def test_a_stream_that_survived_its_connection_is_resumed(host, undisturbed):
    events, progress = [], Progress()
    predictions = Client(host.address).run(unhurried, heads=HEADS, progress=progress, observe=events.append)
    first = [next(predictions) for _ in range(15)]
    predictions.close()
    rest = list(Client(host.address).run(unhurried, heads=HEADS, progress=progress, observe=events.append))
    started = [event for event in events if isinstance(event, Started)]
    assert [event.resumed for event in started] == [False, True]
    assert told(first + rest) == undisturbed


def test_a_full_server_is_waited_for(undisturbed):
    host = patient_host(max_streams=1)
    try:
        first = Client(host.address).run(unhurried, heads=HEADS)
        next(first)
        events: list[Any] = []

        def make_room(event: Any) -> None:
            events.append(event)
            first.close()

        second = list(Client(host.address, patience=20.0).run(unhurried, heads=HEADS, observe=make_room))
        assert isinstance(events[0], Retrying)
        assert told(second) == undisturbed
    finally:
        host.close()


def test_what_the_server_refuses_is_one_sentence(host):
    with pytest.raises(ServiceError, match=r"refused: .*bundle"):
        list(Client(host.address).run(source, bundle="other"))
    with pytest.raises(ServiceError, match=r"refused: .*head"):
        list(Client(host.address).run(source, heads=["nobody"]))
    assert Client(host.address).describe().name == "fake"
