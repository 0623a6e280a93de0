"""Parameter names and layouts: from a published checkpoint to ours, and back.

A table is a list of rules. A rule names one parameter of the source (or a family of them, with fields such as
``{i}``), the parameter of ours that it fills, and how the array is laid out anew. Converting is strict both ways:
a source key that no rule knows, a parameter of ours that nothing fills and a shape that differs are errors that name
the key. Each change of layout has its inverse, so that a table can also be read from right to left.

A field ``{i}`` stands for a whole number, ``{name:s}`` for a word without ``/`` or ``.``. Several rules may read one
source key (a kernel that fills two layers); a rule without a target drops its key on purpose.
"""

import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from encoders.errors import DataError

__all__ = [
    "Change",
    "Rule",
    "attention",
    "block",
    "conv",
    "conv3d",
    "convert",
    "convolution",
    "dense",
    "invert",
    "linear",
    "mha_bias",
    "mha_in",
    "mha_out",
    "mlp",
    "norm",
]

Arrays = Mapping[str, np.ndarray]


# --- layouts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """How an array of the source is laid out in ours; ``backward`` undoes ``forward``."""

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]
    shape: str  # of the source, for messages
    fits: Callable[[tuple[int, ...]], bool]  # does a source of this shape have the layout

    def __call__(self, array: np.ndarray) -> np.ndarray:
        if not self.fits(array.shape):
            raise ValueError(f"is {array.shape}, where {self.shape} is expected")
        return self.forward(array)


def _moved(source: tuple[int, ...], shape: str) -> Change:
    """Axes in another order: axis i of ours is axis ``source[i]`` of theirs."""
    back = tuple(np.argsort(source))
    return Change(lambda a: a.transpose(source), lambda a: a.transpose(back), shape, lambda s: len(s) == len(source))


dense = _moved((1, 0), "(in, out)")
conv = _moved((3, 2, 0, 1), "(height, width, in, out)")
conv3d = _moved((4, 3, 0, 1, 2), "(time, height, width, in, out)")


def mha_in(heads: int) -> Change:
    """Query, key and value kernels: (in, heads, head_dim) to (heads * head_dim, in)."""
    return Change(
        lambda a: a.reshape(len(a), -1).T,
        lambda a: a.T.reshape(a.shape[1], heads, -1),
        f"(in, {heads} heads, head_dim)",
        lambda s: len(s) == 3 and s[1] == heads,
    )


def mha_bias(heads: int) -> Change:
    """Their biases: (heads, head_dim) to (heads * head_dim,)."""
    return Change(
        lambda a: a.reshape(-1),
        lambda a: a.reshape(heads, -1),
        f"({heads} heads, head_dim)",
        lambda s: len(s) == 2 and s[0] == heads,
    )


def mha_out(heads: int) -> Change:
    """The output kernel: (heads, head_dim, out) to (out, heads * head_dim)."""
    return Change(
        lambda a: a.reshape(-1, a.shape[2]).T,
        lambda a: a.T.reshape(heads, -1, a.shape[0]),
        f"({heads} heads, head_dim, out)",
        lambda s: len(s) == 3 and s[0] == heads,
    )


# --- rules ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """``pattern`` of the source fills ``target`` of ours, through ``change``; without a target it is dropped."""

    pattern: str  # "Transformer/encoderblock_{i}/LayerNorm_0/scale"
    target: str | None  # "encoder.blocks.{i}.norm1.weight"
    change: Change | None = None

    def __post_init__(self) -> None:
        if self.target is not None:
            assert _fields(self.pattern) == _fields(self.target), f"{self.pattern} and {self.target}: fields differ"

    def forward(self, key: str) -> str | None:
        """Our name for a source key; None where the rule is about another key."""
        return _renamed(self._pattern, key, self.target or "")

    def backward(self, key: str) -> str | None:
        """The source's name for a key of ours; None where the rule is about another key."""
        return _renamed(self._target, key, self.pattern) if self._target else None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return _regex(self.pattern)

    @cached_property
    def _target(self) -> re.Pattern[str] | None:
        return None if self.target is None else _regex(self.target)


def _fields(template: str) -> set[tuple[str, str | None]]:
    return {(name, spec) for _, name, spec, _ in string.Formatter().parse(template) if name}


def _regex(template: str) -> re.Pattern[str]:
    out = ""
    for text, name, spec, _ in string.Formatter().parse(template):
        out += re.escape(text)
        if name:
            out += f"(?P<{name}>{'[^/.]+' if spec == 's' else '0|[1-9][0-9]*'})"
    return re.compile(out)


def _renamed(pattern: re.Pattern[str], key: str, template: str) -> str | None:
    match = pattern.fullmatch(key)
    return None if match is None else template.format(**match.groupdict())


# --- tables -----------------------------------------------------------------------------------------------------


