"""The metrics port: what a scraper and a supervisor ask, and what a stranger may try."""

import asyncio
import json
import urllib.error
import urllib.request
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse

from runtime.errors import ConfigError
from runtime.observe import Metrics
from runtime.serve import web
from runtime.serve.web import Health, Web


@asynccontextmanager
async def listening(health: Health | None = None, **options):
    metrics = Metrics(process=False)
    metrics.stream_started()
    page = Web(metrics, lambda: health or Health("ready"), **options)
    await page.start()
    try:
        yield page
    finally:
        await page.close()


async def exchange(page: Web, request: bytes, *, eof: bool = False) -> bytes:
    """Everything the server answers to these bytes."""
    reader, writer = await asyncio.open_connection(page.host, page.port)
    try:
        writer.write(request)
        if eof:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(-1), 5)
    except ConnectionError:
        return b""  # cut off in the middle of what it was sending
    finally:
        writer.close()


def ask(request: bytes, health: Health | None = None, **options) -> bytes:
    async def once() -> bytes:
        async with listening(health, **options) as page:
            return await exchange(page, request)

    return asyncio.run(once())


def get(path: str, method: str = "GET", headers: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in rest), body


def test_metrics_are_what_prometheus_reads():
    status, headers, body = split(ask(get("/metrics")))
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=")
    assert int(headers["Content-Length"]) == len(body) and headers["Connection"] == "close"
    families = {family.name: family for family in parse(body.decode())}
    assert families["active_streams"].samples[0].value == 1


def test_openmetrics_where_it_is_asked_for():
    wanted = "ACCEPT: application/openmetrics-text; version=1.0.0\r\n"
    _, headers, body = split(ask(get("/metrics?x=1", headers=wanted)))
    assert headers["Content-Type"].startswith("application/openmetrics-text") and body.endswith(b"# EOF\n")


def test_a_client_of_the_standard_library_can_read_it():
    async def once() -> tuple[bytes, int]:
        async with listening(Health("starting", "models load")) as page:
            base = f"http://{page.host}:{page.port}"
            read = await asyncio.to_thread(lambda: urllib.request.urlopen(f"{base}/metrics", timeout=5).read())
            with pytest.raises(urllib.error.HTTPError) as refused:
                await asyncio.to_thread(urllib.request.urlopen, f"{base}/healthz", None, 5)
            refused.value.close()
            return read, refused.value.code

    read, code = asyncio.run(once())
    assert b"active_streams 1.0" in read and code == 503


@pytest.mark.parametrize(
    ("health", "status"),
    [
        (Health("ready"), 200),
        (Health("starting", "bundle talk warms up"), 503),
        (Health("draining", "stopped by SIGTERM; 3 streams left"), 503),
    ],
)
def test_health_says_whether_and_why(health, status):
    answered, headers, body = split(ask(get("/healthz"), health))
    assert answered == status and headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"status": health.status, "reason": health.reason}


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/nothing"])
def test_head_is_get_without_the_body(path):
    whole, bare = split(ask(get(path))), split(ask(get(path, "HEAD")))
    assert bare == (whole[0], whole[1], b"")


@pytest.mark.parametrize("path", ["/", "/metrics/", "//metrics", "/healthz/../metrics", "/..%2f", "*"])
def test_anything_else_is_404(path):
    assert split(ask(get(path)))[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_only_get_and_head(method):
    status, headers, _ = split(ask(get("/metrics", method)))
    assert status == 405 and headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"get /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1 x\r\n\r\n", 400),
        (b"GET http://localhost/metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /met rics HTTP/1.1\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/9.9\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * web.MAX_HEAD + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * web.MAX_HEAD + b" HTTP/1.1\r\n\r\n", 431),
    ],
)
def test_a_request_that_is_none_is_answered_and_forgotten(request_bytes, status):
    assert split(ask(request_bytes))[0] == status


def test_a_flood_without_an_end_is_cut_off():
    answer = ask(b"GET /metrics HTTP/1.1\r\nX: " + b"a" * (4 << 20))
    assert answer == b"" or split(answer)[0] == 431


def test_who_sends_nothing_is_sent_away():
    assert split(ask(b"", head_seconds=0.05))[0] == 408
    assert split(ask(b"GET /metrics HTTP/1.1\r\n", head_seconds=0.05))[0] == 408


def test_a_connection_that_ends_early_is_no_event():
    async def once() -> bytes:
        async with listening() as page:
            for piece in (b"", b"GET", b"GET /metrics HTTP/1.1\r\nHost:"):
                assert split(await exchange(page, piece, eof=True))[0] == 400
            _, writer = await asyncio.open_connection(page.host, page.port)
            writer.write(get("/metrics"))
            writer.transport.abort()
            return await exchange(page, get("/healthz"))

    assert split(asyncio.run(once()))[0] == 200


def test_many_idle_connections_keep_nobody_out():
    async def once() -> tuple[int, int]:
        async with listening() as page:
            idle = [await asyncio.open_connection(page.host, page.port) for _ in range(3 * web.MAX_CONNECTIONS)]
            status = split(await exchange(page, get("/healthz")))[0]
            held = len(page._open)
            for _, writer in idle:
                writer.close()
            return status, held

    status, held = asyncio.run(once())
    assert status == 200 and held <= web.MAX_CONNECTIONS


def test_a_failure_of_ours_is_500_and_the_next_request_works(caplog):
    async def once() -> list[int]:
        answers = iter([ZeroDivisionError(), Health("ready")])

        def health() -> Health:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        page = Web(Metrics(process=False), health)
        await page.start()
        try:
            return [split(await exchange(page, get("/healthz")))[0] for _ in range(2)]
        finally:
            await page.close()

    assert asyncio.run(once()) == [500, 200]
    assert "metrics request failed" in caplog.text


def test_closing_ends_what_is_open_and_may_be_repeated():
    async def once() -> bytes:
        async with listening() as page:
            reader, writer = await asyncio.open_connection(page.host, page.port)
            await asyncio.sleep(0.01)
            await page.close()
            await page.close()
            try:
                return await asyncio.wait_for(reader.read(-1), 2)
            except ConnectionError:
                return b""
            finally:
                writer.close()

    assert asyncio.run(once()) == b""


def test_a_port_that_is_taken_is_one_sentence():
    async def once() -> None:
        async with listening() as page:
            with pytest.raises(ConfigError, match=rf"metrics cannot listen on 127.0.0.1:{page.port} .*choose another"):
                await Web(page.metrics, page.health, port=page.port).start()
            with pytest.raises(ConfigError, match="choose another"):
                await Web(page.metrics, page.health, port=70_000).start()

    asyncio.run(once())


def test_it_listens_on_loopback_unless_told_otherwise():
    assert Web(Metrics(process=False), lambda: Health("ready")).host == "127.0.0.1"


@settings(max_examples=30)
@given(st.binary(max_size=200), st.sampled_from([b"", b"GET /metrics HTTP/1.1\r\n", b"HEAD /healthz HTTP/1.1"]))
def test_random_bytes_get_an_answer_or_a_closed_door(noise, start):
    answer = ask(start + noise + b"\r\n\r\n")
    assert split(answer)[0] in (200, 400, 404, 405, 431)
