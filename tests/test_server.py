"""Server: health, drain, metrics, addresses, recording; from start to stop in one process."""

import asyncio
import json
import re
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import stream_pb2 as pb
from runtime.clock import SystemClock
from runtime.errors import ConfigError, UsageError
from runtime.observe import Observer
from runtime.packet import Decision, Packet
from runtime.receive import Receiver
from runtime.recording import RecordingReader
from runtime.serve.ports import channel_options
from runtime.serve.server import ServeConfig, Server
from runtime.sources import open_source
from tests.fakes import SPEC, ListSource, fake_parts, stream
from tests.serving import (
    FakeAnswer,
    FakeDispatcher,
    batch,
    config,
    connected,
    details,
    ends,
    hear,
    in_batches,
    offer,
    serving,
    talk,
)
from tests.test_servicer import run, whole

DEMO = Path(__file__).parent.parent / "runtime" / "bundles" / "talk" / "demo.legato"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def health(server: Server, name: str = "") -> int:
    async with grpc.aio.insecure_channel(server.where) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status


def test_health_is_told_of_the_server_and_of_each_bundle():
    async def scenario() -> None:
        async with serving([offer(), offer(name="other")]) as server:
            for name in ("", "fake", "other", "legato.v1.InferenceService"):
                assert await health(server, name) == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health(server, "third")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    run(scenario)


def test_health_needs_no_token(tmp_path):
    from runtime.serve.auth import new_token

    new_token(tmp_path / "tokens", "x", ["stream"])

    async def scenario() -> None:
        async with serving(tokens=tmp_path / "tokens") as server:
            assert await health(server) == SERVING

    run(scenario)


def test_a_drain_says_so_first_then_tells_every_stream_where_it_stands():
    async def scenario() -> None:
        async with serving() as server, connected(server) as stub:
            call = stub.Stream()
            await call.write(config())
            for request in in_batches(stream(4.0)):
                await call.write(request)
            heard = await hear(call, until=lambda h: len(h.finals) >= 6)
            draining = asyncio.create_task(server.drain())
            heard = await hear(call, heard)
            (away,) = heard.of("going_away")
            assert len(away.resume_token) == 16
            assert away.resume_token != heard.started.resume_token
            assert heard.responses[-1].WhichOneof("response") == "stats"
            assert heard.code == "UNAVAILABLE"
            assert "RetryInfo" in details(heard.error)
            assert await health(server) == NOT_SERVING
            await draining
            assert (await talk(server, whole())).code == "UNAVAILABLE"

    run(scenario)


def test_what_was_read_is_answered_before_a_drained_stream_ends():
    async def scenario() -> None:
        dispatcher = FakeDispatcher(held=True)
        async with serving([offer(dispatcher)]) as server, connected(server) as stub:
            call = stub.Stream()
            await call.write(config())
            for request in in_batches(stream(2.0)):
                await call.write(request)
            while len(dispatcher.submitted) < 4:
                await asyncio.sleep(0.01)
            draining = asyncio.create_task(server.drain())
            await asyncio.sleep(0.05)
            assert not draining.done()
            dispatcher.release()
            heard = await hear(call)
            assert {clip for clip, _ in heard.finals} >= {1, 2, 3}
            assert heard.code == "UNAVAILABLE"
            await draining

    run(scenario)


def test_a_stream_that_was_ended_is_finished_while_draining():
    async def scenario() -> None:
        dispatcher = FakeDispatcher(held=True)
        async with serving([offer(dispatcher)]) as server, connected(server) as stub:
            call = stub.Stream()
            for request in whole(2.0):
                await call.write(request)
            while len(dispatcher.submitted) < 5:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            draining = asyncio.create_task(server.drain())
            await asyncio.sleep(0.05)
            dispatcher.held = False
            dispatcher.release()
            heard = await hear(call)
            assert (heard.code, len(heard.finals)) == ("OK", 8)
            await draining

    run(scenario)


def test_the_grace_ends():
    async def scenario() -> None:
        dispatcher = FakeDispatcher(held=True)
        async with serving([offer(dispatcher)], grace=0.1) as server, connected(server) as stub:
            call = stub.Stream()
            for request in [config(), batch(stream(1.0))]:
                await call.write(request)
            while not dispatcher.submitted:
                await asyncio.sleep(0.01)
            await server.drain()
            heard = await hear(call)
            assert heard.code == "UNAVAILABLE"
            assert dispatcher.detached

    run(scenario)


