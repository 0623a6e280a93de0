"""``legato train talk``: the default bundle from its recordings, in one command."""

from pathlib import Path
from typing import Annotated

import typer

from runtime.commands.train import train_app


@train_app.command("talk")
def talk(
    data: Annotated[Path, typer.Option(envvar="LEGATO_DATA", help="Folder that holds grid-av, esc10-audio, ...")],
    out: Annotated[Path, typer.Option(help="Folder of the run; what is in it already is not made again.")],
    research: Annotated[bool, typer.Option("--research", help="Train on Java-SED too; does not ship.")] = False,
    held_out: Annotated[
        str, typer.Option(help="Speakers to test on, e.g. grid/s1,grid/s2; default: the bundle's split.")
    ] = "",
    encoder_steps: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    threads: Annotated[int, typer.Option(help="Of the processor; 0: all.")] = 0,
    install: Annotated[bool, typer.Option("--install", help="Put the bundle where the package looks for it.")] = False,
) -> None:
    """Make the bundle ``talk``: face net, encoders, imputer, heads, calibration, scores.

    Needs the GRID and ESC-10 recordings, and a face detector to learn from (the command says how to get it).
    """
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from runtime.talk.making import Making
    from runtime.talk.recipe import folded, recipe_for

    recipe = recipe_for(research=research, encoder_steps=encoder_steps, seed=seed)
    if held_out:
        recipe = folded(recipe, tuple(held_out.split(",")))
    columns = (TextColumn("{task.description:>28}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    bars = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    tasks: dict[str, TaskID] = {}

    def say(step: str, done: int, of: int) -> None:
        bars.start()  # not before there is something to show; what is refused before it is one plain sentence
        if step not in tasks:
            tasks[step] = bars.add_task(step, total=of)
        bars.update(tasks[step], completed=done, total=of)

    torch.set_num_threads(threads or torch.get_num_threads())
    making = Making(recipe, data, out, say)
    try:
        making.prepare()
        made = making.bundle()
        if install:
            making.install()
    finally:
        if tasks:
            bars.stop()
    typer.echo(f"bundle {made.hash[:12]} in {making.folder}; scores in {making.folder / 'CARD.md'}")
