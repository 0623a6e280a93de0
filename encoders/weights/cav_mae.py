"""CAV-MAE's parameters as the public code (YuanGongND/cav-mae) names them; and a CAV-MAE that starts from a vision MAE.

Its names are ours, behind ``module.`` where a file was saved of a model on several devices. Files are of pre-training
(with the decoder) or of fine-tuning (with ``mlp_head``); the one that pre-training starts from has three class tokens
that no model has. What an encoder has no use for is left out, and told.

A vision MAE (He et al., CVPR 2022) is read with its own names (facebookresearch/mae) or with those of `transformers`,
older or newer.
"""

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from encoders.audiovisual.cav_mae import CAVMAE, CAVMAEConfig
from encoders.audiovisual.cav_mae_pretraining import CAVMAEPretraining
from encoders.errors import DataError
from encoders.weights.rules import Rule, convert

__all__ = ["initialise", "pretraining_rules", "read_start", "rules", "start"]

Arrays = Mapping[str, np.ndarray]

PREFIXES = ("module.", "")
ENCODER = (
    "modality_{m:s}",
    "pos_embed_{m:s}",
    "patch_embed_{m:s}.proj.{part:s}",
    "blocks_{m:s}.{i}.{norm:s}.{part:s}",
    "blocks_{m:s}.{i}.{branch:s}.{layer:s}.{part:s}",
    "norm.{part:s}",
    "norm_{m:s}.{part:s}",
)
DECODER = (
    "mask_token",
    "decoder_modality_{m:s}",
    "decoder_pos_embed_{m:s}",
    "decoder_embed.{part:s}",
    "decoder_blocks.{i}.{norm:s}.{part:s}",
    "decoder_blocks.{i}.{branch:s}.{layer:s}.{part:s}",
    "decoder_norm.{part:s}",
    "decoder_pred_{m:s}.{part:s}",
)
HEAD = ("mlp_head.{i}.{part:s}",)
NOWHERE = ("cls_token_{m:s}",)


def rules(config: CAVMAEConfig) -> list[Rule]:
    """Public names to ours, of the encoder, and of its head where it has classes."""
    kept = (*ENCODER, *(HEAD if config.classes else ()))
    return _table(kept, (*DECODER, *NOWHERE, *(() if config.classes else HEAD)))


def pretraining_rules() -> list[Rule]:
    """Public names to ours, of the whole model that is pre-trained."""
    return _table((*ENCODER, *DECODER), (*NOWHERE, *HEAD))


def _table(kept: tuple[str, ...], left: tuple[str, ...]) -> list[Rule]:
    found = [Rule(prefix + name, name) for prefix in PREFIXES for name in kept]
    return [*found, *(Rule(prefix + name, None) for prefix in PREFIXES for name in left)]


def start(model: CAVMAEPretraining, arrays: Arrays, *, what: str = "the checkpoint") -> str:
    """Weights into a model that is to be pre-trained: those of another CAV-MAE, or of a vision MAE; what they were, in
    words. Raises DataError naming the first that does not fit."""
    if _is_vision_mae(arrays):
        initialise(model, read_start(arrays, what=what), what=what)
        return "a vision MAE"
    table = pretraining_rules()
    model.load_state_dict(convert(arrays, table, model.state_dict(), what=what, keep=("no_face",)), strict=False)
    left = [name for name in arrays if not any(rule.target and rule.forward(name) for rule in table)]
    return f"a CAV-MAE, of which {', '.join(sorted(left))} are left out" if left else "a CAV-MAE"


# --- from a vision MAE ------------------------------------------------------------------------------------------

# Names of `transformers` to those of facebookresearch/mae; queries, keys and values are joined after that.
RENAMED = [
    (r"^vit\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"^decoder\.decoder_layers\.", "decoder_blocks."),
    (r"^decoder\.", ""),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.)?(?:q_proj|query)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.)?(?:k_proj|key)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.)?(?:v_proj|value)\.", ".attn.v."),
    (r"\.attention\.(?:o_proj|output\.dense)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
]


def _is_vision_mae(arrays: Arrays) -> bool:
    return any(name.removeprefix("vit.") in ("cls_token", "embeddings.cls_token") for name in arrays)


