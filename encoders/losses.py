"""Training objectives that several models share.

B batch, P positive, K negative, D width.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.processes import mean_over_processes

__all__ = ["BinaryNCE", "info_nce", "picked"]


class BinaryNCE(nn.Module):
    """Noise-contrastive estimation: is a score's target the sample's own, or noise? (Gutmann & Hyvarinen, 2010)

    Per sample, with Z the partition constant and K the number of negatives:
    ``mean_p -log(e^s / (e^s + K Z)) + sum_j -log(K Z / (e^s_j + K Z))``: a mean over positives, a *sum* over
    negatives. Z is the mean of e^s over the first batch of negatives ever scored, frozen from then on, and one
    for every kind of score (Wu et al., CVPR 2018, as AVID-CMA uses it).
    """

    avg_exp_score: Tensor  # Z; -1 until it is set

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("avg_exp_score", torch.tensor(-1.0))

    def forward(self, positives: Float[Tensor, "b p"], negatives: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
        """Scores (similarity / temperature) to the mean loss of the batch."""
        if not self.avg_exp_score > 0:
            with torch.no_grad():
                self.avg_exp_score.copy_(mean_over_processes(negatives.float().exp().mean()))
        noise = math.log(negatives.shape[1]) + self.avg_exp_score.log()  # log K Z
        own = F.softplus(noise - positives.float()).mean(1)  # (B,)
        other = F.softplus(negatives.float() - noise).sum(1)  # (B,)
        return (own + other).mean()


def info_nce(
    a: Float[Tensor, "b d"], b: Float[Tensor, "b d"], temperature: float = 0.07, *, symmetric: bool = True
) -> Float[Tensor, ""]:
    """Each row of ``b`` must pick its own row of ``a`` among the batch, by the cosine between them; with ``symmetric``
    each row of ``a`` its own of ``b`` as well, and the mean of both. CAV-MAE's is the first alone, ``b`` pictures."""
    scores = _cosines(a, b) / temperature  # (B, B)
    own = torch.arange(len(a), device=a.device)
    back = F.cross_entropy(scores.T, own)
    return (F.cross_entropy(scores, own) + back) / 2 if symmetric else back


def picked(a: Float[Tensor, "b d"], b: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """The share of rows of ``b`` whose nearest row of ``a`` is their own."""
    return (_cosines(a, b).argmax(0) == torch.arange(len(a), device=a.device)).float().mean()


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T
