"""Which table reads which file: by model class and layout.

A table is a function ``rules(config) -> list[Rule]`` in the file of its model; a model that can start from image ViTs
has an ``initialise`` beside it. A new model brings one line here.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from encoders.errors import UsageError
from encoders.registry import ENCODERS
from encoders.settings import pick
from encoders.weights.rules import Rule

__all__ = ["LAYOUTS", "STARTS", "TABLES", "start_of", "table_of"]

LAYOUTS = {
    "scenic": "a model trained with the public JAX code (Flax msgpack, flat npz)",
    "huggingface": "a model of transformers (safetensors)",
    "image_vit": "image ViTs to start from, one, or one per view, coarsest first (Flax msgpack, flat npz)",
}

TABLES: dict[str, dict[str, str]] = {
    "ViViT": {"scenic": "encoders.weights.vivit", "huggingface": "encoders.weights.huggingface_vivit"},
    "MTV": {"scenic": "encoders.weights.mtv"},
    "TokenLearner": {"scenic": "encoders.weights.token_learner"},
    "PolyViT": {"scenic": "encoders.weights.polyvit"},
    "AVMAE": {"scenic": "encoders.weights.av_mae"},
    "MBT": {"scenic": "encoders.weights.mbt"},
}

STARTS = {
    "ViViT": "encoders.weights.image_vit",
    "MTV": "encoders.weights.mtv",
    "MMMix": "encoders.weights.mtv",
    "PolyViT": "encoders.weights.polyvit",
    "MBT": "encoders.weights.mbt",
}
PER_VIEW = ("MTV", "MMMix")  # these start from an image ViT for each view


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
