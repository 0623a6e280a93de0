"""What happens when things die, and when clients mean no good: ``python -m bench.faults``.

1. ``kills``: ``legato send`` of the bundled demo, with a state file, to ``legato serve`` with some workers, all as
   processes on this machine. At random moments the client, the server or one worker gets SIGKILL and is started again
   (a worker by its server), ``--kills`` times each. Every final prediction must be in the results exactly once, as in
   an undisturbed run.
2. ``hostile``: each attack of ``bench.hostile`` in a process of its own, ``--rounds`` times, beside a neighbour that
   sends in real time: what the attacker was answered and when, the neighbour's 99th percentile against a run without
   attack, and the server's memory before and after each round. What the first round of all leaves behind are caches;
   what each further one adds would be a leak.

    python -m bench.faults --kills 5 --attacks "no config,random bytes" --neighbour 4 --dry      a look
    taskset -c 0,1 python -m bench.faults                                                        the figures
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.hostile import ATTACKS, DEMO
from bench.papers import certificates, made_token
from bench.record import write_results
from runtime.serve.client import Client, Tls
from runtime.stream import FINAL

RESULTS = Path(__file__).parent / "results"
START_SECONDS = 120.0  # for models to load and warm
RUN_SECONDS = 900.0  # for one disturbed stream
FIRST_MB = (
    64  # by which a server may grow under the first round of an attack: caches, pools; no queue of ours is larger
)
MEMORY_MB = 8  # and under each further one, on average
ATTACK_SECONDS = 12.0  # that an attack lasts at least, however short the neighbour plays
P99_RATIO = 1.5


# -- processes ------------------------------------------------------------------------------------------------------


class Served:
    """``legato serve``, started again on the same port as often as it dies. ``with`` ends it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._folder, self._arguments, self.port, self.starts = folder, arguments, 0, 0

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def start(self) -> None:
        """Returns when its models are warm."""
        self.starts += 1
        command = [sys.executable, "-m", "runtime", "serve", "--listen", f"127.0.0.1:{self.port}", "--json"]
        with (self._folder / "serve.log").open("a") as log:
            self.process = subprocess.Popen([*command, *self._arguments], stdout=subprocess.PIPE, stderr=log, text=True)
        timer = threading.Timer(START_SECONDS, self.process.kill)
        timer.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            raise SystemExit(f"legato serve did not start:\n{(self._folder / 'serve.log').read_text()[-2000:]}")
        self.port = json.loads(line)["port"]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def kill_worker(self, rng: random.Random) -> None:
        """One of its worker processes, if any is there; the others go on."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        workers = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
        if workers:
            os.kill(int(rng.choice(workers)), signal.SIGKILL)

    def memory(self) -> float:
        """Resident, in MB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024

    def __enter__(self) -> "Served":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
            self.process.kill()
            self.process.wait()


def sender(address: str, out: Path, state: Path | None, speed: str) -> subprocess.Popen[Any]:
    """``legato send`` of the demo."""
    command = [sys.executable, "-m", "runtime", "send", address, str(DEMO), "--out", str(out), "--no-timings"]
    command += ["--speed", speed, "--json", "--patience", "600"]
    command += [] if state is None else ["--state", str(state)]
    log = (out.parent / "send.log").open("a")
    with log:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)


# -- kills ----------------------------------------------------------------------------------------------------------


@dataclass
class Kills:
    """What became of the disturbed runs."""

    server: int = 0
    client: int = 0
    worker: int = 0
    runs: int = 0
    finals: int = 0  # of an undisturbed run
    missing: int = 0
    doubled: int = 0
    unknown: int = 0  # that an undisturbed run does not have
    labels: int = 0  # that differ
    states: int = 0  # predictions of which a clip's state differs
    largest: float = 0.0  # difference of a probability, where the states are equal
    seconds: float = 0.0
    moments: list[tuple[str, float]] = field(default_factory=list)  # who, how long after the last start


