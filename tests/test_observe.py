"""Metrics: what is counted is what a scraper reads, under the names that were promised."""

import threading
import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from runtime.metrics import FATES, Ledger
from runtime.observe import CAPACITY, STAGES, Metrics, Observer

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def metrics():
    return Metrics(process=False)


def scrape(metrics: Metrics) -> dict[tuple, float]:
    """(sample, sorted labels) -> value, as Prometheus would read it."""
    page, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=")
    families = list(parse(page.decode()))
    assert all(family.documentation.endswith(".") for family in families)
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def use_everything(watcher: Observer) -> None:
    """Each call of an observer, once."""
    watcher.packets("video", {"expected": 12, "received": 10, "lost": 2, "used": 7, "damaged": 2, "unfinished": 1})
    watcher.concealed("video", "curri_mae", 3)
    watcher.jitter_delay("audio", 0.06)
    for stage in STAGES:
        watcher.stage(stage, 0.02)
    watcher.end_to_end(0.25)
    watcher.stream_started()
    watcher.stream_started()
    watcher.stream_ended()
    watcher.rejected("full")
    watcher.av_offset(-0.03)
    watcher.drift(120.0)
    watcher.batch(8)
    watcher.shed("video")
    watcher.device("device_lost", "audio")
    watcher.recorded(4096)
    watcher.recording_stopped("disk")


def test_an_observer_watches_and_does_nothing():
    use_everything(Observer())


def test_every_name_that_was_promised_is_there(metrics):
    use_everything(metrics)
    seen = scrape(metrics)
    video, audio = ("modality", "video"), ("modality", "audio")
    assert seen["packets_received_total", video] == 10
    assert seen["packets_lost_total", video] == 2 and seen["packets_lost_total", audio] == 0
    assert seen["packets_settled_total", ("fate", "used"), video] == 7
    assert seen["packets_unfinished", video] == 1
    assert seen["clips_concealed_total", video, ("rung", "curri_mae")] == 3
    assert seen["jitter_buffer_delay_seconds_sum", audio] == pytest.approx(0.06)
    assert seen["jitter_buffer_delay_seconds_count", audio] == 1
    for stage in STAGES:
        assert seen["stage_latency_seconds_count", ("stage", stage)] == 1
    assert seen["end_to_end_latency_seconds_bucket", ("le", "0.2")] == 0
    assert seen["end_to_end_latency_seconds_bucket", ("le", "0.25")] == 1
    assert seen["end_to_end_latency_seconds_bucket", ("le", "+Inf")] == 1
    assert seen["active_streams",] == 1 and seen["streams_started_total",] == 2
    assert seen["stream_rejections_total", ("reason", "full")] == 1
    assert seen["av_offset_seconds_bucket", ("le", "-0.045")] == 0
    assert seen["av_offset_seconds_bucket", ("le", "-0.02")] == 1
    assert seen["clock_drift_ppm_bucket", ("le", "100.0")] == 0
    assert seen["clock_drift_ppm_bucket", ("le", "200.0")] == 1
    assert seen["batch_clips_sum",] == 8
    assert seen["clips_shed_total", video] == 1
    assert seen["device_events_total", ("kind", "device_lost"), audio] == 1
    assert seen["recording_bytes_total",] == 4096
    assert seen["recording_stops_total", ("reason", "disk")] == 1


def test_the_page_is_openmetrics_where_that_is_asked_for(metrics):
    use_everything(metrics)
    page, content_type = metrics.render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(page.decode())}
    assert {"packets_received", "stage_latency_seconds", "active_streams"} <= names


def test_nothing_carries_a_label_by_stream(metrics):
    use_everything(metrics)
    labels = {label for key in scrape(metrics) for label, _ in key[1:]}
    assert labels <= {"modality", "rung", "stage", "reason", "fate", "kind", "le", "version"}


def test_series_exist_before_anything_happens(metrics):
    seen = scrape(metrics)
    assert seen["packets_received_total", ("modality", "audio")] == 0
    assert seen["packets_settled_total", ("fate", "late"), ("modality", "video")] == 0
    assert seen["end_to_end_latency_seconds_count",] == 0 and seen["active_streams",] == 0


