"""Session: what is served is what a replay gives, however packets were grouped into messages."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protos import stream_pb2 as pb
from runtime.packet import Packet
from runtime.prediction import Prediction
from runtime.receive import Receiver
from runtime.recording import RecordingReader
from runtime.serve.answers import prediction_from_wire
from runtime.serve.convert import codec_to_wire, packet_to_wire, rational
from tests.desk import Desk
from tests.fakes import SPEC, fake_parts, stream
from tests.serving import FakeAnswer, FakeDispatcher, batch, ends, offer

DEMO = Path(__file__).parent.parent / "runtime" / "bundles" / "talk" / "demo.legato"


def lossy(seconds: float) -> list[Packet]:
    """Packets of which some are lost, some late, some out of order; with arrivals."""
    rng = np.random.default_rng(4)
    sent = [replace(p, arrival=p.arrival + rng.exponential(0.03)) for p in stream(seconds) if rng.random() > 0.1]
    return sorted(sent, key=lambda p: p.arrival)


def test_clips_of_a_served_stream_are_those_of_a_replay_with_the_same_arrivals():
    desk = Desk()
    served = []
    desk.offer.dispatcher.submit = lambda _stream, clip, _deadline: served.append(clip)
    desk.session.settings = replace(desk.settings, in_flight=1000)
    desk.play(lossy(12.0)).send(*ends())
    info = desk.plan.info
    receiver = Receiver(info, SPEC, desk.receiver.rule, delay=desk.offer.delay(desk.plan).policy, parts=fake_parts())
    replayed = [c for p in lossy(12.0) for c in receiver.push(p, p.arrival)] + receiver.finish()
    assert len(served) == len(replayed) >= 30
    for ours, theirs in zip(served, replayed, strict=True):
        assert (ours.index, ours.state, ours.coverage, ours.flags) == (
            theirs.index, theirs.state, theirs.coverage, theirs.flags)  # fmt: skip
        for modality in ("video", "audio"):
            a, b = getattr(ours, modality), getattr(theirs, modality)
            assert (a is None) == (b is None) and (a is None or a.tobytes() == b.tobytes())
    assert desk.receiver.ledger.as_dict() == receiver.ledger.as_dict()


def test_how_packets_are_grouped_into_messages_changes_nothing():
    def answers(size: int) -> list[bytes]:
        desk = Desk()
        packets = stream(6.0)
        for i in range(0, len(packets), size):
            desk.send(batch(packets[i : i + size]))
        desk.send(*ends())
        return [p.SerializeToString(deterministic=True) for p in desk.of("prediction")]

    assert answers(1) == answers(7) == answers(500)


class EngineDispatcher(FakeDispatcher):
    """The real engine, one job at a time."""

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self.engine = engine

    def _answer(self, stream: Any, clip: Any) -> None:
        trace: list[Any] = []
        self.engine.submit(stream, clip) if clip is not None else self.engine.end(stream)
        predictions = self.engine.run(trace.append)
        sink = self._sinks.get(id(stream))
        if sink is not None:
            sink(FakeAnswer(predictions, trace[0] if trace else None, last=clip is None))


@pytest.mark.slow
def test_a_deterministic_server_answers_as_a_replay_does_to_the_byte():
    from runtime.pipeline import Pipeline
    from runtime.serve.answers import bundle_to_wire

    reader = RecordingReader(DEMO)
    items = [p for p in reader.packets() if isinstance(p, Packet) and p.seconds < 8]
    arrivals = [p.decode_seconds if p.arrival is None else p.arrival for p in items]
    info = replace(reader.info, duration=None)
    pipeline = Pipeline.from_bundle("talk", device="cpu")

    class Source:
        def __init__(self) -> None:
            self.info = info

        def packets(self) -> Any:
            return (replace(p, arrival=a) for p, a in zip(items, arrivals, strict=True))

        def close(self) -> None: ...

    expected = [p.as_dict(timings=False) for p in pipeline.run(Source())]
    made = offer(
        EngineDispatcher(pipeline.engine), name="talk", heads=tuple(pipeline.engine.heads), spec=pipeline.engine.spec,
        lookahead=pipeline.bundle.manifest.lookahead, config=pipeline.config, face=pipeline.engine.initial_face,
        description=bundle_to_wire(pipeline.bundle), parts=_real_parts(),
    )  # fmt: skip
    wires = [codec_to_wire(m, c) for m, c in info.codecs.items()]
    desk = Desk(made, pb.StreamRequest(config=pb.StreamConfig(codecs=wires, origin=rational(info.origin))))
    for item, arrival in zip(items, arrivals, strict=True):
        wire = packet_to_wire(item, info.codecs[item.modality].time_base)
        desk.send(pb.StreamRequest(packets=pb.PacketBatch(packets=[wire])), at=arrival)
    desk.send(*ends())
    labels = pipeline.bundle.manifest.labels
    served: list[Prediction] = [prediction_from_wire(p, labels) for p in desk.of("prediction")]
    assert [replace(p, stream=info.name).as_dict(timings=False) for p in served] == expected
    assert len(expected) > 15


def _real_parts() -> Any:
    from runtime.lane import build_parts

    return build_parts
