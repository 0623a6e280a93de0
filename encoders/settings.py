"""Configs are frozen dataclasses; here they meet the outside: overrides, `--set key=value`, JSON.

An unknown key or a value of another type is an error, never silently ignored.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, TypeVar

from encoders.errors import ConfigError, UsageError

__all__ = ["assignments", "from_dict", "override", "pick", "to_dict"]

T = TypeVar("T")


def pick(table: Mapping[str, T], name: str, what: str, *, within: str = "") -> T:
    """``table[name]``, or a UsageError that lists close matches, each named with ``within`` before it."""
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=3, cutoff=0.5)
    near, known = (f"{within}{other}" for other in close), (f"{within}{other}" for other in sorted(table))
    way_out = f"did you mean {' or '.join(near)}" if close else f"choose from {', '.join(known)}"
    raise UsageError(f"{what} {within + name!r} is unknown; {way_out}")


def assignments(pairs: Iterable[str]) -> dict[str, str]:
    """``["window=5", "encoder.dim=32"]`` to a dict; raises UsageError where a pair has no ``=``."""
    out: dict[str, str] = {}
    for pair in pairs:
        key, sep, value = pair.partition("=")
        if not sep or not key.strip():
            raise UsageError(f"--set {pair!r} is not key=value; write it with an equals sign, such as seed=1")
        out[key.strip()] = value.strip()
    return out


def override(config: Any, changes: Mapping[str, Any], *, within: str = "") -> Any:
    """A copy of ``config`` (or a new one, given a dataclass *type*) with ``changes`` made.

    Dotted keys reach into nested configs (``video.width``). Values given as text, as on a command line, are read
    as the field's type. Raises UsageError on an unknown key or a value of another type; ``within`` is put before the
    keys it names.
    """
    owner = config if isinstance(config, type) else type(config)
    hints = typing.get_type_hints(owner)
    names = {f.name: f for f in dataclasses.fields(owner) if f.init}
    values: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        pick(names, first, "setting", within=within)
        if rest:
            nested.setdefault(first, {})[rest] = value
        else:
            values[first] = _convert(value, hints[first], f"{within}{key}")
    for first, inner in nested.items():
        current = values.get(first, getattr(config, first, hints[first]))
        if not dataclasses.is_dataclass(current):
            raise UsageError(f"key {first}.{next(iter(inner))} reaches into {first}, which has no fields; set {first}")
        values[first] = override(current, inner, within=f"{within}{first}.")
    if not isinstance(config, type):
        return dataclasses.replace(config, **values)
    missing = [n for n, f in names.items() if n not in values and _required(f)]
    if missing:
        raise ConfigError(f"{owner.__name__} needs a value for {', '.join(missing)}; add it")
    return owner(**values)


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values; ``from_dict`` reads it back."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def from_dict(config_class: type[T], values: Mapping[str, Any]) -> T:
    """The config that ``to_dict`` wrote; the same checks as ``override``."""
    return typing.cast(T, override(config_class, values))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _convert(value: Any, hint: Any, key: str) -> Any:
    """``value`` as ``hint`` demands; text is read as JSON where the field is not text."""
    try:
        return _as(value, hint)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, UsageError | ConfigError):
            raise
        if typing.get_origin(hint) is typing.Literal:
            known = ", ".join(map(str, typing.get_args(hint)))
            raise UsageError(f"{key}={value!r} is not of type choice; give one of {known}") from None
        name = getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)
        way_out = EXAMPLES.get(hint, "a value of that type")
        raise UsageError(f"{key}={value!r} is not of type {name}; give {way_out}") from None


EXAMPLES = {
    float: "a number, such as 0.5",
    int: "a whole number, such as 3",
    bool: "true or false",
    Fraction: "a number or fraction, such as 0.4 or 2/5",
}


def _as(value: Any, hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _as_one_of(value, args)
    if origin is typing.Literal:
        if value not in args:
            raise ValueError
        return value
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        value = json.loads(value) if isinstance(value, str) else value
        if not isinstance(value, Mapping):
            raise TypeError
        return override(hint, value)
    if isinstance(value, str) and hint not in (str, Fraction):
        value = _read(value, origin)
    if origin in (tuple, list):
        return _as_sequence(value, origin, args)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {_as(k, args[0]): _as(v, args[1]) for k, v in value.items()}
    return _as_scalar(value, hint)


def _read(text: str, origin: Any) -> Any:
    if text in ("True", "False"):
        text = text.lower()
    if origin in (tuple, list) and not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    return json.loads(text)


def _as_one_of(value: Any, options: tuple[Any, ...]) -> Any:
    if value is None or value in ("None", "null"):
        if type(None) in options:
            return None
        raise ValueError
    for option in options:
        if option is not type(None):
            try:
                return _as(value, option)
            except (TypeError, ValueError):
                continue
    raise ValueError


def _as_sequence(value: Any, origin: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        raise TypeError
    if origin is list or (len(args) == 2 and args[1] is Ellipsis):
        return origin(_as(v, args[0]) for v in value)
    if len(value) != len(args):
        raise ValueError
    return tuple(_as(v, a) for v, a in zip(value, args, strict=True))


def _as_scalar(value: Any, hint: Any) -> Any:
    if hint is Fraction and isinstance(value, str | int | float | Fraction) and not isinstance(value, bool):
        return Fraction(str(value))  # 0.4 is two fifths, not the float next to it
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, bool):
        raise TypeError
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise TypeError
