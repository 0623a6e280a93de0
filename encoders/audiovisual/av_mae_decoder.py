"""The half of AV-MAE that is thrown away: what is hidden, the decoder that draws it, and how well it was drawn.

Georgescu et al., "Audiovisual Masked Autoencoders" (ICCV 2023), sections 3.2 and 3.3, and google-research/scenic
(projects/av_mae). Decoders are ``shared`` (one transformer, each modality by itself), ``separate`` and ``early`` (one
transformer over both) as in the public code; ``mid`` (one each, then blocks over both) is ours.

*Joint reconstruction* draws each modality from its own visible tokens, which saw the other's in the encoder.
*Inpainting* draws a modality from the visible tokens of the other: they take the first of its places, or with
``shuffle`` places drawn at random (our reading of the public flag: its exact effect is not documented), and all that
remain are mask tokens; what lies under a foreign token is not drawn.

B batch, N token, V visible token, O hidden token, D width, E decoder width, P numbers in a patch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.audiovisual.av_mae import (
    AVMAE,
    MODALITIES,
    AVMAEConfig,
    Fusion,
    Modality,
    Places,
    check_fusion,
    chosen,
    kept_apart,
    through,
    trunks,
)
from encoders.errors import ConfigError
from encoders.layers.initial import xavier_uniform_

__all__ = ["DecoderConfig", "Drawn", "MaskedAutoencoder", "Masks", "ObjectiveConfig", "draw_masks", "patches_of"]

Seen = Mapping[str, Tensor]  # what the encoder prepares, by modality


# --- configs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The decoder; the defaults are size B's."""

    kind: Fusion = "shared"
    depth: int = 4
    joint_depth: int = 2  # of ``depth``, the blocks over both modalities (mid)
    dim: int = 384  # E
    heads: int = 6
    mlp_dim: int = 1536

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "heads", "mlp_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"decoder {name} {getattr(self, name)} must be at least 1")
        if self.dim % self.heads:
            raise ConfigError(f"decoder heads {self.heads} do not divide dim {self.dim}; use a divisor")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """How much is hidden, and what is drawn from what; the defaults are VGGSound's."""

    inpaint: bool = False  # draw a modality from the other, instead of each from itself
    targets: tuple[Modality, ...] = MODALITIES  # what is drawn; one alone is one direction
    hidden_video: float = 0.9  # share of tokens
    hidden_audio: float = 0.5
    shuffle: bool = False  # inpaint: foreign tokens take any places, not the first
    standardise: tuple[Modality, ...] = ()  # whose patches are drawn as their own mean and deviation

    def __post_init__(self) -> None:
        for name in ("hidden_video", "hidden_audio"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in [0, 1); something must stay visible")
        for name in ("targets", "standardise"):
            value = getattr(self, name)
            if any(m not in MODALITIES for m in value) or len(set(value)) < len(value):
                raise ConfigError(f"{name} {list(value)} is no choice of video and audio; name each once")
        if not self.targets:
            raise ConfigError("targets is empty; name video, audio or both")
        if self.shuffle and not self.inpaint:
            raise ConfigError("shuffle moves the foreign tokens of inpainting; set inpaint too, or leave shuffle out")

    def share(self, modality: str) -> float:
        """Of a modality's tokens that is hidden."""
        return self.hidden_video if modality == "video" else self.hidden_audio

    def hidden(self, modality: str, count: int) -> int:
        """How many of ``count`` tokens are hidden; rounded down."""
        return int(self.share(modality) * count)


def check(model: AVMAEConfig, decoder: DecoderConfig, objective: ObjectiveConfig) -> None:
    """Refuse what the paper forbids or nothing could be learned from, with a ConfigError."""
    names = tuple(model.inputs)
    check_fusion("decoder", decoder.kind, len(names), decoder.depth, decoder.joint_depth)
    if len(names) > 1 and model.encoder == decoder.kind == "separate":
        raise ConfigError(
            "a separate encoder with a separate decoder is two models that never meet; use decoder shared, early or "
            "mid, or a model of one modality"
        )
    missing = [m for m in (*objective.targets, *objective.standardise) if m not in names]
    if missing:
        raise ConfigError(
            f"{missing[0]} is to be drawn by a model of {names[0]} alone; set objective.targets={names[0]}"
        )
    if objective.inpaint and len(names) == 1:
        raise ConfigError(f"inpainting draws a modality from another and the model has {names[0]} alone; leave it out")
    counts = model.counts
    if objective.inpaint:
        for target, other in _directions(objective):
            foreign = counts[other] - objective.hidden(other, counts[other])
            if foreign >= counts[target]:
                raise ConfigError(
                    f"{foreign} visible tokens of {other} leave no place to draw among {counts[target]} of {target}; "
                    f"raise hidden_{other}"
                )
        return
    for target in objective.targets:
        if not objective.hidden(target, counts[target]):
            raise ConfigError(
                f"hidden_{target} {objective.share(target)} hides none of {counts[target]} tokens; hide more, or draw "
                "the other alone"
            )


def _directions(objective: ObjectiveConfig) -> list[tuple[str, str]]:
    """(what is drawn, what it is drawn from) when inpainting."""
    return [(target, MODALITIES[target == "video"]) for target in MODALITIES if target in objective.targets]


# --- what is hidden ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Masks:
    """Which tokens are hidden: by modality, places that together are all of them, in no order."""

    hidden: dict[str, Int[Tensor, "b o"]]
    visible: dict[str, Int[Tensor, "b v"]]
    foreign: dict[str, Int[Tensor, "b n"]]  # inpainting with shuffle: each modality's places in random order

    def to(self, device: torch.device | str) -> "Masks":
        return self._each(lambda x: x.to(device))

    def rows(self, rows: slice) -> "Masks":
        """Those of some examples."""
        return self._each(lambda x: x[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Masks":
        return Masks(*({m: change(x) for m, x in part.items()} for part in (self.hidden, self.visible, self.foreign)))


def draw_masks(
    counts: Mapping[str, int], objective: ObjectiveConfig, batch: int, generator: torch.Generator | None = None
) -> Masks:
    """Uniformly at random, for each example and modality by itself; ``counts`` are their tokens."""
    orders = {m: _orders(batch, n, generator) for m, n in counts.items()}  # (B, N) each
    split = {m: objective.hidden(m, n) for m, n in counts.items()}
    foreign = {m: _orders(batch, n, generator) for m, n in counts.items()} if objective.shuffle else {}
    return Masks(
        {m: order[:, : split[m]] for m, order in orders.items()},
        {m: order[:, split[m] :] for m, order in orders.items()},
        foreign,
    )


def _orders(batch: int, count: int, generator: torch.Generator | None) -> Int[Tensor, "b n"]:
    return torch.rand(batch, count, generator=generator).argsort(1)


# --- the decoder ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """What was drawn of a modality, and which of it counts."""

    patches: Float[Tensor, "b n p"]
    places: Int[Tensor, "b o"]  # those that nothing was known of


class Decoder(nn.Module):
    """Visible tokens and mask tokens to patches."""

    def __init__(self, model: AVMAEConfig, config: DecoderConfig) -> None:
        super().__init__()
        self.kind, self.counts, names = config.kind, model.counts, tuple(model.inputs)
        self.projections = nn.ModuleDict({m: xavier_uniform_(nn.Linear(model.dim, config.dim)) for m in names})
        self.mask_tokens = nn.ParameterDict({m: nn.Parameter(torch.zeros(1, 1, config.dim)) for m in names})
        self.places = nn.ModuleDict({m: Places(n, config.dim, model.modality_tokens) for m, n in self.counts.items()})
        sizes = config.dim, config.heads, config.mlp_dim
        self.trunks = trunks(config.kind, names, config.depth, config.joint_depth, sizes)
        self.regressors = nn.ModuleDict({m: _regressor(config.dim, patch_numbers(model, m)) for m in names})

    def forward(
        self, visible: Mapping[str, Float[Tensor, "b v d"]], masks: Masks, objective: ObjectiveConfig
    ) -> dict[str, Drawn]:
        """What the encoder made of visible tokens, to patches of each target, in natural order."""
        known = {m: self.projections[m](x) for m, x in visible.items()}  # (B, V, E)
        if objective.inpaint:
            rows = {m: self._inpainted(known[other], m, masks) for m, other in _both(known)}
        else:
            rows = {m: self._restored(x, m, masks) for m, x in known.items()}
        if kept_apart(self.kind):  # what is not asked for need not be decoded
            rows = {m: row for m, row in rows.items() if m in objective.targets}
        decoded = through(self.trunks, self.kind, {m: self.places[m](x) for m, (x, _) in rows.items()})
        return {m: Drawn(self.regressors[m](decoded[m]), rows[m][1]) for m in rows if m in objective.targets}

    def _restored(self, known: Tensor, modality: str, masks: Masks) -> tuple[Tensor, Tensor]:
        """Known tokens at their own places (B, N, E), mask tokens at the hidden ones."""
        hidden = masks.hidden[modality]
        return self._laid(known, torch.cat([masks.visible[modality], hidden], 1), modality), hidden

    def _inpainted(self, foreign: Tensor, modality: str, masks: Masks) -> tuple[Tensor, Tensor]:
        """Foreign tokens at the first places of a modality, or at any, mask tokens at all others."""
        count, places = self.counts[modality], masks.foreign.get(modality)
        if places is None:
            places = torch.arange(count, device=foreign.device).expand(len(foreign), -1)
        return self._laid(foreign, places, modality), places[:, foreign.shape[1] :]

    def _laid(self, known: Tensor, places: Tensor, modality: str) -> Tensor:
        """Known tokens at the first of ``places`` (B, N), mask tokens at the others."""
        spare = places.shape[1] - known.shape[1]
        mask = self.mask_tokens[modality].to(known.dtype).expand(len(known), spare, -1)
        return chosen(torch.cat([known, mask], 1), places.argsort(1))


def _both(known: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Each modality with the one it is drawn from."""
    first, second = known
    return [(first, second), (second, first)]


def _regressor(dim: int, numbers: int) -> nn.Linear:
    layer = nn.Linear(dim, numbers)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def patch_numbers(model: AVMAEConfig, modality: str) -> int:
    """How many numbers a modality's patch holds (P)."""
    if modality == "audio":
        assert model.audio is not None
        return model.audio.patch[0] * model.audio.patch[1]
    assert model.video is not None
    t, h, w = model.video.tubelet
    return t * h * w * 3


# --- both halves ------------------------------------------------------------------------------------------------


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder with an objective; the loss is what `forward` gives."""

    def __init__(self, model: AVMAEConfig, decoder: DecoderConfig, objective: ObjectiveConfig | None = None) -> None:
        super().__init__()
        objective = objective or ObjectiveConfig(targets=tuple(m for m in MODALITIES if m in model.inputs))
        check(model, decoder, objective)
        self.objective = objective
        self.encoder = AVMAE(model)
        self.decoder = Decoder(model, decoder)

    def forward(self, seen: Seen, masks: Masks) -> dict[str, Tensor]:
        """What the encoder prepared, and what of it is hidden, to the losses: ``loss``, and one for each target.

        A modality's loss is the mean over hidden tokens of the mean square over a patch's numbers; the whole is the
        mean over targets.
        """
        drawn = self.draw(seen, masks)
        losses = {m: self._loss(m, seen[m], drawn[m]) for m in drawn}
        return {"loss": torch.stack(list(losses.values())).mean(), **losses}

    def draw(self, seen: Seen, masks: Masks) -> dict[str, Drawn]:
        """All patches of each target, as the decoder draws them."""
        return self.decoder(self.encoder(seen, masks.visible), masks, self.objective)

    def _loss(self, modality: str, x: Tensor, drawn: Drawn) -> Tensor:
        wanted = chosen(patches_of(self.encoder.config, modality, x), drawn.places).float()
        if modality in self.objective.standardise:
            variance, mean = torch.var_mean(wanted, -1, keepdim=True, correction=0)
            wanted = (wanted - mean) / (variance + 1e-6).sqrt()
        return (chosen(drawn.patches, drawn.places).float() - wanted).square().mean()


def patches_of(model: AVMAEConfig, modality: str, x: Tensor) -> Float[Tensor, "b n p"]:
    """A modality's input cut into its patches: numbers in order of frame, row, column, colour; or of mel frame, bin."""
    if modality == "audio":
        assert model.audio is not None
        u, f = model.audio.patch
        return rearrange(x, "b 1 (n u) (m f) -> b (n m) (u f)", u=u, f=f)
    assert model.video is not None
    t, h, w = model.video.tubelet
    return rearrange(x, "b c (n t) (y h) (x w) -> b (n y x) (t h w c)", t=t, h=h, w=w)
