"""Pre-training with AVID, then CMA; the loop itself is in `encoders.pretrain_loop`.

Recipes are those of the paper's public configuration: Adam, constant learning rate, batch over all processes.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoders.audiovisual.avid_cma import AVIDCMA, PRESETS, AVIDCMAConfig, Objective, ObjectiveConfig
from encoders.datasets.reader import Pairs, PairSpec, open_pairs
from encoders.datasets.transforms import ClipAugment
from encoders.errors import ConfigError
from encoders.pretrain_loop import PairConfig, PairRun, Progress, check_batch, fit, resumed_as
from encoders.settings import override, pick
from encoders.training import (
    average_gradients,
    check_finite,
    constant,
    cosine,
    load_checkpoint,
    load_weights,
    mean_over_processes,
    parameter_groups,
    seed_everything,
)

__all__ = ["RECIPES", "PretrainConfig", "pretrain", "recipe", "resumed", "train_step"]

MAY_CHANGE = ("epochs", "workers", "log_every", "save_every")  # when a run is resumed


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(PairConfig):
    """A whole run. Defaults are stage AVID on Kinetics at paper scale."""

    model: AVIDCMAConfig = field(default_factory=AVIDCMAConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    augment: ClipAugment = field(default_factory=ClipAugment)
    offset_seconds: float = 0.5  # how far the picture may lie outside the sound's window
    lr: float = 2e-4
    weight_decay: float = 1e-5
    schedule: str = "constant"  # constant, cosine
    warmup: float = 0.0  # share of training, cosine only
    resample_every: int = 5  # epochs between searches for agreeing instances (cma)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resample_every < 1:
            raise ConfigError(f"resample_every {self.resample_every} must be at least 1")
        if not 0 < self.lr <= 100:
            raise ConfigError(f"lr {self.lr} must lie in (0, 100]")
        if self.schedule not in ("constant", "cosine"):
            raise ConfigError(f"schedule {self.schedule!r} is unknown; use constant or cosine")


_AUDIOSET = {"epochs": 40, "clips_per_video": 5, "batch": 160}
_TINY = {"epochs": 4, "clips_per_video": 2, "batch": 8, "lr": 1e-3, "workers": 0, "resample_every": 2}
_FEW = {"objective.negatives": 16, "objective.positives": 4, "objective.within_negatives": 8}
_TALK = {"epochs": 60, "clips_per_video": 7, "batch": 128, "lr": 1e-3, "objective.negatives": 256}
# Preset to (model, changes in stage avid, changes in stage cma).
RECIPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "avid_cma_base": ("avid_cma_base", {}, {"epochs": 20}),
    "avid_cma_base_audioset": (
        "avid_cma_base",
        {**_AUDIOSET, "lr": 5e-4},
        {**_AUDIOSET, "lr": 1e-4, "resample_every": 10},
    ),
    "avid_cma_talk": ("avid_cma_talk", _TALK, {**_TALK, "epochs": 20}),
    "avid_cma_tiny": ("avid_cma_tiny", {**_TINY, **_FEW}, {**_TINY, **_FEW}),
}


def recipe(preset: str, stage: str, data: str, **changes: Any) -> PretrainConfig:
    """The run a preset stands for, with changes (dotted keys reach inside); UsageError on unknown names."""
    model, avid, cma = pick(RECIPES, preset, "preset")
    start = PretrainConfig(data=data, model=PRESETS[model], objective=ObjectiveConfig(stage=stage))
    config: PretrainConfig = override(override(start, cma if stage == "cma" else avid), changes)
    return config


def resumed(out: Path, **changes: Any) -> PretrainConfig:
    """The config of the run in ``out`` with ``changes``; ConfigError where a change would make it another run."""
    after = resumed_as(PretrainConfig, out, MAY_CHANGE, changes)
    before = resumed_as(PretrainConfig, out, (), {})
    if after.schedule != "constant" and after.epochs != before.epochs:
        raise ConfigError(f"epochs {after.epochs} would bend the {after.schedule} schedule; keep {before.epochs}")
    return after


@dataclass(kw_only=True)
class _Run(PairRun):
    """A run of either stage."""

    model: AVIDCMA
    objective: Objective
    generator: torch.Generator  # of the negatives

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "objective": self.objective}

    @property
    def generators(self) -> dict[str, torch.Generator]:
        return {"negatives": self.generator}

    def begin_epoch(self) -> None:
        """Stage cma looks for agreeing instances anew, so often; the first time follows the search it starts with."""
        due = self.epoch % self.config.resample_every == 0 < self.epoch
        if self.config.objective.stage == "cma" and due and self.batches == 0:
            self.objective.resample()

    def learn(self, parts: Sequence[Sequence[Tensor]], done: float) -> dict[str, float]:
        schedule = constant() if self.config.schedule == "constant" else cosine(self.config.warmup)
        lr = self.config.lr * schedule(done)
        return {"lr": lr, **train_step(self, parts[0], lr)}

    def load(self) -> None:
        self.objective.expect_positives()
        super().load()

    def start_from(self, stage_one: Path) -> None:
        """Stage 2 takes over stage 1's weights, memory and partition constant."""
        checkpoint = load_checkpoint(stage_one)
        load_weights(self.model, checkpoint.part("model"), what=f"the model in {stage_one}")
        self.objective.continue_from(checkpoint.part("objective"))

    def encoders(self) -> dict[str, tuple[nn.Module, dict[str, str]]]:
        return {"video": (self.model.video_model, {}), "audio": (self.model.audio_model, {})}


