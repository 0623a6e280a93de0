"""``legato train av_mae_tiny``: masked pre-training, without labels. Under ``torchrun`` the batch is shared."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.errors import UsageError

__all__ = ["is_masked", "pretrain_masked"]

# What the command of labelled training has beside, and why there is none of it here.
LABELS = {"validation_splits": "--validation-split", "views": "--views"}
RENAMED = {"train_splits": "splits"}  # what the command calls it, and the run


def is_masked(preset: str) -> bool:
    """Whether a preset is pre-trained by what is hidden of its clips."""
    from encoders.registry import ENCODERS

    return ENCODERS[preset].endswith(":AVMAE")


def pretrain_masked(
    preset: str,
    data: list[str],
    out: Path,
    name: str,
    changes: Mapping[str, Any],
    options: Mapping[str, Any],
    face_net: Callable[[], str],
) -> None:
    """Train and say where the weights are; ``face_net`` names the weights of a face finder, where one is needed."""
    from encoders.pretrain_mae import pretrain, recipe, resumed
    from encoders.training import choose_device, processes, world
    from runtime.commands.finetune import say
    from runtime.commands.train import Bar

    for key, option in LABELS.items():
        if key in changes:
            raise UsageError(f"{option} is for labelled training and {preset} learns without labels; leave it out")
    if options["init"]:
        given = options["init"][0]
        raise UsageError(f"--init {given} is for fine-tuning and {preset} starts fresh; go on with --resume")
    changes = {RENAMED.get(key, key): value for key, value in changes.items()}
    if options["resume"]:
        config = resumed(out, **changes)
        if config.preset != preset:
            raise UsageError(f"{out} holds a run of {config.preset}, not of {preset}; resume it by its own name")
    elif len(data) == 1:
        config = recipe(preset, data[0], name=name, **changes)
        video = config.model.video
        if video is not None and video.region == "face" and not config.reading.face:
            config = replace(config, reading=replace(config.reading, face=face_net()))
    elif data:
        raise UsageError(f"{preset} reads one dataset but {len(data)} are given; give one --data")
    else:
        raise UsageError("no data to train on; give --data, for example folder:PATH, or go on with --resume")
    run = {"resume": options["resume"], "tensorboard": options["tensorboard"]}
    with processes(), Bar(config.epochs, quiet=world()[0] > 0) as bar:
        pretrain(config, out, **run, device=choose_device(options["device"]), progress=bar.step, say=say)
        first = world()[0] == 0
    if first:
        print(f"trained: {out / 'encoder.safetensors'}; fine-tune it with legato train mbt_... --init {out}")
