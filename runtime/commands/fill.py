"""``legato train curri-mae``, ``fill`` and ``head``: what fills absent features, and what reads them.

Both work on a feature file (``legato features``) and join the commands of ``train.py``. Under
``torchrun -m runtime train ...`` the batch is shared by all processes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.commands.train import train_app
from runtime.errors import UsageError

if TYPE_CHECKING:
    from imputation.features import FeatureSet
    from imputation.run import Progress

Features = Annotated[Path, typer.Option(help="Feature file of `legato features`.")]
Out = Annotated[Path, typer.Option(help="Folder of the run: config, log, checkpoint, weights.")]
Sampling = Annotated[
    str | None,
    typer.Option(help="What is hidden: curriculum, k=N, uniform, all, max, independent, whole, profile=NAME, or a+b."),
]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training windows.")]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps in all, for equal budgets; instead of epochs.")]
Lookahead = Annotated[int | None, typer.Option(help="Clips after the window that the imputer may see.")]
Batch = Annotated[int | None, typer.Option(help="Over all processes.")]
Rate = Annotated[float | None, typer.Option(help="Learning rate.")]
Seed = Annotated[int | None, typer.Option(help="Of initialisation, order and masks.")]
Train = Annotated[str, typer.Option("--train-split", help="Split of the feature file to learn from.")]
Validation = Annotated[str, typer.Option("--validation-split", help="Split that chooses and calibrates.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
TensorBoard = Annotated[bool, typer.Option(help="Write TensorBoard events beside log.jsonl.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value of the run's config; may be repeated.")]


@train_app.command("curri-mae", epilog="For example: legato train curri-mae --features talk.safetensors --out runs/mae")
def curri_mae(
    features: Features,
    out: Out,
    preset: Annotated[
        str | None, typer.Option(help="curri_mae_base, curri_mae_small (default), curri_mae_tiny.")
    ] = None,
    sampling: Sampling = None,
    epochs: Epochs = None,
    steps: Steps = None,
    lookahead: Lookahead = None,
    batch: Batch = None,
    lr: Rate = None,
    seed: Seed = None,
    base: Annotated[
        str | None,
        typer.Option(help="Fill that it only adds to: gaussian, lerp, observed_mean, hold."),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="What to start from: a trained imputer's folder, or weights of CAV-MAE (run, safetensors)."),
    ] = None,
    train_split: Train = "train",
    validation_split: Validation = "validation",
    resume: Resume = False,
    device: Device = "auto",
    tensorboard: TensorBoard = False,
    settings: Settings = None,
) -> None:
    """Train the masked autoencoder on frozen features, on a curriculum of growing loss."""
    from encoders.training import choose_device
    from imputation.train import MAETraining, train_mae

    given = {"preset": preset, "sampling": sampling, "epochs": epochs, "steps": steps, "lookahead": lookahead,
             "batch": batch, "lr": lr, "seed": seed, "base": base}  # fmt: skip
    config = _config(MAETraining, out, given, settings, resume)
    train, validation = _splits(features, train_split, validation_split)
    start = None if init is None else _start(init, config, train)
    with _progress() as progress:
        train_mae(config, train, validation, out, start=start, resume=resume, device=choose_device(device),
                  tensorboard=tensorboard, progress=progress)  # fmt: skip
    _say(f"trained: {out / 'imputer.safetensors'}")


@train_app.command("fill", epilog="For example: legato train fill gaussian --features talk.safetensors --out runs/gp")
def fill(
    kind: Annotated[str, typer.Argument(help="gaussian (a temporal process), or nearest (like training windows).")],
    features: Features,
    out: Out,
    train_split: Train = "train",
    validation_split: Validation = "validation",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="groups, joint of gaussian; bank, k of nearest; may be repeated.")
    ] = None,
) -> None:
    """Fit a fill that needs no steps of training, in seconds."""
    from encoders.settings import assignments
    from imputation.fit import fit_fill

    options = assignments(settings or ())
    train, validation = _splits(features, train_split, validation_split)
    _, found = fit_fill(kind, train, validation, out, **options)
    print(f"fitted: {out / 'imputer.safetensors'}")
    for m in ("video", "audio"):
        print(f"mean squared error of {m}: {found[f'mse_{m}']:.3f} (zeros {found[f'zero_mse_{m}']:.3f})")


@train_app.command("head", epilog="For example: legato train head --features talk.safetensors --out runs/head")
def head(
    features: Features,
    out: Out,
    kind: Annotated[
        str | None, typer.Option(help="linear, gru (default), mbt (drops what is absent), or backoff (three linear).")
    ] = None,
    sampling: Sampling = None,
    imputer: Annotated[
        str, typer.Option(help="What fills: a trained imputer's folder, or a rule (zero, lerp, ...).")
    ] = "zero",
    init: Annotated[Path | None, typer.Option(help="Folder of a trained head to fine-tune.")] = None,
    train: Annotated[str | None, typer.Option(help="What learns: head (default), imputer or both.")] = None,
    consistency: Annotated[float | None, typer.Option(help="Weight of KL(head on complete || on filled).")] = None,
    epochs: Epochs = None,
    steps: Steps = None,
    lookahead: Lookahead = None,
    batch: Batch = None,
    lr: Rate = None,
    seed: Seed = None,
    train_split: Train = "train",
    validation_split: Validation = "validation",
    resume: Resume = False,
    device: Device = "auto",
    tensorboard: TensorBoard = False,
    settings: Settings = None,
) -> None:
    """Train a head (pristine, or fine-tuned on filled features), or an imputer through a frozen head."""
    from encoders.training import choose_device, world
    from imputation.stored import load_head, load_imputer
    from imputation.train_head import TRAINABLE, HeadTraining, train_head

    given = {"kind": kind, "sampling": sampling, "train": train, "consistency": consistency, "epochs": epochs,
             "steps": steps, "lookahead": lookahead, "batch": batch, "lr": lr, "seed": seed}  # fmt: skip
    config = _config(HeadTraining, out, given, settings, resume)
    if config.train == "imputer" and init is None:
        raise UsageError("an imputer is trained through a head that already works; name its folder with --init")
    learn, validation = _splits(features, train_split, validation_split)
    fill, start = load_imputer(imputer), None if init is None else load_head(init)
    with _progress() as progress:
        _, fill = train_head(config, learn, validation, out, imputer=fill, head=start, resume=resume,
                             device=choose_device(device), tensorboard=tensorboard, progress=progress)  # fmt: skip
    if "imputer" in TRAINABLE[config.train] and world()[0] == 0:
        _keep_imputer(fill, validation, out, imputer)
    trained = {"head": "head.safetensors", "imputer": "imputer.safetensors", "both": "head.safetensors"}[config.train]
    _say(f"trained: {out / trained}")


def _keep_imputer(fill: Any, validation: "FeatureSet", out: Path, origin: str) -> None:
    """An imputer that changed has another variance; it is saved beside the head."""
    import json

    from imputation.stored import save_imputer
    from imputation.train import fit_variance, validation_error

    fit_variance(fill, validation)
    made = json.loads((Path(origin) / "imputer.json").read_text())
    save_imputer(out, fill, made["preset"], made["overrides"], metrics=validation_error(fill, validation))


def _config(kind: type[Any], out: Path, given: Mapping[str, Any], settings: list[str] | None, resume: bool) -> Any:
    from encoders.settings import assignments, override
    from imputation.run import resumed

    changes = {k: v for k, v in given.items() if v is not None} | _nested(assignments(settings or ()))
    return resumed(kind, out, changes) if resume else override(kind, changes)


def _nested(changes: Mapping[str, str]) -> dict[str, Any]:
    """``overrides.dim=64`` goes into the mapping ``overrides``, read as JSON where it is JSON; so ``base_options``."""
    import json

    out: dict[str, Any] = {}
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        if first not in ("overrides", "base_options") or not rest:
            out[key] = value
            continue
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        out.setdefault(first, {})[rest] = read
    return out


def _splits(path: Path, train: str, validation: str) -> tuple["FeatureSet", "FeatureSet"]:
    """Both splits, standardised by the file's statistics or, where it has none, by those of the training split."""
    from imputation.features import FeatureSet

    data = FeatureSet.load(path)
    if data.standardiser is None:
        data = data.fitted(train)
    return data.of_split(train), data.of_split(validation)


