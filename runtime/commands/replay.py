"""``legato replay SOURCE``: a file, a folder or a packet recording through a bundle."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.cli import fail
from runtime.errors import LegatoError, UsageError
from runtime.playback import Output

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline
    from runtime.sources.base import Source

app = typer.Typer(add_completion=False)


@app.command(epilog="For example: legato replay talk.mp4 --loss wifi-burst --report talk-report")
def replay(
    source: Annotated[str, typer.Argument(help="A media file, a folder of them, or a packet recording (*.legato).")],
    bundle: Annotated[str, typer.Option(help="Name or folder of a bundle.")] = "talk",
    loss: Annotated[
        str | None, typer.Option(help="Loss to inject: a profile (wifi-burst, iid-10) or trace:FILE.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the injected loss.")] = 0,
    speed: Annotated[str, typer.Option(help="max or realtime; the predictions are the same.")] = "max",
    out: Annotated[Path | None, typer.Option(help="Write predictions here, one JSON object a line.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write report.html and report.png into this folder.")] = None,
    lookahead: Annotated[
        int | None, typer.Option(help="Clips a final prediction waits for; default: the bundle's.")
    ] = None,
    fill: Annotated[str, typer.Option(help="Fill by this rule instead of the bundle's: lerp, hold, zero, ...")] = "",
    no_fill: Annotated[bool, typer.Option("--no-fill", help="The same as --fill zero.")] = False,
    head: Annotated[
        list[str] | None, typer.Option(help="Which heads speak; default: the first. May be given more than once.")
    ] = None,
    preset: Annotated[str, typer.Option(help="How long to wait: replay, interactive, patient.")] = "replay",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, such as delay.cap=0.3; may be given more than once.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print predictions as JSON lines, and nothing else.")] = False,
    timings: Annotated[bool, typer.Option(help="Timings in JSON; without, two replays are byte-equal.")] = True,
) -> None:
    """Replay a file, folder or packet recording through a bundle, as if it came over a network.

    The same source, loss and seed give the same predictions, at any speed.
    """
    if fill and no_fill:
        raise UsageError(f"--fill {fill} and --no-fill contradict each other; choose one")
    from runtime.bundle import Bundle
    from runtime.pipeline import Pipeline
    from runtime.sources import open_sources

    chosen = Bundle.load(bundle)
    seconds = float(chosen.manifest.clip_seconds)
    unread: list[LegatoError] = []
    sources = open_sources(source, loss, seed, clip_seconds=seconds, report=unread.append)
    for error in unread:
        fail(str(error), error.exit_code)
    pipeline = Pipeline.from_bundle(
        chosen,
        device=device,
        preset=preset,
        lookahead=lookahead,
        heads=head or (),
        fill="zero" if no_fill else fill,
        overrides=settings or (),
    )
    output = Output(path=out, report=report, as_json=as_json, timings=timings)
    with output:
        alone = len(sources) == 1
        played = [_played(pipeline, opened, output, speed, loss or "", seed, alone=alone) for opened in sources]
        if not any(played):
            raise typer.Exit(1)  # inside, so that no empty result gets its name
    if unread or not all(played):
        raise typer.Exit(1)


def _played(
    pipeline: "Pipeline", source: "Source", output: Output, speed: str, loss: str, seed: int, *, alone: bool
) -> bool:
    """Play one source; of several, one that cannot be played is reported and the others go on."""
    try:
        with closing(source):
            output.play(pipeline, source, speed=speed, loss=loss, seed=seed, folder="" if alone else source.info.name)
    except LegatoError as error:
        if alone:
            raise
        fail(str(error), error.exit_code)
        return False
    return True
