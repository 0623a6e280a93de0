"""Workers: several servers on one port. Whose stream it is, who has least to do, and what becomes of one that dies."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from runtime.errors import BundleError, ConfigError, LegatoError
from runtime.serve.auth import Address, new_token
from runtime.serve.seat import UNEVEN, Places, Seat
from runtime.serve.server import ServeConfig, Server
from runtime.serve.status import Refused
from runtime.serve.workers import Workers, reserve
from tests.fakes import stream
from tests.serving import FakeDispatcher, batch, config, connected, details, ends, hear, in_batches, offer, talk
from tests.test_servicer import run, whole

# -- seats ----------------------------------------------------------------


def seat(index: int, loads: list[int], folder: str = "/nowhere") -> Seat:
    return Seat(index=index, loads=loads, folder=Path(folder))


def test_a_token_names_the_worker_that_has_the_stream():
    first, second = seat(0, [0, 0]), seat(1, [0, 0])
    token = second.mark + bytes(15)
    assert first.holder(token) == 1
    assert second.holder(token) is None


@pytest.mark.parametrize("token", [b"", bytes([2]) + bytes(15), bytes([255]) * 16])
def test_a_token_of_no_worker_there_is_stays_where_it_came(token):
    assert seat(0, [0, 0]).holder(token) is None


def test_a_new_stream_goes_elsewhere_only_where_there_is_much_less_to_do():
    assert seat(0, [UNEVEN, 0]).lighter() is None
    assert seat(0, [UNEVEN + 1, 0]).lighter() == 1
    assert seat(0, [9, 8, 3]).lighter() == 2
    assert seat(1, [9, 0]).lighter() is None


def test_the_limit_is_that_of_all_workers_together():
    loads = [0, 0]
    one, two = Places(3, seat(0, loads)), Places(3, seat(1, loads))
    one.take()
    one.take()
    two.take()
    with pytest.raises(Refused, match="all 3 streams are taken"):
        two.take()
    assert (one.taken, two.taken) == (2, 1)
    one.free()
    two.take()
    assert loads == [1, 2]


# -- two workers in this process, real gRPC between them --------------------


BUSY = [UNEVEN + 3, 0]  # the first has so much to do that a new stream goes to the second


def started(heard: Any) -> bool:
    return bool(heard.of("started"))


@asynccontextmanager
async def crew(
    folder: Path, dispatchers: Iterable[Any] = (), *, loads: list[int] | None = None, **settings: Any
) -> AsyncIterator[list[Server]]:
    """Two workers, each on a port of its own, so that a test can choose whom it calls."""
    loads, servers = list(loads or [0, 0]), []
    made = list(dispatchers) or [FakeDispatcher(), FakeDispatcher()]
    try:
        for index, dispatcher in enumerate(made):
            server = Server(
                ServeConfig(listen="127.0.0.1:0", grace=2.0, **settings),
                offers={"fake": offer(dispatcher, delay=1.0)},
                seat=Seat(index=index, loads=loads, folder=folder),
            )
            await server.start()
            servers.append(server)
        yield servers
    finally:
        for server in servers:
            await server.stop()


def test_a_stream_goes_on_with_its_worker_whichever_its_client_reaches(tmp_path):
    parts = in_batches(stream(8.0))

    async def scenario() -> None:
        async with crew(tmp_path) as (first, second):
            async with connected(first) as stub:
                call = stub.Stream()
                await call.write(config())
                for part in parts[:4]:
                    await call.write(part)
                heard = await hear(call, until=lambda h: len(h.finals) >= 2)
                token, before = heard.started.resume_token, set(heard.finals)
                call.cancel()
            assert token[0] == 0
            while not first.service.kept:
                await asyncio.sleep(0.01)
            async with connected(second) as stub:
                call = stub.Stream()
                await call.write(config(resume_token=token))
                again = await hear(call, until=started)
                assert again.started.resumed
                assert again.started.stream == heard.started.stream
                assert (first.busy, second.busy) == (1, 1)  # served by one, passed on by the other
                for part in parts[4:]:
                    await call.write(part)
                for end in ends():
                    await call.write(end)
                again = await hear(call, again)
            assert again.error is None
            assert before | set(again.finals) == {(clip, head) for head in ("gru", "linear") for clip in range(1, 20)}

    run(scenario)


def test_a_stream_that_is_passed_on_is_answered_as_any_other(tmp_path):
    async def scenario() -> None:
        async with crew(tmp_path, loads=BUSY) as (first, _):
            heard = await talk(first, whole())
            assert heard.error is None
            assert len(heard.finals) == 2 * 9  # the first window falls due with the second clip
            assert heard.started.resume_token[0] == 1

    run(scenario)


def test_what_is_wrong_with_a_request_is_told_through_another_worker_too(tmp_path):
    async def scenario() -> None:
        async with crew(tmp_path, loads=BUSY) as (first, _):
            heard = await talk(first, [config(), config()])
            assert heard.error.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "second StreamConfig" in heard.error.details()
            heard = await talk(first, [config(bundle="third")])
            assert heard.error.code() is grpc.StatusCode.NOT_FOUND
            assert details(heard.error)

    run(scenario)


def test_bytes_that_are_no_request_end_a_passed_on_call_as_any_other(tmp_path):
    async def scenario() -> None:
        crowd = crew(tmp_path, loads=BUSY)
        async with crowd as (first, _), grpc.aio.insecure_channel(first.where) as channel:
            call = channel.stream_stream("/legato.v1.InferenceService/Stream")()
            await call.write(config().SerializeToString())
            await call.read()
            await call.write(b"\xff\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "no message of legato.v1" in caught.value.details()

    run(scenario)


def test_a_client_that_goes_leaves_its_passed_on_stream_to_be_resumed(tmp_path):
    async def scenario() -> None:
        async with crew(tmp_path, loads=BUSY) as (first, second):
            async with connected(first) as stub:
                call = stub.Stream()
                await call.write(config())
                await call.write(batch(stream(0.4)))
                await hear(call, until=started)
                call.cancel()
            async with asyncio.timeout(5):
                while not second.service.kept or first.busy > BUSY[0]:
                    await asyncio.sleep(0.01)

    run(scenario)


def test_the_other_worker_believes_who_was_let_in(tmp_path):
    token = new_token(tmp_path / "tokens", "camera", ["stream"])

    async def scenario() -> None:
        workers = crew(tmp_path, loads=BUSY, tokens=tmp_path / "tokens")
        async with workers as (first, second), connected(first) as stub:
            bearer = (("authorization", f"Bearer {token}"),)
            call = stub.Stream(metadata=bearer)
            await call.write(config())
            await hear(call, until=started)
            assert [second.service._resumes.caller(s) for s in second.service._resumes.states()] == ["token:camera"]
            call.cancel()
            refused = await talk(first, [config()])
            assert refused.error.code() is grpc.StatusCode.UNAUTHENTICATED

    run(scenario)


def test_a_drain_tells_clients_through_another_worker_where_they_stand(tmp_path):
    async def scenario() -> None:
        async with crew(tmp_path, loads=BUSY) as (first, second), connected(first) as stub:
            call = stub.Stream()
            await call.write(config())
            for part in in_batches(stream(4.0)):
                await call.write(part)
            heard = await hear(call, until=lambda h: len(h.finals) >= 2)
            draining = asyncio.create_task(second.drain())
            heard = await hear(call, heard)
            assert len(heard.of("going_away")) == 1
            assert heard.error.code() is grpc.StatusCode.UNAVAILABLE
            await draining

    run(scenario)


def test_a_worker_that_is_gone_is_told_as_a_server_that_is_gone(tmp_path):
    async def scenario() -> None:
        async with crew(tmp_path) as (first, second):
            await second.stop()
            heard = await talk(first, [config(resume_token=bytes([1]) + bytes(15))])
            assert heard.error.code() is grpc.StatusCode.UNAVAILABLE

    run(scenario)


# -- processes ------------------------------------------------------------


def test_a_port_is_held_for_workers_and_refused_to_others():
    held = reserve(Address.parse("127.0.0.1:0"))
    port = held.getsockname()[1]
    shared = socket.socket()
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind(("127.0.0.1", port))
    shared.listen()
    with shared, held, pytest.raises(ConfigError, match="cannot be had; choose another port"):
        reserve(Address.parse(f"127.0.0.1:{port}"))


@pytest.mark.parametrize(("listen", "count", "why"), [
    ("127.0.0.1:0", 1, "use 1 to 64"),
    ("127.0.0.1:0", 65, "use 1 to 64"),
    ("unix:/tmp/x", 2, "one socket for one process"),
    ("0.0.0.0:1", 2, "say --insecure"),
])  # fmt: skip
def test_workers_that_cannot_be_are_refused_before_one_starts(listen, count, why):
    async def scenario() -> None:
        with pytest.raises(LegatoError, match=why):
            Workers(ServeConfig(listen=listen), count)

    run(scenario)


def said(pipe: Any, text: bytes) -> None:
    pipe.send_bytes(text)


def ready_then_obeys(config: ServeConfig, seat: Seat, pipe: Any, _form: str, _level: str) -> None:
    """A worker without models: a file tells that it lived, and how it was told to end."""
    folder = Path(config.bundles[0])
    with (folder / f"{seat.index}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    said(pipe, b'{"word": "ready", "served": [["fake", "ab"]], "metrics_port": 0}')
    while (word := pipe.recv_bytes()) != b'{"word": "stop"}':
        (folder / "words").open("ab").write(word)
        said(pipe, b'{"word": "drained"}')


def fails(_config: ServeConfig, seat: Seat, pipe: Any, _form: str, _level: str) -> None:
    if seat.index == 1:
        said(pipe, b'{"word": "failed", "kind": "BundleError", "sentence": "the bundle is torn; take another"}')
    pipe.recv_bytes()  # neither is gone before it is told to stop


def dies(_config: ServeConfig, _seat: Seat, _pipe: Any, _form: str, _level: str) -> None:
    sys.exit(7)


def workers(folder: Path, work: Any) -> Workers:
    return Workers(ServeConfig(bundles=(str(folder),), listen="127.0.0.1:0"), 2, work=work)


def pids(folder: Path, index: int) -> list[int]:
    path = folder / str(index)
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_all_workers_start_are_told_to_drain_and_end(tmp_path):
    async def scenario() -> None:
        both = workers(tmp_path, ready_then_obeys)
        port = await both.start()
        assert both.where == f"127.0.0.1:{port}"
        assert both.served == [("fake", "ab")]
        await both.drain()
        await both.stop()
        await both.stop()
        assert (tmp_path / "words").read_bytes() == b'{"word": "drain"}' * 2
        assert not any(alive(pid) for index in (0, 1) for pid in pids(tmp_path, index))

    run(scenario)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_dies_is_replaced_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.serve.workers.AGAIN_FIRST", 0.01)

    async def scenario() -> None:
        both = workers(tmp_path, ready_then_obeys)
        await both.start()
        (other,) = pids(tmp_path, 1)
        both._seats[0] = 5  # what it served is gone with it
        os.kill(pids(tmp_path, 0)[0], signal.SIGKILL)
        async with asyncio.timeout(20):
            while len(pids(tmp_path, 0)) < 2:
                await asyncio.sleep(0.01)
        assert both._seats[0] == 0
        assert pids(tmp_path, 1) == [other]
        await both.stop()

    run(scenario)


@pytest.mark.parametrize(("work", "error", "why"), [
    (fails, BundleError, "the bundle is torn; take another"),
    pytest.param(dies, LegatoError, r"worker \d ended \(exit code 7\) before it was ready", marks=pytest.mark.slow),
])  # fmt: skip
def test_what_a_worker_cannot_start_with_ends_all_of_them_with_its_sentence(tmp_path, work, error, why):
    async def scenario() -> None:
        both = workers(tmp_path, work)
        with pytest.raises(error, match=why):
            await both.start()
        assert not both._workers

    run(scenario)


@pytest.mark.slow
def test_workers_end_when_their_keeper_is_killed(tmp_path):
    """As with kill -9: the line between them breaks, and that is enough."""
    import subprocess

    code = (
        "import asyncio, sys, pathlib\n"
        "from runtime.serve.workers import Workers\n"
        "from tests.test_workers import workers, ready_then_obeys\n"
        "async def main():\n"
        "    both = workers(pathlib.Path(sys.argv[1]), ready_then_obeys)\n"
        "    await both.start()\n"
        "    print('up', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    script = tmp_path / "keeper.py"
    script.write_text(code)
    root = str(Path(__file__).parent.parent)
    keeper = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root}, cwd=root, text=True,
    )  # fmt: skip
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == "up\n"
    left = pids(tmp_path, 0) + pids(tmp_path, 1)
    keeper.kill()
    keeper.communicate()
    until = time.monotonic() + 10
    while any(alive(pid) for pid in left) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in left)
