"""The service against clients that behave, and against those that do not: the right status, in bounded time."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from protos import stream_pb2 as pb
from protos import stream_pb2_grpc as rpc
from runtime.config import WindowSettings
from runtime.serve import calls
from runtime.serve.answers import bundle_from_wire
from runtime.serve.session import Settings
from tests.fakes import packet, stream
from tests.serving import (
    FakeDispatcher,
    Heard,
    ack,
    batch,
    config,
    connected,
    details,
    end,
    ends,
    field_of,
    hear,
    in_batches,
    offer,
    serving,
    talk,
)

CLIPS = 10  # of four seconds


def run(scenario: Any) -> Any:
    """A scenario in an event loop of its own, for ten seconds at most."""

    async def bounded() -> Any:
        async with asyncio.timeout(10):
            return await scenario()

    return asyncio.run(bounded())


def whole(seconds: float = 4.0) -> list[pb.StreamRequest]:
    """A stream from its config to its end."""
    return [config(), *in_batches(stream(seconds)), *ends()]


def refused(requests: list[pb.StreamRequest], **settings: Any) -> Heard:
    """What a server says to such a client, while a neighbour gets everything that is due to it."""

    async def scenario() -> Heard:
        async with serving(**settings) as server:
            heard, neighbour = await asyncio.gather(talk(server, requests), talk(server, whole()))
            assert neighbour.code == "OK"
            assert len(neighbour.finals) == 2 * (CLIPS - 1)
            assert server.service is not None
            assert server.service.streams == 0
            return heard

    return run(scenario)


# -- a client that behaves ---------------------------------------------------


def test_a_stream_is_answered_from_start_to_totals():
    heard = refused(whole())
    assert heard.code == "OK"
    kinds = [r.WhichOneof("response") for r in heard.responses]
    assert kinds[0] == "started" and kinds[-1] == "stats"
    assert heard.finals == [(clip, head) for clip in range(1, CLIPS) for head in ("gru", "linear")]
    assert [r.clip for r in heard.of("clip_report")] == list(range(CLIPS))
    counts = heard.of("stats")[-1].packets
    assert (counts["video"].used, counts["audio"].used) == (100, 200)
    assert len(heard.started.resume_token) == 16


def test_what_was_acknowledged_grows_and_ends_with_everything():
    heard = refused(whole())
    acks = [dict(r.ack_through_seq) for r in heard.responses if r.ack_through_seq]
    assert acks == sorted(acks, key=lambda a: a["video"])
    assert acks[-1] == {"video": 99, "audio": 199}
    points = [r.resume_point for r in heard.responses if r.HasField("resume_point")]
    assert [p.next_clip for p in points] == sorted(p.next_clip for p in points)
    assert {p.stream for p in points} == {heard.started.stream}


def test_only_the_heads_asked_for_speak():
    heard = refused([config(heads=["linear"]), *in_batches(stream(4.0)), *ends()])
    assert {p.head for p in heard.of("prediction")} == {"linear"}


def test_with_a_lookahead_each_window_is_said_twice():
    heard = refused([config(lookahead=2), *in_batches(stream(4.0)), *ends()])
    assert heard.started.lookahead == 2
    gru = [p for p in heard.of("prediction") if p.head == "gru"]
    assert [p.clip for p in gru if p.status == pb.PREDICTION_STATUS_PROVISIONAL] == list(range(1, CLIPS))
    assert [p.clip for p in gru if p.status == pb.PREDICTION_STATUS_FINAL] == list(range(1, CLIPS))


def test_a_client_that_closes_its_side_has_ended_its_stream():
    heard = refused([config(), *in_batches(stream(4.0))])
    assert heard.code == "OK"
    assert heard.finals[-1] == (CLIPS - 1, "linear")


def test_a_lost_tail_is_counted():
    heard = refused([config(), *in_batches(stream(4.0)), end("video", 109), end("audio", 199)])
    assert heard.of("stats")[-1].packets["video"].lost == 10
    assert heard.of("stats")[-1].packets["audio"].lost == 0


def test_describe_bundle_says_what_is_served():
    async def scenario() -> None:
        async with serving([offer(), offer(name="other")]) as server, connected(server) as stub:
            default = await stub.DescribeBundle(pb.DescribeBundleRequest())
            assert bundle_from_wire(default.bundle).name == "fake"
            described = await stub.DescribeBundle(pb.DescribeBundleRequest(bundle="other"))
            assert [h.name for h in described.bundle.heads] == ["gru", "linear"]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.DescribeBundle(pb.DescribeBundleRequest(bundle="no\nne"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert field_of(caught.value) == "bundle"

    run(scenario)


# -- out of order ---------------------------------------------------


def test_a_packet_before_the_config_is_a_failed_precondition():
    heard = refused([batch(stream(0.4))])
    assert heard.code == "FAILED_PRECONDITION"
    assert field_of(heard.error) == "config"


def test_nothing_at_all_is_a_failed_precondition():
    assert refused([]).code == "FAILED_PRECONDITION"


def test_a_second_config_is_a_failed_precondition():
    heard = refused([config(), config(), *in_batches(stream(1.0))])
    assert heard.code == "FAILED_PRECONDITION"
    assert "CodecConfig" in heard.error.details()


def test_a_modality_ends_once():
    heard = refused([config(), *in_batches(stream(1.0)), end("video"), end("video")])
    assert heard.code == "FAILED_PRECONDITION"
    assert field_of(heard.error) == "end_of_stream"


def test_an_ack_of_a_prediction_never_sent_names_the_field():
    never = pb.Prediction(stream="x", epoch=0, clip=99, head="gru")

    async def scenario() -> None:
        async with serving() as server, connected(server) as stub:
            for changes in ({}, {"stream": None}, {"stream": None, "head": "gru", "clip": 7}):
                call = stub.Stream()
                await call.write(config())
                heard = await hear(call, until=lambda h: True)
                known = {k: heard.started.stream if v is None else v for k, v in changes.items()}
                await call.write(ack(never, **known))
                heard = await hear(call, heard)
                assert heard.code == "INVALID_ARGUMENT"
                assert field_of(heard.error) == "ack.prediction"

    run(scenario)


def test_a_message_of_no_known_kind_ends_the_stream():
    heard = refused([config(), pb.StreamRequest()])
    assert heard.code == "INVALID_ARGUMENT"


# -- too slow, too much ---------------------------------------------------


def test_a_client_that_sends_no_config_is_let_go():
    async def scenario() -> None:
        async with serving(config_timeout=0.1) as server:
            began = time.monotonic()
            heard = await talk(server, [], close=False)
            assert heard.code == "DEADLINE_EXCEEDED"
            assert "StreamConfig" in heard.error.details()
            assert time.monotonic() - began < 5

    run(scenario)


def test_a_client_that_falls_silent_is_let_go():
    async def scenario() -> None:
        async with serving(stream=Settings(idle=0.1)) as server:
            heard = await talk(server, [config(), batch(stream(0.4))], close=False)
            assert heard.code == "DEADLINE_EXCEEDED"
            assert details(heard.error)["ErrorInfo"].reason == "IDLE"

    run(scenario)


def test_one_stream_too_many_is_told_when_to_come_again():
    async def scenario() -> None:
        async with serving(max_streams=1) as server, connected(server) as stub:
            first = stub.Stream()
            await first.write(config())
            await hear(first, until=lambda h: True)
            heard = await talk(server, whole())
            assert heard.code == "RESOURCE_EXHAUSTED"
            assert details(heard.error)["RetryInfo"].retry_delay.ToMilliseconds() == 1000
            first.cancel()
            while server.service.streams:
                await asyncio.sleep(0.01)
            assert (await talk(server, whole())).code == "OK"

    run(scenario)


@pytest.mark.parametrize("megabytes", [17, pytest.param(100, marks=pytest.mark.slow)])
def test_a_message_that_is_too_large_is_refused(megabytes):
    huge = replace(packet(), payload=bytes(megabytes << 20))
    heard = refused([config(), batch([huge])])
    assert heard.code == "RESOURCE_EXHAUSTED"


def test_too_many_packets_in_one_message_are_refused():
    heard = refused([config(), batch([packet(seq=i) for i in range(1025)])])
    assert heard.code == "INVALID_ARGUMENT"
    assert field_of(heard.error) == "packets"


def test_a_client_that_never_reads_loses_provisional_predictions_first_and_then_its_stream():
    async def scenario() -> None:
        made = offer(window=WindowSettings(clips=4, lookahead=2, min_clips=1))
        async with serving([made], stream=Settings(outbox=20)) as server:
            options = [("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)]
            with grpc.insecure_channel(server.where, options=options) as channel:
                call = rpc.InferenceServiceStub(channel).Stream(iter([config(), *in_batches(stream(120.0), 100)]))
                most = 0
                while not (sessions := server.service._resumes.states()):
                    await asyncio.sleep(0.01)
                while sessions[0].failure is None:
                    most = max(most, len(sessions[0].outbox))
                    await asyncio.sleep(0.001)
                assert sessions[0].failure.code == "RESOURCE_EXHAUSTED"
                assert sessions[0].outbox.dropped > 0
                assert most <= 20 + 2  # totals and the first message do not count
                heard = await asyncio.to_thread(read_all, call)
                assert heard.code == "RESOURCE_EXHAUSTED"
            assert (await talk(server, whole())).code == "OK"

    run(scenario)


def test_a_live_client_that_never_reads_is_told_to_resume_and_holds_no_place_meanwhile(monkeypatch):
    monkeypatch.setattr(calls, "LAST_WORD", 0.1)

    async def scenario() -> None:
        made = offer(window=WindowSettings(clips=4, lookahead=2, min_clips=1))
        settings = Settings(unread=0.3, ahead=1e9, outbox=10_000)
        async with serving([made], stream=settings) as server:
            options = [("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)]
            with grpc.insecure_channel(server.where, options=options) as channel:
                call = rpc.InferenceServiceStub(channel).Stream(iter([config(), *in_batches(stream(120.0), 100)]))
                while not server.service.kept:
                    await asyncio.sleep(0.01)
                while server.service.streams:
                    await asyncio.sleep(0.01)
                (session,) = server.service._resumes.states()
                assert session.failure is None  # it may be resumed
                heard = await asyncio.to_thread(read_all, call)
                assert heard.code == "RESOURCE_EXHAUSTED"
                assert "resume" in heard.error.details()
                assert "RetryInfo" in details(heard.error)

    run(scenario)


def test_a_flooder_is_ended_with_its_status():
    def flood() -> Iterator[pb.StreamRequest]:
        yield config()
        yield from in_batches(stream(200.0), 100)

    async def scenario() -> None:
        async with serving(stream=Settings(ahead=2.0, flood=0.2)) as server:
            with grpc.insecure_channel(server.where) as channel:
                call = rpc.InferenceServiceStub(channel).Stream(flood())
                heard = await asyncio.to_thread(read_all, call)
            assert heard.code == "RESOURCE_EXHAUSTED"
            assert details(heard.error)["ErrorInfo"].reason == "FLOOD"
            assert (await talk(server, [config(), *in_batches(stream(1.0)), *ends()])).code == "OK"

    run(scenario)


def read_all(call: Any) -> Heard:
    """A blocking call to its end."""
    heard = Heard()
    try:
        heard.responses.extend(call)
    except grpc.RpcError as error:
        heard.error = error
    return heard


def test_a_flooder_is_stopped_by_flow_control_and_held_within_bounds():
    async def scenario() -> None:
        held = FakeDispatcher(held=True)
        settings = Settings(inbox_packets=64, inbox_bytes=64 << 10)
        slow = offer(held, name="slow")
        async with serving([offer(), slow], stream=settings) as server, connected(server) as stub:
            call = stub.Stream()
            await call.write(config(bundle="slow"))
            await hear(call, until=lambda h: True)
            (session,) = server.service._resumes.states()
            sent, payload = 0, bytes(10_000)
            fat = [replace(p, payload=payload) for p in stream(60.0)]
            try:
                async with asyncio.timeout(1.0):
                    for request in in_batches(fat, 4):
                        await call.write(request)
                        sent += 4
            except TimeoutError:
                pass
            assert sent < len(fat)
            assert session._inbox.size <= (64 << 10) + 4 * 10_000
            assert session._inbox.packets <= 64 + 4
            assert len(held.submitted) <= settings.in_flight + 1
            assert (await talk(server, whole())).code == "OK"
            call.cancel()

    run(scenario)


# -- nonsense ---------------------------------------------------


def test_random_bytes_and_absurd_packets_are_counted_and_skipped():
    good = stream(4.0)
    bad = [
        replace(packet(seq=5), capture_time=1 << 62),
        replace(packet(seq=5), capture_time=-(1 << 62)),
        replace(packet(seq=5), duration=(1 << 64) - 1),
        packet(seq=(1 << 64) - 1, ms=200),
        replace(packet(seq=5), payload=b""),
    ]
    nameless = pb.StreamRequest(packets=pb.PacketBatch(packets=[pb.Packet(seq=1, payload=b"x")]))
    no_clock = batch([packet(seq=5)])
    no_clock.packets.packets[0].time_base.CopyFrom(pb.Rational(numerator=1, denominator=0))
    heard = refused([config(), batch(good[:50]), batch(bad), nameless, no_clock, *in_batches(good[50:]), *ends()])
    assert heard.code == "OK"
    assert len(heard.finals) == 2 * (CLIPS - 1)
    assert heard.of("stats")[-1].packets["video"].malformed == len(bad) + 2


@pytest.mark.parametrize("jump", [10**6, 1 << 40, (1 << 63) - 300])
def test_a_jump_of_the_sequence_is_a_gap_of_that_size(jump):
    first = stream(2.0)
    rest = [replace(p, seq=p.seq + jump) for p in stream(4.0) if p not in first]
    heard = refused([config(), *in_batches(first), *in_batches(rest), *ends()])
    assert heard.code == "OK"
    assert heard.of("stats")[-1].packets["video"].lost == jump


def test_many_jumps_of_the_capture_clock_cost_no_more_than_their_packets():
    leaps = [packet("video", seq, ms=(seq % 7) * 10**10) for seq in range(300)]
    heard = refused([config(), *in_batches(leaps), *ends()])
    assert heard.code == "OK"
    assert len(heard.of("clip_report")) < 1000


def test_a_call_that_is_cancelled_leaves_a_stream_that_stands_still():
    async def scenario() -> None:
        async with serving() as server, connected(server) as stub:
            call = stub.Stream()
            await call.write(config())
            for request in in_batches(stream(4.0)):
                await call.write(request)
            await hear(call, until=lambda h: len(h.finals) > 4)
            call.cancel()
            while server.service.streams:
                await asyncio.sleep(0.01)
            assert server.service.kept == 1
            (session,) = server.service._resumes.states()
            before = session._clock.now()
            await asyncio.sleep(0.05)
            assert session._clock.now() == before

    run(scenario)


def test_a_call_whose_deadline_passes_takes_its_work_off_the_device():
    async def scenario() -> None:
        dispatcher = FakeDispatcher(held=True)
        async with serving([offer(dispatcher)]) as server, connected(server) as stub:
            call = stub.Stream(timeout=0.3)
            await call.write(config())
            for request in in_batches(stream(2.0)):
                await call.write(request)
            heard = await hear(call)
            assert heard.code == "DEADLINE_EXCEEDED"
            while not dispatcher.detached:
                await asyncio.sleep(0.01)
            assert server.service.kept == 0

    run(scenario)


def test_an_unknown_bundle_head_or_codec_is_said_by_its_field():
    async def scenario() -> None:
        async with serving() as server:
            for request, code, field in [
                (config(bundle="nobody"), "NOT_FOUND", "bundle"),
                (config(heads=["nose"]), "INVALID_ARGUMENT", "heads[0]"),
                (config(codecs=[pb.CodecConfig(modality=1, codec="gif")]), "INVALID_ARGUMENT", "codecs[0].time_base"),
            ]:
                heard = await talk(server, [request])
                assert (heard.code, field_of(heard.error)) == (code, field)

    run(scenario)


def test_a_byte_a_second_holds_no_stream_and_no_more_than_its_connection():
    async def scenario() -> None:
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for byte in preface[:5]:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.02)
            assert server.service.streams == 0
            assert (await talk(server, whole())).code == "OK"
            writer.write(b"\x00" * 10_000)  # and now nonsense
            await writer.drain()
            assert await asyncio.wait_for(reader.read(), 5) is not None  # cut off
            writer.close()
            assert (await talk(server, whole())).code == "OK"

    run(scenario)


def test_a_message_that_is_no_message_ends_its_call_only():
    async def scenario() -> None:
        async with serving() as server, grpc.aio.insecure_channel(server.where) as channel:
            raw = channel.stream_stream("/legato.v1.InferenceService/Stream")
            for before in ([], [config().SerializeToString()]):
                call = raw()
                for message in (*before, b"\xff\xff\xff\xff random bytes"):
                    await call.write(message)
                heard = await hear(call)
                assert heard.code == "INVALID_ARGUMENT"
                assert "these bytes are no message of legato.v1" in heard.error.details()
                assert field_of(heard.error) == "request"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/legato.v1.InferenceService/DescribeBundle")(b"\xff\xff random bytes")
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert (await talk(server, whole())).code == "OK"

    run(scenario)


def test_many_streams_at_once_keep_to_themselves():
    """A canary: each stream has a loss of its own, and every prediction shows its own and no other."""

    async def scenario() -> None:
        async with serving() as server:
            losses = [n for n in range(8)]
            packets = stream(4.0)
            requests = []
            for n in losses:
                kept = [p for p in packets if not (p.modality == "audio" and p.seq // 20 == n + 1)]
                requests.append([config(), *in_batches(kept), *ends()])
            heard = await asyncio.gather(*(talk(server, r) for r in requests))
            for n, said in zip(losses, heard, strict=True):
                lost = [r.clip for r in said.of("clip_report") if r.modalities["audio"].state != pb.CLIP_STATE_OBSERVED]
                assert lost == [n + 1]
                assert {p.stream for p in said.of("prediction")} == {said.started.stream}
            assert len({said.started.stream for said in heard}) == 8

    run(scenario)
