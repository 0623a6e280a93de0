"""Pre-training with CrissCross; the loop itself is in `encoders.pretrain_loop`.

The recipe is the public configuration's for Kinetics-400: LARC around Adam; the learning rate of backbones and
projectors rises over two epochs and falls by half a cosine, the predictors' stays; batch norm is over all processes.
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoders.audio import resnet2d
from encoders.audiovisual.crisscross import PRESETS, Agreement, AgreementConfig, CrissCross, CrissCrossConfig, spread
from encoders.checkpoint import load_weights
from encoders.datasets.reader import PairSpec
from encoders.datasets.two_views import SYNCHRONIES, ViewPairs, open_views
from encoders.datasets.view_augment import ViewAugment
from encoders.errors import ConfigError
from encoders.larc import LARCAdam
from encoders.layers.shared_norm import share_batch_norm
from encoders.pretrain_loop import PairConfig, PairRun, Progress, check_batch, fit, resumed_as
from encoders.settings import override, pick, to_dict
from encoders.training import average_gradients, check_finite, cosine, mean_over_processes, seed_everything, world
from encoders.video import r2plus1d

__all__ = ["RECIPES", "PretrainConfig", "pretrain", "recipe", "resumed", "train_step"]

MAY_CHANGE = ("workers", "log_every", "save_every")  # when a run is resumed; other epochs would bend the schedule


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(PairConfig):
    """A whole run. Defaults are Kinetics-400's at paper scale: two machines of 1 024."""

    model: CrissCrossConfig = field(default_factory=CrissCrossConfig)
    objective: AgreementConfig = field(default_factory=AgreementConfig)
    synchrony: str = "overlapped"  # where the second view lies: see `encoders.datasets.two_views`
    augment: ViewAugment = field(default_factory=ViewAugment)
    epochs: int = 100
    clips_per_video: int = 5
    batch: int = 2048  # over all processes
    accumulate: int = 1  # parts of a process's share that come one after another, each with its own batch norm
    lr: float = 2e-4  # of backbones and projectors, after the warm-up
    final_lr: float = 1e-4  # at the end
    warmup: float = 2.0  # epochs
    predictor_lr: float = 2e-3  # constant
    weight_decay: float = 1e-4
    trust: float = 1e-3  # LARC
    larc_eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.synchrony not in SYNCHRONIES:
            raise ConfigError(f"synchrony {self.synchrony!r} is unknown; use one of {', '.join(SYNCHRONIES)}")
        if self.accumulate < 1:
            raise ConfigError(f"accumulate {self.accumulate} must be at least 1")
        for name in ("lr", "predictor_lr"):
            if not 0 < getattr(self, name) <= 100:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in (0, 100]")
        if not 0 <= self.final_lr <= self.lr:
            raise ConfigError(f"final_lr {self.final_lr} must lie between 0 and lr {self.lr}")
        if not 0 <= self.warmup < self.epochs:
            raise ConfigError(
                f"warmup {self.warmup:g} epochs must be less than the {self.epochs} of the run; use warmup=0 for none"
            )
        if self.weight_decay < 0 or not self.trust > 0 or self.larc_eps < 0:
            raise ConfigError(
                f"weight_decay {self.weight_decay} and larc_eps {self.larc_eps} must be >= 0 and trust {self.trust} > 0"
            )


# Preset to (model, changes). What the paper's other data (AudioSet, Kinetics-Sound) were trained with is not published.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "crisscross_base": ("crisscross_base", {}),
    "crisscross_tiny": (
        "crisscross_tiny",
        {
            "epochs": 4, "clips_per_video": 2, "batch": 8, "lr": 2e-3, "final_lr": 1e-3, "warmup": 0.5, "trust": 0.02,
            "workers": 0, "augment.cutout_side": 6, "augment.time_width": 5, "augment.area": (0.3, 1.0),
        },
    ),
}


def recipe(preset: str, data: str, **changes: Any) -> PretrainConfig:
    """The run a preset stands for, with changes (dotted keys reach inside); UsageError on unknown names."""
    model, values = pick(RECIPES, preset, "preset")
    start = PretrainConfig(data=data, model=PRESETS[model])
    config: PretrainConfig = override(start, {**values, **changes})
    return config


def resumed(out: Path, **changes: Any) -> PretrainConfig:
    """The config of the run in ``out`` with ``changes``; ConfigError where a change would make it another run."""
    return resumed_as(PretrainConfig, out, MAY_CHANGE, changes)


@dataclass(kw_only=True)
class _Run(PairRun):
    """A run; the objective has no state."""

    model: CrissCross
    objective: Agreement

    @property
    def accumulate(self) -> int:  # type: ignore[override]
        return int(self.config.accumulate)

    def learn(self, parts: Sequence[Sequence[Tensor]], done: float) -> dict[str, float]:
        config = self.config
        lr = config.lr * cosine(config.warmup / config.epochs, config.final_lr / config.lr)(done)
        return {"lr": lr, **train_step(self, parts, lr)}

    def encoders(self) -> dict[str, tuple[nn.Module, dict[str, str]]]:
        video, audio = self.model.video_backbone, self.model.audio_backbone
        return {
            "video": (video, _about(r2plus1d.PRESETS, video.config, "r2plus1d_18_crisscross")),
            "audio": (audio, _about(resnet2d.PRESETS, audio.config, "resnet2d_18")),
        }


