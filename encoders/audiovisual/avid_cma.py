"""AVID-CMA: a clip's picture must pick its own sound from a memory of all clips, and the reverse.

Morgado, Vasconcelos, Misra, "Audio-Visual Instance Discrimination with Cross-Modal Agreement" (CVPR 2021).
Stage 1 (AVID) contrasts across modalities against a memory bank. Stage 2 (CMA) goes on from stage 1's model and bank,
looks for clips that resemble each other in *both* modalities, and pulls them together within each modality.
Left out: the published classes' within-modal instance branch, whose coefficient is 0 in every configuration.

B batch, T frame, H W pixels, S sample, D embedding width, N instance (video), P positive, K negative.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.audio.conv2d import PRESETS as AUDIO
from encoders.audio.conv2d import Conv2D, Conv2DConfig
from encoders.errors import ConfigError, DataError
from encoders.losses import BinaryNCE
from encoders.processes import gather_rows, world
from encoders.video.r2plus1d import PRESETS as VIDEO
from encoders.video.r2plus1d import R2Plus1D, R2Plus1DConfig

__all__ = ["AVIDCMA", "PRESETS", "AVIDCMAConfig", "MemoryBank", "Objective", "ObjectiveConfig"]

AGREEMENTS = ("consensus", "union", "video", "audio")


@dataclass(frozen=True, kw_only=True)
class AVIDCMAConfig:
    """The two networks and their projection heads."""

    video: R2Plus1DConfig = field(default_factory=lambda: VIDEO["r2plus1d_18"])
    audio: Conv2DConfig = field(default_factory=lambda: AUDIO["conv2d_10"])
    projection: tuple[int, ...] = (512, 512, 128)  # widths of the layers after the pooled feature; the last is D

    def __post_init__(self) -> None:
        if not self.projection or min(self.projection) < 1:
            raise ConfigError(f"projection {list(self.projection)} needs at least one width, each >= 1")


class Projection(nn.Module):
    """Linear layers with ReLU between them; its output is normalised where it is scored."""

    def __init__(self, dim: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((dim, *widths), widths, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.projection = nn.Sequential(*layers[:-1])

    def forward(self, x: Float[Tensor, "b c"]) -> Float[Tensor, "b d"]:
        return self.projection(x)


class AVIDCMA(nn.Module):
    """Both encoders and their projections; parameter names are those of the published checkpoints."""

    modalities = ("video", "audio")

    def __init__(self, config: AVIDCMAConfig) -> None:
        super().__init__()
        self.config = config
        self.video_model = R2Plus1D(config.video)
        self.audio_model = Conv2D(config.audio)
        self.video_proj = Projection(config.video.dim, config.projection)
        self.audio_proj = Projection(config.audio.dim, config.projection)

    def forward(
        self, video: UInt8[Tensor, "b t h w *rgb"], audio: Float[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Clips to unit embeddings, one of each modality."""
        v = self.video_proj(self.video_model.encode(video))
        a = self.audio_proj(self.audio_model.encode(audio))
        return F.normalize(v.float(), dim=1), F.normalize(a.float(), dim=1)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is contrasted with what; the defaults are the paper's."""

    stage: str = "avid"  # avid: across modalities; cma: and within, towards agreeing instances
    temperature: float = 0.07
    negatives: int = 1024  # K, drawn anew for every sample
    momentum: float = 0.5  # share of the old row that stays in the memory
    positives: int = 32  # P, agreeing instances of each instance (cma)
    within_negatives: int = 64  # of the K, those used within a modality (cma)
    agreement: str = "consensus"  # consensus: similar in both; union: in either; video, audio: in that one
    across: float = 1.0  # coefficient of cross-modal discrimination
    within: float = 1.0  # coefficient of within-modal agreement (cma)

    def __post_init__(self) -> None:
        if self.stage not in ("avid", "cma"):
            raise ConfigError(f"stage {self.stage!r} is unknown; use avid or cma")
        if self.agreement not in AGREEMENTS:
            raise ConfigError(f"agreement {self.agreement!r} is unknown; use one of {', '.join(AGREEMENTS)}")
        if not (self.temperature > 0 and 0 <= self.momentum < 1 and self.negatives >= 1):
            raise ConfigError(
                f"temperature {self.temperature} must be > 0, momentum {self.momentum} in [0, 1), "
                f"negatives {self.negatives} >= 1"
            )
        if self.stage == "cma" and not 1 <= self.within_negatives <= self.negatives:
            raise ConfigError(f"within_negatives {self.within_negatives} must lie in 1..{self.negatives} (negatives)")


