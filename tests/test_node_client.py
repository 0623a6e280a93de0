"""A client in another language: Node, no generated code, only the .proto file; the same predictions as a replay."""

import asyncio
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.annexb import START_CODE, to_annexb
from runtime.packet import Packet
from runtime.prediction import Prediction
from runtime.recording import RecordingReader, RecordingWriter
from runtime.stream import FINAL
from tests.fake_service import CLIP, start

ROOT = Path(__file__).parent.parent
NODE = ROOT / "tests" / "node"
PROTO = ROOT / "protos" / "stream.proto"
DEMO = ROOT / "runtime" / "bundles" / "talk" / "demo.legato"

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(not (NODE / "node_modules" / "@grpc").is_dir(), reason="npm ci was not run in tests/node"),
]


def node(
    address: str, recording: Path, token: str = "", lookahead: int | None = None
) -> subprocess.CompletedProcess[str]:
    command = ["node", str(NODE / "client.mjs"), address, str(recording), str(PROTO)]
    command += [] if lookahead is None else [str(lookahead)]
    environment = {**os.environ, "LEGATO_TOKEN": token}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def cut(path: Path, seconds: float) -> Path:
    """The start of the demo, with its losses and its times of arrival."""
    reader = RecordingReader(DEMO)
    with RecordingWriter(path, replace(reader.info, duration=seconds)) as writer:
        for packet in reader.packets():
            if isinstance(packet, Packet) and packet.decode_seconds < seconds:
                writer.append(packet)
    return path


def test_every_packet_arrives_as_it_was_recorded(tmp_path):
    recording = cut(tmp_path / "cut.legato", 4.0)
    server = start(token="secret")
    try:
        done = node(server.address, recording, "secret")
    finally:
        server.server.stop(None)
    assert done.returncode == 0, done.stderr
    [heard] = server.service.heard
    reader = RecordingReader(recording)
    sent = [(p.modality, p.seq, p.capture_time, p.skip, p.arrival) for p in reader.packets()]
    names = {1: "video", 2: "audio"}
    packets = [p for request in heard for p in request.packets.packets]
    assert [(names[p.modality], p.seq, p.capture_time, p.skip, p.arrival_seconds) for p in packets] == sent
    assert (heard[0].config.recorded, heard[0].config.duration_seconds) == (True, 4.0)
    codec, convert = to_annexb(reader.info.codecs["video"])
    assert heard[0].config.codecs[0].extradata == codec.extradata
    assert [p.payload for p in packets if p.modality == 1] == [
        convert(p.payload) for p in reader.packets() if p.modality == "video"
    ]
    assert packets[0].payload.startswith(START_CODE) or packets[0].modality == 2
    assert [r.end_of_stream.modality for r in heard if r.HasField("end_of_stream")] == [1, 2]
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert (
        len([p for p in told if p["status"] == "PREDICTION_STATUS_FINAL"])
        == max(p.seq + 1 for p in packets if p.modality == 1) // CLIP
    )


def test_a_refusal_is_told(tmp_path):
    server = start(token="secret")
    try:
        done = node(server.address, cut(tmp_path / "cut.legato", 1.0), "wrong")
    finally:
        server.server.stop(None)
    assert done.returncode == 1
    assert done.stderr == "UNAUTHENTICATED: the token is not known\n"


@pytest.mark.slow
def test_node_is_told_what_a_replay_says(tmp_path):
    from runtime.pipeline import Pipeline
    from runtime.sources import open_source

    recording = cut(tmp_path / "cut.legato", 12.0)
    with serving() as port:
        done = node(f"127.0.0.1:{port}", recording, lookahead=1)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    pipeline = Pipeline.from_bundle("talk", device="cpu", preset="interactive", lookahead=1)
    with open_source(recording) as source:
        replayed = list(pipeline.run(source))
    told = [p for p in told if p["head"] == replayed[0].head]
    assert len(told) == len(replayed) > 50
    assert any(p.status == FINAL for p in replayed)
    assert {state for p in replayed for clip in p.clips for state in clip.state.values()} >= {"observed", "lost"}
    for ours, theirs in zip(replayed, told, strict=True):
        same(ours, theirs)


def same(ours: Prediction, theirs: dict) -> None:
    """Equal but for rounding in the last digits of a probability."""
    assert (ours.epoch, ours.clip, ours.head, ours.revision) == (
        theirs["epoch"], int(theirs["clip"]), theirs["head"], theirs["revision"],
    )  # fmt: skip
    assert f"PREDICTION_STATUS_{ours.status.upper()}" == theirs["status"]
    assert ours.label == theirs.get("label")
    assert ours.abstained == theirs["abstained"]
    assert ours.observed_share == theirs["observed_share"]
    assert ours.bundle == theirs["bundle"]
    for mine, yours in zip(ours.clips, theirs["clips"], strict=True):
        states = {m: state.removeprefix("CLIP_STATE_").lower() for m, state in yours["state"].items()}
        assert (mine.clip, mine.state, mine.rung) == (int(yours["clip"]), states, yours["rung"])
    assert ours.probabilities == pytest.approx(theirs["probabilities"], abs=1e-4)


@contextmanager
def serving() -> Iterator[int]:
    """The default bundle on a port of this machine, in a thread with an event loop of its own."""
    from runtime.serve.server import ServeConfig, Server

    ready: list[int] = []
    started, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        server = Server(ServeConfig(listen="127.0.0.1:0", device="cpu", deterministic=True))
        ready.append(await server.start())
        started.set()
        try:
            await stop.wait()
        finally:
            await server.stop()

    def work() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            started.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(60)
    assert ready, "the server did not start"
    try:
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
