"""``legato send ADDRESS SOURCE``: a file, recording, webcam or address to a server; its predictions as they come."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.errors import ServiceError, UsageError

if TYPE_CHECKING:
    from runtime.prediction import Prediction
    from runtime.serve.client import Client
    from runtime.serve.client_state import Progress
    from runtime.sources.base import LiveSource, Source

app = typer.Typer(add_completion=False)

LIVE = "live"  # this machine's camera and microphone
TOKEN_VARIABLE = "LEGATO_TOKEN"
GRACE = 0.9  # seconds after Ctrl-C in which a live stream may be answered to its end
CLIP_SECONDS = 0.4  # for profiles that lose whole clips, where the server does not say


@app.command(epilog="For example: legato send localhost:50051 meeting.mkv --loss wifi-burst")
def send(
    address: Annotated[str, typer.Argument(help="HOST:PORT of a server, or unix:PATH.")],
    source: Annotated[
        str,
        typer.Argument(help="A media file, a folder of them, a packet recording, live (camera and microphone), a URL."),
    ],
    bundle: Annotated[str, typer.Option(help="Name of a bundle that the server offers; default: its own.")] = "",
    loss: Annotated[
        str | None, typer.Option(help="Loss to inject before sending: a profile (wifi-burst) or trace:FILE.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the injected loss.")] = 0,
    speed: Annotated[str, typer.Option(help="max or realtime; live sources are in real time.")] = "max",
    head: Annotated[
        list[str] | None, typer.Option(help="Which heads speak; default: the first. May be given more than once.")
    ] = None,
    lookahead: Annotated[
        int | None, typer.Option(min=0, help="Clips a final prediction waits for; default: the server's.")
    ] = None,
    camera: Annotated[str | None, typer.Option(help="For live: number, part of a name, or none.")] = None,
    mic: Annotated[str | None, typer.Option(help="For live: number, part of a name, or none.")] = None,
    token: Annotated[
        Path | None, typer.Option(help=f"File that holds the token; else the variable {TOKEN_VARIABLE} does.")
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Authority that signed the server's certificate, PEM.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Our certificate, PEM, where the server asks for one.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS, also to another machine: anyone on the way can listen.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option(help="Keep here how far it got; started again with it, send goes on from there.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write predictions here, one JSON object a line.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print predictions as JSON lines, and nothing else.")] = False,
    timings: Annotated[bool, typer.Option(help="Timings in JSON; without, two runs can be compared.")] = True,
    consent: Annotated[
        bool, typer.Option("--consent", help="The server may record what is sent, where it records.")
    ] = False,
    patience: Annotated[
        float | None,
        typer.Option(min=0.0, help="Seconds without progress until it gives up; default: 60, and 10 at the start."),
    ] = None,
) -> None:
    """Send a source's packets to a server and show its predictions as they come.

    Lost connections are taken up again by themselves, with nothing lost and nothing twice. With --state that holds
    for send itself: killed and started again, every final prediction is in --out exactly once.
    """
    job = Job(source=source, loss=loss or "", seed=seed, camera=camera, mic=mic)
    job.check(state)
    client = _client(address, token, tls_ca, tls_cert, tls_key, insecure, patience)
    options = {
        "bundle": bundle,
        "heads": head or (),
        "lookahead": lookahead,
        "speed": speed,
        "consent": consent,
    }
    view = View(as_json=as_json, timings=timings)
    with ExitStack() as stack:
        keeper = stack.enter_context(_keeper(state, out, job, client, options))
        stack.enter_context(view)
        for each in job.sources(client, bundle, keeper):
            _play(client, each, options, view, keeper)
        keeper.finish()
    view.conclude()


# -- what is sent ---------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """What the command line names."""

    source: str
    loss: str
    seed: int
    camera: str | None = None
    mic: str | None = None

    @property
    def address(self) -> bool:
        """Whether the source is a URL."""
        return "://" in self.source and not Path(self.source).exists()

    @property
    def live(self) -> bool:
        """Whether it comes when it comes."""
        return self.address or self.source.endswith(".sdp") or (self.source == LIVE and not Path(LIVE).exists())

    def check(self, state: Path | None) -> None:
        """What is wrong is said before anything is opened."""
        if self.loss:
            from imputation.profiles import open_profile

            open_profile(self.loss)
        if state is not None and self.live:
            raise UsageError(f"--state is for what can be sent twice, and {self.source} is live; leave it out")
        if state is not None and Path(self.source).is_dir():
            raise UsageError(f"--state is for one file, and {self.source} is a folder; send its files one by one")
        if not self.live and (self.camera is not None or self.mic is not None):
            raise UsageError(f"--camera and --mic go with the source {LIVE!r}, not with {self.source}")

    def identity(self, options: dict[str, Any]) -> dict[str, str]:
        """By which a state file knows what it belongs to."""
        try:
            found = os.stat(self.source)
            file = f"{found.st_size} bytes, changed {found.st_mtime_ns}"
        except OSError:
            file = "absent"
        asked = {key: str(options[key]) for key in ("bundle", "heads", "lookahead")}
        return {
            "source": os.path.abspath(self.source),
            "file": file,
            "loss": self.loss,
            "seed": str(self.seed),
            **asked,
        }

    def sources(self, client: "Client", bundle: str, keeper: "Keeper") -> Iterator["LiveSource | Callable[[], Source]"]:
        """What ``Client.run`` takes, one for each stream."""
        from runtime.sources import open_source, open_sources

        if self.live:
            yield self._live(client, bundle)
            return
        seconds = keeper.clip_seconds(lambda: self._clip_seconds(client, bundle))
        if not Path(self.source).is_dir():
            yield lambda: open_source(self.source, self.loss or None, self.seed, clip_seconds=seconds)
            return
        for source in open_sources(self.source, self.loss or None, self.seed, clip_seconds=seconds, report=_unread):
            yield lambda source=source: source  # type: ignore[misc] # a source of a folder opens itself each time

    def _live(self, client: "Client", bundle: str) -> "LiveSource":
        source = self._devices()
        if not self.loss:
            return source
        from imputation.profiles import open_profile
        from runtime.live import ImpairedLive

        return ImpairedLive(source, open_profile(self.loss, clip_seconds=self._clip_seconds(client, bundle)), self.seed)

    def _devices(self) -> "LiveSource":
        from runtime.sources.joined import open_devices

        return open_devices(self.camera if self.source == LIVE else self.source, self.mic)

    def _clip_seconds(self, client: "Client", bundle: str) -> float:
        """The bundle's clip length; only a profile that loses whole clips asks for it."""
        if not self.loss:
            return CLIP_SECONDS
        try:
            return float(client.describe(bundle).clip_seconds)
        except ServiceError:  # a token may stream without the right to look around
            return CLIP_SECONDS


