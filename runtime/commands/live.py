"""``legato live``: a bundle on this machine's camera and microphone, or on a camera at an address."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.errors import UsageError

if TYPE_CHECKING:
    from runtime.live import LiveRun, Recorder
    from runtime.packet import Decision, Packet
    from runtime.pipeline import Pipeline
    from runtime.sources.base import LiveSource
    from runtime.window import Window

app = typer.Typer(add_completion=False)
GLANCE = 0.03  # seconds between two looks at devices and window


@app.command(epilog="For example: legato live --camera http://192.168.1.20/video.mjpg --record meeting.legato")
def live(
    camera: Annotated[
        str | None,
        typer.Option(help="Number, part of a name, address (rtsp://, http://, rtp://), .sdp file, or none."),
    ] = None,
    mic: Annotated[
        str | None, typer.Option(help="Number, part of a name, or none. Default: the system's, or the address's sound.")
    ] = None,
    bundle: Annotated[str, typer.Option(help="Name or folder of a bundle.")] = "talk",
    record: Annotated[Path | None, typer.Option(help="Keep every packet in this new file, *.legato.")] = None,
    loss: Annotated[str | None, typer.Option(help="Loss to inject: a profile (wifi-burst) or trace:FILE.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the injected loss, and of the waits between tries.")] = 0,
    lookahead: Annotated[
        int | None, typer.Option(help="Clips a final prediction waits for; default: the preset's.")
    ] = None,
    preset: Annotated[str, typer.Option(help="How long to wait: interactive, replay, patient.")] = "interactive",
    seconds: Annotated[float | None, typer.Option(min=0.0, help="Stop after so long; default: at Ctrl-C.")] = None,
    av_offset_ms: Annotated[
        float, typer.Option(help="By how much sound is stamped later than the picture of the same moment.")
    ] = 0.0,
    window: Annotated[bool, typer.Option("--window", help="Show the picture in a window; q closes it.")] = False,
    playlists: Annotated[
        bool, typer.Option("--playlists", help="Let an address be a playlist, which names further addresses.")
    ] = False,
    head: Annotated[
        list[str] | None, typer.Option(help="Which heads speak; default: the first. May be given more than once.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, such as delay.cap=0.3; may be given more than once.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print predictions as JSON lines, and nothing else.")] = False,
) -> None:
    """Run a bundle on this machine's webcam and microphone, or on a camera at an address.

    A device that stalls, vanishes or comes back is a loss like any other: the stream goes on, and what is missing is
    filled. Ctrl-C ends it, with a summary and a complete recording. legato devices lists what there is.
    """
    from runtime.bundle import Bundle
    from runtime.live_view import only_our_own_words
    from runtime.pipeline import Pipeline

    _check(record, loss)
    chosen = Bundle.load(bundle)
    pipeline = Pipeline.from_bundle(
        chosen, device=device, preset=preset, lookahead=lookahead, heads=head or (), overrides=settings or ()
    )
    used = pipeline.engine.encoders
    camera, mic = (camera if "video" in used else "none"), (mic if "audio" in used else "none")
    options = {"av_offset_ms": av_offset_ms, "playlists": playlists, "seed": seed}
    with ExitStack() as stack:
        stack.enter_context(only_our_own_words())
        shown = stack.enter_context(_window(pipeline)) if window else None
        source = stack.enter_context(_source(pipeline, camera, mic, loss, seed, options))
        recorder = stack.enter_context(closing(_recorder(record, source, pipeline, loss, seed))) if record else None
        run = _run(pipeline, source, recorder, shown)
        with _stopping(run), run:
            _watch(run, pipeline, recorder, shown, seconds, as_json)
        if recorder is not None:
            recorder.close()
        _sum_up(run, recorder, pipeline, preset, as_json)


def _check(record: Path | None, loss: str | None) -> None:
    """What is wrong with the command line is said before anything is loaded."""
    from imputation.profiles import open_profile

    if record is not None and record.suffix != ".legato":
        raise UsageError(f"recording {record} must end with .legato; legato replay knows it by that")
    if record is not None and record.exists():
        raise UsageError(f"recording {record} exists already; choose another name or delete it")
    if record is not None and not record.resolve().parent.is_dir():
        raise UsageError(f"recording {record} cannot be written: {record.resolve().parent} is no folder; make it first")
    if loss:
        open_profile(loss)


def _source(
    pipeline: "Pipeline", camera: str | None, mic: str | None, loss: str | None, seed: int, options: dict[str, Any]
) -> "LiveSource":
    from imputation.profiles import open_profile
    from runtime.live import ImpairedLive
    from runtime.sources import open_devices

    source = open_devices(camera, mic, **options)
    if not loss:
        return source
    return ImpairedLive(source, open_profile(loss, clip_seconds=float(pipeline.config.clip.seconds)), seed)


def _recorder(path: Path, source: "LiveSource", pipeline: "Pipeline", loss: str | None, seed: int) -> "Recorder":
    from runtime.live import Recorder

    labels = {"loss": f"{loss}, seed {seed}"} if loss else {}
    return Recorder(path, replace(source.info, name=path.stem, labels=labels))


def _run(pipeline: "Pipeline", source: "LiveSource", recorder: "Recorder | None", shown: "Window | None") -> "LiveRun":
    from runtime.live import LiveRun

    taps: list[Callable[[Packet | Decision], object]] = []
    taps += [recorder] if recorder is not None else []
    taps += [shown.packet] if shown is not None else []

    def tap(item: "Packet | Decision") -> None:
        for each in taps:
            each(item)

    return LiveRun(pipeline, source, tap=tap, clip=None if shown is None else shown.clip)


def _watch(
    run: "LiveRun",
    pipeline: "Pipeline",
    recorder: "Recorder | None",
    shown: "Window | None",
    seconds: float | None,
    as_json: bool,
) -> None:
    """Show what is said until the run is over."""
    from runtime.live_view import LiveView

    until = None if seconds is None else run.clock.now() + seconds
    with LiveView(run, pipeline.bundle.manifest.labels, recorder=recorder, as_json=as_json) as view:
        while not run.over:
            said = run.read(GLANCE)
            if said is not None:
                view.show(said)
            view.look()
            if until is not None and run.clock.now() >= until:
                run.stop()
            if shown is not None and not _draw(shown, run, recorder, said):
                run.stop()
        run.read(0.0)  # raises what the model's thread raised


def _draw(shown: "Window", run: "LiveRun", recorder: "Recorder | None", said: Any) -> bool:
    from runtime.live_view import status_line

    if said is not None:
        shown.show(said)
    return shown.refresh(status_line(run, None).plain, recording=recorder is not None and not recorder.failure)


def _window(pipeline: "Pipeline") -> "Window":
    from runtime.window import Window

    return Window("Legato", tuple(pipeline.engine.encoders), pipeline.config.window.clips)


def _sum_up(run: "LiveRun", recorder: "Recorder | None", pipeline: "Pipeline", preset: str, as_json: bool) -> None:
    from rich.console import Console

    from runtime.live_view import summary

    options = f" --preset {preset} --lookahead {pipeline.config.window.lookahead}"
    Console(stderr=as_json).print(summary(run, recorder, options), highlight=False, markup=False, soft_wrap=True)
    if recorder is not None and recorder.failure:
        raise typer.Exit(1)


@contextmanager
def _stopping(run: "LiveRun") -> Iterator[None]:
    """Ctrl-C, or a polite kill, ends the stream; the second one ends the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept: dict[signal.Signals, Any] = {}

    def stop(number: int, frame: Any) -> None:
        run.stop()
        signal.signal(signal.SIGINT, kept[signal.SIGINT])

    for number in (signal.SIGINT, signal.SIGTERM):
        kept[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
