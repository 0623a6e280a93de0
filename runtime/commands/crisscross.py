"""``legato train crisscross``: a pair of encoders by relaxed synchrony. Under ``torchrun`` the batch is shared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.commands.train import Bar, train_app
from runtime.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from encoders.audiovisual.crisscross import CrissCrossConfig


@train_app.command("crisscross", epilog="For example: legato train crisscross --data folder:recordings --out runs/cc")
def crisscross(
    out: Annotated[Path, typer.Option(help="Folder of the run: config, log, checkpoint, weights.")],
    data: Annotated[str, typer.Option(help="grid:PATH, java_sed:PATH, folder:PATH or synthetic:N.")] = "",
    preset: Annotated[str, typer.Option(help="crisscross_base, crisscross_tiny.")] = "crisscross_base",
    synchrony: Annotated[
        str | None,
        typer.Option(help="Where the second view lies: overlapped (the paper's), same_timestamp, adjacent, random, "
                          "far_apart, v_far_a_same, v_same_a_far."),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Start from a whole model: another run, or a published training state as safetensors."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the preset's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Over all processes.")] = None,
    lr: Annotated[float | None, typer.Option(help="Of backbones and projectors.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation, order and augmentation.")] = None,
    split: Annotated[str, typer.Option(help="Splits of the dataset, comma-separated; none: all.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard events beside log.jsonl.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the run's config, e.g. accumulate=8.")
    ] = None,
) -> None:
    """Pre-train a pair of encoders: two moments, seen and heard, agree across time and modality (CrissCross)."""
    from encoders.pretrain_crisscross import pretrain, recipe, resumed
    from encoders.settings import assignments
    from encoders.training import choose_device, processes, world

    given = {"synchrony": synchrony, "epochs": epochs, "batch": batch, "lr": lr, "seed": seed}
    changes: dict[str, object] = {k: v for k, v in given.items() if v is not None}
    if split:
        changes["splits"] = split
    changes |= assignments(settings or ())
    if resume and init is not None:
        raise UsageError(f"--init {init} is for a new run and --resume goes on with one; leave one of them out")
    if resume:
        config = resumed(out, **changes)
    elif data:
        config = recipe(preset, data, **changes)
    else:
        raise UsageError("no data to train on; give --data, for example grid:PATH, or go on with --resume")
    weights = None if init is None else _whole_model(init, config.model)
    with processes(), Bar(config.epochs, quiet=world()[0] > 0) as bar:
        pretrain(
            config,
            out,
            resume=resume,
            device=choose_device(device),
            tensorboard=tensorboard,
            progress=bar.step,
            weights=weights,
        )
        first = world()[0] == 0
    if first:
        print(f"trained: {out / 'video.safetensors'} and {out / 'audio.safetensors'}")


def _whole_model(file: Path, config: "CrissCrossConfig") -> "dict[str, Tensor]":
    """The weights of a model in our names or the published ones; DataError names the first that does not fit."""
    import torch

    from encoders.audiovisual.crisscross import CrissCross
    from encoders.weights.crisscross import rules
    from encoders.weights.files import read
    from encoders.weights.rules import convert

    with torch.device("meta"):
        own = CrissCross(config).state_dict()
    return convert(read(file).arrays, rules(config), own, what=str(file))