def convert(
    source: Arrays, rules: Sequence[Rule], own: Mapping[str, Tensor], *, what: str, keep: Iterable[str] = ()
) -> dict[str, Tensor]:
    """The source's arrays under our names, in the dtypes of ``own`` (a state dict, which may lie on the meta device).

    ``what`` names the source in messages. Keys of ours that match a template in ``keep`` may stay unfilled; they are
    then missing in the result. Raises DataError naming the first key that no rule knows, that nothing fills, that
    two sources fill or whose shape differs.
    """
    out: dict[str, Tensor] = {}
    unknown: list[str] = []
    filled_by: dict[str, str] = {}
    for key, array in source.items():
        matches = [(rule, name) for rule in rules if (name := rule.forward(key)) is not None]
        targets = [(rule, name) for rule, name in matches if rule.target is not None]
        if not matches or not all(name in own for _, name in targets):
            unknown.append(key)
            continue
        for rule, name in targets:
            if name in out:
                raise DataError(f"{what} has both {filled_by[name]} and {key} for {name}; keep one of them")
            out[name] = _laid_out(array, rule, key, own[name], name, what)
            filled_by[name] = key
    if unknown:
        raise DataError(
            f"{what} has {_first(unknown)}, for which the model has no place; "
            "choose the preset and layout of the model that the file is of"
        )
    _check_filled(out, rules, own, what, [_regex(template) for template in keep])
    return out


def invert(own: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Our parameters under the source's names and layouts: what `convert` would read to give ``own``."""
    out: dict[str, np.ndarray] = {}
    for key, value in own.items():
        for rule in rules:
            name = rule.backward(key)
            if name is not None:
                array = value.detach().cpu().numpy()
                out[name] = np.ascontiguousarray(rule.change.backward(array) if rule.change else array)
                break
        else:
            raise DataError(f"{key} has no name in the published layout; only models of that layout can be written")
    return out


def _laid_out(array: np.ndarray, rule: Rule, key: str, like: Tensor, name: str, what: str) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise DataError(f"{what}: {key} holds {array.dtype}, not numbers; give a checkpoint of weights")
    if not np.isfinite(array).all():
        raise DataError(f"{what}: {key} holds a number that is not finite; give a whole checkpoint")
    try:
        moved = rule.change(array) if rule.change else array
    except ValueError as error:
        raise DataError(f"{what}: {key} {error}; choose the preset that the file is of") from None
    if moved.shape != like.shape:
        theirs = tuple(array.shape)
        raise DataError(
            f"{what}: {key} is {theirs}, which gives {tuple(moved.shape)} where {name} is {tuple(like.shape)}; "
            "choose the preset, classes and input size that the file is of"
        )
    # A copy of our own: a moved view may be read-only, and must not keep the whole file alive.
    return torch.from_numpy(np.array(moved, order="C")).to(like.dtype)


def _check_filled(
    out: Mapping[str, Tensor], rules: Sequence[Rule], own: Mapping[str, Tensor], what: str, keep: list[re.Pattern[str]]
) -> None:
    empty = [key for key in own if key not in out and not any(k.fullmatch(key) for k in keep)]
    if not empty:
        return
    theirs = (name for rule in rules if (name := rule.backward(empty[0])) is not None)
    more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
    raise DataError(
        f"{what} lacks {next(theirs, empty[0])}, which fills {empty[0]}{more}; "
        "choose the preset and layout of the model that the file is of"
    )


def _first(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"


# --- families of rules ------------------------------------------------------------------------------------------


def norm(prefix: str, target: str) -> list[Rule]:
    """A Flax LayerNorm."""
    return [Rule(f"{prefix}/scale", f"{target}.weight"), Rule(f"{prefix}/bias", f"{target}.bias")]


def linear(prefix: str, target: str, change: Change = dense, *, bias: bool = True) -> list[Rule]:
    """A Flax Dense; or, with ``change`` conv or conv3d, a convolution."""
    rules = [Rule(f"{prefix}/kernel", f"{target}.weight", change), Rule(f"{prefix}/bias", f"{target}.bias")]
    return rules if bias else rules[:1]


def convolution(prefix: str, target: str, axes: int = 2, *, bias: bool = True) -> list[Rule]:
    """A Flax Conv over 2 (height, width) or 3 (time, height, width) axes."""
    return linear(prefix, target, {2: conv, 3: conv3d}[axes], bias=bias)


def attention(prefix: str, target: str, heads: int) -> list[Rule]:
    """A Flax MultiHeadDotProductAttention to our query, key, value and out."""
    return [*_projections(prefix, target, heads), *linear(f"{prefix}/out", f"{target}.out", mha_out(heads))]


def _projections(prefix: str, target: str, heads: int) -> Iterator[Rule]:
    for name in ("query", "key", "value"):
        yield Rule(f"{prefix}/{name}/kernel", f"{target}.{name}.weight", mha_in(heads))
        yield Rule(f"{prefix}/{name}/bias", f"{target}.{name}.bias", mha_bias(heads))


def mlp(prefix: str, target: str) -> list[Rule]:
    """A Flax MlpBlock to our first and second layer."""
    return [*linear(f"{prefix}/Dense_0", f"{target}.first"), *linear(f"{prefix}/Dense_1", f"{target}.second")]


def block(prefix: str, target: str, heads: int) -> list[Rule]:
    """A ViT encoder block, such as ``block("Transformer/encoderblock_{i}", "encoder.blocks.{i}", 12)``."""
    return [
        *norm(f"{prefix}/LayerNorm_0", f"{target}.norm1"),
        *attention(f"{prefix}/MultiHeadDotProductAttention_0", f"{target}.attention", heads),
        *norm(f"{prefix}/LayerNorm_1", f"{target}.norm2"),
        *mlp(f"{prefix}/MlpBlock_0", f"{target}.mlp"),
    ]