def read_start(source: Arrays, *, what: str = "the vision MAE") -> dict[str, Tensor]:
    """A vision MAE by the names of facebookresearch/mae, with its decoder where the file has it.

    Raises DataError where it is none.
    """
    if not _is_vision_mae(source):
        raise DataError(f"{what} has no cls_token, as a vision MAE has; give one of facebookresearch/mae, or its copy")
    found: dict[str, Tensor] = {}
    for name, array in source.items():
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise DataError(f"{what}: {name} holds what is no finite number; give a whole file of weights")
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        found[name] = torch.from_numpy(np.array(array, np.float32))
    for name in [name for name in found if ".attn.q." in name]:
        parts = [found.pop(name.replace(".attn.q.", f".attn.{part}."), None) for part in "qkv"]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts):
            raise DataError(f"{what} has {name} without its keys or values; give the whole file")
        found[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(whole)
    return found


@torch.no_grad()
def initialise(
    model: CAVMAE, image: Mapping[str, Tensor], *, inflation: str = "central", what: str = "the vision MAE"
) -> None:
    """Start ``model`` from what `read_start` gives, as the public code does.

    Its first blocks start both modalities' own, its last the shared one, with whose norms those of either modality
    start too; a patch kernel of sound is the sum over the colours. A decoder, where the model has one, starts as the
    image's, and draws sound with its first rows. Sound's positions stay sines and cosines; ``inflation`` has no meaning
    for a single picture. Raises DataError, naming it, at the first weight that does not fit.
    """
    depth = model.config.depth
    count = len({name.split(".")[1] for name in image if name.startswith("blocks.")})
    if count != depth + model.config.unified_depth:
        raise DataError(
            f"{what} has {count} blocks and the model {depth} and {model.config.unified_depth} after each other; "
            "choose the preset of its depth"
        )
    own = model.state_dict()
    found: dict[str, Tensor] = {}
    for name, value in image.items():
        fills = {new: tensor for new, tensor in _targets(name, value, depth, own) if new in own}
        if not fills and not name.startswith(("cls_token", "decoder_", "mask_token")):
            raise DataError(f"{what} has {name}, for which the model has no place; give a vision MAE without a head")
        found |= fills
    filled = {name for name in own if not _stays(name)}
    missing = sorted(filled - found.keys())
    if missing:
        raise DataError(f"{what} has nothing for {missing[0]}; give a vision MAE with its decoder")
    for name, value in found.items():
        if own[name].shape != value.shape:
            raise DataError(
                f"{what} gives {tuple(value.shape)} where {name} is {tuple(own[name].shape)}; choose the preset of its "
                "widths, and pictures and patches of its size"
            )
    model.load_state_dict(found, strict=False)


def _targets(name: str, value: Tensor, depth: int, own: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Which of our parameters one of the image's fills, and with what."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if block:
        layer, rest = block.groups()
        if int(layer) < depth:
            return [(f"blocks_{m}.{layer}.{rest}", value) for m in "av"]
        names = [rest, *(re.sub(r"^(norm[12])\.", rf"\1_{m}.", rest) for m in "av" if rest.startswith("norm"))]
        return [(f"blocks_u.{int(layer) - depth}.{each}", value) for each in names]
    part = name.rpartition(".")[2]
    if name.startswith("norm."):
        return [(f"{norm}.{part}", value) for norm in ("norm", "norm_a", "norm_v")]
    if name.startswith("patch_embed."):
        heard = value.sum(1, keepdim=True) if value.ndim == 4 else value
        return [(f"patch_embed_v.proj.{part}", value), (f"patch_embed_a.proj.{part}", heard)]
    if name in ("pos_embed", "decoder_pos_embed"):
        return [(f"{name}_v", value[:, 1:] if value.ndim == 3 else value)]
    if name.startswith("decoder_pred."):
        bins = own[f"decoder_pred_a.{part}"].shape[0] if f"decoder_pred_a.{part}" in own else 0
        return [(f"decoder_pred_v.{part}", value), (f"decoder_pred_a.{part}", value[:bins])]
    return [(name, value)]


def _stays(name: str) -> bool:
    """What no image fills: sound's positions, the modalities' vectors, norms that no pass uses, a head."""
    own_norm = re.search(r"norm[12]_[av]\.", name) and not name.startswith("blocks_u.")
    return bool(own_norm) or name == "no_face" or name.startswith(
        ("modality_", "decoder_modality_", "pos_embed_a", "decoder_pos_embed_a", "mlp_head.")
    )  # fmt: skip
