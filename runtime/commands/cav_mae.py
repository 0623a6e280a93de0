"""``legato train cav-mae``: CAV-MAE's pre-training, without labels; its classifiers are ``legato train cav_mae_base``.

Under ``torchrun -m runtime train ...`` the batch is shared by all processes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.commands.train import Bar, train_app
from runtime.errors import UsageError


@train_app.command("cav-mae", epilog="For example: legato train cav-mae --data folder:recordings --out runs/cav")
def cav_mae(
    out: Annotated[Path, typer.Option(help="Folder of the run: config, log, checkpoint, weights.")],
    data: Annotated[str, typer.Option(help="NAME:PATH of a dataset, folder:PATH or synthetic:N.")] = "",
    preset: Annotated[str, typer.Option(help="cav_mae_base, cav_mae_tiny.")] = "cav_mae_base",
    recipe: Annotated[str, typer.Option(help="Instead of the preset's on this dataset.")] = "",
    init: Annotated[
        Path | None, typer.Option(help="Weights to start from, safetensors: a vision MAE (published), or a CAV-MAE.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps in all, instead of epochs.")] = None,
    batch: Annotated[int | None, typer.Option(help="Over all processes.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Parts of the batch, each contrasted by itself.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation, order, masks and noise.")] = None,
    split: Annotated[str, typer.Option(help="Splits of the dataset, comma-separated; none: all.")] = "",
    cache: Annotated[str | None, typer.Option(help="memory: decode small data once; none.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read data.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard events beside log.jsonl.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the run's config, e.g. objective.mask=time.")
    ] = None,
) -> None:
    """Pre-train CAV-MAE: draw what is hidden of a picture and of its sound, and know which belong together."""
    from encoders.pretrain_mae import pretrain
    from encoders.settings import assignments
    from encoders.training import choose_device, processes, world
    from runtime.commands.finetune import say

    given = {"epochs": epochs, "steps": steps, "batch": batch, "accumulate": accumulate, "lr": lr, "seed": seed,
             "precision": precision, "cache": cache, "workers": workers, "splits": split or None,
             "init": None if init is None else str(init)}  # fmt: skip
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None} | assignments(settings or ())
    config = _config(out, preset, data, recipe, changes, resume)
    with processes(), Bar(config.epochs, quiet=world()[0] > 0) as bar:
        pretrain(config, out, resume=resume, device=choose_device(device), tensorboard=tensorboard,
                 progress=bar.step, say=say)  # fmt: skip
        first = world()[0] == 0
    if first:
        weights = out / "encoder.safetensors"
        print(f"trained: {weights}; fine-tune it with legato train {config.preset} --init {weights}")


def _config(out: Path, preset: str, data: str, name: str, changes: dict[str, Any], resume: bool) -> Any:
    """The run that was asked for, or the one that is gone on with."""
    from encoders.pretrain_cav_mae import CAVMAERun, recipe
    from encoders.pretrain_mae import resumed
    from runtime.commands.finetune import _face_net

    if resume:
        return resumed(out, CAVMAERun, **changes)
    if not data:
        raise UsageError("no data to train on; give --data, for example folder:PATH, or go on with --resume")
    config = recipe(preset, data, name=name, **changes)
    if config.model.video.region == "face" and not config.reading.face:
        config = replace(config, reading=replace(config.reading, face=_face_net("talk")))
    return config