def test_a_stream_goes_on_at_another_server_with_what_the_first_one_said():
    async def scenario() -> None:
        packets = stream(6.0)
        async with serving() as server, connected(server) as stub:
            call = stub.Stream()
            await call.write(config())
            for request in in_batches(packets[:300]):
                await call.write(request)
            heard = await hear(call, until=lambda h: len(h.finals) >= 10)
            draining = asyncio.create_task(server.drain())
            heard = await hear(call, heard)
            await draining
        through: dict[str, int] = {}
        for response in heard.responses:
            through.update(response.ack_through_seq)
        point = [r.resume_point for r in heard.responses if r.HasField("resume_point")][-1]
        kept = [p for p in packets if p.seq > through[p.modality]]
        again = config(resume_token=heard.of("going_away")[0].resume_token, resume_point=point)
        async with serving() as other:
            rest = await talk(other, [again, *in_batches(kept), *ends()])
        assert rest.code == "OK"
        assert heard.finals + rest.finals == [(clip, head) for clip in range(1, 15) for head in ("gru", "linear")]
        assert len(kept) < len(packets)

    run(scenario)


def test_stop_without_drain_ends_streams_too():
    async def scenario() -> None:
        async with serving() as server, connected(server) as stub:
            call = stub.Stream()
            await call.write(config())
            await hear(call, until=lambda h: True)
            await server.stop()
            assert (await hear(call)).code == "UNAVAILABLE"
            await server.stop()

    run(scenario)


@pytest.mark.slow
def test_a_file_sent_at_once_is_answered_as_a_replay_answers_it():
    """Without holes, when packets come decides nothing: the same states, labels and probabilities."""
    from runtime.pipeline import Pipeline
    from runtime.serve.answers import prediction_from_wire
    from runtime.serve.convert import codec_to_wire, packet_to_wire, rational
    from runtime.serve.server import load_offers

    reader = RecordingReader(DEMO)
    info = replace(reader.info, duration=None)
    numbers = {m: count() for m in info.codecs}
    items = [
        replace(p, seq=next(numbers[p.modality]), arrival=None)
        for p in reader.packets()
        if isinstance(p, Packet) and p.seconds < 10
    ]
    settings = ServeConfig(preset="replay", deterministic=True, device="cpu", listen="127.0.0.1:0")
    wires = [packet_to_wire(p, info.codecs[p.modality].time_base) for p in items]
    batches = [pb.StreamRequest(packets=pb.PacketBatch(packets=wires[i : i + 20])) for i in range(0, len(wires), 20)]
    codecs = [codec_to_wire(m, c) for m, c in info.codecs.items()]
    origin = rational(info.origin)

    async def scenario() -> Any:
        offers = await asyncio.to_thread(load_offers, settings, SystemClock(), Observer())
        async with serving(offers.values()) as server:
            begin = config(codecs=codecs, origin=origin, heads=offers["talk"].heads[:1])
            heard = await talk(server, [begin, *batches, *ends()])
            await asyncio.to_thread(offers["talk"].dispatcher.stop)
            return heard

    heard = asyncio.run(scenario())
    assert heard.code == "OK", heard.error
    pipeline = Pipeline.from_bundle("talk", device="cpu")
    expected = [p.as_dict(timings=False) for p in pipeline.run(ListSource(items, info))]
    labels = pipeline.bundle.manifest.labels
    served = [prediction_from_wire(p, labels) for p in heard.of("prediction")]
    assert [replace(p, stream=info.name).as_dict(timings=False) for p in served] == expected


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_count_streams_packets_and_refusals():
    async def scenario() -> None:
        async with serving(metrics="127.0.0.1:0", max_streams=1) as server:
            assert (await talk(server, whole())).code == "OK"
            await talk(server, [batch(stream(0.4))])
            status, text = await asyncio.to_thread(fetch, server.metrics_port, "/metrics")
            assert status == 200
            assert 'packets_received_total{modality="video"} 100.0' in text
            assert 'stream_rejections_total{reason="order"} 1.0' in text
            assert "active_streams 0.0" in text
            assert 'stage_latency_seconds_count{stage="send"} 18.0' in text
            assert "end_to_end_latency_seconds_count 9.0" in text
            assert (await asyncio.to_thread(fetch, server.metrics_port, "/healthz"))[0] == 200
            await server.drain()
            assert (await asyncio.to_thread(fetch, server.metrics_port, "/healthz"))[0] == 503

    run(scenario)


def test_of_a_client_that_dies_and_is_given_up_nothing_stays_in_the_totals():
    async def scenario() -> None:
        dispatcher = FakeDispatcher(held=True)
        async with serving([offer(dispatcher)], metrics="127.0.0.1:0", keep_seconds=0.05) as server:
            async with connected(server) as stub:
                call = stub.Stream()
                for request in (config(), *in_batches(stream(2.0))):
                    await call.write(request)
                while not dispatcher.submitted:
                    await asyncio.sleep(0.01)
            async with asyncio.timeout(5):  # the channel is gone: the client is dead
                while not dispatcher.detached:
                    await asyncio.sleep(0.01)
                told = re.compile(r'packets_received_total{modality="audio"} [1-9]')  # after video's
                text = ""
                while not told.search(text):
                    text = (await asyncio.to_thread(fetch, server.metrics_port, "/metrics"))[1]
            assert "active_streams 0.0" in text
            assert 'packets_received_total{modality="video"} 0.0' not in text
            assert 'packets_unfinished{modality="video"} 0.0' in text
            assert 'packets_unfinished{modality="audio"} 0.0' in text

    run(scenario)