def pretrain(
    config: PretrainConfig,
    out: Path,
    *,
    resume: bool = False,
    stage_one: Path | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train and give the folder of the weights. ``stage_one``: the run whose model and memory stage cma starts from.

    On Ctrl-C the state is saved and Interrupted raised; ``resume`` goes on from there, on a CPU to the same bits as
    a run never interrupted.
    """
    run = _set_up(config, out, device, resume, stage_one)
    return fit(run, tensorboard=tensorboard, progress=progress)


def train_step(run: _Run, batch: Sequence[Tensor], lr: float) -> dict[str, float]:
    """One step on (ids, video, audio), this process's share of the batch; gives the losses, means over processes.

    Raises NotFinite before weights or memory have seen a bad loss.
    """
    ids, video, audio = batch
    bf16 = run.config.precision == "bf16"
    with torch.autocast(video.device.type, torch.bfloat16) if bf16 else nullcontext():
        v, a = run.model(video, audio)
    losses = run.objective(v, a, ids, run.generator)
    means = {name: mean_over_processes(loss.detach()) for name, loss in losses.items()}
    check_finite(means["loss"], epoch=run.epoch, step=run.step)
    run.optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    average_gradients(run.model.parameters())
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    run.objective.update(ids, v, a)
    return {name: float(value) for name, value in means.items()}


def _set_up(config: PretrainConfig, out: Path, device: str, resume: bool, stage_one: Path | None) -> _Run:
    """Everything before the first step; contradictions are refused here."""
    if not resume and config.objective.stage == "cma" and stage_one is None:
        raise ConfigError("stage cma starts from a run of stage avid; name its folder with --init")
    if not resume and (out / "checkpoint.json").exists():
        raise ConfigError(f"{out} already holds a run; go on with --resume, or choose another --out")
    generator = seed_everything(config.seed, deterministic=device == "cpu")
    model = AVIDCMA(config.model)
    pairs = _open(config, model)
    check_batch(config, len(pairs))
    objective = Objective(config.objective, len(pairs), config.model.projection[-1], generator).to(device)
    model = model.to(device).train()
    groups = parameter_groups([model], config.weight_decay)
    optimizer = torch.optim.Adam(groups, lr=config.lr, betas=config.betas)
    run = _Run(
        config=config, out=out, pairs=pairs, model=model, optimizer=optimizer, device=device,
        objective=objective, generator=generator,
    )  # fmt: skip
    if resume:
        run.load()
    elif stage_one is not None:
        run.start_from(stage_one)
    return run


def _open(config: PretrainConfig, model: AVIDCMA) -> Pairs:
    spec = PairSpec(
        video=model.video_model.spec,
        video_seconds=model.video_model.clip_seconds,
        audio=model.audio_model.spec,
        audio_seconds=model.audio_model.clip_seconds,
    )
    return open_pairs(
        config.data,
        spec,
        splits=config.splits,
        augment=config.augment,
        offset_seconds=config.offset_seconds,
        seed=config.seed,
    )
