"""``legato send``: what it prints, what it writes, what it tells, and that it can be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.cli import run
from runtime.recording import RecordingWriter
from runtime.serve.refusals import Backoff
from tests.fake_service import CLIP, Act
from tests.fakes import INFO, packet

CLIPS = 6


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(Backoff, "FIRST", 0.001)
    monkeypatch.delenv("LEGATO_TOKEN", raising=False)


def record(path: Path, count: int = CLIPS * CLIP) -> Path:
    with RecordingWriter(path, INFO) as writer:
        for p in sorted(
            (p for i in range(count) for p in (packet(seq=i), packet("audio", i))), key=lambda p: p.seconds
        ):
            writer.append(replace(p, arrival=p.end_seconds))
    return path


@pytest.fixture
def recording(tmp_path):
    return record(tmp_path / "talk.legato")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def finals(predictions):
    return [(p["clip"], p["label"]) for p in predictions if p["status"] == "final"]


def test_a_table_and_a_summary(serve, recording, capsys):
    assert run(["send", serve().address, str(recording)]) == 0
    said = capsys.readouterr().out
    assert "6 windows, 0 abstained" in said
    assert said.count("100%") >= CLIPS


def test_json_lines_and_a_file_say_the_same(serve, recording, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert run(["send", serve().address, str(recording), "--json", "--out", str(out)]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said == lines(out)
    assert [clip for clip, _ in finals(said)] == list(range(CLIPS))
    assert {p["stream"] for p in said} == {"fake"}
    assert "timings" in said[0]


def test_timings_can_be_left_out(serve, recording, capsys):
    assert run(["send", serve().address, str(recording), "--json", "--no-timings"]) == 0
    assert "timings" not in json.loads(capsys.readouterr().out.splitlines()[0])


def test_losses_are_injected_before_sending(serve, recording):
    server = serve()
    assert run(["send", server.address, str(recording), "--loss", "iid-20", "--seed", "3", "--json"]) == 0
    first = [p.seq for r in server.service.heard[0] for p in r.packets.packets if p.modality == 1]
    assert 0.5 * CLIPS * CLIP < len(first) < CLIPS * CLIP
    assert run(["send", server.address, str(recording), "--loss", "iid-20", "--seed", "3", "--json"]) == 0
    assert [p.seq for r in server.service.heard[1] for p in r.packets.packets if p.modality == 1] == first


def test_losses_fall_the_same_after_a_cut(serve, recording, capsys):
    loss = ["--loss", "iid-20", "--seed", "3", "--json"]
    assert run(["send", serve().address, str(recording), *loss]) == 0
    undisturbed = finals(json.loads(line) for line in capsys.readouterr().out.splitlines())
    acts = [Act(after=6), Act(fresh=True, after=8), Act(fresh=True)]
    assert run(["send", serve(acts).address, str(recording), *loss]) == 0
    said = capsys.readouterr()
    assert finals(json.loads(line) for line in said.out.splitlines()) == undisturbed
    assert said.err.count("the connection is gone (cut); trying again in") == 2


def test_a_folder_is_sent_file_by_file(serve, tmp_path, capsys):
    record(tmp_path / "a.legato", 20)
    record(tmp_path / "b.legato", 20)
    (tmp_path / "broken.legato").write_bytes(b"nonsense")
    server = serve()
    assert run(["send", server.address, str(tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    assert {json.loads(line)["stream"] for line in said.out.splitlines()} == {"fake", "b.legato"}
    assert len(server.service.heard) == 2
    assert "broken.legato is not a packet recording" in said.err


def test_tokens_come_from_a_file_or_the_environment(serve, recording, tmp_path, monkeypatch, capsys):
    server, file = serve(token="secret"), tmp_path / "token"
    assert run(["send", server.address, str(recording), "--json"]) == 1
    assert "the token is not known; give a token that it knows with --token or LEGATO_TOKEN" in capsys.readouterr().err
    file.write_text("secret\n")
    assert run(["send", server.address, str(recording), "--json", "--token", str(file)]) == 0
    monkeypatch.setenv("LEGATO_TOKEN", "secret")
    assert run(["send", server.address, str(recording), "--json"]) == 0
    file.write_text("")
    assert run(["send", server.address, str(recording), "--token", str(file)]) == 2
    assert "is empty; put the token in it" in capsys.readouterr().err
    assert run(["send", server.address, str(recording), "--token", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["no address", "x.mp4"], 2, "is not host:port"),
        (["localhost:1", "absent.mp4"], 1, "absent.mp4 does not exist"),
        (["localhost:1", "x.mp4", "--loss", "nonsense"], 2, "nonsense"),
        (["localhost:1", "x.mp4", "--speed", "fast"], 2, "speed 'fast' is unknown"),
        (["localhost:1", "x.mp4", "--tls-cert", "x"], 2, "both --tls-cert and --tls-key"),
        (["localhost:1", "x.mp4", "--insecure", "--tls-ca", "x"], 2, "contradict"),
        (["localhost:1", "live", "--state", "s"], 2, "--state is for what can be sent twice"),
        (["localhost:1", "rtsp://x/y", "--state", "s"], 2, "rtsp://x/y is live"),
        (["localhost:1", ".", "--state", "s"], 2, "is a folder; send its files one by one"),
        (["localhost:1", "x.mp4", "--camera", "0"], 2, "go with the source 'live'"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, code, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["send", *arguments]) == code
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_a_server_that_is_not_there(recording, capsys):
    assert run(["send", "localhost:1", str(recording), "--patience", "0.1"]) == 1
    assert "could not be reached" in capsys.readouterr().err.splitlines()[-1]


# -- a state file ---------------------------------------------------------------------------------------------------


def test_a_complete_run_with_a_state_sends_nothing_again(serve, recording, tmp_path):
    server, out, state = serve(), tmp_path / "out.jsonl", tmp_path / "run.state"
    command = ["send", server.address, str(recording), "--json", "--out", str(out), "--state", str(state)]
    assert run(command) == 0
    assert len(finals(lines(out))) == CLIPS
    before = out.read_bytes()
    assert run(command) == 0
    assert len(server.service.heard) == 1
    assert out.read_bytes() == before


def test_a_state_of_another_run_is_told(serve, recording, tmp_path, capsys):
    server, state = serve(), tmp_path / "run.state"
    command = ["send", server.address, str(recording), "--json", "--state", str(state)]
    assert run(command) == 0
    assert run([*command, "--loss", "iid-20"]) == 2
    assert "is of another run: its loss is , not iid-20" in capsys.readouterr().err


def test_a_failed_run_goes_on_where_it_was(serve, recording, tmp_path):
    out, state = tmp_path / "out.jsonl", tmp_path / "run.state"
    options = [str(recording), "--json", "--out", str(out), "--state", str(state), "--patience", "0"]
    down = [Act(after=9), *(Act(after=0, details="down") for _ in range(3))]
    server = serve(down)
    assert run(["send", server.address, *options]) == 1
    assert not out.exists()
    assert run(["send", server.address, *options]) == 1
    server.service.acts.clear()
    assert run(["send", server.address, *options]) == 0
    assert finals(lines(out)) == finals_of(serve(), recording, tmp_path)


def finals_of(server, recording, tmp_path):
    """What an undisturbed run writes."""
    out = tmp_path / "undisturbed.jsonl"
    assert run(["send", server.address, str(recording), "--json", "--out", str(out)]) == 0
    return finals(lines(out))


def send(server, *arguments):
    """A process of its own."""
    command = [sys.executable, "-m", "runtime", "send", server.address, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_ctrl_c_is_clean_and_quick(serve, recording):
    process = send(serve(), recording, "--speed", "realtime", "--json")
    assert process.stdout.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=10)
    assert time.monotonic() - began < 3  # one, on a machine of one's own
    assert process.returncode == 130
    assert complaint == "legato: stopped\n"


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_every_final_prediction_once(serve, recording, tmp_path):
    out, state = tmp_path / "out.jsonl", tmp_path / "run.state"
    server = serve()
    for wait in (0.0, 0.5, 0.7, 0.9):
        process = send(server, recording, "--speed", "realtime", "--json", "--out", out, "--state", state)
        process.stdout.readline()
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        server.service.streams.clear()  # and the server is another
    assert not out.exists()
    process = send(server, recording, "--json", "--out", out, "--state", state)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert finals(lines(out)) == finals_of(serve(), recording, tmp_path)
