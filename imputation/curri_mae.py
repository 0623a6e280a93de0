"""curri-MAE: a masked autoencoder over two sequences of clip features, trained on a curriculum of losses.

Chochlakis, Lavania, Mathur, Han: "Tackling Missing Modalities in Audio-Visual Representation Learning Using
Masked Autoencoders" (Interspeech 2024), in the shape of CAV-MAE (Gong et al., ICLR 2023): features that were
observed go through one encoder per modality and a joint block; the decoder puts a mask token where a feature is
missing and predicts it. The contrastive loss and the modality-norm passes are left out; their norms stay, unused,
so that published weights keep their names.

Shape legend: B batch, N position, n kept token, M modality (video, audio), D feature width, W encoder width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from encoders.errors import ConfigError, DataError
from encoders.layers.modality_block import ModalityBlock as Block
from encoders.settings import override, pick
from imputation.baselines import lerp, observed_mean
from imputation.imputer import Filled, blend, checked
from imputation.variance import VarianceTable

BASES = {"lerp": lerp, "observed_mean": observed_mean}


@dataclass(frozen=True, kw_only=True)
class CurriMAEConfig:
    """Sizes; the defaults are the paper's, 190.13 M parameters."""

    dim: int = 512  # D, what an encoder gives per clip and modality
    length: int = 10  # the most positions a window may have, lookahead included
    width: int = 768
    depth: int = 11  # blocks of each modality
    unified_depth: int = 1  # blocks over both
    heads: int = 12
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    registers: int = 0  # learned tokens per modality that are always there; 0 as published
    residual: str = ""  # predict the difference to this baseline: "lerp", "observed_mean"; "" predicts the feature
    log_variance: bool = False  # the decoder also predicts how far off it is

    def __post_init__(self) -> None:
        for width, heads, name in ((self.width, self.heads, ""), (self.decoder_width, self.decoder_heads, "decoder_")):
            if width % heads or width % 2:
                raise ConfigError(f"{name}width {width} is odd or not a multiple of {name}heads {heads}; change one")
        if self.residual and self.residual not in BASES:
            raise ConfigError(f"residual {self.residual!r} is unknown; choose {', '.join(BASES)}, or nothing")
        if self.length < 2:
            raise ConfigError(f"length {self.length} leaves nothing to predict from; use 2 or more")


def sincos(length: int, width: int) -> Tensor:
    """Fixed 1-D positions, (length, width): [sin, cos] of position * 10000^(-i / (width / 2))."""
    half = width // 2
    omega = 10_000 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


class Kept(NamedTuple):
    """The tokens of one modality that the encoder sees."""

    tokens: Tensor  # (B, n, W)
    order: Tensor | None  # (B, n) position of each; None where every position kept its place
    valid: Tensor | None  # (B, n) False = padding; None where there is none


class Prediction(NamedTuple):
    """What the decoder says of every place, observed or not."""

    mean: Tensor  # (B, N, M, D)
    log_variance: Tensor | None  # (B, N, M)


class Loss(NamedTuple):
    """total is what to minimise; mse (M,) is L_video and L_audio without gradient."""

    total: Tensor
    mse: Tensor