class MemoryBank(nn.Module):
    """One running unit vector per instance and modality, and (cma) each instance's agreeing instances."""

    view1_mem: Tensor  # (N, D) video
    view2_mem: Tensor  # (N, D) audio
    positive_set: Tensor | None  # (N, P) int32, ascending; never the instance itself

    def __init__(self, size: int, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        for name in ("view1_mem", "view2_mem"):
            self.register_buffer(name, F.normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.register_buffer("positive_set", None)

    def __len__(self) -> int:
        return len(self.view1_mem)

    @torch.no_grad()
    def update(
        self, ids: Int[Tensor, " b"], video: Float[Tensor, "b d"], audio: Float[Tensor, "b d"], mu: float
    ) -> None:
        """Move each row towards its new embedding and back to the sphere; of an id's rows the last counts."""
        keep = _last_of_each(ids)
        ids = ids[keep]
        for memory, new in ((self.view1_mem, video), (self.view2_mem, audio)):
            memory[ids] = F.normalize(mu * memory[ids] + (1 - mu) * new[keep].detach().to(memory), dim=1)

    @torch.no_grad()
    def find_positives(self, count: int, agreement: str, chunk: int = 1024) -> None:
        """The ``count`` instances most similar to each instance; the work is shared by all processes."""
        if not count < len(self):
            raise DataError(f"{count} positives need more than {count} instances but there are {len(self)}; lower them")
        rank, processes = world()
        share = -(-len(self) // processes)
        rows = torch.arange(rank * share, (rank + 1) * share, device=self.view1_mem.device) % len(self)
        found = torch.cat([self._nearest(part, count, agreement) for part in rows.split(chunk)])
        self.positive_set = gather_rows(found)[: len(self)]

    def _nearest(self, rows: Tensor, count: int, agreement: str) -> Tensor:
        video = self.view1_mem[rows] @ self.view1_mem.T  # (R, N)
        audio = self.view2_mem[rows] @ self.view2_mem.T
        both = {"consensus": torch.minimum, "union": torch.maximum, "video": lambda v, a: v, "audio": lambda v, a: a}
        similarity = both[agreement](video, audio)
        similarity.scatter_(1, rows[:, None], torch.inf)  # the instance itself comes first, whatever rounding says
        return similarity.topk(count + 1, dim=1).indices[:, 1:].sort(1).values.to(torch.int32)


def _last_of_each(ids: Tensor) -> Tensor:
    """Places of each id's last occurrence: writing duplicates in one go has no defined order."""
    _, inverse = ids.unique(return_inverse=True)
    place = torch.arange(len(ids), device=ids.device)
    return place.new_zeros(int(inverse.max()) + 1).scatter_reduce_(0, inverse, place, "amax")


class Objective(nn.Module):
    """The loss of either stage. Buffers bear the published names: ``nce_average.*``, ``criterion.*``.

    With several processes every one draws the negatives of the *whole* batch from equal generators and uses its own
    share, so that the run does not depend on how many processes share it.
    """

    def __init__(self, config: ObjectiveConfig, size: int, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        reserved = 1 if config.stage == "avid" else config.positives
        if size <= reserved:
            raise DataError(f"{size} instances leave no negatives beside {reserved} taken; give more data")
        self.config = config
        self.nce_average = MemoryBank(size, dim, generator)
        self.criterion = BinaryNCE()

    def continue_from(self, stage_one: Mapping[str, Tensor]) -> None:
        """Take over the memory and partition constant of a trained stage 1; then look for agreeing instances.

        ``stage_one`` holds an Objective's buffers by name. Raises DataError where the memory is of other videos.
        """
        bank = self.nce_average
        for name in ("view1_mem", "view2_mem"):
            rows = stage_one.get(f"nce_average.{name}")
            own = cast(Tensor, getattr(bank, name))
            if rows is None or rows.shape != own.shape:
                had = "none" if rows is None else "x".join(map(str, rows.shape))
                raise DataError(
                    f"memory {name} of stage 1 is {had}, this data needs {'x'.join(map(str, own.shape))}; "
                    "start stage 2 with the data and preset of stage 1"
                )
            own.copy_(rows)
        constants = [value.float() for name, value in stage_one.items() if name.endswith("avg_exp_score")]
        if constants:
            self.criterion.avg_exp_score.copy_(torch.stack(constants).mean())
        self.resample()

    def expect_positives(self) -> None:
        """Make room for the agreeing instances that a checkpoint of stage cma brings."""
        if self.config.stage == "cma":
            rows = self.nce_average.view1_mem
            self.nce_average.positive_set = rows.new_zeros(len(rows), self.config.positives, dtype=torch.int32)

    def resample(self) -> None:
        """Look for agreeing instances anew (cma)."""
        self.nce_average.find_positives(self.config.positives, self.config.agreement)

    def forward(
        self,
        video: Float[Tensor, "b d"],
        audio: Float[Tensor, "b d"],
        ids: Int[Tensor, " b"],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Unit embeddings of instances ``ids`` to the losses: ``loss``, and the parts it is made of.

        Call `update` once the step was taken; until then the memory is what it was.
        """
        bank, tau = self.nce_average, self.config.temperature
        others = self.draw_negatives(ids, generator)  # (B, K)
        parts = {
            "v2a": self._contrast(video, bank.view2_mem, ids[:, None], others, tau),
            "a2v": self._contrast(audio, bank.view1_mem, ids[:, None], others, tau),
        }
        across = (parts["v2a"] + parts["a2v"]) / 2
        if self.config.stage == "avid":
            return {"loss": across, **parts}
        assert bank.positive_set is not None, "stage cma needs continue_from() or resample() first"
        own, few = bank.positive_set[ids].long(), others[:, : self.config.within_negatives]
        parts["v2v"] = self._contrast(video, bank.view1_mem, own, few, tau)
        parts["a2a"] = self._contrast(audio, bank.view2_mem, own, few, tau)
        within = (parts["v2v"] + parts["a2a"]) / 2
        weights = self.config.across, self.config.within
        return {"loss": (weights[0] * across + weights[1] * within) / sum(weights), **parts}

    def _contrast(self, x: Tensor, memory: Tensor, positives: Tensor, negatives: Tensor, tau: float) -> Tensor:
        own = torch.einsum("bd,bpd->bp", x, memory[positives]) / tau
        other = torch.einsum("bd,bkd->bk", x, memory[negatives]) / tau
        return self.criterion(own, other)

    def update(self, ids: Tensor, video: Tensor, audio: Tensor) -> None:
        """Write the batch's embeddings, gathered over all processes, into the memory."""
        ids, video, audio = (gather_rows(x.detach()) for x in (ids, video, audio))
        self.nce_average.update(ids, video, audio, self.config.momentum)

    @torch.no_grad()
    def draw_negatives(self, ids: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, K) instances, uniform over those that are no positives of ``ids``."""
        rank, processes = world()
        batch, size = len(ids), len(self.nce_average)
        taken = ids[:, None] if self.config.stage == "avid" else self._positives(ids)  # (B, P) ascending
        shape = (processes * batch, self.config.negatives)
        draw = torch.randint(size - taken.shape[1], shape, generator=generator)[rank * batch : (rank + 1) * batch]
        draw = draw.to(ids.device)
        # Numbers of a list with holes: each hole at or before a number moves it one further.
        holes = taken - torch.arange(taken.shape[1], device=ids.device)
        return draw + torch.searchsorted(holes.contiguous(), draw, right=True)

    def _positives(self, ids: Tensor) -> Tensor:
        positives = self.nce_average.positive_set
        assert positives is not None, "stage cma needs continue_from() or resample() first"
        return positives[ids].long()


PRESETS = {
    "avid_cma_base": AVIDCMAConfig(),
    "avid_cma_talk": AVIDCMAConfig(video=VIDEO["r2plus1d_talk"], audio=AUDIO["conv2d_talk"], projection=(128, 128, 64)),
    "avid_cma_tiny": AVIDCMAConfig(video=VIDEO["r2plus1d_tiny"], audio=AUDIO["conv2d_tiny"], projection=(32, 32, 16)),
}
