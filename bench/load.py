"""Many clients in one process that costs little: ``python -m bench.load ADDRESS --streams 64 --seconds 20``.

Packets are serialized once, before the clock starts; each stream then only joins those that are due, every
``--batch-ms``, into one message: a PacketBatch is the concatenation of its packets. Answers are kept as bytes and read
after the clock has stopped. The process's CPU time while it plays is measured (getrusage) and told, so that what the
clients cost can be told from what the server costs.

Prints one line of JSON. The latency of a clip is from the message that completed it, in either modality, to the first
prediction of the window that ends with it.
"""

import argparse
import asyncio
import json
import random
import resource
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from protos import stream_pb2 as pb
from runtime.annexb import to_annexb
from runtime.packet import Packet, StreamInfo
from runtime.pipeline import arrival
from runtime.run_log import SETTLE_CLIPS, Span, read_truth
from runtime.serve.answers import prediction_from_wire
from runtime.serve.convert import codec_to_wire, packet_to_wire, rational
from runtime.sources import open_source

METHOD = "/legato.v1.InferenceService/Stream"
OPENING_SECONDS = 60.0  # in which every stream must have been answered
ENDING_SECONDS = 5.0
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]  # a connection each, as strangers have


@dataclass(frozen=True)
class Script:
    """What every stream sends: packets ready to be joined, by when they are due (seconds from the start)."""

    name: str
    config: bytes
    due: list[float]
    packets: list[bytes]
    ends: list[tuple[str, float]]  # modality and capture time, seconds, up to which each packet brings it
    zero: float  # capture time that is due at 0
    origin: float  # of the clip grid
    truth: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        """Until the last packet is due."""
        return self.due[-1]


@dataclass
class Played:
    """One stream as it went."""

    start: float = 0.0  # on this process's clock, seconds
    sent: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)  # capture ends, and when sent
    answers: list[tuple[float, bytes]] = field(default_factory=list)
    lag: float = 0.0  # seconds by which this process was late to send, at worst
    bytes: int = 0
    error: str = ""


def script(path: Path, loss: str, seed: int, bundle: str, lookahead: int | None) -> Script:
    """A recording or media file as messages; ``loss`` drops and delays packets, repeatably."""
    with open_source(path, loss=loss or None, seed=seed) as source:
        info = source.info
        items = [item for item in source.packets() if isinstance(item, Packet)]
    codecs = {m: to_annexb(codec) for m, codec in info.codecs.items()}
    first = min(map(arrival, items))
    packets, ends, reached = [], [], dict.fromkeys(codecs, float("-inf"))
    for item in items:
        codec, convert = codecs[item.modality]
        payload = item.payload if convert is None else convert(item.payload)
        wire = packet_to_wire(item, codec.time_base)
        wire.payload = payload
        packets.append(_field(1, wire.SerializeToString()))
        reached[item.modality] = max(reached[item.modality], item.end_seconds)
        ends.append((item.modality, reached[item.modality]))
    config = pb.StreamConfig(
        bundle=bundle,
        name=path.stem,
        origin=rational(info.origin or Fraction(0)),
        codecs=[codec_to_wire(m, codec) for m, (codec, _) in codecs.items()],
        lookahead=lookahead,
    )
    return Script(
        name=info.name,
        config=pb.StreamRequest(config=config).SerializeToString(),
        due=[arrival(item) - first for item in items],
        packets=packets,
        ends=ends,
        zero=first,
        origin=float(info.origin or 0),
        truth=read_truth(StreamInfo(name=info.name, codecs={}, labels=info.labels)),
    )


async def play(
    address: str, script: Script, begin: asyncio.Event, delay: float, seconds: float, batch: float
) -> Played:
    """One stream in real time."""
    import grpc

    played = Played(sent={m: ([], []) for m, _ in script.ends})
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        call = channel.stream_stream(METHOD)()  # bytes in, bytes out
        reader: asyncio.Task[None] | None = None
        try:
            await call.write(script.config)
            await asyncio.wait_for(call.read(), OPENING_SECONDS)
            await begin.wait()
            await asyncio.sleep(delay)
            reader = asyncio.create_task(_listen(call, played))
            await _send(call, script, played, seconds, batch)
            await call.done_writing()
            await asyncio.wait([reader], timeout=ENDING_SECONDS)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            played.error = (await call.code()).name
        except TimeoutError:
            played.error = "no answer"
        finally:
            call.cancel()
            if reader is not None:
                await asyncio.wait([reader])
    return played


async def _send(call: Any, script: Script, played: Played, seconds: float, batch: float) -> None:
    """Every packet when it is due, ``batch`` seconds of them in one message."""
    played.start, at = time.monotonic(), 0
    until = min(seconds, script.seconds)
    for turn in range(1, int(until / batch) + 1):
        now = time.monotonic() - played.start
        if now < turn * batch:
            await asyncio.sleep(turn * batch - now)
            now = time.monotonic() - played.start
        played.lag = max(played.lag, now - turn * batch)
        following = bisect_left(script.due, turn * batch, lo=at)
        if following == at:
            continue
        message = _field(2, b"".join(script.packets[at:following]))
        sent = time.monotonic()
        await call.write(message)
        played.bytes += len(message)
        for modality, end in dict(script.ends[at:following]).items():
            played.sent[modality][0].append(end)
            played.sent[modality][1].append(sent)
        at = following