def _about(presets: dict[str, Any], config: Any, otherwise: str) -> dict[str, str]:
    """By which preset, and with what settings, an encoder is built again."""
    name = next((name for name, known in presets.items() if known == config), otherwise)
    return {"preset": name, "config": json.dumps(to_dict(config))}


def pretrain(
    config: PretrainConfig,
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    tensorboard: bool = False,
    progress: Progress | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Path:
    """Train and give the folder of the weights. ``weights``: of a whole model, to start from instead of chance.

    On Ctrl-C the state is saved and Interrupted raised; ``resume`` goes on from there, on a CPU to the same bits as
    a run never interrupted.
    """
    run = _set_up(config, out, device, resume, weights)
    return fit(run, tensorboard=tensorboard, progress=progress)


def train_step(run: _Run, parts: Sequence[Sequence[Tensor]], lr: float) -> dict[str, float]:
    """One step on this process's share, parts of (ids, video, squares, audio); the losses, means over all of it.

    ``video_spread`` and ``audio_spread`` fall to 0 where all clips become one point. Raises NotFinite before the
    weights have seen a bad loss.
    """
    bf16, sums = run.config.precision == "bf16", dict[str, Tensor]()
    run.optimizer.zero_grad(set_to_none=True)
    for _, video, squares, audio in parts:
        with torch.autocast(video.device.type, torch.bfloat16) if bf16 else nullcontext():
            outputs = run.model(video, squares, audio)
        losses = run.objective(outputs)
        check_finite(mean_over_processes(losses["loss"].detach()), epoch=run.epoch, step=run.step)
        (losses["loss"] / len(parts)).backward()
        told = {**losses, "video_spread": spread(outputs.z["v1"]), "audio_spread": spread(outputs.z["a1"])}
        for name, value in told.items():
            sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach() / len(parts)
    average_gradients(run.model.parameters())
    for group in run.optimizer.param_groups:
        group["lr"] = run.config.predictor_lr if group["name"].endswith("predictor") else lr
    run.optimizer.step()
    return {name: float(mean_over_processes(value)) for name, value in sums.items()}


# --- before the first step --------------------------------------------------------------------------------------


def _set_up(
    config: PretrainConfig, out: Path, device: str, resume: bool, weights: dict[str, Tensor] | None
) -> _Run:
    """Everything before the first step; contradictions are refused here."""
    if not resume and (out / "checkpoint.json").exists():
        raise ConfigError(f"{out} already holds a run; go on with --resume, or choose another --out")
    seed_everything(config.seed, deterministic=device == "cpu")
    model = CrissCross(config.model)
    pairs = _open(config, model)
    check_batch(config, len(pairs), config.accumulate)
    _check_norm(config)
    if weights is not None:
        load_weights(model, weights, what="the weights to start from")
    if world()[1] > 1:
        share_batch_norm(model)
    model = model.to(device).train()
    optimizer = LARCAdam(
        _groups(model), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay,
        trust=config.trust, larc_eps=config.larc_eps,
    )  # fmt: skip
    run = _Run(
        config=config, out=out, pairs=pairs, model=model, optimizer=optimizer, device=device,
        objective=Agreement(config.objective),
    )  # fmt: skip
    if resume:
        run.load()
    return run


def _groups(model: CrissCross) -> list[dict[str, Any]]:
    """Parameters by how fast they learn: each modality's base (backbone and projector) and its predictor."""
    groups = []
    for modality in model.modalities:
        base = [getattr(model, f"{modality}_backbone"), getattr(model, f"{modality}_projector")]
        predictor = [getattr(model, f"{modality}_predictor")]
        for name, modules in ((f"{modality} base", base), (f"{modality} predictor", predictor)):
            groups.append({"name": name, "params": [p for module in modules for p in module.parameters()]})
    return groups


def _check_norm(config: PretrainConfig) -> None:
    """Batch norm has nothing to compare a single row with."""
    rows = config.batch // config.accumulate
    if rows < 2:
        raise ConfigError(
            f"batch {config.batch} in {config.accumulate} parts leaves {rows} reading for batch norm; use 2 or more"
        )


def _open(config: PretrainConfig, model: CrissCross) -> ViewPairs:
    spec = PairSpec(
        video=model.video_backbone.spec,
        video_seconds=model.video_backbone.clip_seconds,
        audio=model.audio_backbone.spec,
        audio_seconds=model.audio_backbone.clip_seconds,
    )
    model.audio_backbone.front(torch.zeros(1, spec.samples))  # says whether a clip is long enough to be heard
    return open_views(
        config.data, spec, model.audio_backbone.front,
        splits=config.splits, augment=config.augment, synchrony=config.synchrony, seed=config.seed,
    )  # fmt: skip
