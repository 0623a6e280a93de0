"""The encoders of a multiview transformer: views side by side, the ways in which they meet, and the encoder over all.

`encoders.video.mtv` has the config and says what each way is; `encoders.audiovisual.mm_mix` lets views see more than
pictures. A layer takes the views' tokens (coarsest view first), which clips have which view, and the bottleneck tokens;
it gives tokens and bottleneck. A view that a clip does not have is as if its tokens were not there to be attended to.

Shapes: B clip, V view, T_i time step of view i, N token of a step (class token first), D_i width of view i, D width of
the global encoder, G group (B times the fewest T_i: the steps of all views that share a span of time), M token of a
group, T' step that the global encoder reads.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from encoders.layers.attention import Attention
from encoders.layers.block import Block, DropPath, Encoder, layer_norm
from encoders.layers.initial import xavier_uniform_
from encoders.layers.positions import learned
from encoders.video.views import View

if TYPE_CHECKING:
    from encoders.video.mtv import MTVConfig

__all__ = ["GlobalEncoder", "MultiviewEncoder", "Presence", "Tokens"]

Tokens: TypeAlias = list[Tensor | None]  # view by view; None: this view is not there, for the whole batch
Presence: TypeAlias = Bool[Tensor, "b v"] | None  # (G, V) inside; True: this clip has this view; None: it has all


class Layer(nn.Module):
    """One block of every view that is deep enough; here views do not meet."""

    def __init__(self, config: "MTVConfig", layer: int):
        super().__init__()
        self.views = len(config.parsed)
        self.blocks = nn.ModuleDict(
            {
                str(i): Block(
                    view.width,
                    view.heads,
                    view.mlp,
                    dropout=config.dropout,
                    attention_dropout=config.attention_dropout,
                    drop_path=config.drop_at(layer, view),
                    rescale=True,
                )
                for i, view in enumerate(config.parsed)
                if layer < view.layers
            }
        )

    def forward(self, xs: Tokens, presence: Presence, bottleneck: Tensor | None) -> tuple[Tokens, Tensor | None]:
        """Each view's (G, M, D_i); presence (G, V). The bottleneck is passed on untouched."""
        return [x if x is None else self.block(i)(x) for i, x in enumerate(xs)], bottleneck

    def block(self, view: int) -> Callable[[Tensor], Tensor]:
        """The view's block, or nothing to be done past its depth."""
        return self.blocks[str(view)] if str(view) in self.blocks else nn.Identity()


class CrossViewLayer(Layer):
    """Cross-view attention, then the blocks. All norms are taken before any view is told anything."""

    def __init__(self, config: "MTVConfig", layer: int):
        super().__init__(config, layer)
        views = config.parsed
        self.norms = nn.ModuleList(layer_norm(view.width) for view in views)
        self.attentions = nn.ModuleList(
            _cross_attention(query, key_value, config) for query, key_value in pairwise(views)
        )
        self.dropout = nn.Dropout(config.dropout)
        # As published: the ramp of the view that is asked, not of the one that asks.
        self.drop_paths = nn.ModuleList(DropPath(config.drop_at(layer, view), rescale=True) for view in views[1:])

    def forward(self, xs: Tokens, presence: Presence, bottleneck: Tensor | None) -> tuple[Tokens, Tensor | None]:
        normed = [x if x is None else norm(x) for norm, x in zip(self.norms, xs, strict=True)]
        fused = list(xs)
        for i in range(self.views - 1):
            x, query, key_value = xs[i], normed[i], normed[i + 1]
            if x is None or query is None or key_value is None:
                continue
            told = self.drop_paths[i](self.dropout(self.attentions[i](query, key_value)))
            fused[i] = x + _if_present(told, 0.0, presence, i + 1)
        return super().forward(fused, presence, bottleneck)


def _cross_attention(query: View, key_value: View, config: "MTVConfig") -> Attention:
    owner = query if config.fusion_width == "query" else key_value
    return Attention(
        query.width,
        owner.heads,
        context_dim=key_value.width,
        inner=owner.width,
        dropout=config.attention_dropout,
        init="lecun",
        zero_out=True,
    )


class BottleneckLayer(Layer):
    """Blocks from the finest view to the coarsest; bottleneck tokens sit in with each and carry word to the next."""

    def __init__(self, config: "MTVConfig", layer: int):
        super().__init__(config, layer)
        self.tokens = config.bottlenecks
        self.linears = nn.ModuleDict()  # into a view of another width than the one the tokens come from
        width = _bottleneck_width(config, layer)
        for i in reversed(range(self.views)):
            if str(i) in self.blocks:
                if config.parsed[i].width != width:
                    self.linears[str(i)] = xavier_uniform_(nn.Linear(width, config.parsed[i].width))
                width = config.parsed[i].width

    def forward(self, xs: Tokens, presence: Presence, bottleneck: Tensor | None) -> tuple[Tokens, Tensor | None]:
        assert bottleneck is not None, "a bottleneck layer needs bottleneck tokens"
        fused = list(xs)
        for i in reversed(range(self.views)):
            if str(i) in self.linears:
                bottleneck = self.linears[str(i)](bottleneck)
            x = xs[i]
            if x is not None and str(i) in self.blocks:
                both = self.blocks[str(i)](torch.cat([x, bottleneck], 1))  # (G, M + tokens, D_i)
                fused[i], told = both.split([x.shape[1], self.tokens], 1)
                bottleneck = _if_present(told, bottleneck, presence, i)
        return fused, bottleneck


