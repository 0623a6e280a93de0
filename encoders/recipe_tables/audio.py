"""The columns of models that hear."""

from typing import Any

__all__ = ["CHOICES", "RECIPES"]

RECIPES: dict[str, dict[str, Any]] = {}

CHOICES: dict[tuple[str, str], str] = {}
