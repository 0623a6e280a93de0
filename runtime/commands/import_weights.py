"""``legato import-weights``: published checkpoints under our parameter names, as safetensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.errors import UsageError
from runtime.output import as_line, check_place

if TYPE_CHECKING:
    from torch import Tensor

    from encoders.weights.files import Published

app = typer.Typer(add_completion=False)

# Classifiers in the source, dropped where the preset has none.
HEADS = (
    "output_projection/{part:s}",
    "classification_head_{task:s}/output_projection/{part:s}",
    "ProjectionHeadAndClassifier_0/output_projection/{part:s}",
    "classifier.{part:s}",
)
OURS = ("no_face",)  # a parameter of ours that starts at zero: the feature of a clip without a face


@app.command(epilog="For example: legato import-weights vivit_b_16x2_fe checkpoint --out vivit.safetensors")
def import_weights(
    preset: Annotated[str, typer.Argument(help="The preset the checkpoint is of, such as vivit_b_16x2_fe.")],
    files: Annotated[
        list[Path],
        typer.Argument(help="Flax msgpack or npz; or a safetensors file or saved folder of transformers."),
    ],
    out: Annotated[Path, typer.Option(help="The weights to write (*.safetensors).")],
    layout: Annotated[
        str, typer.Option(help="auto, scenic, huggingface, slowfast, cav_mae: whose names it has; image_vit: a start.")
    ] = "auto",
    inflation: Annotated[
        str, typer.Option(help="image_vit: central or average, how a patch kernel becomes a tubelet's.")
    ] = "central",
    time: Annotated[
        str, typer.Option(help="image_vit, factorised self-attention: copy or zero, how attention in time starts.")
    ] = "copy",
    seed: Annotated[int, typer.Option(min=0, help="image_vit: of what a picture's model has no weights for.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the preset, such as classes=600; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Read a published checkpoint into our layout.

    Every key of the file must have a place in the preset's model and every parameter of the model must be filled, in
    the right shape; the first that is not is named. The file's classifier is left out unless the preset has one, as
    with --set classes=400. With --layout image_vit a video model starts from a picture's; a multiview model takes one
    file per view, coarsest first.
    """
    from encoders.checkpoint import save_weights
    from encoders.registry import config_of
    from encoders.settings import assignments, pick, to_dict
    from encoders.weights.files import read
    from encoders.weights.tables import LAYOUTS, layout_of

    check_place(out)
    changes = assignments(settings or ())
    config = config_of(preset, **changes)
    pick({**LAYOUTS, "auto": ""}, layout, "layout")
    if layout != "image_vit" and len(files) > 1:
        raise UsageError(f"{len(files)} files are given and layout {layout} reads one; give one, or --layout image_vit")
    found = [read(file) for file in files]
    left_out: list[str] = []
    if layout == "image_vit":
        options = {"inflation": inflation} | ({"time": time} if time != "copy" else {})
        weights = _started(preset, changes, found, files, options, seed)
    else:
        layout = layout_of(preset, found[0].layout, found[0].arrays) if layout == "auto" else layout
        weights, left_out = _converted(preset, layout, config, changes, found[0], str(files[0]))
    names = ", ".join(file.name for file in files)
    about = {"preset": preset, "config": as_line(to_dict(config)), "layout": layout, "source": names}
    save_weights(out, weights, about)
    _say(weights, left_out, layout, out, as_json)


def _converted(
    preset: str, layout: str, config: Any, changes: Mapping[str, Any], found: "Published", what: str
) -> "tuple[dict[str, Tensor], list[str]]":
    """Our weights, and the names of what was left out."""
    import torch

    from encoders.registry import build
    from encoders.weights.rules import Rule, convert
    from encoders.weights.tables import table_of

    rules = table_of(preset, layout)(config)
    if not (getattr(config, "classes", 0) or getattr(config, "tasks", ())):
        rules = [*rules, *(Rule(head, None) for head in HEADS)]
    with torch.device("meta"):  # names and shapes, without their memory
        own = build(preset, **changes).state_dict()
    weights = convert(found.arrays, rules, own, what=what, keep=OURS)
    weights |= {name: torch.zeros(own[name].shape) for name in own.keys() - weights.keys()}
    dropped = [key for key in found.arrays if not any(rule.target and rule.forward(key) for rule in rules)]
    return weights, [*found.without, *dropped]


def _started(
    preset: str,
    changes: Mapping[str, Any],
    found: "Sequence[Published]",
    files: Sequence[Path],
    options: Mapping[str, str],
    seed: int,
) -> "dict[str, Tensor]":
    """A fresh model of the preset, begun from pictures' transformers."""
    import torch

    from encoders.registry import build
    from encoders.weights.tables import reader_of, start_of

    start = start_of(preset, len(files))
    read_start = reader_of(preset)
    images = [read_start(one.arrays, what=str(file)) for one, file in zip(found, files, strict=True)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = build(preset, **changes)
    if "time" in options and getattr(model.config, "attention", "") != "factorised_self":
        raise UsageError(f"--time {options['time']} is for factorised self-attention, which {preset} is not; leave it")
    start(model, images, **options, what=", ".join(map(str, files)))
    return dict(model.state_dict())


def _say(weights: "Mapping[str, Tensor]", left_out: Sequence[str], layout: str, out: Path, as_json: bool) -> None:
    parts: dict[str, list[int]] = {}
    for name, tensor in weights.items():
        part = parts.setdefault(_part(name), [0, 0])
        part[0], part[1] = part[0] + 1, part[1] + tensor.numel()
    total = sum(numbers for _, numbers in parts.values())
    if as_json:
        mapped = {name: {"tensors": count, "parameters": numbers} for name, (count, numbers) in parts.items()}
        facts = {"out": str(out), "layout": layout, "parameters": total, "mapped": mapped, "left_out": list(left_out)}
        print(as_line(facts))
        return
    for name, (count, numbers) in parts.items():
        print(f"  {name:<32} {count:>5} tensors {numbers:>14,} parameters")
    if left_out:
        print(f"  left out: {_listed(left_out)}")
    print(f"{len(weights)} tensors, {total:,} parameters, read as {layout}, in {out}")


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _part(name: str) -> str:
    """The part of the model a parameter belongs to: its name up to the first number, or without its last step."""
    steps = name.split(".")
    number = next((i for i, step in enumerate(steps) if step.isdecimal()), len(steps) - 1)
    return ".".join(steps[: max(number, 1)])