def _bottleneck_width(config: "MTVConfig", layer: int) -> int:
    """Of the tokens as they come to a layer: the coarsest view's that was in the fusion layer before."""
    width = config.parsed[-1].width
    for before in sorted(set(config.fusion_layers)):
        if before < layer:
            width = next((view.width for view in config.parsed if before < view.layers), width)
    return width


class MlpLayer(Layer):
    """Self-attention of each view, then MLPs whose input is widened by the next finer view's tokens.

    A widened linear layer is two added up, so a view's own part keeps its name and its pretrained weights.
    """

    def __init__(self, config: "MTVConfig", layer: int):
        super().__init__(config, layer)
        views, steps = config.parsed, config.steps
        self.tokens = [config.class_tokens + n for n in config.places]
        self.per_group = [t // min(steps) for t in steps]  # time steps in a group
        self.norms, self.beside = nn.ModuleDict(), nn.ModuleDict()
        for i in range(self.views - 1):
            if str(i) in self.blocks:
                width = views[i + 1].width * (steps[i + 1] // steps[i])
                self.norms[str(i)] = layer_norm(views[i + 1].width)
                self.beside[str(i)] = nn.Linear(width, views[i].mlp, bias=False)
                nn.init.zeros_(self.beside[str(i)].weight)  # type: ignore[arg-type]

    def forward(self, xs: Tokens, presence: Presence, bottleneck: Tensor | None) -> tuple[Tokens, Tensor | None]:
        ys = [x if x is None else self._attend(i, x) for i, x in enumerate(xs)]
        return [y if y is None else self._mlp(i, y, ys, presence) for i, y in enumerate(ys)], bottleneck

    def _attend(self, i: int, x: Tensor) -> Tensor:
        if str(i) not in self.blocks:
            return x
        block: Block = self.blocks[str(i)]  # type: ignore[assignment]
        return x + block.drop_path(block.dropout(block.attention(block.norm1(x))))

    def _mlp(self, i: int, y: Tensor, ys: Tokens, presence: Presence) -> Tensor:
        if str(i) not in self.blocks:
            return y
        block: Block = self.blocks[str(i)]  # type: ignore[assignment]
        mlp, hidden = block.mlp, block.mlp.first(block.norm2(y))
        finer = ys[i + 1] if str(i) in self.beside else None
        if finer is not None:
            beside = self.beside[str(i)](self._side_by_side(self.norms[str(i)](finer), i))
            hidden = hidden + _if_present(beside, 0.0, presence, i + 1)
        hidden = mlp.dropout(mlp.activation(hidden))
        return y + block.drop_path(mlp.dropout(mlp.second(hidden)))

    def _side_by_side(self, finer: Tensor, i: int) -> Tensor:
        """The finer view's tokens of the same place and span in one row: (G, M_i, k D_i+1)."""
        times = self.per_group[i + 1] // self.per_group[i]  # k
        x = finer.unflatten(1, (self.per_group[i], times, self.tokens[i]))  # (G, T_i, k, N, D)
        return x.transpose(2, 3).flatten(3).flatten(1, 2)


def _if_present(there: Tensor, absent: Tensor | float, presence: Presence, view: int) -> Tensor:
    """``there`` in the rows that have the view, else ``absent``: an absent view says nothing, whatever it holds."""
    return there if presence is None else torch.where(presence[:, view, None, None], there, absent)


class MultiviewEncoder(nn.Module):
    """The views' transformers side by side. Groups of time steps that share a span attend among themselves only."""

    def __init__(self, config: "MTVConfig"):
        super().__init__()
        self.groups = min(config.steps)  # of a clip
        kinds = {"cross": CrossViewLayer, "bottleneck": BottleneckLayer, "mlp": MlpLayer, "late": Layer}
        self.layers = nn.ModuleList(
            (kinds[config.fusion] if layer in config.fusion_layers else Layer)(config, layer)
            for layer in range(config.depth)
        )
        self.bottleneck: nn.Parameter | None = None
        if config.fusion == "bottleneck":
            width = config.parsed[-1].width
            self.bottleneck = nn.Parameter(torch.randn(1, self.groups, config.bottlenecks, width) * 0.02)

    def forward(self, tokens: Tokens, presence: Presence = None) -> Tokens:
        """Each view's (B, T_i, N, D_i) -> the same shapes. A view that is None, or absent, tells nobody."""
        xs: Tokens = [x if x is None else self._grouped(x) for x in tokens]
        batch = next(len(x) for x in tokens if x is not None)
        if presence is not None:
            presence = presence.repeat_interleave(self.groups, 0)  # (G, V)
        bottleneck = None if self.bottleneck is None else self.bottleneck.repeat(batch, 1, 1, 1).flatten(0, 1)
        for layer in self.layers:
            xs, bottleneck = layer(xs, presence, bottleneck)
        return [x if x is None or t is None else x.reshape(t.shape) for x, t in zip(xs, tokens, strict=True)]

    def _grouped(self, x: Tensor) -> Tensor:
        return x.reshape(len(x) * self.groups, -1, x.shape[-1])  # (G, M, D)


class GlobalEncoder(nn.Module):
    """What stands for each time step of each view, merged and read once more."""

    def __init__(self, config: "MTVConfig"):
        super().__init__()
        dim = config.dim
        self.keep_space, self.merge, self.class_tokens = config.keep_space, config.merge, config.class_tokens
        self.steps, self.widths = config.steps, [view.width for view in config.parsed]
        self.linears = nn.ModuleList()
        if config.merge == "time":
            self.linears.extend(xavier_uniform_(nn.Linear(view.width, dim)) for view in config.parsed)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_tokens else None
        self.positions = learned(config.class_tokens + config.global_steps, dim)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(
            config.global_layers,
            dim,
            config.global_heads,
            config.global_mlp,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            drop_path=config.drop_path,
            rescale=True,
        )

    def forward(self, tokens: Tokens, presence: Presence = None) -> Tensor:
        """Each view's (B, T_i, N, D_i) -> (B, D); with ``keep_space`` (B, T', N, D), every place by itself.

        Merged in time, an absent view's steps are attended to by nobody; merged on channels, its channels are zero.
        """
        if self.keep_space:
            return self.sequence(tokens, presence)
        x = self.sequence([x if x is None else self._stand_in(x) for x in tokens], presence)[:, :, 0]
        return x[:, 0] if self.cls is not None else x.mean(1)

    def sequence(self, tokens: Tokens, presence: Presence) -> Float[Tensor, "b t n d"]:
        """(B, T_i, N, D_i) -> (B, T', N, D): the last norm's tokens, each of the N places a sequence of its own."""
        given = next(x for x in tokens if x is not None)
        shape = given.shape[0], given.shape[2]
        xs = [self._there(x, i, shape, presence) for i, x in enumerate(tokens)]
        x, mask = self._in_time(xs, tokens, presence) if self.merge == "time" else (self._on_channels(xs), None)
        x = x.transpose(1, 2).flatten(0, 1)  # (B N, T', D)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        x = self.dropout(x + self.positions)
        x = self.encoder(x, mask if mask is None else mask.repeat_interleave(shape[1], 0))
        return x.unflatten(0, shape).transpose(1, 2)

    def _stand_in(self, x: Tensor) -> Tensor:
        """What stands for a time step: its class token, or the mean of its tokens; (B, T_i, 1, D_i)."""
        return x[:, :, :1] if self.cls is not None else x.mean(2, keepdim=True)

    def _there(self, x: Tensor | None, i: int, shape: tuple[int, int], presence: Presence) -> Tensor:
        """A view's tokens, zero where it is absent."""
        if x is None:
            return self.positions.new_zeros(shape[0], self.steps[i], shape[1], self.widths[i])
        return x if presence is None else torch.where(presence[:, i, None, None, None], x, 0.0)

    def _on_channels(self, xs: list[Tensor]) -> Tensor:
        """A coarse view's steps are repeated as a whole, as published: not each by each."""
        longest = max(self.steps)
        return torch.cat([x.repeat(1, longest // x.shape[1], 1, 1) for x in xs], -1)

    def _in_time(self, xs: list[Tensor], tokens: Tokens, presence: Presence) -> tuple[Tensor, Tensor | None]:
        """The merged sequence, and which of its steps are there (the class token always)."""
        merged = torch.cat([linear(x) for linear, x in zip(self.linears, xs, strict=True)], 1)
        if presence is None and all(x is not None for x in tokens):
            return merged, None
        there = torch.ones(len(merged), len(xs), dtype=torch.bool, device=merged.device)
        there &= torch.tensor([x is not None for x in tokens], device=merged.device)
        there = there if presence is None else there & presence
        steps = torch.cat([there[:, i, None].expand(-1, x.shape[1]) for i, x in enumerate(xs)], 1)
        return merged, torch.cat([steps.new_ones(len(steps), self.class_tokens), steps], 1)
