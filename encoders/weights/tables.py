"""Which table reads which file: by model class and layout.

A table is a function ``rules(config) -> list[Rule]`` in the file of its model. A new model brings one line here.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from encoders.errors import UsageError
from encoders.registry import ENCODERS
from encoders.settings import pick
from encoders.weights.rules import Rule

__all__ = ["LAYOUTS", "TABLES", "table_of"]

LAYOUTS = {"scenic": "the public JAX code (Flax msgpack, flat npz)", "huggingface": "transformers (safetensors)"}

TABLES: dict[str, dict[str, str]] = {
    "ViViT": {"scenic": "encoders.weights.vivit", "huggingface": "encoders.weights.huggingface_vivit"},
    "MTV": {"scenic": "encoders.weights.mtv"},
    "TokenLearner": {"scenic": "encoders.weights.token_learner"},
    "PolyViT": {"scenic": "encoders.weights.polyvit"},
}


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
