"""``legato serve`` and ``legato token``: what they say, what they refuse, how they end."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from runtime.cli import run
from runtime.serve.auth import TokenFile

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "runtime" / "bundles" / "talk" / "demo.legato"


def test_a_token_is_printed_once_and_only_its_hash_is_kept(tmp_path, capsys):
    path = tmp_path / "tokens"
    assert run(["token", "new", "--name", "camera", "--scope", "stream,describe", "--file", str(path)]) == 0
    token = capsys.readouterr().out.strip()
    assert token.startswith("legato_")
    assert token not in path.read_text()
    assert TokenFile(path).find(token).scopes == {"stream", "describe"}


def test_a_token_for_machines(tmp_path, capsys):
    path = tmp_path / "tokens"
    assert run(["token", "new", "--name", "x", "--scope", "admin", "--file", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["scopes"] == ["admin"]
    assert TokenFile(path).find(said["token"]) is not None


@pytest.mark.parametrize(("arguments", "code", "why"), [
    (["token", "new", "--name", "x", "--scope", "root"], 2, "scope 'root' is unknown; use stream, describe, admin"),
    (["serve", "--listen", "0.0.0.0:1"], 2, "say --insecure"),
    (["serve", "--listen", "nowhere"], 2, "is no address; write HOST:PORT"),
    (["serve", "--tls-cert", "x.pem"], 2, "--tls-key is missing"),
    (["serve", "--tls-cert", "no.pem", "--tls-key", "no.key"], 2, "--tls-cert no.pem cannot be read"),
    (["serve", "--tokens", "none.txt"], 2, "tokens none.txt cannot be read"),
    (["serve", "--log", "yaml"], 2, "yaml"),
    (["serve", "--listen", "127.0.0.1:0", "--bundle", "nobody"], 2, "bundle 'nobody' is unknown"),
    (["serve", "--listen", "127.0.0.1:0", "--metrics", "9090"], 2, "--metrics '9090' is no address"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, code, why):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    said = capsys.readouterr().err
    assert why in said
    assert "Traceback" not in said


def test_help_names_every_option(capsys):
    assert run(["serve", "--help"]) == 0
    said = capsys.readouterr().out
    for option in ("--bundle", "--listen", "--tls-client-ca", "--tokens", "--max-streams", "--record", "--grace"):
        assert option in said


class Running:
    """A server in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "runtime", "serve", "--listen", "127.0.0.1:0", "--json", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.ready: dict[str, Any] = json.loads(line)

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


@pytest.mark.slow
def test_a_server_says_where_it_listens_serves_and_drains_when_told_to():
    with Running("--deterministic", "--log", "json", "--preset", "replay") as server:
        assert [b["name"] for b in server.ready["bundles"]] == ["talk"]
        assert server.ready["address"] == f"127.0.0.1:{server.ready['port']}"
        sent = subprocess.run(
            [sys.executable, "-m", "runtime", "send", server.ready["address"], str(DEMO), "--json"],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert sent.returncode == 0, sent.stderr
        finals = [json.loads(line) for line in sent.stdout.splitlines()]
        assert len(finals) >= 117
        code, said = server.stop()
        assert code == 0
        assert [json.loads(line)["event"] for line in said.splitlines()][-1] == "draining"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_in_order_and_a_second_one_at_once(number):
    with Running("--grace", "60") as server:
        began = time.monotonic()
        assert server.stop(number)[0] == 0
        assert time.monotonic() - began < 20


@pytest.mark.slow
def test_two_workers_are_one_server_to_clients_scrapers_and_signals():
    options = ("--workers", "2", "--metrics", "127.0.0.1:0", "--deterministic", "--preset", "replay")
    with Running(*options, "--log", "json") as server:
        assert server.ready["workers"] == 2
        sends = [
            subprocess.Popen(
                [sys.executable, "-m", "runtime", "send", server.ready["address"], str(DEMO), "--json"],
                cwd=ROOT, stdout=subprocess.PIPE, text=True,
            )
            for _ in range(3)
        ]  # fmt: skip
        told = [send.communicate(timeout=120)[0].splitlines() for send in sends]
        assert len(told[0]) >= 117
        alike = [[{k: v for k, v in json.loads(line).items() if k not in ("stream", "timings")} for line in lines]
                 for lines in told]  # fmt: skip
        assert alike[0] == alike[1] == alike[2]
        port = server.ready["metrics_port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            text = page.read().decode()
        assert "streams_started_total 3.0" in text
        assert "active_streams 0.0" in text
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as page:
            assert json.loads(page.read())["status"] == "ready"
        code, said = server.stop()
        assert code == 0
        events = [json.loads(line) for line in said.splitlines()]
        assert {event["worker"] for event in events if event["event"] == "draining"} == {0, 1}
