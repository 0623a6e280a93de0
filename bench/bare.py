"""The calls a model is made of, and nothing else: its products, norms, activations and attention, played again.

A model is run once while its calls are noted down with the shapes and strides of what they were given. `Bare` then
makes the same calls, forward and backward, without the model around them: no residual sums, no rearranging, no
modules. Where one call was given another's result it is given it again; what came from elsewhere is a tensor of its
own, one for each there was. What a model takes longer than that is what its code costs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CALLS = {
    *("linear", "conv1d", "conv2d", "conv3d", "matmul", "__matmul__", "__rmatmul__", "bmm", "einsum"),
    *("layer_norm", "gelu", "softmax", "scaled_dot_product_attention"),
}


@dataclass(frozen=True)
class Result:
    """In place of an argument: what an earlier call gave."""

    call: int


@dataclass(frozen=True)
class Call:
    """A function, and its arguments with tensors or `Result` in their places."""

    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class Noted(TorchFunctionMode):
    """While it is entered, every call of `CALLS` is noted down with tensors that look like those it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.own: list[Tensor] = []  # the tensors that look alike
        self._known: dict[int, tuple[Tensor, Any]] = {}  # id -> the tensor, kept so that its id is not reused; stand-in

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") in CALLS:
            keywords = {key: self._stand_in(value) for key, value in kwargs.items()}
            self._known[id(result)] = result, Result(len(self.calls))
            self.calls.append(Call(func, tuple(map(self._stand_in, args)), keywords))
        return result

    def _stand_in(self, value: Any) -> Any:
        """A tensor like the one given, filled with noise; anything but a tensor as it is."""
        if isinstance(value, list | tuple):
            return type(value)(map(self._stand_in, value))
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._known:
            self.own.append(_alike(value))
            self._known[id(value)] = value, self.own[-1]
        return self._known[id(value)][1]


def _alike(value: Tensor) -> Tensor:
    """Of the same shape, strides, type and need of a gradient."""
    if not value.is_floating_point():
        return value.detach().clone()
    repeats = any(stride == 0 and size > 1 for size, stride in zip(value.shape, value.stride(), strict=True))
    with torch.no_grad():
        made = torch.empty_like(value) if repeats else value.new_empty_strided(value.shape, value.stride())
        made.normal_(std=0.1)
    return made.requires_grad_(value.requires_grad)


class Bare:
    """The calls of ``run`` (a model's forward pass) by themselves; ``step`` is forward and backward."""

    def __init__(self, run: Callable[[], Any]) -> None:
        with Noted() as noted:
            run()
        self.calls, self.own = noted.calls, noted.own
        used = {value.call for call in self.calls for value in _flat((call.arguments, call.keywords))}
        self.ends = [i for i in range(len(self.calls)) if i not in used]  # results that no other call was given

    def step(self) -> None:
        """Every call in order, then every gradient."""
        results: list[Tensor] = []
        for call in self.calls:
            arguments, keywords = _filled(call.arguments, results), _filled(call.keywords, results)
            results.append(call.function(*arguments, **keywords))
        ends = [results[i] for i in self.ends if results[i].requires_grad]
        torch.autograd.backward(ends, [result.detach() for result in ends])
        for value in self.own:
            value.grad = None


def _flat(value: Any) -> list[Result]:
    if isinstance(value, dict):
        return _flat(tuple(value.values()))
    if isinstance(value, list | tuple):
        return [found for inner in value for found in _flat(inner)]
    return [value] if isinstance(value, Result) else []


def _filled(value: Any, results: Sequence[Tensor]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(inner, results) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_filled(inner, results) for inner in value)
    return results[value.call] if isinstance(value, Result) else value
