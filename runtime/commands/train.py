"""``legato train``: self-supervised encoders here, labelled ones in ``finetune.py``, imputers and heads in ``fill.py``.

Under ``torchrun -m runtime train ...`` the batch is shared by all processes.
"""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from runtime.commands.finetune import PresetGroup, register
from runtime.errors import UsageError

train_app = app = typer.Typer(
    cls=PresetGroup, no_args_is_help=True, add_completion=False, help="Train encoders, imputers and heads."
)


@train_app.callback(epilog="Or name an encoder and labelled data: legato train vivit_tiny_fe --data grid_digits:PATH")
def _group() -> None:
    """Train encoders, imputers and heads."""


register(train_app)


@train_app.command("avid-cma", epilog="For example: legato train avid-cma --data folder:recordings --out runs/avid")
def avid_cma(
    out: Annotated[Path, typer.Option(help="Folder of the run: config, log, checkpoint, weights.")],
    data: Annotated[str, typer.Option(help="grid:PATH, java_sed:PATH, folder:PATH or synthetic:N.")] = "",
    stage: Annotated[str, typer.Option(help="avid, then cma from its result.")] = "avid",
    preset: Annotated[
        str, typer.Option(help="avid_cma_base, avid_cma_base_audioset, avid_cma_talk, avid_cma_tiny.")
    ] = ("avid_cma_base"),
    init: Annotated[Path | None, typer.Option(help="Run of stage avid that stage cma starts from.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the preset's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Over all processes.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation, order, augmentation and negatives.")] = None,
    split: Annotated[str, typer.Option(help="Splits of the dataset, comma-separated; none: all.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard events beside log.jsonl.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the run's config, e.g. objective.negatives=512.")
    ] = None,
) -> None:
    """Pre-train a pair of encoders: AVID (picks its own sound from a memory of all), then CMA (agreement)."""
    from encoders.pretrain import pretrain, recipe, resumed
    from encoders.settings import assignments
    from encoders.training import choose_device, processes, world

    given = {"epochs": epochs, "batch": batch, "lr": lr, "seed": seed}
    changes: dict[str, object] = {k: v for k, v in given.items() if v is not None}
    if split:
        changes["splits"] = split
    changes |= assignments(settings or ())
    if resume:
        config = resumed(out, **changes)
    elif data:
        config = recipe(preset, stage, data, **changes)
    else:
        raise UsageError("no data to train on; give --data, for example grid:PATH, or go on with --resume")
    with processes(), Bar(config.epochs, quiet=world()[0] > 0) as bar:
        pretrain(
            config,
            out,
            resume=resume,
            stage_one=init,
            device=choose_device(device),
            tensorboard=tensorboard,
            progress=bar.step,
        )
        first = world()[0] == 0
    if first:
        print(f"trained: {out / 'video.safetensors'} and {out / 'audio.safetensors'}")


class Bar:
    """A progress bar on stderr over all epochs, with the loss."""

    def __init__(self, epochs: int, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.epochs = epochs
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            console=Console(stderr=True),
            disable=quiet,
        )

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar.tasks:
            self.bar.stop()

    def step(self, epoch: int, done: int, steps: int, loss: float) -> None:
        if not self.bar.tasks:  # not before the first step: what is refused before it is one plain sentence
            self.bar.add_task("starting", loss=loss)
            self.bar.start()
        self.bar.update(
            self.bar.tasks[0].id,
            description=f"epoch {epoch + 1}/{self.epochs}",
            total=self.epochs * steps,
            completed=epoch * steps + done,
            loss=loss,
        )


# What else can be trained is told by the modules that train it.
for name in ("cav_mae", "crisscross", "fill", "talk"):
    import_module(f"runtime.commands.{name}")