def _unread(error: Exception) -> None:
    """A file of a folder that cannot be read is told, and the others are sent."""
    print(f"legato: {error}", file=sys.stderr)


def _client(
    address: str,
    token: Path | None,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    insecure: bool,
    patience: float | None,
) -> "Client":
    from runtime.serve.client import Client, Tls

    tls = Tls(ca=ca, cert=cert, key=key) if ca or cert or key else None
    return Client(address, token=read_token(token), tls=tls, insecure=insecure, patience=patience)


def read_token(path: Path | None) -> str:
    """The token in a file, or in the environment; never one on the command line, which every user can list."""
    if path is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"token file {path} cannot be read ({why}); name a file that holds the token") from None
    if not token:
        raise UsageError(f"token file {path} is empty; put the token in it")
    return token


def _play(client: "Client", source: Any, options: dict[str, Any], view: "View", keeper: "Keeper") -> None:
    """One stream to its end."""
    predictions = client.run(source, **options, progress=keeper.progress, stored=keeper.stored, observe=view.event)
    with _ending(source):
        for prediction in predictions:
            view.show(prediction)
            keeper.write(prediction, view.timings)


@contextmanager
def _ending(source: Any) -> Iterator[None]:
    """Ctrl-C ends a live source, whose last clips are then answered; the second one, or a second later, ends all."""
    close = getattr(source, "close", None)
    if close is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    timers: list[threading.Timer] = []

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        timers.append(threading.Timer(GRACE, os.kill, (os.getpid(), signal.SIGINT)))
        timers[0].daemon = True
        timers[0].start()
        close()

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        signal.signal(signal.SIGINT, before)


# -- where predictions go -------------------------------------------------------------------------------------------


