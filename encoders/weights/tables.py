"""Which table reads which file: by model class and layout.

A table is a function ``rules(config) -> list[Rule]`` in the file of its model; a model that can start from image ViTs
has an ``initialise`` beside it. A new model brings one line here.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from encoders.errors import UsageError
from encoders.registry import ENCODERS
from encoders.settings import pick
from encoders.weights.rules import Rule

__all__ = ["LAYOUTS", "STARTS", "TABLES", "layout_of", "reader_of", "start_of", "table_of"]

LAYOUTS = {
    "scenic": "a model trained with the public JAX code (Flax msgpack, flat npz)",
    "huggingface": "a model of transformers (safetensors); of AST also by its authors' names",
    "cav_mae": "a model trained with the public code of CAV-MAE, its state dict as safetensors",
    "slowfast": "a model trained with the public code of MViTv2, its model_state as safetensors",
    "avid_cma": "a model trained with the public code of AVID-CMA, its model as safetensors",
    "crisscross": "a network trained with the public code of CrissCross, or its training state's model, as safetensors",
    "image_vit": "image ViTs to start from, one, or one per view, coarsest first (Flax msgpack, flat npz); MViTv2 and "
    "MAT start from a MViTv2 of pictures (slowfast), CAV-MAE from a vision MAE",
}

TABLES: dict[str, dict[str, str]] = {
    "ViViT": {"scenic": "encoders.weights.vivit", "huggingface": "encoders.weights.huggingface_vivit"},
    "MTV": {"scenic": "encoders.weights.mtv"},
    "TokenLearner": {"scenic": "encoders.weights.token_learner"},
    "PolyViT": {"scenic": "encoders.weights.polyvit"},
    "MViTv2": {"slowfast": "encoders.weights.mvitv2"},
    "AST": {"huggingface": "encoders.weights.ast_published"},
    "AVMAE": {"scenic": "encoders.weights.av_mae"},
    "CAVMAE": {"cav_mae": "encoders.weights.cav_mae"},
    "MBT": {"scenic": "encoders.weights.mbt"},
    "R2Plus1D": {"avid_cma": "encoders.weights.avid_cma", "crisscross": "encoders.weights.crisscross"},
    "Conv2D": {"avid_cma": "encoders.weights.avid_cma"},
    "ResNet2D": {"crisscross": "encoders.weights.crisscross"},
}

STARTS = {
    "ViViT": "encoders.weights.image_vit",
    "MTV": "encoders.weights.mtv",
    "MMMix": "encoders.weights.mtv",
    "PolyViT": "encoders.weights.polyvit",
    "MViTv2": "encoders.weights.mvitv2",
    "MAT": "encoders.weights.mvitv2",
    "MMT": "encoders.weights.mmt",
    "CAVMAE": "encoders.weights.cav_mae",
    "AST": "encoders.weights.ast_start",
    "MBT": "encoders.weights.mbt",
}
PER_VIEW = ("MTV", "MMMix", "MMT")  # these start from a model for each view, or each encoder


def layout_of(preset: str, found: str, names: Iterable[str] = ()) -> str:
    """The layout of a file found to be "scenic" or "huggingface": that of the class where it has but one other, since
    a safetensors file does not say by whose names it goes; of several the one that recognises the names."""
    tables = TABLES.get(pick(ENCODERS, preset, "encoder").partition(":")[2], {})
    others = [layout for layout in tables if layout != "scenic"]
    if found != "huggingface" or not others:
        return found
    names = list(names)
    known = (one for one in others[1:] if import_module(tables[one]).recognises(names))
    return next(known, others[0])


def table_of(preset: str, layout: str) -> Callable[[Any], list[Rule]]:
    """The table of a preset's class; raises UsageError where there is none of that layout."""
    pick(LAYOUTS, layout, "layout")
    name = pick(ENCODERS, preset, "encoder").partition(":")[2]
    tables = TABLES.get(name, {})
    if layout not in tables:
        known = f"its layouts are {', '.join(tables)}" if tables else "train it here, or name a transformer's preset"
        raise UsageError(f"preset {preset} has no published weights of layout {layout!r}; {known}")
    rules: Callable[[Any], list[Rule]] = import_module(tables[layout]).rules
    return rules


def start_of(preset: str, images: int) -> Callable[..., None]:
    """What starts a model of the preset from a list of that many image ViTs; raises UsageError where nothing does."""
    name = pick(ENCODERS, preset, "encoder").partition(":")[2]
    if name not in STARTS:
        raise UsageError(f"preset {preset} does not start from an image ViT; name one of {', '.join(STARTS)}")
    start: Callable[..., None] = import_module(STARTS[name]).initialise
    if name in PER_VIEW:
        return start
    if images > 1:
        raise UsageError(f"preset {preset} starts from one image ViT and {images} are given; give one")
    return lambda model, images, **options: start(model, images[0], **options)


def reader_of(preset: str) -> Callable[..., Any]:
    """What reads the image model that a preset starts from, of its arrays: an image ViT but where its module says."""
    name = pick(ENCODERS, preset, "encoder").partition(":")[2]
    own = getattr(import_module(STARTS[name]), "read_start", None)
    reader: Callable[..., Any] = own or import_module("encoders.weights.image_vit").read_image_vit
    return reader
