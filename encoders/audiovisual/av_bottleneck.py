"""How a sequence of pictures and one of sound meet after their encoders: through few tokens, or all with all.

Zhu, "Efficient Multiscale Multimodal Bottleneck Transformer for Audio-Video Classification" (2024), section 3.2. In
each block of AVBottleneck pictures attend to themselves and to L fusion tokens, then sound to itself and to what the
pictures made of those. Either side has blocks of its own; none of it changes how many tokens there are. The paper does
not say what enters the next block (``carry``), nor how many heads there are.

Shapes: B clip, N token of a modality, L fusion token, M modality (video, audio; always both), D width.
"""

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from encoders.layers.block import Block
from encoders.layers.positions import learned

__all__ = ["MODALITIES", "AVBottleneck", "FullAttention", "Streams"]

MODALITIES = ("video", "audio")  # the M axis
Streams = dict[str, Tensor]  # by modality, those that any clip has: (B, N, D)


class AVBottleneck(nn.Module):
    """``blocks`` of fusion through ``count`` tokens (equations 5 and 6).

    carry: what of the fusion tokens enters the next block: "last", what the side that came last made of them, or
    "mean", the mean over the sides.
    """

    def __init__(self, dim: int, heads: int, mlp_dim: int, *, blocks: int, count: int, carry: str = "last",
                 drop_path: float = 0.0) -> None:  # fmt: skip
        super().__init__()
        self.carry = carry
        self.tokens = learned(count, dim)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({m: Block(dim, heads, mlp_dim, drop_path=drop_path, rescale=True) for m in MODALITIES})
            for _ in range(blocks)
        )

    def forward(self, x: Streams, presence: Bool[Tensor, "b m"] | None = None) -> Streams:
        """Tokens of each modality (B, N, D) to as many; of one that is absent they mean nothing."""
        fused = self.tokens.expand(len(next(iter(x.values()))), -1, -1)  # (B, L, D)
        for sides in self.blocks:
            assert isinstance(sides, nn.ModuleDict)
            made: list[Tensor] = []  # what each side makes of the fusion tokens, one after the other
            for column, name in enumerate(MODALITIES):
                if name not in x:
                    continue
                count, before = x[name].shape[1], made[-1] if made else fused
                # The order within a sequence means nothing to attention; fusion tokens lie last on either side.
                y = sides[name](torch.cat((x[name], before), 1))
                x, after = {**x, name: y[:, :count]}, y[:, count:]
                made.append(after if presence is None else torch.where(presence[:, column, None, None], after, before))
            fused = self._carried(made, presence)
        return x

    def _carried(self, made: list[Tensor], presence: Tensor | None) -> Tensor:
        if self.carry == "last" or len(made) == 1:
            return made[-1]
        mean = torch.stack(made).mean(0)
        return mean if presence is None else torch.where(presence.all(1)[:, None, None], mean, made[-1])


class FullAttention(nn.Module):
    """``blocks`` in which all tokens of both modalities attend to each other: what a bottleneck saves."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, *, blocks: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_dim, drop_path=drop_path, rescale=True) for _ in range(blocks)
        )

    def forward(self, x: Streams, presence: Bool[Tensor, "b m"] | None = None) -> Streams:
        """As `AVBottleneck`."""
        counts = [tokens.shape[1] for tokens in x.values()]
        there = None
        if presence is not None:
            columns = [presence[:, [MODALITIES.index(name)]].expand(-1, tokens.shape[1]) for name, tokens in x.items()]
            there = torch.cat(columns, 1)  # (B, N of both)
        y = torch.cat(list(x.values()), 1)
        for block in self.blocks:
            y = block(y, there)
        return dict(zip(x, y.split(counts, 1), strict=True))
