"""The losses of MMT: a class's sounds and pictures draw near each other, and its pictures (sounds) near themselves.

Zhu, "Efficient Multiscale Multimodal Bottleneck Transformer for Audio-Video Classification" (2024), section 3.3:
a supervised contrast between modalities (equation 3), one within each modality between two changed readings of a
sample (equation 4), and their sum with the classification (equation 8). Their counterparts that know no classes, after
ALBEF and TCL, take a sample's own other half as its only positive.

As printed, equation 3 divides the similarity by the temperature outside the exponent, where it cancels; here it is
inside, as in InfoNCE. What the paper leaves open: embeddings have unit length, an anchor's positives are averaged
outside the logarithm (Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020), and each of two sides is the
anchor once.

Shapes: B sample, R reading of a sample, D width, K class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from encoders.errors import ConfigError
from encoders.objectives import alike
from encoders.processes import gather_rows, world

__all__ = ["HybridConfig", "contrast", "contrasts", "from_everywhere"]

Positives = Literal["none", "instance", "label"]


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """The objective's switches; the defaults are the paper's MMT. Instance positives are the ablations AL, IM-AL."""

    between: Positives = "label"  # sounds and pictures: none, instance (AL), label (AVC)
    within: Positives = "label"  # readings of one modality: none, instance (IM-AL), label (IMC)
    between_weight: float = 0.25  # lambda 1
    within_weight: float = 0.25  # lambda 2, of the mean over modalities
    temperature: float = 0.07  # tau
    width: int = 256  # of the embeddings

    def __post_init__(self) -> None:
        for name in ("between", "within"):
            if getattr(self, name) not in ("none", "instance", "label"):
                raise ConfigError(f"{name} {getattr(self, name)!r} names no positives; use none, instance or label")
            if getattr(self, f"{name}_weight") < 0:
                raise ConfigError(f"{name}_weight {getattr(self, f'{name}_weight')} must be >= 0; use 0 for none")
        if not self.temperature > 0:
            raise ConfigError(f"temperature {self.temperature} must be > 0; the paper's is 0.07")
        if self.width < 1:
            raise ConfigError(f"embeddings of width {self.width} hold nothing; use at least 1")

    @property
    def contrasts_between(self) -> bool:
        return self.between != "none" and self.between_weight > 0

    @property
    def contrasts_within(self) -> bool:
        return self.within != "none" and self.within_weight > 0


def contrast(
    a: Float[Tensor, "b d"], b: Float[Tensor, "b d"], positive: Bool[Tensor, "b b"], temperature: float = 0.07
) -> Float[Tensor, ""]:
    """Each row of ``a`` must find its positives among the rows of ``b``, and the reverse; the mean of both.

    positive: symmetric, True where two rows belong together; a row always does with its own. With the diagonal alone
    this is InfoNCE. Of no rows the loss is 0.
    """
    if not len(a):
        return (a.sum() + b.sum()).float()  # zero, and a graph that reaches both
    a, b = (F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1) for x in (a, b))
    scores = a @ b.T / temperature  # (B, B)
    share = positive.to(scores.dtype) / positive.sum(1, keepdim=True)  # 1 / |P_i| where j is in P_i
    forth, back = ((share * s.log_softmax(1)).sum(1).mean() for s in (scores, scores.T))
    return -(forth + back) / 2


def contrasts(
    config: HybridConfig,
    embedded: Mapping[str, Float[Tensor, "n d"]],
    targets: Float[Tensor, "n k"],
    presence: Bool[Tensor, "n m"],
    *,
    segments: tuple[slice, ...],
    repeats: int = 1,
) -> dict[str, Tensor]:
    """The weighted contrastive losses by name, over the rows of every process.

    embedded: by modality, video then audio. Rows are ``repeats`` readings of each sample, side by side; presence says
    which of them have the modality. Pairs lack nothing: rows without one of two sides are left out.
    """
    rows = {modality: from_everywhere(x) for modality, x in embedded.items()}
    targets, there = gather_rows(targets), gather_rows(presence.to(targets.dtype)) > 0
    losses: dict[str, Tensor] = {}
    if config.contrasts_between and len(rows) > 1:
        video, audio = (x.unflatten(0, (-1, repeats)) for x in rows.values())
        both = there.all(1).unflatten(0, (-1, repeats))
        # Reading by reading: a sample's own other reading is no further positive, nor a negative.
        parts = [
            _among(both[:, r], video[:, r], audio[:, r], targets[r::repeats], config.between, segments, config)
            for r in range(repeats)
        ]
        losses["audio_video"] = config.between_weight * torch.stack(parts).mean()
    if config.contrasts_within:
        assert repeats > 1, "check_run asks for two readings"
        parts = []
        for column, x in enumerate(rows.values()):
            views, has = (v.unflatten(0, (-1, repeats)) for v in (x, there[:, column]))
            parts += [
                _among(has[:, r] & has[:, q], views[:, r], views[:, q], targets[::repeats], config.within, segments,
                       config)
                for r, q in combinations(range(repeats), 2)
            ]  # fmt: skip
        losses["within"] = config.within_weight * torch.stack(parts).mean()
    return losses


def _among(
    chosen: Tensor, a: Tensor, b: Tensor, targets: Tensor, how: Positives, segments: tuple[slice, ...],
    config: HybridConfig,
) -> Float[Tensor, ""]:  # fmt: skip
    """The contrast of the ``chosen`` rows."""
    a, b, targets = a[chosen], b[chosen], targets[chosen]
    own = torch.eye(len(a), dtype=torch.bool, device=a.device)
    return contrast(a, b, own if how == "instance" else alike(targets, segments), config.temperature)


def from_everywhere(rows: Float[Tensor, "b d"]) -> Float[Tensor, "n d"]:
    """The rows of all processes, in order of rank, for a loss that each of them computes whole.

    The gradient reaches a process's own rows alone, and as many times as large as there are processes: the mean over
    processes that follows is then the gradient of one process with all rows.
    """
    rank, count = world()
    if count == 1:
        return rows
    everyone = list(gather_rows(rows.detach()).chunk(count))
    everyone[rank] = rows.detach() + count * (rows - rows.detach())
    return torch.cat(everyone)