def _start(init: Path, config: Any, train: "FeatureSet") -> Mapping[str, Any]:
    """Weights of a curri-MAE to begin from: of a trained one, or a fresh one's with those that CAV-MAE has for it."""
    from imputation.stored import load_imputer

    if init.is_file() or (init / "model.safetensors").exists():
        return _from_cav_mae(init, config, train)
    imputer: Any = load_imputer(init)
    if not hasattr(imputer, "model"):
        raise UsageError(f"--init {init} is a rule without weights; name the folder of a trained curri-MAE")
    weights: Mapping[str, Any] = imputer.model.state_dict()
    return weights


def _from_cav_mae(init: Path, config: Any, train: "FeatureSet") -> Mapping[str, Any]:
    """What was loaded is told, and what could not be: the imputer's first values would be hidden behind a number."""
    import torch

    from encoders.training import seed_everything
    from encoders.weights.files import read
    from imputation.curri_mae import CurriMAE, load_cav_mae, preset

    arrays = read(init).arrays
    seed_everything(config.seed)
    model = CurriMAE(preset(config.preset, **{"dim": train.width, "length": train.length, **config.overrides}))
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    carried = load_cav_mae(model, state, what=str(init))
    shapes = {name.removeprefix("module."): "x".join(map(str, tensor.shape)) for name, tensor in state.items()}
    _say(f"loaded {len(carried.loaded)} of {len(state)} tensors of CAV-MAE in {init}:")
    for part, names in _parts(carried.loaded).items():
        _say(f"  {part:<20} {len(names):>4}")
    _say(f"not loaded ({len(carried.left)}), of another shape here, or of none:")
    for name in carried.left:
        _say(f"  {name:<28} {shapes[name]}")
    _say(f"new ({len(carried.fresh)}): {', '.join(carried.fresh)}")
    return model.state_dict()


def _parts(names: list[str]) -> dict[str, list[str]]:
    """Names by their first part, in order."""
    out: dict[str, list[str]] = {}
    for name in names:
        out.setdefault(name.partition(".")[0], []).append(name)
    return out


@contextmanager
def _progress() -> Iterator["Progress"]:
    """The processes of torchrun, and a bar on stderr in the first of them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from encoders.training import processes

    loss = TextColumn("loss {task.fields[loss]:.4f}")
    columns = (TextColumn("step"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), loss)
    with processes() as (rank, _):
        bar = Bar(*columns, console=Console(stderr=True), disable=rank > 0)

        def step(done: int, total: int, value: float) -> None:
            if not bar.tasks:  # not before the first step: what is refused before it is one plain sentence
                bar.add_task("step", loss=value)
                bar.start()
            bar.update(bar.tasks[0].id, total=total, completed=done, loss=value)

        try:
            yield step
        finally:
            if bar.tasks:
                bar.stop()


def _say(sentence: str) -> None:
    from encoders.training import world

    if world()[0] == 0:
        print(sentence)
