"""The contract in protos/stream.proto: its registered name, its comments, and the versions its code was made with."""

import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

from protos import stream_pb2
from runtime.packet import DECISIONS, CodecConfig
from runtime.prediction import ClipProvenance, Prediction, Timings

ROOT = Path(__file__).parent.parent
PROTO = ROOT / "protos" / "stream.proto"


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def lower_bound(distribution: str) -> tuple[int, ...]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (found,) = [d for d in project["dependencies"] if re.match(rf"{distribution}[<>=]", d)]
    return version(re.search(r">=([\d.]+)", found)[1])


def test_the_file_is_registered_under_its_package():
    assert stream_pb2.DESCRIPTOR.name == "legato/v1/stream.proto"
    assert stream_pb2.DESCRIPTOR.package == "legato.v1"
    service = descriptor_pool.Default().FindServiceByName("legato.v1.InferenceService")
    assert {method.name for method in service.methods} == {"Stream", "DescribeBundle"}


def test_the_stream_method_streams_both_ways():
    method = stream_pb2.DESCRIPTOR.services_by_name["InferenceService"].methods_by_name["Stream"]
    assert method.client_streaming
    assert method.server_streaming


def test_every_field_and_value_has_a_comment():
    field = re.compile(r"^\s+(?:repeated |optional )?[\w.<>, ]+ \w+ = \d+;(.*)$|^\s+[A-Z_]+ = \d+;(.*)$")
    silent = [
        f"{number}: {line.strip()}"
        for number, line in enumerate(PROTO.read_text().splitlines(), 1)
        if (found := field.match(line)) and "// " not in (found[1] or found[2] or "")
    ]
    assert not silent


def test_a_prediction_on_the_wire_has_the_fields_of_a_prediction_in_python():
    for message, dataclass in [
        (stream_pb2.Prediction, Prediction),
        (stream_pb2.ClipProvenance, ClipProvenance),
        (stream_pb2.Timings, Timings),
    ]:
        assert [f.name for f in message.DESCRIPTOR.fields] == [f.name for f in fields(dataclass)]


def test_codec_and_decision_cover_their_dataclasses():
    wire = {f.name for f in stream_pb2.CodecConfig.DESCRIPTOR.fields}
    assert {f.name for f in fields(CodecConfig)} <= wire
    kinds = {value.name.removeprefix("DECISION_KIND_").lower() for value in stream_pb2.DecisionKind.DESCRIPTOR.values}
    assert kinds == {*DECISIONS, "unspecified"}


def test_dependencies_are_at_least_the_generators():
    code = (ROOT / "protos" / "stream_pb2.py").read_text()
    stub = (ROOT / "protos" / "stream_pb2_grpc.py").read_text()
    assert lower_bound("protobuf") >= version(re.search(r"Protobuf Python Version: ([\d.]+)", code)[1])
    assert lower_bound("grpcio") >= version(re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", stub)[1])


@pytest.mark.slow
def test_the_generated_code_is_up_to_date():
    pytest.importorskip("grpc_tools")
    venv = str(Path(sys.executable).parent.parent)
    result = subprocess.run(
        ["sh", "scripts/protos", "--check"],
        cwd=ROOT,
        env={"LEGATO_VENV": venv, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