def kills(options: argparse.Namespace, folder: Path) -> Kills:
    """Run until both have been killed often enough."""
    rng, told = random.Random(options.seed), Kills()
    began = time.monotonic()
    workers = ("--workers", str(options.workers))
    with Served(folder, "--deterministic", "--device", options.device, *workers) as server:
        undisturbed = finals(play(server, folder / "undisturbed.jsonl", options.speed))
        told.finals = len(undisturbed)
        while any(getattr(told, victim) < options.kills for victim in victims(options)):
            told.runs += 1
            compare(told, undisturbed, finals(disturbed(server, folder / f"{told.runs}.jsonl", rng, told, options)))
    told.seconds = time.monotonic() - began
    return told


def victims(options: argparse.Namespace) -> tuple[str, ...]:
    """Who is killed; of several workers also one at a time."""
    return ("server", "client", "worker") if options.workers > 1 else ("server", "client")


def play(server: Served, out: Path, speed: str) -> Path:
    if sender(server.address, out, None, speed).wait(RUN_SECONDS) != 0:
        raise SystemExit(f"the undisturbed run failed:\n{(out.parent / 'send.log').read_text()[-2000:]}")
    return out


def disturbed(server: Served, out: Path, rng: random.Random, told: Kills, options: argparse.Namespace) -> Path:
    """One stream to its end, with deaths at random moments."""
    state, until = out.with_suffix(".state"), time.monotonic() + RUN_SECONDS
    client = sender(server.address, out, state, options.speed)
    try:
        while client.poll() is None:
            if time.monotonic() > until:
                raise SystemExit(f"a disturbed run did not end:\n{(out.parent / 'send.log').read_text()[-2000:]}")
            wait = rng.uniform(0.0, options.longest)
            with suppress(subprocess.TimeoutExpired):
                client.wait(wait)
            if client.poll() is not None:
                break
            left = [v for v in victims(options) if getattr(told, v) < options.kills]
            if not left:
                continue
            victim = rng.choice(left)
            told.moments.append((victim, round(wait, 3)))
            if victim == "server":
                told.server += 1
                server.kill()
                server.start()
            elif victim == "worker":
                told.worker += 1
                server.kill_worker(rng)
            else:
                told.client += 1
                client.send_signal(signal.SIGKILL)
                client.wait()
                client = sender(server.address, out, state, options.speed)
    finally:
        if client.poll() is None:
            client.kill()
            client.wait()
    if client.returncode != 0:
        raise SystemExit(f"a disturbed run failed:\n{(out.parent / 'send.log').read_text()[-2000:]}")
    return out


def finals(path: Path) -> list[dict[str, Any]]:
    """The final predictions of a results file."""
    return [p for p in map(json.loads, path.read_text().splitlines()) if p["status"] == FINAL]


def name(prediction: dict[str, Any]) -> tuple[int, int, str]:
    return prediction["epoch"], prediction["clip"], prediction["head"]