class Keeper:
    """The results file, and the state file where there is one."""

    def __init__(self, out: Any = None, state: Any = None, progress: "Progress | None" = None) -> None:
        self.progress = progress
        self._out, self._state = out, state

    @property
    def stored(self) -> "Callable[[Progress], None] | None":
        """What ``Client.run`` calls when the progress may be saved."""
        return None if self._state is None else self._save

    def clip_seconds(self, ask: Callable[[], float]) -> float:
        """As an earlier run knew it: losses must fall as they fell then."""
        if self.progress is None:
            return ask()
        return float(self.progress.source.setdefault("clip_seconds", repr(ask())))

    def write(self, prediction: "Prediction", timings: bool) -> None:
        if self._out is not None:
            self._out.write_json(prediction.as_dict(timings=timings))

    def finish(self) -> None:
        """All is sent and answered."""
        if self._state is not None and self._out is not None:
            self._out.finish()

    def _save(self, progress: "Progress") -> None:
        if self._out is not None:
            progress.written = self._out.position
        self._state.save(progress)


@contextmanager
def _keeper(
    state: Path | None, out: Path | None, job: Job, client: "Client", options: dict[str, Any]
) -> Iterator[Keeper]:
    from runtime.output import ResultFile
    from runtime.serve.client_state import Progress, ResumedFile, StateFile

    if state is None:
        with ExitStack() as stack:
            yield Keeper(stack.enter_context(ResultFile(out)) if out is not None else None)
        return
    with StateFile(state) as file, ExitStack() as stack:
        progress, identity = file.load(), job.identity(options)
        if progress is None:
            progress = Progress(source=identity)
        for key, value in identity.items():
            if progress.source.get(key) != value:
                raise UsageError(
                    f"state file {state} is of another run: its {key} is {progress.source.get(key)}, not {value}; "
                    "name another, or delete it to start anew"
                )
        if progress.complete and out is not None and out.exists():
            out = None  # it has its name already
        results = stack.enter_context(ResumedFile(out, progress.written)) if out is not None else None
        yield Keeper(results, file, progress)


# -- what is shown --------------------------------------------------------------------------------------------------


@dataclass
class View:
    """The table, or JSON lines; what happens to the connection goes to stderr, one sentence each."""

    as_json: bool = False
    timings: bool = True
    retries: int = 0
    windows: int = 0
    abstained: int = 0
    packets: dict[str, Any] = field(default_factory=dict)  # Counts by modality, of the newest totals
    _stack: ExitStack = field(default_factory=ExitStack)
    _table: Any = None

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show(self, prediction: "Prediction") -> None:
        """One prediction."""
        from runtime.output import as_line
        from runtime.stream import FINAL

        self.windows += prediction.status == FINAL
        self.abstained += prediction.status == FINAL and prediction.abstained
        if self.as_json:
            print(as_line(prediction.as_dict(timings=self.timings)), flush=True)
        elif self._table is not None:
            self._table.show(prediction)

    def event(self, event: Any) -> None:
        """Anything else that the client tells."""
        from runtime.packet import Gap
        from runtime.serve.answers import StreamStats
        from runtime.serve.client_session import Retrying, Started

        if isinstance(event, Started):
            self._started(event)
        elif isinstance(event, Retrying):
            self.retries += 1
            self._say(f"the connection is gone ({event.reason}); trying again in {event.delay:.1f} s")
        elif isinstance(event, Gap):
            span = "" if event.start is None or event.end is None else f", {event.end - event.start:.1f} s"
            self._say(f"{event.count} {event.modality} packets{span} were captured while no server took them: a gap")
        elif isinstance(event, StreamStats):
            self.packets = event.packets

    def conclude(self) -> None:
        """The run in a line or two."""
        words = [f"{self.windows} windows, {self.abstained} abstained"]
        for modality, counts in self.packets.items():
            words.append(f"{counts.received} of {counts.expected} {modality} packets came")
        if self.retries:
            words.append(f"{self.retries} times connected anew")
        if not self.as_json:
            print("; ".join(words))

    def _started(self, event: Any) -> None:
        if event.recording:
            self._say("the server records this stream, as you agreed")
        if self.as_json or self._table is not None:
            return
        from rich.console import Console

        from runtime.table import LiveTable

        served = event.bundle
        labels = next(iter(served.heads.values()), ())
        modalities = tuple(served.thresholds) or ("video", "audio")
        self._table = self._stack.enter_context(
            LiveTable(Console(), labels, window=served.window, modalities=modalities, title=f"bundle {served.name}")
        )

    @staticmethod
    def _say(sentence: str) -> None:
        print(f"legato: {sentence}", file=sys.stderr)
