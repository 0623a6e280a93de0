"""Multi-head attention, of a sequence to itself or to another; every transformer here attends with it.

Vaswani et al., "Attention Is All You Need" (NeurIPS 2017), with biases on all four projections.

B batch, N token that asks, M token that is asked, D width, C width of what is asked, H head, E width of a head.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from encoders.errors import ConfigError
from encoders.layers.initial import lecun_normal_, xavier_uniform_

__all__ = ["Attention"]


class Attention(nn.Module):
    """``query``, ``key``, ``value`` and ``out`` around scaled dot-product attention.

    dim: width of what comes in and goes out. heads: must divide ``inner``. context_dim: width of what is attended to,
    by default ``dim``. inner: width of queries, keys and values over all heads, by default ``dim``. dropout: on the
    attention weights, in training. init: of query, key and value, "xavier" (uniform over the whole matrix, not head by
    head) or "lecun" (normal); out is always Xavier. zero_out: out starts at zero, so that a residual branch starts as
    nothing and still learns.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        context_dim: int | None = None,
        inner: int | None = None,
        dropout: float = 0.0,
        init: str = "xavier",
        zero_out: bool = False,
    ) -> None:
        super().__init__()
        inner = dim if inner is None else inner
        if heads < 1 or inner % heads:
            raise ConfigError(f"{heads} attention heads cannot share a width of {inner}; use a divisor of {inner}")
        if init not in ("xavier", "lecun"):
            raise ConfigError(f"attention init {init!r} is unknown; use 'xavier' or 'lecun'")
        self.heads, self.dropout = heads, dropout
        context_dim = dim if context_dim is None else context_dim
        self.query = xavier_uniform_(nn.Linear(dim, inner))
        self.key = xavier_uniform_(nn.Linear(context_dim, inner))
        self.value = xavier_uniform_(nn.Linear(context_dim, inner))
        self.out = xavier_uniform_(nn.Linear(inner, dim))
        if init == "lecun":
            for layer in (self.query, self.key, self.value):
                lecun_normal_(layer.weight)
        if zero_out:
            nn.init.zeros_(self.out.weight)

    def project(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m c"] | None = None
    ) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h m e"], Float[Tensor, "b h m e"]]:
        """Queries of ``x``, keys and values of ``context`` (None: of ``x``), head by head."""
        context = x if context is None else context
        return self._split(self.query(x)), self._split(self.key(context)), self._split(self.value(context))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, N, E)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b m c"] | None = None,
        presence: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """``x`` attends to ``context`` (None: to itself) where ``presence`` is True (None: everywhere).

        A row with nothing present gets the bias of ``out``.
        """
        q, k, v = self.project(x, context)
        mask = None if presence is None else presence[:, None, None, :]  # (B, 1, 1, M), True = may be attended to
        y = scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, N, E)
        return self.out(y.transpose(1, 2).flatten(2))
