"""Spans: nested, named and timed when asked for; nothing at all when not."""

import io
import json
import logging
import sys
import timeit

import pytest

from runtime import logs, spans
from runtime.errors import MissingExtraError, UsageError

pytest.importorskip("opentelemetry.sdk", reason="needs the extra otel")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"  # the example of W3C Trace Context


@pytest.fixture
def exported():
    """Finished spans, as an exporter gets them."""
    exporter = InMemorySpanExporter()
    spans.install([SimpleSpanProcessor(exporter)], {})
    yield exporter.get_finished_spans
    spans.stop()


@pytest.fixture(autouse=True)
def off_afterwards():
    yield
    spans.stop()


def test_spans_nest_and_carry_their_attributes(exported):
    with spans.span("stream", bundle="talk"), spans.span("encode", clips=8, sizes=[1, 2]):
        pass
    encode, stream = exported()
    assert (encode.name, stream.name) == ("encode", "stream")
    assert encode.parent.span_id == stream.context.span_id and stream.parent is None
    assert dict(encode.attributes) == {"clips": 8, "sizes": "[1, 2]"} and dict(stream.attributes) == {"bundle": "talk"}
    assert encode.end_time >= encode.start_time
    assert stream.resource.attributes["service.name"] == "legato"


def test_what_is_raised_is_recorded_and_goes_on(exported):
    with pytest.raises(ValueError), spans.span("decode"):
        raise ValueError("no keyframe")
    (decode,) = exported()
    assert not decode.status.is_ok and decode.events[0].attributes["exception.message"] == "no keyframe"


def test_a_caller_s_span_is_the_parent_of_the_first_only(exported):
    with spans.span("stream", traceparent=PARENT), spans.span("encode", traceparent=PARENT):
        assert spans.outgoing()["traceparent"].startswith("00-4bf92f3577b34da6a3ce929d0e0e4736-")
    encode, stream = exported()
    assert f"{stream.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert encode.parent.span_id == stream.context.span_id


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-0-0-00", "ff" * 400, "00-" + "0" * 32 + "-" + "0" * 16])
def test_a_caller_that_sends_nonsense_gets_a_span_of_its_own(exported, traceparent):
    with spans.span("stream", traceparent=traceparent):
        pass
    assert exported()[0].parent is None


def test_no_secret_and_no_content_becomes_an_attribute(exported):
    with spans.span("stream", resume_token="hunter2", frame=b"picture", why="Bearer abcdef123456"):
        pass
    assert dict(exported()[0].attributes) == {
        "resume_token": logs.WITHHELD,
        "frame": "<7 bytes>",
        "why": f"Bearer {logs.WITHHELD}",
    }


def test_lines_logged_inside_carry_the_trace(exported):
    with spans.span("stream", traceparent=PARENT):
        assert logs.bound_fields() == {"trace": "4bf92f3577b34da6a3ce929d0e0e4736"}
    assert logs.bound_fields() == {}


def test_off_is_off(exported):
    spans.stop()
    with spans.span("stream", bundle="talk") as nothing:
        assert nothing is None and spans.outgoing() == {} and logs.bound_fields() == {}
    assert exported() == ()
    spans.stop()


def test_off_costs_no_more_than_a_block_that_does_nothing():
    from contextlib import nullcontext

    def spanned() -> None:
        with spans.span("encode", clips=8):
            pass

    def bare() -> None:
        with nullcontext():
            pass

    def best(call) -> float:
        return min(timeit.repeat(call, number=2000, repeat=7))

    assert best(spanned) < 4 * best(bare)


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, ""),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}, ""),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4317"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, ""),
    ],
)
def test_the_environment_decides(environment, names):
    assert spans.wanted(environment) == names


def test_nothing_is_imported_unless_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    assert spans.start({}) is False


def test_the_exporter_is_found_by_its_standard_name(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    assert spans.start({"OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "stage"}) is True
    with spans.span("stream", bundle="talk"):
        pass
    spans.stop()  # sends what is left


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'legato\[otel\]' or set OTEL_TRACES_EXPORTER=none"):
        spans.start({"OTEL_TRACES_EXPORTER": "console"})


def test_an_exporter_that_is_not_installed_or_not_known():
    with pytest.raises(UsageError, match=r"OTEL_TRACES_EXPORTER=zebra is unknown; known: .*console"):
        spans.start({"OTEL_TRACES_EXPORTER": "zebra"})
    try:
        import opentelemetry.exporter.otlp  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="pip install opentelemetry-exporter-otlp"):
            spans.start({"OTEL_TRACES_EXPORTER": "otlp"})


def test_logs_and_spans_meet_in_one_line(exported):
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logs._Json())
    logger = logging.getLogger("runtime.meeting")
    logger.addHandler(handler)
    try:
        with spans.span("stream", traceparent=PARENT):
            logs.of("runtime.meeting").warning("here")
    finally:
        logger.removeHandler(handler)
    assert json.loads(out.getvalue())["trace"] == "4bf92f3577b34da6a3ce929d0e0e4736"
