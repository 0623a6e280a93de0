"""Shapes written as types are checked while tests run: a type checker for jaxtyping that knows nothing else."""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from jaxtyping import AbstractArray


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks the array arguments and the array result of a function against their annotations."""
    hints = {name: arrays for name, hint in function.__annotations__.items() if (arrays := _arrays(hint))}
    if not hints:
        return function
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name, arrays in hints.items():
            if name in given:
                _check(function, name, given[name], arrays)
        result = function(*args, **kwargs)
        if "return" in hints:
            _check(function, "return", result, hints["return"])
        return result

    return checked


def _arrays(hint: Any) -> tuple[Any, ...]:
    """The array types in ``hint``, alone or in a union; any other hint is not looked at."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(option for option in options if isinstance(option, type) and issubclass(option, AbstractArray))


def _check(function: Callable[..., Any], name: str, value: Any, arrays: tuple[Any, ...]) -> None:
    if isinstance(value, tuple(array.array_type for array in arrays)) and not isinstance(value, arrays):
        wanted = " or ".join(array.__name__ for array in arrays)
        raise TypeError(
            f"{function.__qualname__}: {name} has shape {tuple(value.shape)} of {value.dtype}, wanted {wanted}"
        )
