"""Logs: one line per event, whatever is in it; no secret, no content, no flood."""

import asyncio
import io
import json
import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import logs
from runtime.errors import UsageError
from runtime.logs import WITHHELD, Limit

log = logs.of("runtime.serve.test")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def restored():
    """Logging as it was before."""
    root, ours = logging.getLogger(), logging.getLogger("runtime")
    kept = root.level, ours.level
    yield
    for handler in [h for h in root.handlers if isinstance(h, logs._Handler)]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(kept[0])
    ours.setLevel(kept[1])


@pytest.fixture
def sink(restored):
    out = io.StringIO()
    logs.setup("json", "debug", stream=out)
    return out


def lines(out: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_holds_the_event_its_fields_and_where_it_was(sink):
    log.info("stream admitted", bundle="talk", streams=3)
    (line,) = lines(sink)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "runtime.serve.test",
        "event": "stream admitted",
        "bundle": "talk",
        "streams": 3,
    }


def test_a_plain_line_is_for_people(restored):
    out = io.StringIO()
    logs.setup("plain", stream=out)
    log.warning("packet skipped", modality="video", reason="no payload", seq=7)
    line = out.getvalue()
    assert line.endswith(' warning serve.test: packet skipped modality=video reason="no payload" seq=7\n')


def test_percent_arguments_work_as_everywhere(sink):
    log.info("bound to port %d", 5, host="127.0.0.1")
    log.info("100 % of it")
    assert [line["event"] for line in lines(sink)] == ["bound to port 5", "100 % of it"]


def test_arguments_that_do_not_fit_are_no_reason_to_fall_over():
    out = io.StringIO()
    handler = logs._Handler(out, Limit(5, 10))
    handler.setFormatter(logs._Json())
    handler.handle(logging.LogRecord("grpc", logging.INFO, "", 0, "%d streams", ("many",), None))
    assert lines(out)[0]["event"] == "%d streams"


def test_contexts_nest_and_end(sink):
    with logs.context(stream="9f2c", peer="ipv4:127.0.0.1:1"):
        with logs.context(stream="inner"):
            log.info("a")
        log.info("b")
    log.info("c")
    assert [(line.get("stream"), line.get("peer")) for line in lines(sink)] == [
        ("inner", "ipv4:127.0.0.1:1"),
        ("9f2c", "ipv4:127.0.0.1:1"),
        (None, None),
    ]


def test_each_task_has_its_own_context(sink):
    async def client(name: str) -> None:
        with logs.context(stream=name):
            for _ in range(3):
                await asyncio.sleep(0)
                log.info("turn", mine=name)

    async def all_of_them() -> None:
        await asyncio.gather(*(client(name) for name in "abc"))

    asyncio.run(all_of_them())
    assert len(lines(sink)) == 9
    assert all(line["stream"] == line["mine"] for line in lines(sink))


def test_a_thread_binds_what_it_works_for(sink):
    bound = log.bind(stream="9f2c")
    thread = threading.Thread(target=lambda: bound.info("decoded", clip=4))
    thread.start()
    thread.join()
    assert lines(sink)[0]["stream"] == "9f2c"


@pytest.mark.parametrize(
    "name", ["token", "resume_token", "Authorization", "payload", "password", "client_secret", "api_key", "cookie"]
)
@pytest.mark.parametrize("format", logs.FORMATS)
def test_secrets_and_content_never_reach_a_line(restored, name, format):
    out = io.StringIO()
    logs.setup(format, stream=out)
    log.info("said", **{name: "hunter2hunter2"})
    log.info("nested", request={"metadata": [{name: "hunter2hunter2"}]})
    with logs.context(**{name: "hunter2hunter2"}):
        log.bind(**{name: "hunter2hunter2"}).error("bound", extra={name: "hunter2hunter2"})
    assert out.getvalue().count(WITHHELD) == 3 and "hunter2" not in out.getvalue()


