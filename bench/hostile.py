"""Clients that mean no good, one at a time: ``python -m bench.hostile NAME HOST:PORT``; prints one line of JSON.

Each tries for ``--seconds`` and tells what the server answered (a gRPC status, or what became of the connection), after
how long, and how much it got rid of. ``bench.faults`` starts them beside clients that behave.
"""

import argparse
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from protos import stream_pb2 as pb
from runtime.annexb import to_annexb
from runtime.packet import Packet
from runtime.serve.convert import codec_to_wire, packet_to_wire
from runtime.sources import open_source

DEMO = Path(__file__).parent.parent / "runtime" / "bundles" / "talk" / "demo.legato"
STREAM = "/legato.v1.InferenceService/Stream"
HUGE = 100 << 20  # bytes
DEAF_SECONDS = 8.5  # after which a client that never reads looks at what it was told
LIVE_SECONDS = 15.0  # of media that a live stream may send at once: what is wrong with an attack is something else


@dataclass
class Outcome:
    """What came of it."""

    status: str  # of gRPC; or closed, open: what became of a bare connection
    seconds: float  # until then
    details: str = ""
    sent: int = 0  # bytes
    answers: int = 0  # messages


@dataclass
class Attack:
    """How one client behaves, and which statuses are right. ``within``: seconds by which one must have come."""

    run: Callable[["Target"], Outcome]
    right: tuple[str, ...]
    within: float | None = 10.0


@dataclass
class Target:
    """Whom, how long, and with what papers."""

    address: str
    seconds: float
    token: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    seed: int = 0

    def channel(self) -> grpc.Channel:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1),
                   ("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]  # fmt: skip
        if not self.ca:
            return grpc.insecure_channel(self.address, options=options)
        read = [Path(p).read_bytes() if p else None for p in (self.ca, self.key, self.cert)]
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(*read), options=options)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}")] if self.token else []


# -- what they say --------------------------------------------------------------------------------------------------


class Demo:
    """A config and packets that are in order; the start of everything."""

    def __init__(self) -> None:
        with open_source(DEMO) as source:
            info = source.info
            items = [p for p in source.packets() if isinstance(p, Packet)]
        made = {m: to_annexb(codec) for m, codec in info.codecs.items()}
        self.config = pb.StreamConfig(name="hostile", codecs=[codec_to_wire(m, c) for m, (c, _) in made.items()])
        self.packets = []
        for item in items:
            wire = packet_to_wire(item, info.codecs[item.modality].time_base)
            wire.payload = made[item.modality][1](item.payload)
            self.packets.append(wire)

    def start(self) -> pb.StreamRequest:
        return pb.StreamRequest(config=self.config)

    def batches(self, change: Callable[[pb.Packet, int], None] = lambda packet, i: None) -> Iterator[pb.StreamRequest]:
        """Every packet, each changed."""
        batch: list[pb.Packet] = []
        for i, packet in enumerate(self.packets):
            wire = pb.Packet()
            wire.CopyFrom(packet)
            change(wire, i)
            batch.append(wire)
            if len(batch) == 16:
                yield pb.StreamRequest(packets=pb.PacketBatch(packets=batch))
                batch = []

    def ends(self) -> Iterator[pb.StreamRequest]:
        yield from (pb.StreamRequest(end_of_stream=pb.EndOfStream(modality=c.modality)) for c in self.config.codecs)