class CurriMAE(nn.Module):
    """The autoencoder. ``pack`` chooses how hidden places are kept out of the encoder.

    True: observed tokens are gathered, so hidden ones are not there at all. False: every token stays and hidden
    ones are masked in attention, so shapes never change (CUDA graphs). Both give the same answer.
    """

    positions: Tensor
    decoder_positions: Tensor

    def __init__(self, config: CurriMAEConfig) -> None:
        super().__init__()
        self.config = c = config
        self.pack = True

        # encoder
        self.in_proj_a = nn.Linear(c.dim, c.width)
        self.in_proj_v = nn.Linear(c.dim, c.width)
        self.register_buffer("positions", sincos(c.length, c.width), persistent=False)
        self.modality_a = nn.Parameter(torch.zeros(1, 1, c.width))
        self.modality_v = nn.Parameter(torch.zeros(1, 1, c.width))
        if c.registers:
            self.register_a = nn.Parameter(torch.zeros(1, c.registers, c.width))
            self.register_v = nn.Parameter(torch.zeros(1, c.registers, c.width))
        self.blocks_a = nn.ModuleList([Block(c.width, c.heads) for _ in range(c.depth)])
        self.blocks_v = nn.ModuleList([Block(c.width, c.heads) for _ in range(c.depth)])
        self.blocks_u = nn.ModuleList([Block(c.width, c.heads) for _ in range(c.unified_depth)])
        self.norm_a, self.norm_v, self.norm = (nn.LayerNorm(c.width) for _ in range(3))

        # decoder
        self.decoder_embed = nn.Linear(c.width, c.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.decoder_width))
        self.register_buffer("decoder_positions", sincos(c.length, c.decoder_width), persistent=False)
        self.decoder_modality_a = nn.Parameter(torch.zeros(1, 1, c.decoder_width))
        self.decoder_modality_v = nn.Parameter(torch.zeros(1, 1, c.decoder_width))
        self.decoder_blocks = nn.ModuleList([Block(c.decoder_width, c.decoder_heads) for _ in range(c.decoder_depth)])
        self.decoder_norm = nn.LayerNorm(c.decoder_width)
        self.decoder_pred_a = nn.Linear(c.decoder_width, c.dim)
        self.decoder_pred_v = nn.Linear(c.decoder_width, c.dim)
        if c.log_variance:
            self.decoder_var_a = nn.Linear(c.decoder_width, 1)
            self.decoder_var_v = nn.Linear(c.decoder_width, 1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.split(".")[0].removesuffix("_a").removesuffix("_v") in _VECTORS:
                nn.init.normal_(parameter, std=0.02)
        if self.config.residual:  # starts out as the baseline
            nn.init.zeros_(self.decoder_pred_a.weight)
            nn.init.zeros_(self.decoder_pred_v.weight)

    def forward(self, features: Tensor, visible: Tensor, exists: Tensor | None = None) -> Prediction:
        """Predict every place from the visible ones.

        features: (B, N, M, D); visible: (B, N, M) bool, True = shown to the encoder; exists: (B, N) bool.
        """
        visible, exists = self._checked(features, visible, exists)
        clean = torch.where(visible.unsqueeze(-1), features, 0)  # a hidden NaN must not reach a product
        mean, log_variance = self._decode(*self._encode(clean, visible), visible, exists)
        if self.config.residual:
            mean = mean + BASES[self.config.residual](clean, visible)
        return Prediction(mean, log_variance)

    def loss(
        self,
        features: Tensor,
        hidden: Tensor,
        exists: Tensor | None = None,
        presence: Tensor | None = None,
        base: Tensor | None = None,
    ) -> Loss:
        """L_audio + L_video: the mean squared error on hidden places, and only there.

        features: (B, N, M, D); hidden: (B, N, M) bool, True = masked by us; exists: (B, N) bool;
        presence: (B, N, M) bool, False = really absent, so neither shown nor asked for;
        base: (B, N, M, D), what the prediction is added to, None: nothing.
        """
        known, _ = checked(features, torch.ones_like(hidden) if presence is None else presence, exists)
        asked = hidden & known
        predicted = self.forward(features, known & ~hidden, exists)
        target = torch.where(asked.unsqueeze(-1), features if base is None else features - base, 0)
        error = (predicted.mean - target).square().mean(dim=-1)  # (B, N, M)
        count = asked.sum(dim=(0, 1)).clamp(min=1)  # (M,)
        mse = torch.where(asked, error, 0).sum(dim=(0, 1)) / count
        total = mse.sum()
        if predicted.log_variance is not None:
            spread = predicted.log_variance
            likelihood = 0.5 * (spread + error.detach() * torch.exp(-spread))
            total = total + (torch.where(asked, likelihood, 0).sum(dim=(0, 1)) / count).sum()
        return Loss(total, mse.detach())

    def _checked(self, features: Tensor, visible: Tensor, exists: Tensor | None) -> tuple[Tensor, Tensor]:
        visible, exists = checked(features, visible, exists)
        if features.shape[1] > self.config.length or features.shape[3] != self.config.dim:
            raise DataError(
                f"features have {features.shape[1]} positions of width {features.shape[3]}; this curri-MAE takes "
                f"at most {self.config.length} of width {self.config.dim}"
            )
        return visible, exists

    def _encode(self, features: Tensor, visible: Tensor) -> tuple[Kept, Kept]:
        length = features.shape[1]
        at = self.positions[:length]

        # project, place, and keep what is visible
        audio = self._keep(self.in_proj_a(features[:, :, 1]) + at + self.modality_a, visible[:, :, 1])
        video = self._keep(self.in_proj_v(features[:, :, 0]) + at + self.modality_v, visible[:, :, 0])
        a, a_valid = self._with_registers(audio, "register_a")
        v, v_valid = self._with_registers(video, "register_v")

        # each modality on its own
        a_mask, v_mask = _attention_mask(a_valid), _attention_mask(v_valid)
        for block in self.blocks_a:
            a = block(a, a_mask)
        for block in self.blocks_v:
            v = block(v, v_mask)

        # both together
        x, valid = torch.cat([a, v], dim=1), _join(a, a_valid, v, v_valid)
        mask = _attention_mask(valid)
        for block in self.blocks_u:
            x = block(x, mask)
        x = self.decoder_embed(self.norm(x))

        # registers stay behind
        r, split = self.config.registers, a.shape[1]
        return audio._replace(tokens=x[:, r:split]), video._replace(tokens=x[:, split + r :])

    def _decode(self, audio: Kept, video: Kept, visible: Tensor, exists: Tensor) -> tuple[Tensor, Tensor | None]:
        length = visible.shape[1]
        at = self.decoder_positions[:length]
        a = self._unpack(audio, visible[:, :, 1]) + at + self.decoder_modality_a
        v = self._unpack(video, visible[:, :, 0]) + at + self.decoder_modality_v
        x = torch.cat([a, v], dim=1)  # (B, 2 N, W)
        whole = self.pack and bool(exists.all())  # asked only where shapes may follow the data
        mask = None if whole else _attention_mask(torch.cat([exists, exists], dim=1))
        for block in self.decoder_blocks:
            x = block(x, mask)
        x = self.decoder_norm(x)
        a, v = x[:, :length], x[:, length:]
        mean = torch.stack([self.decoder_pred_v(v), self.decoder_pred_a(a)], dim=2)
        if not self.config.log_variance:
            return mean, None
        spread = torch.cat([self.decoder_var_v(v.detach()), self.decoder_var_a(a.detach())], dim=2)
        return mean, spread.clamp(-8, 8)

    def _keep(self, tokens: Tensor, visible: Tensor) -> Kept:
        if not self.pack:
            return Kept(tokens, None, visible)
        counts = visible.sum(dim=1)
        most = max(1, int(counts.max()))  # one padding token where nothing is visible: attention needs a row
        order = visible.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # visible first, in order
        kept = tokens.gather(1, order.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
        valid = torch.arange(most, device=tokens.device) < counts.unsqueeze(1)
        return Kept(kept, order, None if bool(valid.all()) else valid)

    def _unpack(self, kept: Kept, visible: Tensor) -> Tensor:
        """Tokens back at their positions, the mask token at all others: (B, N, W)."""
        if kept.order is None:
            return torch.where(visible.unsqueeze(-1), kept.tokens, self.mask_token)
        tokens = kept.tokens
        if kept.valid is not None:  # padding sits at the positions of hidden places
            tokens = torch.where(kept.valid.unsqueeze(-1), tokens, self.mask_token)
        full = self.mask_token.to(tokens.dtype).expand(*visible.shape, -1)
        return full.scatter(1, kept.order.unsqueeze(-1).expand_as(tokens), tokens)

    def _with_registers(self, kept: Kept, name: str) -> tuple[Tensor, Tensor | None]:
        if not self.config.registers:
            return kept.tokens, kept.valid
        register = getattr(self, name).expand(kept.tokens.shape[0], -1, -1)
        return torch.cat([register, kept.tokens], dim=1), _join(register, None, kept.tokens, kept.valid)


_VECTORS = {"modality", "register", "mask_token", "decoder_modality"}


def _join(a: Tensor, a_valid: Tensor | None, b: Tensor, b_valid: Tensor | None) -> Tensor | None:
    if a_valid is None and b_valid is None:
        return None
    left = a.new_ones(a.shape[:2], dtype=torch.bool) if a_valid is None else a_valid
    right = b.new_ones(b.shape[:2], dtype=torch.bool) if b_valid is None else b_valid
    return torch.cat([left, right], dim=1)


def _attention_mask(valid: Tensor | None) -> Tensor | None:
    """Who may look at whom, (B, 1, n, n): everyone at valid tokens, padding at itself (a softmax needs one)."""
    if valid is None:
        return None
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    return (valid.unsqueeze(1) | itself).unsqueeze(1)


class CurriMAEImputer(nn.Module):
    """curri-MAE as a rung of the ladder: fills absent places, and says how far off it expects to be.

    The variance comes from a table fitted on validation, or from the decoder's own estimate, scaled by one
    fitted factor per modality. Gradients flow if the caller's mode lets them (joint fine-tuning).
    """

    scale: Tensor

    def __init__(self, config: CurriMAEConfig) -> None:
        super().__init__()
        self.config = config
        self.estimates = config.log_variance  # its variance is its own: `fit_variance` scales it
        self.rung = "residual" if config.residual else "curri_mae"
        self.model = CurriMAE(config)
        self.variance = VarianceTable()
        self.register_buffer("scale", torch.ones(2))

    def forward(self, features: Tensor, presence: Tensor, exists: Tensor | None = None) -> Filled:
        """features (B, N, M, D), presence (B, N, M), exists (B, N) -> Filled."""
        present, exists = checked(features, presence, exists)
        predicted = self.predict(features, present, exists)
        if predicted.log_variance is None:
            variance = self.variance(present, exists)
        else:
            variance = predicted.log_variance.float().exp() * self.scale
            variance = variance.masked_fill(present | ~exists.unsqueeze(-1), 0.0)
        return Filled(blend(features, predicted.mean, present, exists), variance, self.rung)

    def predict(self, features: Tensor, present: Tensor, exists: Tensor) -> Prediction:
        """What every place is thought to be."""
        predicted: Prediction = self.model(features, present, exists)
        return predicted

    def loss(self, features: Tensor, hidden: Tensor, exists: Tensor, presence: Tensor) -> Loss:
        """What training minimises: see ``CurriMAE.loss``."""
        return self.model.loss(features, hidden, exists, presence)

    def applies(self, presence: Tensor, exists: Tensor | None = None) -> Tensor:
        """(B,) bool: something was observed; in each modality, unless registers stand in for an empty one."""
        present = presence if exists is None else presence & exists.unsqueeze(-1)
        seen = present.any(dim=1)  # (B, M)
        return seen.any(dim=1) if self.config.registers else seen.all(dim=1)


PRESETS = {
    "curri_mae_base": CurriMAEConfig(),
    "curri_mae_small": CurriMAEConfig(
        dim=128, length=16, width=96, depth=2, heads=4, decoder_width=96, decoder_depth=2, decoder_heads=4, registers=1
    ),
    "curri_mae_tiny": CurriMAEConfig(
        dim=16, length=16, width=32, depth=1, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2, registers=1
    ),
}


def preset(name: str, **overrides: Any) -> CurriMAEConfig:
    """The preset's config with fields replaced. Raises UsageError for an unknown name, field or type."""
    config: CurriMAEConfig = override(pick(PRESETS, name, "curri-MAE preset"), overrides)
    return config


def curri_mae_base(**overrides: Any) -> CurriMAEImputer:
    """The paper's size; dim 512, at most 10 positions."""
    return CurriMAEImputer(preset("curri_mae_base", **overrides))


def curri_mae_small(**overrides: Any) -> CurriMAEImputer:
    """For small frozen encoders and thousands of windows: 0.8 M parameters, one window in about a millisecond."""
    return CurriMAEImputer(preset("curri_mae_small", **overrides))


def curri_mae_tiny(**overrides: Any) -> CurriMAEImputer:
    """For tests."""
    return CurriMAEImputer(preset("curri_mae_tiny", **overrides))


class Carried(NamedTuple):
    """What became of CAV-MAE's weights, by name (without ``module.``), and what of ours they left as it was."""

    loaded: list[str]
    left: list[str]  # of the checkpoint: they have no counterpart here, or another shape
    fresh: list[str]  # of ours


def load_cav_mae(model: CurriMAE, state: Mapping[str, Tensor], *, what: str = "the checkpoint") -> Carried:
    """Start from CAV-MAE's pre-training weights: blocks, norms, modality vectors and all of the decoder but its ends.

    ``state`` may carry the ``module.`` prefix of the published files. Patches, positions and prediction layers have no
    counterpart, for what comes in and goes out are features and not patches. Raises DataError, before anything is
    changed, if a shared layer is missing or of another size.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    own = model.state_dict()
    fresh = {n for n in own if n.startswith(("in_proj_", "decoder_pred_", "decoder_var_", "register_"))}
    shared = [name for name in own if name not in fresh]
    if not any(name in given for name in shared):
        raise DataError(f"{what} holds no CAV-MAE; name its pre-training weights, or the folder of a trained imputer")
    for name in shared:
        if name not in given:
            raise DataError(f"{what} lacks {name}; name weights of CAV-MAE's pre-training, with its decoder")
        if given[name].shape != own[name].shape:
            sizes = f"{tuple(given[name].shape)} in {what} and {tuple(own[name].shape)} here"
            raise DataError(f"{name} is {sizes}; use the preset of its size, curri_mae_base for the published weights")
    deeper = [n for n in given if n.startswith(("blocks_", "decoder_blocks.")) and n not in own]
    if deeper:
        raise DataError(f"{what} has {deeper[0]}, for which the model has no place; use the preset of its depth")
    model.load_state_dict({name: given[name].to(own[name].dtype) for name in shared}, strict=False)
    return Carried(sorted(shared), sorted(given.keys() - set(shared)), sorted(fresh))