def compare(told: Kills, undisturbed: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> None:
    """Count what is not as it should be."""
    counts, expected = Counter(map(name, found)), {name(p): p for p in undisturbed}
    told.missing += len(set(expected) - set(counts))
    told.doubled += sum(count - 1 for count in counts.values())
    told.unknown += len(set(counts) - set(expected))
    for p in found:
        if (other := expected.get(name(p))) is None:
            continue
        told.labels += p["label"] != other["label"]
        if [c["state"] for c in p["clips"]] != [c["state"] for c in other["clips"]]:
            told.states += 1
        else:
            pairs = zip(p["probabilities"].values(), other["probabilities"].values(), strict=True)
            told.largest = max(told.largest, *(abs(a - b) for a, b in pairs))


# -- hostile clients ------------------------------------------------------------------------------------------------


@dataclass
class Suffered:
    """One attack."""

    name: str
    status: str
    right: bool  # the status, and in time
    seconds: float
    sent_mb: float
    answers: int
    p99_ms: float  # the neighbour's, under attack
    ratio: float  # to that of a run without attack
    memory_mb: list[float]  # of the server, before the first round and after each
    details: str = ""

    @property
    def flat(self) -> bool:
        first, *further = (b - a for a, b in itertools.pairwise(self.memory_mb))
        return first <= FIRST_MB and (not further or sum(further) / len(further) <= MEMORY_MB)


def hostile(options: argparse.Namespace, folder: Path) -> tuple[float, list[Suffered]]:
    """p99 of the neighbour alone (ms), and what each attack did to it."""
    out: list[Suffered] = []
    token = made_token(folder)
    papers = certificates(folder)
    chosen = [n for n in ATTACKS if not options.attacks or n in options.attacks]
    with server_for(folder, papers, options) as server:
        client = Client(server.address, token=token if papers else "", tls=papers)
        neighbour(client, options.neighbour)  # warm
        alone = float(np.percentile(neighbour(client, options.neighbour), 99))
        for attack in chosen:
            rounds = [suffer(attack, server, client, alone, token, papers, options) for _ in range(options.rounds)]
            out.append(worst(rounds))
            print(f"{attack}: {out[-1].status} after {out[-1].seconds:.1f} s, p99 x {out[-1].ratio:.2f}", flush=True)
    return alone, out


def server_for(folder: Path, papers: Tls | None, options: argparse.Namespace) -> Served:
    """With tokens and certificates where openssl can make some."""
    arguments = ["--device", options.device]
    if papers is not None:
        arguments += ["--tls-cert", str(folder / "server.crt"), "--tls-key", str(folder / "server.key")]
        arguments += ["--tls-client-ca", str(folder / "ca.crt"), "--tokens", str(folder / "tokens.txt")]
    return Served(folder, *arguments)


def suffer(
    attack: str, server: Served, client: Client, alone: float, token: str, papers: Tls | None, options: Any
) -> Suffered:
    """One attack, for as long as the neighbour plays."""
    before = server.memory()
    seconds = max(options.neighbour, ATTACK_SECONDS)
    command = [sys.executable, "-m", "bench.hostile", attack, server.address, "--seconds", str(seconds)]
    if papers is not None:
        expired = "expired" if attack == "an expired certificate" else "client"
        folder = Path(str(papers.ca)).parent
        command += ["--ca", str(papers.ca), "--cert", str(folder / f"{expired}.crt")]
        command += ["--key", str(folder / f"{expired}.key")]
    environment = {**os.environ, "LEGATO_TOKEN": token if papers else ""}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    latencies = neighbour(client, options.neighbour)
    said, _ = process.communicate(timeout=seconds + 60)
    outcome = json.loads(said) if said else {"status": "died", "seconds": 0.0, "sent": 0, "answers": 0, "details": ""}
    p99 = float(np.percentile(latencies, 99))
    expected = ATTACKS[attack]
    timely = expected.within is None or outcome["seconds"] <= expected.within
    time.sleep(1.0)
    return Suffered(
        name=attack,
        status=outcome["status"],
        right=outcome["status"] in expected.right and timely,
        seconds=outcome["seconds"],
        sent_mb=outcome["sent"] / 1e6,
        answers=outcome["answers"],
        p99_ms=p99,
        ratio=p99 / alone,
        memory_mb=[before, server.memory()],
        details=outcome["details"],
    )


def worst(rounds: Sequence[Suffered]) -> Suffered:
    """Several rounds of one attack as one: the slowest answer, a wrong one before a right one, the memory in turn."""
    chosen = min(rounds, key=lambda one: (one.right, -one.seconds))
    chosen.p99_ms, chosen.ratio = max((one.p99_ms, one.ratio) for one in rounds)
    chosen.memory_mb = [rounds[0].memory_mb[0], *(one.memory_mb[1] for one in rounds)]
    return chosen


def neighbour(client: Client, seconds: float) -> list[float]:
    """Milliseconds from the end of each clip, as it is sent in real time, to the first thing said of its window."""
    from runtime.sources import open_source

    began: float | None = None
    heard: dict[int, float] = {}
    with open_source(DEMO) as source:
        first = next(p for p in source.packets())  # type: ignore[attr-defined]
        zero = first.arrival or 0.0

    def started(event: Any) -> None:
        nonlocal began
        if type(event).__name__ == "Started" and began is None:
            began = time.monotonic()

    predictions = client.run(DEMO, speed="realtime", observe=started)
    ends = {}
    for prediction in predictions:
        now = time.monotonic()
        assert began is not None
        heard.setdefault(prediction.clip, (now - began - (prediction.end_seconds - zero)) * 1e3)
        ends[prediction.clip] = prediction.end_seconds
        if now - began >= seconds:
            break
    predictions.close()  # type: ignore[attr-defined]
    return list(heard.values())


# -- what came of it ------------------------------------------------------------------------------------------------


def page(told: Kills | None, alone: float, suffered: Sequence[Suffered]) -> list[str]:
    lines = ["# Faults", ""]
    if told is not None:
        once = "every one exactly once" if not (told.missing or told.doubled or told.unknown) else "**not once each**"
        lines += [
            f"SIGKILL of the server {told.server} times, of one of its workers {told.worker} times and of the client "
            f"{told.client} times, at random moments, over "
            f"{told.runs} runs of the bundled demo ({told.finals} final predictions each, "
            f"{told.runs * told.finals} in all): {once} ({told.missing} missing, {told.doubled} twice, {told.unknown} "
            f"unknown). Labels that differ from an undisturbed run: {told.labels}; predictions over a clip whose state "
            f"differs: {told.states}; largest difference of a probability elsewhere: {told.largest:.1e}. "
            f"{told.seconds:.0f} s.",
            "",
        ]
    if suffered:
        lines += [
            f"Hostile clients, one at a time, beside a neighbour in real time whose 99th percentile is {alone:.0f} ms "
            "alone (from the end of a clip to what is said of it):",
            "",
            "| client | answered | after s | got rid of MB | neighbour's p99, ratio | server MB before, after each | |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {s.name} | {s.status} | {s.seconds:.1f} | {s.sent_mb:.1f} | {s.ratio:.2f} | "
            f"{', '.join(f'{mb:.0f}' for mb in s.memory_mb)} | {_verdict(s)} |"
            for s in suffered
        ]
    return lines


def _verdict(s: Suffered) -> str:
    wrong = [] if s.right else ["another status, or late"]
    wrong += [] if s.ratio <= P99_RATIO else ["neighbour slowed"]
    wrong += [] if s.flat else ["memory grew"]
    return ", ".join(wrong) or "as it should be"


@contextmanager
def working_folder(kept: Path | None) -> Iterator[Path]:
    """Where logs and results of runs lie; gone afterwards unless it was named."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each; 0 leaves the part out")
    parser.add_argument("--workers", type=int, default=2, help="processes of the server that is killed")
    parser.add_argument("--longest", type=float, default=6.0, help="seconds between two deaths, at most")
    parser.add_argument("--speed", default="realtime", help="of the disturbed stream")
    parser.add_argument("--neighbour", type=float, default=20.0, help="seconds that it plays; 0 leaves the part out")
    parser.add_argument("--rounds", type=int, default=3, help="of each attack")
    parser.add_argument("--attacks", default="", help="with commas; default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep logs and results of runs here")
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    options = parser.parse_args()
    options.attacks = [part.strip() for part in options.attacks.split(",") if part.strip()]
    if unknown := set(options.attacks) - set(ATTACKS):
        parser.error(f"attack {min(unknown)!r} is unknown; known: {', '.join(ATTACKS)}")
    told, alone, suffered = None, 0.0, []
    with working_folder(options.folder) as folder:
        if options.kills:
            told = kills(options, folder)
        if options.neighbour:
            alone, suffered = hostile(options, folder)
    lines = page(told, alone, suffered)
    if options.dry:
        print("\n".join(lines))
        return
    values = {
        "seed": options.seed,
        "kills": None if told is None else vars(told),
        "neighbour_p99_ms": alone,
        "attacks": [vars(s) for s in suffered],
    }
    write_results(RESULTS, "faults" if options.kills else "attacks", values, lines)


if __name__ == "__main__":
    main()