def call(
    target: Target, requests: Iterator[Any], *, read: bool = True, raw: bool = False, endless: bool = False
) -> Outcome:
    """Say all of it and hear what comes back; an endless one is cancelled when its time is over."""
    began, sent, over = time.monotonic(), 0, threading.Event()

    def saying() -> Iterator[bytes]:
        nonlocal sent
        for request in requests:
            data = request if raw else request.SerializeToString()
            sent += len(data)
            if over.is_set() or time.monotonic() - began > target.seconds:
                return
            yield data

    with target.channel() as channel:
        method = channel.stream_stream(STREAM, lambda data: data, pb.StreamResponse.FromString)
        answers = method(saying(), metadata=target.metadata, timeout=target.seconds + 15)
        heard = 0
        stop = threading.Timer(target.seconds, answers.cancel) if endless else None
        try:
            if stop is not None:
                stop.start()
            if not read:
                time.sleep(min(DEAF_SECONDS, target.seconds))
            for _ in answers:
                heard += 1
            code, details = grpc.StatusCode.OK, ""
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
        over.set()
        if stop is not None:
            stop.cancel()
    return Outcome(code.name, time.monotonic() - began, details[:200], sent, heard)


def waiting(target: Target) -> Iterator[Any]:
    """Nothing, until the time is over."""
    time.sleep(target.seconds)
    return
    yield


def never_reads(target: Target) -> Outcome:
    demo = Demo()

    def endless() -> Iterator[Any]:
        yield demo.start()
        for lap in range(10_000):  # the demo over and over, as one long stream
            yield from demo.batches(lambda packet, i, lap=lap: _later(packet, lap))  # type: ignore[misc]

    return call(target, endless(), read=False, endless=True)


def floods(target: Target) -> Outcome:
    """As ``never_reads``, but it reads: as fast as the server lets it."""
    demo = Demo()

    def endless() -> Iterator[Any]:
        yield demo.start()
        for lap in range(10_000):
            yield from demo.batches(lambda packet, i, lap=lap: _later(packet, lap))  # type: ignore[misc]

    return call(target, endless(), endless=True)


def _later(packet: pb.Packet, lap: int) -> None:
    packet.seq += lap * (2500 if packet.modality == pb.MODALITY_AUDIO else 1300)
    packet.capture_time += lap * 48_100
    packet.decode_time += lap * 48_100


def one_byte_a_second(target: Target) -> Outcome:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
    return bare(target, (bytes([b]) for b in preface * 100), pause=1.0)


def random_bytes(target: Target) -> Outcome:
    rng = random.Random(target.seed)
    return bare(target, (rng.randbytes(1024) for _ in range(1000)), pause=0.01)


def bare(target: Target, chunks: Iterator[bytes], pause: float) -> Outcome:
    """On a socket without gRPC."""
    host, _, port = target.address.rpartition(":")
    began, sent = time.monotonic(), 0
    with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as connection:
        connection.setblocking(False)
        while time.monotonic() - began < target.seconds:
            try:
                sent += connection.send(next(chunks, b"\0"))
            except BlockingIOError:
                pass
            except OSError:
                return Outcome("closed", time.monotonic() - began, sent=sent)
            with suppress(BlockingIOError):
                try:
                    if connection.recv(65536) == b"":
                        return Outcome("closed", time.monotonic() - began, sent=sent)
                except ConnectionError:
                    return Outcome("closed", time.monotonic() - began, sent=sent)
            time.sleep(pause)
    return Outcome("open", time.monotonic() - began, sent=sent)


def random_messages(target: Target) -> Outcome:
    rng = random.Random(target.seed)
    return call(target, (rng.randbytes(rng.randrange(1, 2000)) for _ in range(1000)), raw=True)


def large_message(target: Target) -> Outcome:
    packet = pb.Packet(modality=pb.MODALITY_VIDEO, payload=bytes(HUGE))
    return call(target, iter([Demo().start(), pb.StreamRequest(packets=pb.PacketBatch(packets=[packet]))]))


def no_config(target: Target) -> Outcome:
    return call(target, waiting(target))


def packet_first(target: Target) -> Outcome:
    return call(target, Demo().batches())