def test_a_loss_taken_back_never_makes_a_counter_fall(metrics):
    key = ("packets_lost_total", ("modality", "video"))
    for delta, shown in ((5, 5), (-2, 5), (1, 5), (3, 7)):
        metrics.packets("video", {"lost": delta})
        assert scrape(metrics)[key] == shown


events = st.lists(
    st.tuples(st.sampled_from(["receive", "lose", "late", "mark", "settle"]), st.integers(0, 20)), max_size=40
)


@given(events)
def test_the_conservation_law_holds_in_what_is_scraped(events):
    metrics, ledger, before = Metrics(process=False), Ledger(), dict.fromkeys(Ledger().counts.as_dict(), 0)
    for kind, seq in events:
        if kind == "receive":
            ledger.receive(seq)
        elif kind == "lose":
            ledger.lose(1)
        elif kind == "late":
            ledger.receive(seq, late=True, was_lost=True)
        elif kind == "mark":
            ledger.mark([seq], "used")
        else:
            ledger.settle_through(seq)
        now = ledger.counts.as_dict()
        metrics.packets("audio", {name: count - before[name] for name, count in now.items()})
        before = now
    seen, audio = scrape(metrics), ("modality", "audio")
    settled = sum(seen["packets_settled_total", ("fate", fate), audio] for fate in FATES)
    assert seen["packets_received_total", audio] == settled + seen["packets_unfinished", audio] == before["received"]
    assert seen["packets_lost_total", audio] >= before["lost"]


def test_labels_that_grow_are_bounded(metrics):
    for i in range(10 * CAPACITY):
        metrics.rejected(f"reason {i}")
    reasons = {key: value for key, value in scrape(metrics).items() if key[0] == "stream_rejections_total"}
    assert len(reasons) == CAPACITY + 1
    assert sum(reasons.values()) == 10 * CAPACITY
    assert reasons["stream_rejections_total", ("reason", "other")] == 9 * CAPACITY


def test_a_label_cannot_break_the_page(metrics):
    metrics.rejected('a "quoted"\n\\reason\n# EOF')
    assert scrape(metrics)["stream_rejections_total", ("reason", 'a "quoted"\n\\reason\n# EOF')] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_spoils_nothing(metrics, value):
    metrics.end_to_end(value)
    metrics.end_to_end(0.1)
    assert scrape(metrics)["end_to_end_latency_seconds_sum",] == pytest.approx(0.1)


def test_threads_lose_no_count(metrics):
    def work() -> None:
        for _ in range(2000):
            metrics.shed("video")
            metrics.stage("fill", 0.5)
            metrics.packets("video", {"received": 2, "used": 1})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    metrics.render()  # meanwhile
    for thread in threads:
        thread.join()
    seen = scrape(metrics)
    assert seen["clips_shed_total", ("modality", "video")] == 8000
    assert seen["stage_latency_seconds_sum", ("stage", "fill")] == 4000
    assert seen["packets_received_total", ("modality", "video")] == 16000


def test_a_gauge_is_read_when_it_is_scraped_and_may_fail(metrics):
    depth = [3]
    metrics.watch("queue_depth_clips", "Clips that wait.", lambda: depth[0])
    metrics.watch("broken", "Always raises.", lambda: 1 / 0)
    assert scrape(metrics)["queue_depth_clips",] == 3
    depth[0] = 4
    seen = scrape(metrics)
    assert seen["queue_depth_clips",] == 4 and ("broken",) not in seen


def test_the_process_is_measured_too():
    pytest.importorskip("resource", reason="only Unix tells")
    names = {name for name, *_ in scrape(Metrics())}
    if not any(name.startswith("process_") for name in names):
        pytest.skip("this system has no /proc")
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} <= names


def test_two_servers_in_one_process_count_apart():
    one, other = Metrics(process=False), Metrics(process=False)
    one.stream_started()
    assert scrape(one)["active_streams",] == 1 and scrape(other)["active_streams",] == 0


def test_a_call_costs_little_beside_the_work_it_counts(metrics):
    """No clock is asserted: a call is compared with hashing 16 KiB, far less than any clip costs."""
    import hashlib

    def hashed() -> None:
        hashlib.sha256(b"x" * 16_384).digest()

    def best(call) -> float:
        return min(timeit.repeat(call, number=300, repeat=7))

    work = best(hashed)
    assert best(lambda: metrics.stage("encode", 0.02)) < work
    assert best(lambda: metrics.concealed("video", "lerp")) < work
