"""Metrics of several workers: one page, in which what can be added is added."""

import asyncio
from typing import Any

from runtime.observe import Metrics
from runtime.serve.merged import Merged, merge
from runtime.serve.web import READY, Health, Web


def values(families: list[Any]) -> dict[tuple[str, ...], float]:
    return {(s.name, *sorted(s.labels.values())): s.value for f in families for s in f.samples}


def page(metrics: Metrics) -> str:
    return metrics.render()[0].decode()


def test_counters_histograms_and_gauges_add_up():
    one, two = Metrics(process=False), Metrics(process=False)
    one.stream_started()
    two.stream_started()
    two.stream_started()
    two.stream_ended()
    one.stage("encode", 0.004)
    two.stage("encode", 0.3)
    two.rejected("full")
    found = values(merge([page(one), page(two)]))
    assert found["streams_started_total",] == 3
    assert found["active_streams",] == 2
    assert found["stage_latency_seconds_count", "encode"] == 2
    assert found["stage_latency_seconds_bucket", "0.005", "encode"] == 1
    assert found["stage_latency_seconds_bucket", "+Inf", "encode"] == 2
    assert found["stream_rejections_total", "full"] == 1


def test_one_page_is_itself():
    metrics = Metrics(process=False)
    metrics.concealed("audio", "lerp", 3)
    (before, after) = (values(merge([page(metrics)])), values(merge([page(metrics)] * 1)))
    assert before == after
    assert before["clips_concealed_total", "audio", "lerp"] == 3


def test_what_cannot_be_added_is_not():
    def process(began: float, most: float, memory: float) -> str:
        return (
            f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {began}\n"
            f"# TYPE process_max_fds gauge\nprocess_max_fds {most}\n"
            f"# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {memory}\n"
            '# TYPE legato_info gauge\nlegato_info{version="1"} 1\n'
        )

    found = values(merge([process(20.0, 1024, 5e8), process(10.0, 512, 4e8)]))
    assert found["process_start_time_seconds",] == 10.0
    assert found["process_max_fds",] == 1024
    assert found["process_resident_memory_bytes",] == 9e8
    assert found["legato_info", "1"] == 1


def test_no_pages_are_an_empty_page():
    assert merge([]) == []


def test_workers_are_read_over_their_ports_and_one_that_is_gone_is_left_out(caplog):
    async def scenario() -> None:
        metrics = Metrics(process=False)
        metrics.stream_started()
        webs = [Web(metrics, lambda: Health(READY)), Web(metrics, lambda: Health(READY))]
        ports = [await web.start() for web in webs]
        gone = Web(metrics, lambda: Health(READY))
        ports.append(await gone.start())
        await gone.close()
        both = Web(Merged(lambda: ports), lambda: Health(READY))
        port = await both.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n")
        answer = (await reader.read()).decode()
        writer.close()
        for web in (*webs, both):
            await web.close()
        assert "200 OK" in answer
        assert "streams_started_total 2.0" in answer
        assert answer.endswith("# EOF\n")

    asyncio.run(scenario())
    assert any(record.message == "worker left out of metrics" for record in caplog.records)
