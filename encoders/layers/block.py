"""The pre-norm transformer block, and a stack of them: the trunk of every transformer here.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021), as google-research/scenic builds it: GELU in its tanh
approximation, layer norms with epsilon 1e-6, one more norm after the last block. Stochastic depth (Huang et al.,
"Deep Networks with Stochastic Depth", ECCV 2016) drops a residual branch per example.

B batch, N token, D width.
"""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from encoders.errors import ConfigError
from encoders.layers.attention import Attention
from encoders.layers.initial import xavier_uniform_

__all__ = ["NORM_EPS", "Block", "DropPath", "Encoder", "Mlp", "check_trunk", "layer_norm", "ramp"]

NORM_EPS = 1e-6


def check_trunk(config: Any) -> None:
    """Raise ConfigError unless blocks can be made of a config's ``dim``, ``depth``, ``heads`` and ``mlp_dim``."""
    for name in ("dim", "depth", "heads", "mlp_dim"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} {getattr(config, name)} must be at least 1")
    if config.dim % config.heads:
        raise ConfigError(f"heads {config.heads} do not divide dim {config.dim}; use a divisor")


def layer_norm(dim: int) -> nn.LayerNorm:
    """A layer norm with the epsilon that all of these models have."""
    return nn.LayerNorm(dim, eps=NORM_EPS)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them; the width in is the width out. The tanh approximation is Flax's,
    the exact one that of PyTorch's models."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0, *, exact_gelu: bool = False) -> None:
        super().__init__()
        self.first = xavier_uniform_(nn.Linear(dim, hidden), bias_std=1e-6)
        self.activation = nn.GELU(approximate="none" if exact_gelu else "tanh")
        self.second = xavier_uniform_(nn.Linear(hidden, dim), bias_std=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        x = self.dropout(self.activation(self.first(x)))
        return self.dropout(self.second(x))


class DropPath(nn.Module):
    """A residual branch, dropped with probability ``prob`` for an example as a whole; in training only.

    rescale: kept branches are divided by the chance of being kept. ViViT, MBT and PolyViT do not rescale, MTV does.
    """

    def __init__(self, prob: float, rescale: bool = False) -> None:
        super().__init__()
        if not 0 <= prob < 1:
            raise ConfigError(f"stochastic depth {prob} must lie in [0, 1); use 0 to drop nothing")
        self.prob, self.rescale = prob, rescale

    def forward(self, x: Float[Tensor, "b *n"]) -> Float[Tensor, "b *n"]:
        if not self.training or not self.prob:
            return x
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.prob)
        return x * (kept / (1 - self.prob) if self.rescale else kept)


class Block(nn.Module):
    """Norm, attention, residual; norm, MLP, residual. The two branches are dropped independently.

    ``attention`` takes the place of full self-attention: a module that is called in the same way.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_dim: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        rescale: bool = False,
        exact_gelu: bool = False,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attention = Attention(dim, heads, dropout=attention_dropout) if attention is None else attention
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim, mlp_dim, dropout, exact_gelu=exact_gelu)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path, rescale)

    def forward(self, x: Float[Tensor, "b n d"], presence: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n d"]:
        """Tokens to tokens; where ``presence`` is False a token is attended to by nobody."""
        x = x + self.drop_path(self.dropout(self.attention(self.norm1(x), presence=presence)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def ramp(p_max: float, depth: int) -> list[float]:
    """Stochastic depth block by block: from 0 in the first, linearly, to ``p_max`` in the last of ``depth``."""
    return [p_max * layer / max(depth - 1, 1) for layer in range(depth)]


class Encoder(nn.Module):
    """``depth`` blocks and a last norm. ``drop_path`` is that of the last block; see `ramp`."""

    def __init__(
        self,
        depth: int,
        dim: int,
        heads: int,
        mlp_dim: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        rescale: bool = False,
        exact_gelu: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
                mlp_dim,
                dropout=dropout,
                attention_dropout=attention_dropout,
                drop_path=prob,
                rescale=rescale,
                exact_gelu=exact_gelu,
            )
            for prob in ramp(drop_path, depth)
        )
        self.norm = layer_norm(dim)

    def forward(self, x: Float[Tensor, "b n d"], presence: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n d"]:
        """Tokens to normed tokens; where ``presence`` is False a token is attended to by nobody."""
        for block in self.blocks:
            x = block(x, presence)
        return self.norm(x)
