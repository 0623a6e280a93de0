"""What a client says on one connection: the config, packets in batches, the end of each modality, acknowledgements.

An iterator for gRPC's sending thread, which asks for the next message once the one before has gone: so a server that
stops reading stops us, and nothing piles up here.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from protos import stream_pb2 as pb
from runtime.annexb import to_annexb
from runtime.errors import SourceError
from runtime.packet import MODALITIES, CodecConfig, Decision, Packet
from runtime.serve.answers import PredictionKey, key_to_wire
from runtime.serve.convert import build, codec_to_wire, modality_to_wire, packet_to_wire
from runtime.serve.sender import Feed, Item

BATCH_BYTES = 256 << 10  # of payload in one message; a single larger packet goes alone
BATCH_PACKETS = 256
PACKET_BYTES = 15 << 20  # a raw 4096x2304 yuv420p picture takes 13.5 MiB; servers take messages of 16
TURN = 0.05  # seconds waited at once
ACK_SECONDS = 0.2  # between acknowledgements, at least


class Pace:
    """When an item is due: never earlier than the source has it, on one axis over all connections of a stream."""

    def __init__(self, now: Callable[[], float], *, realtime: bool, batch_seconds: float) -> None:
        self.now, self.realtime, self.batch_seconds = now, realtime, batch_seconds
        self._start: float | None = None

    def due(self, item: Item) -> float:
        """Seconds on the clock; anything that has passed is due at once."""
        if not self.realtime:
            return float("-inf")
        at = item.decode_seconds if item.arrival is None else item.arrival
        if self._start is None:
            self._start = self.now() - at
        return self._start + at


class Outgoing:
    """The messages of one connection. ``guard`` is held while the feed is touched, ``rest`` waits (seconds)."""

    def __init__(
        self,
        config: pb.StreamConfig,
        feed: Feed,
        codecs: Mapping[str, CodecConfig],
        pace: Pace,
        guard: AbstractContextManager[object],
        rest: Callable[[float], object] | None = None,
    ) -> None:
        self.error: BaseException | None = None  # of the source
        self.ends_sent = False  # everything was said
        self._config: pb.StreamConfig | None = config
        self._recorded = config.recorded
        self._feed, self._pace, self._guard = feed, pace, guard
        self._codecs = dict(codecs)
        self._convert = {}
        for modality, codec in codecs.items():
            self._codecs[modality], self._convert[modality] = to_annexb(codec)
        config.codecs.extend(codec_to_wire(m, codec) for m, codec in self._codecs.items())
        self._held: Item | None = None
        self._next_batch = float("-inf")
        self._to_end = [m for m in MODALITIES if m in codecs]
        self._ack: PredictionKey | None = None
        self._next_ack = float("-inf")
        self._closed, self._started = threading.Event(), threading.Event()
        self._inside = threading.Lock()
        self._wait = rest or self._closed.wait

    def start(self) -> None:
        """The server has answered: packets may follow."""
        self._started.set()

    def acknowledge(self, key: PredictionKey) -> None:
        """This prediction, and all before it, are stored."""
        self._ack = key

    def close(self) -> None:
        """Say nothing more; returns when nobody is at the source any more."""
        self._closed.set()
        with self._inside:
            pass

    def __iter__(self) -> Iterator[pb.StreamRequest]:
        return self

    def __next__(self) -> pb.StreamRequest:
        with self._inside:
            while not self._closed.is_set():
                try:
                    message = self._poll()
                except BaseException as error:  # handed to whoever reads the answers
                    self.error = error
                    self._closed.set()
                    break
                if message is not None:
                    return message
            raise StopIteration

    def _poll(self) -> pb.StreamRequest | None:
        """The next message, after a short wait where there is none."""
        if self._config is not None:
            config, self._config = self._config, None
            return pb.StreamRequest(config=config)
        now = self._pace.now()
        if self._ack is not None and now >= self._next_ack:
            key, self._ack = self._ack, None
            self._next_ack = now + ACK_SECONDS
            return pb.StreamRequest(ack=pb.Ack(prediction=key_to_wire(key)))
        if not self._started.is_set():
            self._started.wait(TURN)
            return None
        message = self._packets(now) or self._end()
        if message is None:
            self._rest(now)
        return message

    def _rest(self, now: float) -> None:
        until = [now + TURN]
        if self._held is not None:
            until.append(max(self._next_batch, self._pace.due(self._held)))
        self._wait(max(min(until) - now, 0.001))

    def _packets(self, now: float) -> pb.StreamRequest | None:
        """What is due, as one message; a change of format goes alone."""
        if now < self._next_batch:
            return None
        batch: list[pb.Packet] = []
        size = 0
        while len(batch) < BATCH_PACKETS and size < BATCH_BYTES:
            item = self._take()
            if item is None:
                break
            if self._pace.due(item) > now or (isinstance(item, Decision) and batch):
                self._held = item
                break
            if isinstance(item, Decision):
                if (told := self._format(item)) is not None:
                    return told
                continue
            wire = self._wire(item)
            if batch and size + len(wire.payload) > BATCH_BYTES:
                self._held = item
                break
            batch.append(wire)
            size += len(wire.payload)
        if not batch:
            return None
        if self._pace.realtime:
            self._next_batch = now + self._pace.batch_seconds
        return pb.StreamRequest(packets=pb.PacketBatch(packets=batch))

    def _take(self) -> Item | None:
        item, self._held = self._held, None
        if item is not None:
            return item
        with self._guard:
            return self._feed.take()

    def _wire(self, packet: Packet) -> pb.Packet:
        codec, convert = self._codecs.get(packet.modality), self._convert.get(packet.modality)
        if convert is not None:
            packet = replace(packet, payload=convert(packet.payload))
        if len(packet.payload) > PACKET_BYTES:
            raise SourceError(
                f"{packet.modality} packet {packet.seq} has {len(packet.payload)} bytes and a message holds "
                f"{PACKET_BYTES}; use a smaller picture, or code it"
            )
        wire = packet_to_wire(packet, None if codec is None else codec.time_base)
        if self._recorded and packet.arrival is not None:
            wire.arrival_seconds = packet.arrival
        return wire

    def _format(self, decision: Decision) -> pb.StreamRequest | None:
        if decision.codec is None:
            return None
        modality = decision.modality
        self._codecs[modality], self._convert[modality] = to_annexb(decision.codec)
        return pb.StreamRequest(codec=codec_to_wire(modality, self._codecs[modality]))

    def _end(self) -> pb.StreamRequest | None:
        with self._guard:
            if self._held is not None or not self._feed.ended:
                return None
            if not self._to_end:
                return None
            modality = self._to_end.pop(0)
            self.ends_sent = not self._to_end
            last = self._feed.last_seq.get(modality)
        end = build(pb.EndOfStream, "end of stream", modality=modality_to_wire(modality), last_seq=last)
        return pb.StreamRequest(end_of_stream=end)