def sequence_jumps(target: Target) -> Outcome:
    demo = Demo()

    def jumping(packet: pb.Packet, i: int) -> None:
        packet.seq += (i // 20) * 10**6

    return call(target, _all(demo, jumping))


def absurd_times(target: Target) -> Outcome:
    rng, demo = random.Random(target.seed), Demo()

    def absurd(packet: pb.Packet, i: int) -> None:
        packet.capture_time = rng.choice([0, 1, -1, 2**62, -(2**62), 2**63 - 1, rng.randrange(-(2**40), 2**40)])
        packet.decode_time = rng.choice([packet.capture_time, 2**63 - 1, 0])
        packet.duration = rng.choice([0, 2**63, 2**64 - 1])

    return call(target, _all(demo, absurd))


def absurd_sizes(target: Target) -> Outcome:
    demo = Demo()
    demo.config.codecs[0].width, demo.config.codecs[0].height = 2**31, 2**31
    return call(target, iter([demo.start()]))


def large_extradata(target: Target) -> Outcome:
    demo = Demo()
    demo.config.codecs[0].extradata = bytes(70_000)
    return call(target, iter([demo.start()]))


def spoilt_payloads(target: Target) -> Outcome:
    rng, demo = random.Random(target.seed), Demo()

    def spoil(packet: pb.Packet, i: int) -> None:
        data = bytearray(packet.payload)
        for _ in range(max(1, len(data) // 50)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        packet.payload = bytes(data)

    return call(target, _all(demo, spoil))


def _all(demo: Demo, change: Callable[[pb.Packet, int], None]) -> Iterator[Any]:
    first = demo.packets[0].capture_time
    demo.packets = [p for p in demo.packets if p.capture_time - first < LIVE_SECONDS * 1000]
    yield demo.start()
    yield from demo.batches(change)
    yield from demo.ends()


def wrong_token(target: Target) -> Outcome:
    target.token = "not-a-token-of-this-server"
    return call(target, iter([Demo().start()]))


def plain(target: Target) -> Outcome:
    """A stream as it should be, with whatever papers it was given."""
    demo = Demo()
    return call(target, iter([demo.start(), *demo.ends()]))


ATTACKS = {
    "never reads": Attack(never_reads, ("RESOURCE_EXHAUSTED",)),
    "floods as fast as it can": Attack(floods, ("RESOURCE_EXHAUSTED",)),
    "one byte a second": Attack(one_byte_a_second, ("closed", "open"), None),
    "a message of 100 MB": Attack(large_message, ("RESOURCE_EXHAUSTED",)),
    "no config": Attack(no_config, ("DEADLINE_EXCEEDED", "INVALID_ARGUMENT", "FAILED_PRECONDITION"), 11.0),
    "a packet before the config": Attack(packet_first, ("FAILED_PRECONDITION",)),
    "random bytes": Attack(random_bytes, ("closed",)),
    "random messages": Attack(random_messages, ("INTERNAL", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNKNOWN")),
    "sequence jumps of a million": Attack(sequence_jumps, ("OK",), None),
    "absurd times": Attack(absurd_times, ("OK", "INVALID_ARGUMENT"), None),
    "absurd sizes": Attack(absurd_sizes, ("INVALID_ARGUMENT",)),
    "extradata of 70 kB": Attack(large_extradata, ("INVALID_ARGUMENT",)),
    "spoilt payloads": Attack(spoilt_payloads, ("OK",), None),
    "a wrong token": Attack(wrong_token, ("UNAUTHENTICATED",)),
    "an expired certificate": Attack(plain, ("UNAVAILABLE", "UNAUTHENTICATED")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=ATTACKS)
    parser.add_argument("address")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--seed", type=int, default=0)
    for paper in ("ca", "cert", "key"):
        parser.add_argument(f"--{paper}", default="")
    options = vars(parser.parse_args())
    attack = ATTACKS[options.pop("name")]
    outcome = attack.run(Target(**options, token=os.environ.get("LEGATO_TOKEN", "")))
    json.dump(asdict(outcome), sys.stdout)
    print()


if __name__ == "__main__":
    main()
