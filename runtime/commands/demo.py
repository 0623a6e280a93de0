"""``legato demo``: a lossy recording through the default bundle, live; then a report."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import BundleError
from runtime.playback import Output

app = typer.Typer(add_completion=False)
RECORDING = "demo.legato"  # beside the default bundle's weights


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where predictions.jsonl, report.html and report.png go.")] = Path("."),
    speed: Annotated[str, typer.Option(help="realtime or max; the predictions are the same.")] = "realtime",
    bundle: Annotated[str, typer.Option(help="A bundle with a demo recording.")] = "talk",
) -> None:
    """Watch a damaged recording being understood, then read the report.

    The recording lost packets on the way, in bursts. The table shows which clips came, what the bundle says of the
    last few seconds and how surely; the report compares its filling with interpolation and with leaving holes.
    """
    from runtime.pipeline import Pipeline
    from runtime.sources import open_source

    pipeline = Pipeline.from_bundle(bundle)
    recording = pipeline.bundle.path / RECORDING
    if not recording.exists():
        raise BundleError(f"bundle {bundle} has no {RECORDING}; use legato replay SOURCE --bundle {bundle}")
    source = open_source(recording)
    with closing(source), Output(path=folder / "predictions.jsonl", report=folder) as output:
        output.play(pipeline, source, speed=speed)