def test_health_says_that_the_server_comes_while_models_are_loaded(monkeypatch):
    loading, loaded = threading.Event(), threading.Event()

    def load(*_: Any) -> dict[str, Any]:
        loading.set()
        assert loaded.wait(10)
        return {"fake": offer()}

    monkeypatch.setattr("runtime.serve.server.load_offers", load)

    async def scenario() -> None:
        server = Server(ServeConfig(listen="127.0.0.1:0", metrics="127.0.0.1:0"))
        starting = asyncio.create_task(server.start())
        try:
            await asyncio.to_thread(loading.wait, 10)
            status, text = await asyncio.to_thread(fetch, server.metrics_port, "/healthz")
            assert (status, json.loads(text)["status"]) == (503, "starting")
            assert (await asyncio.to_thread(fetch, server.metrics_port, "/metrics"))[0] == 200
            loaded.set()
            await starting
            assert (await asyncio.to_thread(fetch, server.metrics_port, "/healthz"))[0] == 200
        finally:
            loaded.set()
            await server.stop()
        with pytest.raises(OSError):
            await asyncio.to_thread(fetch, server.metrics_port, "/healthz")

    run(scenario)


@pytest.mark.parametrize(("consent", "folder"), [(True, True), (False, True), (True, False)])
def test_packets_are_kept_only_with_consent_and_where_the_server_was_told_to(tmp_path, consent, folder):
    async def scenario() -> Any:
        record = tmp_path / "kept" if folder else None
        async with serving(record=record) as server:
            return await talk(server, [config(recording_consent=consent), *in_batches(stream(2.0)), *ends()])

    heard = run(scenario)
    found = list((tmp_path / "kept").glob("*.legato")) if folder else []
    assert heard.started.recording is (consent and folder)
    assert len(found) == (consent and folder)
    for path in found:
        assert path.stat().st_mode & 0o077 == 0
        assert sum(1 for _ in RecordingReader(path).packets()) == 150


class Overloaded(FakeDispatcher):
    """Leaves out the pictures of some clips, and says so after they closed."""

    def _answer(self, stream: Any, clip: Any) -> None:
        if clip is not None and clip.index in (3, 6):
            self._sinks[id(stream)](
                FakeAnswer(shed=Decision(kind="shed", modality="video", arrival=0.0, clip=clip.index))
            )
            clip = replace(clip, state={**clip.state, "video": "shed"}, presence={**clip.presence, "video": False})
        super()._answer(stream, clip)


def test_a_replay_of_what_was_kept_leaves_out_what_the_server_left_out(tmp_path):
    lossy = [p for p in stream(6.0) if p.modality == "audio" or p.seq % 50 < 44]
    requests = [config(recording_consent=True, name="desk", recorded=True), *in_batches(lossy), *ends()]

    async def scenario() -> Any:
        async with serving([offer(Overloaded())], record=tmp_path) as server:
            return await talk(server, requests)

    heard = run(scenario)
    names = {pb.ClipState.Value(f"CLIP_STATE_{name.upper()}"): name for name in ("observed", "lost", "damaged", "shed")}
    served = {c.clip: {m: names[s] for m, s in c.state.items()} for p in heard.of("prediction") for c in p.clips}
    (kept,) = tmp_path.glob("*.legato")
    with open_source(kept) as source:
        receiver = Receiver(source.info, SPEC, delay=5.0, parts=fake_parts())
        clips = [c for item in source.packets() for c in receiver.push(item, item.arrival or 0.0)] + receiver.finish()
    assert {c.index: c.state for c in clips} == served
    assert [c for c, state in served.items() if state["video"] == "shed"] == [3, 6]
    assert [c.version for c in clips] == [0] * 15


def test_a_port_that_is_taken_is_said_in_a_sentence():
    async def scenario() -> None:
        async with serving() as server:
            with pytest.raises(ConfigError, match="cannot be had; choose another port"):
                async with serving(listen=server.where):
                    pass

    run(scenario)


def test_a_socket_in_the_file_system(tmp_path):
    path = tmp_path / "s"

    async def scenario() -> None:
        async with serving(listen=f"unix:{path}") as server:
            assert server.where == f"unix:{path}"
            assert (await talk(server, whole())).code == "OK"

    if len(str(path)) < 100:
        run(scenario)


def test_settings_that_contradict_are_refused():
    with pytest.raises(UsageError, match="--max-streams is 0"):
        ServeConfig(max_streams=0)
    with pytest.raises(UsageError, match="--grace is -1"):
        ServeConfig(grace=-1)
    with pytest.raises(UsageError, match="names no bundle"):
        ServeConfig(bundles=())
    with pytest.raises(ConfigError, match="say --insecure"):
        Server(ServeConfig(listen="0.0.0.0:0"))


def test_every_option_of_grpc_is_set_once():
    names = [name for name, _ in channel_options()]
    assert len(set(names)) == len(names)
    assert "grpc.max_receive_message_length" in names