def test_a_bearer_token_in_a_text_is_withheld_and_bytes_are_only_counted(sink):
    log.info("refused", header="Bearer abcDEF123.456-789_~+/==", body=b"\0secret picture", view=memoryview(b"abc"))
    try:
        raise ValueError("bad metadata: authorization: bearer abcdef123456")
    except ValueError:
        log.exception("call failed with Basic dXNlcjpwYXNz")
    text = sink.getvalue()
    assert "abcDEF" not in text and "abcdef" not in text and "dXNl" not in text and "picture" not in text
    assert lines(sink)[0]["body"] == "<15 bytes>" and lines(sink)[0]["view"] == "<3 bytes>"


def test_an_exception_is_one_field(sink):
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("decoder failed", modality="video")
    assert sink.getvalue().count("\n") == 1
    assert lines(sink)[0]["exception"].startswith("ValueError: two\nlines in test_an_exception_is_one_field (test_logs")
    log.info("and none", exc_info=True)
    assert "exception" not in lines(sink)[1]


@given(st.text(max_size=60), st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.floats() | st.binary()))
def test_whatever_a_client_calls_itself_a_line_stays_a_line(name, fields):
    for format, parse in (("json", json.loads), ("plain", str)):
        out = io.StringIO()
        handler = logs._Handler(out, Limit(5, 10))
        handler.setFormatter(logs._Json() if format == "json" else logs._Plain())
        record = logging.LogRecord("runtime.x", logging.INFO, "", 0, name, None, None)
        record.legato = {"name": name, "fields": fields, **fields}
        handler.handle(record)
        assert len(out.getvalue().splitlines()) == 1
        parse(out.getvalue())


def test_values_that_fight_back(sink):
    class Rude:
        def __str__(self) -> str:
            raise RuntimeError("no")

    deep: list = []
    deep.append(deep)
    log.info("odd", rude=Rude(), deep=deep, long="x" * 10_000, many=range(10**9), wide=list(range(1000)), huge=10**5000)
    (line,) = lines(sink)
    assert line["rude"] == "<Rude>" and len(line["long"]) < 500 and len(line["wide"]) == logs.WIDEST
    assert len(sink.getvalue()) < 4000


def test_repeated_warnings_are_counted_instead_of_written(restored):
    out, clock = io.StringIO(), Clock()
    logs.setup("json", stream=out, burst=2, interval=10, clock=clock)
    for seq in range(100):
        log.warning("packet skipped", seq=seq)
        log.error("another")
        log.info("never held back")
    assert [(line["event"], line.get("seq")) for line in lines(out) if line["level"] == "warning"] == [
        ("packet skipped", 0),
        ("packet skipped", 1),
    ]
    assert sum(line["level"] == "info" for line in lines(out)) == 100
    clock.now = 10.0
    log.warning("packet skipped", seq=100)
    assert lines(out)[-1]["suppressed"] == 98


def test_what_was_held_back_is_told_at_the_end(restored):
    out = io.StringIO()
    handler = logs.setup("json", stream=out, burst=1)
    for _ in range(7):
        log.warning("disk is slow, 100 %")
    handler.close()
    assert lines(out)[-1] | {"time": ""} == {
        "time": "",
        "level": "warning",
        "logger": "runtime.serve.test",
        "event": "disk is slow, 100 %",
        "suppressed": 6,
    }


def test_a_million_different_warnings_take_no_memory():
    limit = Limit(1, 10, Clock())
    for key in range(5 * logs.REMEMBERED):
        assert limit.admit(key) == 0
    assert len(limit._seen) <= logs.REMEMBERED


def test_a_closed_pipe_does_not_stop_a_stream(restored):
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    logs.setup(stream=Full())
    log.error("nobody reads this")


def test_libraries_are_heard_from_warning_on_and_setup_replaces_itself(restored):
    first, second = io.StringIO(), io.StringIO()
    logs.setup("json", "debug", stream=first)
    logs.setup("json", "debug", stream=second)
    logging.getLogger("grpc").info("chatter")
    logging.getLogger("grpc").warning("trouble")
    log.debug("ours")
    assert first.getvalue() == ""
    assert [line["event"] for line in lines(second)] == ["trouble", "ours"]


@pytest.mark.parametrize("options", [{"format": "xml"}, {"level": "loud"}])
def test_a_wrong_option_is_one_sentence(restored, options):
    with pytest.raises(UsageError, match="is unknown; use"):
        logs.setup(**options)
