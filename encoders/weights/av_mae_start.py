"""An MBT that starts from what AV-MAE learned without labels, as google-research/scenic (projects/av_mae) restores it.

Each modality's stream gets the encoder that its tokens passed: its own, its own and then the joint blocks of a mid
encoder (which both streams get), or the one of an early or shared encoder. Bottlenecks and head are new. The last norm
is the joint one; of separate encoders, whose norms are two, it stays as it was drawn, but for a model of one modality
(ours), which has just the one. What was pre-trained on one modality alone starts the blocks of either stream, and the
patches of its own.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from encoders.audiovisual.av_mae import AVMAEConfig
from encoders.audiovisual.mbt import MBT
from encoders.checkpoint import load_weights
from encoders.errors import DataError

__all__ = ["carry"]

SIZES = ("dim", "depth", "heads", "mlp_dim")


@torch.no_grad()
def carry(
    model: MBT, weights: Mapping[str, Tensor], config: AVMAEConfig, *, what: str = "the pre-trained encoder"
) -> None:
    """Start ``model`` from an `AVMAE` of ``config``, whose state is ``weights`` (or that of the whole that was
    pre-trained, with its decoder).

    A kernel over one channel is repeated, not divided, for a model that sees a spectrogram three times. Raises
    DataError where the two do not fit, before anything is changed.
    """
    encoder = {k.removeprefix("encoder."): v for k, v in weights.items() if not k.startswith("decoder.")}
    _check(model, config, what)
    new = dict(model.state_dict())
    for modality in model.config.inputs:
        if modality in config.inputs:
            new |= _tokens(modality, encoder, new, what)
        stack = model.encoder.blocks["both" if model.encoder.shared else modality]
        new |= _placed(_blocks(modality, encoder, config), stack, "both" if model.encoder.shared else modality, what)
    new |= {f"encoder.norm.{key}": value for key, value in _norm(model, encoder, config, what).items()}
    load_weights(model, new, what=f"what {what} becomes")


def _check(model: MBT, config: AVMAEConfig, what: str) -> None:
    mine = model.config
    for name in SIZES:
        if getattr(mine, name) != getattr(config, name):
            raise DataError(
                f"{what} has {name} {getattr(config, name)} and the model {getattr(mine, name)}; choose the preset of "
                "its size"
            )
    for name, wanted in (("pool", "mean"), ("positions", "sinusoidal")):
        if getattr(mine, name) != wanted:
            raise DataError(
                f"{what} knows {name} {wanted} and the model has {getattr(mine, name)}; name a preset that begins with "
                f"mbt_av_mae, or set model.{name}={wanted}"
            )
    apart = len(config.inputs) > 1 and config.encoder in ("separate", "mid")
    if model.encoder.shared and apart:
        raise DataError(f"{what} has blocks for each modality and the model one stack; set model.share_encoder=false")
    patches = {"video": "tubelet", "audio": "patch"}
    for modality in set(mine.inputs) & set(config.inputs):
        theirs, ours = (getattr(part.inputs[modality], patches[modality]) for part in (config, mine))
        if theirs != ours:
            raise DataError(f"{what} has patches of {theirs} of {modality} and the model of {ours}; build both alike")


def _tokens(modality: str, encoder: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Patch embeddings; what was added to every token goes into their bias."""
    target = f"tokens.{modality}.embed.project"
    kernel, bias = (_of(encoder, f"embed.{modality}.project.{part}", what) for part in ("weight", "bias"))
    channels = own[f"{target}.weight"].shape[1]
    if kernel.shape[1] == 1 < channels:
        kernel = kernel.expand(-1, channels, *kernel.shape[2:])
    token = encoder.get(f"places.{modality}.token")
    return {f"{target}.weight": kernel, f"{target}.bias": bias if token is None else bias + token.flatten()}


def _placed(blocks: Mapping[str, Tensor], stack: nn.Module, name: str, what: str) -> dict[str, Tensor]:
    """Blocks under the names of a stream's, all of them."""
    for key in stack.state_dict():
        if key not in blocks:
            raise DataError(f"{what} lacks block {key}; give the encoder of a finished run of masked pre-training")
    return {f"encoder.blocks.{name}.{key}": value for key, value in blocks.items()}


def _blocks(modality: str, encoder: Mapping[str, Tensor], config: AVMAEConfig) -> dict[str, Tensor]:
    """The blocks that a modality's tokens passed, numbered through: ``0.norm1.weight``, ..."""
    own = modality if modality in config.inputs else next(iter(config.inputs))
    names = ["joint"] if config.encoder in ("early", "shared") else [own]
    names += ["joint"] if config.encoder == "mid" else []
    first, found = 0, dict[str, Tensor]()
    for name in names:
        prefix = f"trunks.{name}.blocks."
        for key, value in encoder.items():
            if key.startswith(prefix):
                layer, _, rest = key.removeprefix(prefix).partition(".")
                found[f"{first + int(layer)}.{rest}"] = value
        first += config.depth - config.joint_depth
    return found


def _norm(model: MBT, encoder: Mapping[str, Tensor], config: AVMAEConfig, what: str) -> dict[str, Tensor]:
    """The last norm, where there is one to take over."""
    name, parts = "joint", ("weight", "bias")
    if config.encoder == "separate":
        if len(model.config.inputs) > 1 and len(config.inputs) > 1:
            return {}
        mine = next(iter(model.config.inputs))
        name = mine if mine in config.inputs else next(iter(config.inputs))
    return {part: _of(encoder, f"trunks.{name}.norm.{part}", what) for part in parts}


def _of(encoder: Mapping[str, Tensor], key: str, what: str) -> Tensor:
    if key not in encoder:
        raise DataError(f"{what} lacks {key}; give the encoder of a finished run of masked pre-training")
    return encoder[key]