async def _listen(call: Any, played: Played) -> None:
    import grpc

    try:
        while (answer := await call.read()) is not grpc.aio.EOF:
            played.answers.append((time.monotonic(), answer))
        code = (await call.code()).name
        played.error = played.error or ("" if code == "OK" else code)
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        pass


def _field(number: int, body: bytes) -> bytes:
    """A length-delimited field of a message (protobuf encoding, wire type 2)."""
    length, head = len(body), bytearray([number << 3 | 2])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + body


# -- afterwards -----------------------------------------------------------------------------------------------------


def judge(script: Script, all_played: list[Played], clip: float, warm: float, limit: float) -> dict[str, Any]:
    """What came of it: every latency and wait in ms, counts, and what this process sent."""
    latencies: list[float] = []
    waits: list[float] = []
    counts: Counter[str] = Counter()
    for played in all_played:
        if played.start:
            _judge_one(script, played, clip, warm, limit, latencies, waits, counts)
    return {
        "latencies_ms": [round(value, 1) for value in latencies],
        "waits_ms": [round(value, 1) for value in waits],
        "counts": {"streams": len(all_played), "served": sum(p.start > 0 for p in all_played), **counts},
        "errors": dict(Counter(p.error for p in all_played if p.error)),
        "bytes": sum(p.bytes for p in all_played),
        "lag_ms": round(max((p.lag for p in all_played), default=0.0) * 1e3, 1),
    }


def _judge_one(
    script: Script, played: Played, clip: float, warm: float, limit: float,
    latencies: list[float], waits: list[float], counts: Counter[str],
) -> None:  # fmt: skip
    """Add one stream. Clips count that were complete after ``warm`` seconds, and a ``limit`` before the end."""
    last = min(times[-1] for _, times in played.sent.values() if times)
    complete: dict[int, float] = {}  # clip number on the grid -> when its last packet was sent
    begin = script.zero - script.origin
    for number in range(max(0, int(begin // clip)), int((begin + script.seconds) // clip) + 1):
        at = _completed(played.sent, script.origin + (number + 1) * clip)
        if at is not None and played.start + warm <= at <= last - limit:
            complete[number] = at
    counts["expected"] += len(complete)
    heard: set[int] = set()
    for came, raw in played.answers:
        response = pb.StreamResponse.FromString(raw)
        kind = response.WhichOneof("response")
        if kind == "prediction":
            prediction = response.prediction
            number = round((prediction.end_seconds - script.origin) / clip) - 1
            if number in complete and number not in heard:
                heard.add(number)
                latencies.append((came - complete[number]) * 1e3)
                waits.append(prediction.timings.wait_ms)
                counts["missed"] += came - complete[number] > limit
                _score(script, prediction, clip, counts)
    counts["missed"] += len(complete) - len(heard)


def _completed(sent: Mapping[str, tuple[list[float], list[float]]], end: float) -> float | None:
    """When everything up to capture time ``end`` had been sent, in every modality."""
    at = []
    for ends, times in sent.values():
        place = bisect_left(ends, end - 1e-3)
        if place == len(ends):
            return None
        at.append(times[place])
    return max(at)


def _score(script: Script, wire: pb.Prediction, clip: float, counts: Counter[str]) -> None:
    """Whether a prediction is right, where the truth is known (as ``Run.true_label``); shed clips of its newest."""
    prediction = prediction_from_wire(wire)
    if prediction.clips:
        counts["states"] += len(prediction.clips[-1].state)
        counts["shed"] += sum(state == "shed" for state in prediction.clips[-1].state.values())
    start = max(prediction.start_seconds, prediction.end_seconds - SETTLE_CLIPS * clip)
    for span in script.truth:
        if span.start <= start + 1e-6 and prediction.end_seconds <= span.end + 1e-6:
            counts["judged"] += 1
            counts["right"] += prediction.label == span.label
            counts["abstained"] += prediction.abstained


async def run(options: argparse.Namespace, made: Script) -> dict[str, Any]:
    """Open every stream, start them over one clip's time, play, judge."""
    begin, rng = asyncio.Event(), random.Random(options.seed)
    delays = [rng.uniform(0, 5 * options.clip) for _ in range(options.streams)]
    tasks = [
        asyncio.create_task(play(options.address, made, begin, delay, options.seconds, options.batch_ms / 1e3))
        for delay in delays
    ]
    await asyncio.sleep(min(OPENING_SECONDS / 2, 1.0 + 0.02 * options.streams))
    print("ready", flush=True)
    await asyncio.to_thread(input)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    begin.set()
    played = await asyncio.gather(*tasks)
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        **judge(made, list(played), options.clip, options.warm, options.limit_ms / 1e3),
        "client_cpu_seconds": round(cpu, 3),
        "wall_seconds": round(wall, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--media", type=Path, required=True, help="media file or recording that every stream sends")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm", type=float, default=5.0, help="seconds that are not counted")
    parser.add_argument("--batch-ms", type=float, default=100.0)
    parser.add_argument("--limit-ms", type=float, default=400.0)
    parser.add_argument("--clip", type=float, default=0.4, help="seconds")
    parser.add_argument("--loss", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bundle", default="")
    parser.add_argument("--lookahead", type=int)
    options = parser.parse_args()
    made = script(options.media, options.loss, options.seed, options.bundle, options.lookahead)
    print(json.dumps(asyncio.run(run(options, made))), flush=True)


if __name__ == "__main__":
    main()
