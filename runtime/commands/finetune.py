"""``legato train PRESET``: any encoder of the registry on labelled data, by its paper's recipe.

One command per preset; all of them are the one below. Under ``torchrun -m runtime train ...`` the batch is shared by
all processes.
"""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from runtime.commands.masked import is_masked, pretrain_masked
from runtime.errors import UsageError

COMMAND = "encoder"  # the name under which the one command is registered, hidden


class PresetGroup(TyperGroup):
    """A group in which the name of every encoder is a command."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from encoders.registry import ENCODERS

        found = super().get_command(ctx, cmd_name)
        return found or super().get_command(ctx, COMMAND) if found or cmd_name in ENCODERS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        from encoders.registry import ENCODERS

        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = [*(n for n in self.list_commands(ctx) if n != COMMAND), *ENCODERS]
            close = difflib.get_close_matches(args[0], known, n=3, cutoff=0.5)
            way_out = f"did you mean {' or '.join(close)}" if close else "legato train --help lists what there is"
            raise UsageError(f"nothing to train is called {args[0]!r}; {way_out}")
        return super().resolve_command(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the command to ``legato train``."""
    app.command(COMMAND, hidden=True, epilog="For example: legato train vivit_b_16x2_fe --data kinetics400:PATH --out runs/k400")(train)  # noqa: E501  # fmt: skip


def train(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the run: config, log, checkpoint, weights, metrics.")],
    data: Annotated[
        list[str] | None, typer.Option(help="NAME:PATH of a dataset (`legato datasets`); PolyViT takes several.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="Instead of the paper's for this encoder and dataset.")] = "",
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps in all, instead of epochs.")] = None,
    batch: Annotated[int | None, typer.Option(help="Over all processes.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Parts of the batch that go through one by one.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initialisation, order and augmentation.")] = None,
    train_split: Annotated[str, typer.Option(help="Splits to learn from, comma-separated; train[:98%] cuts.")] = "",
    validation_split: Annotated[str, typer.Option(help="Splits to measure on; none: no validation.")] = "",
    init: Annotated[
        list[Path] | None,
        typer.Option(help="Weights (`legato import-weights`) or the folder of a run to start from; MMT takes two."),
    ] = None,
    views: Annotated[str | None, typer.Option(help="Of the final validation: clips x crops, e.g. 4x3.")] = None,
    cache: Annotated[str | None, typer.Option(help="memory: decode small data once; none.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read data.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave samples out whose file is missing.")] = False,
    face: Annotated[
        str, typer.Option(help="Bundle whose face finder shows faces to encoders that look at them.")
    ] = "talk",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard events beside log.jsonl.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the run's config, model.key=value of the encoder's.")
    ] = None,
) -> None:
    """Train an encoder on labelled recordings by its paper's recipe."""
    from encoders.settings import assignments

    preset = str(context.info_name)
    if preset == COMMAND:
        raise UsageError("name an encoder to train, for example legato train vivit_tiny_fe --data grid_digits")
    given = {"epochs": epochs, "steps": steps, "batch": batch, "accumulate": accumulate, "lr": lr, "seed": seed,
             "precision": precision, "views": views, "cache": cache, "workers": workers}  # fmt: skip
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    for name, text in (("train_splits", train_split), ("validation_splits", validation_split)):
        if text:
            changes[name] = () if text == "none" else tuple(part.strip() for part in text.split(","))
    if skip_bad:
        changes["skip_bad"] = True
    changes |= assignments(settings or ())
    options = {"resume": resume, "init": init, "device": device, "tensorboard": tensorboard}
    if is_masked(preset):
        pretrain_masked(preset, data or [], out, recipe, changes, options, lambda: _face_net(face))
    elif preset.startswith("polyvit"):
        _cotrain(preset, data or [], out, recipe, changes, options, face)
    else:
        _finetune(preset, data or [], out, recipe, changes, options, face)


def _finetune(
    preset: str, data: list[str], out: Path, name: str, changes: dict[str, Any], options: dict[str, Any], face: str
) -> None:
    from encoders.classifier import encoder_file
    from encoders.finetune import finetune
    from encoders.recipes import recipe, resumed
    from encoders.training import choose_device, processes, world
    from runtime.commands.train import Bar

    if len(data) > 1:
        raise UsageError(f"{preset} learns one task but {len(data)} datasets are given; use polyvit for several")
    if options["resume"]:
        config = resumed(out, **changes)
        if config.preset != preset:
            raise UsageError(f"{out} holds a run of {config.preset}, not of {preset}; resume it by its own name")
    elif data:
        config = recipe(preset, data[0], name=name, **changes)
        if not config.face and _region(config.preset, config.encoder) == "face":
            config = replace(config, face=_face_net(face))
    else:
        raise UsageError("no data to train on; give --data, for example kinetics400:PATH, or go on with --resume")
    with processes(), Bar(config.epochs, quiet=world()[0] > 0) as bar:
        finetune(config, out, **{**options, "device": choose_device(options["device"])}, progress=bar.step,
                 say=say)  # fmt: skip
        first = world()[0] == 0
    if first:
        print(f"trained: {out / encoder_file(preset, config.encoder)}; metrics in {out / 'metrics.json'}")


def _cotrain(
    preset: str, data: list[str], out: Path, name: str, changes: dict[str, Any], options: dict[str, Any], face: str
) -> None:
    from encoders.cotrain import cotrain, resumed, run_of
    from encoders.training import choose_device, processes, world
    from runtime.commands.train import Bar

    starts = options["init"] or [None]
    if len(starts) > 1:
        raise UsageError(f"{len(starts)} starts are given and PolyViT has one trunk; give --init once")
    options = {**options, "init": starts[0]}
    if options["resume"]:
        config = resumed(out, **changes)
    elif data:
        config = run_of(preset, data, **changes)
        seen = {m for m in ("image", "video") if _region(preset, config.overrides, m) == "face"}
        tasks = (replace(t, face=_face_net(face)) if t.modality in seen and not t.face else t for t in config.tasks)
        config = replace(config, tasks=tuple(tasks))
    else:
        raise UsageError("no data to train on; give --data once or more, or go on with --resume")
    if name:
        raise UsageError(f"--recipe {name} is for encoders of one task; PolyViT's tasks follow their datasets")
    with processes(), Bar(1, quiet=world()[0] > 0) as bar:
        cotrain(config, out, **{**options, "device": choose_device(options["device"])}, progress=bar.step,
                say=say)  # fmt: skip
        first = world()[0] == 0
    if first:
        print(f"trained: {out / 'model.safetensors'}; metrics in {out / 'metrics.json'}")


def _region(preset: str, overrides: Mapping[str, Any], modality: str = "") -> str:
    """What an encoder's pictures show: frame or face."""
    from encoders.registry import config_of

    config = config_of(preset, **overrides)
    return str(getattr(getattr(config, modality, None) if modality else config, "region", "frame"))


def _face_net(name: str) -> str:
    """The weights of a bundle's face finder."""
    from runtime.bundle import Bundle

    bundle = Bundle.load(name)
    if bundle.manifest.face is None:
        raise UsageError(f"bundle {name} has no face finder; name another with --face")
    return str(bundle.path / bundle.manifest.face.weights)


def say(sentence: str) -> None:
    """A line on stderr, from the first process only."""
    from rich.console import Console

    from encoders.training import world

    if world()[0] == 0:
        Console(stderr=True, highlight=False).print(sentence)
