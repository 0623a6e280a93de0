"""Forward: one model on one device, in the precision and the batch shapes that serve fastest there.

On a CPU a batch goes through in chunks that stay in the cache. On CUDA it is padded to one of ``SIZES``, copied from
pinned memory, and replayed as a CUDA graph of that size. No row influences another: padding is zeros, cut off again.

B batch; what follows is the model's affair.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime.errors import ConfigError

PRECISIONS = ("auto", "fp32", "bf16")
SIZES = (1, 2, 4, 8, 16, 32, 64)  # batch sizes that get a CUDA graph
CHUNK = 8  # clips that go through a CPU at once: more spill out of its cache
WINDOWS = 32  # windows, likewise
_LOWERED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # norms and sums stay fp32


def choose_device(wanted: str) -> str:
    """``auto`` is the first accelerator, else the CPU; anything else is checked. Raises ConfigError."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f"device {wanted!r} is unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {wanted!r} is not on this machine ({torch.cuda.device_count()} found); use cpu")
    return wanted


def choose_precision(wanted: str, device: torch.device, *, deterministic: bool) -> torch.dtype:
    """What the models compute in: ``auto`` is bf16 where the device has it in hardware, else fp32.

    Raises ConfigError for an unknown name, and for bf16 in a deterministic run: replays promise fp32.
    """
    if wanted not in PRECISIONS:
        raise ConfigError(f"engine.precision is {wanted!r}; use {', '.join(PRECISIONS)}")
    if deterministic:
        if wanted == "bf16":
            raise ConfigError(
                "engine.precision is bf16; deterministic runs use fp32 (or set engine.deterministic=false)"
            )
        return torch.float32
    half = wanted == "bf16" or (wanted == "auto" and has_bf16(device))
    return torch.bfloat16 if half else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; an emulation would be slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(ask is not None and ask() for ask in asked)
    return False


def bucket(count: int, sizes: Sequence[int] = SIZES) -> int:
    """The smallest of ``sizes`` that holds ``count`` rows, or the largest, of which more than one batch is made."""
    return next((size for size in sizes if size >= count), sizes[-1])


def lowered(module: Any, dtype: torch.dtype, *, packed: bool = True) -> Any:
    """A copy of a module whose products are computed in ``dtype``; run it inside ``precision``.

    ``packed`` False keeps shapes independent of the data (``CurriMAE.pack``), which CUDA graphs need.
    """
    if not isinstance(module, nn.Module) or (dtype == torch.float32 and packed):
        return module
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, _LOWERED):
            part.to(dtype)
        if not packed and hasattr(part, "pack"):
            part.pack = False
    return module


def precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Casts what meets a weight of ``dtype``; nothing at fp32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


class Forward:
    """An encoder's ``encode`` over rows of numpy: any number of clips in, features (B, D) float32 out.

    An encoder that says in what ``dtype`` it computes does so itself (``encoders.serving``); others are lowered.
    One that is not ``on_device`` computes on the CPU (``encoders.external``) and cannot be part of a CUDA graph.
    """

    def __init__(self, encoder: Any, device: torch.device, dtype: torch.dtype, chunk: int = CHUNK) -> None:
        self.device, self.chunk = device, chunk
        own = isinstance(getattr(encoder, "dtype", None), torch.dtype)
        self.dtype = torch.float32 if own else dtype
        self.encoder = lowered(encoder, self.dtype)
        self._run: Callable[..., Any] = self._encode
        if device.type == "cuda" and isinstance(encoder, nn.Module) and getattr(encoder, "on_device", True):
            self.encoder = _channels_last(self.encoder if self.encoder is not encoder else copy.deepcopy(encoder))
            self._run = Graphed(self._encode)

    @torch.inference_mode()
    def __call__(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """clips of one shape -> (B, D)."""
        step = SIZES[-1] if self.device.type == "cuda" else self.chunk
        parts = [self._run(self._batch(clips[i : i + step])) for i in range(0, len(clips), step)]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        features: np.ndarray = whole.float().cpu().numpy()
        return features

    def _encode(self, batch: Tensor) -> Tensor:
        with precision(self.device, self.dtype):
            out: Tensor = self.encoder.encode(batch)
        return out

    def _batch(self, clips: Sequence[np.ndarray]) -> Tensor:
        batch = torch.from_numpy(np.stack(clips))
        return batch if self.device.type == "cpu" else on_device(batch, self.device)


def on_device(batch: Tensor, device: torch.device) -> Tensor:
    """A copy from pinned memory, so that it does not wait for what the device still does."""
    if device.type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def _channels_last(module: nn.Module) -> nn.Module:
    formats: dict[Any, Any] = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}
    for part in module.modules():
        if type(part) in formats:
            weight: Any = part.weight
            weight.data = weight.data.contiguous(memory_format=formats[type(part)])
    return module


class Graphed:
    """A function of tensors (B, ...) as one CUDA graph per batch size.

    Its shapes must follow from those of its arguments alone. A function that cannot be captured is called as it is.
    ``capture(call, inputs)`` gives (replay, outputs); tests pass their own.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        sizes: Sequence[int] = SIZES,
        capture: "Callable[[Callable[..., Any], tuple[Tensor, ...]], tuple[Callable[[], None], Any]] | None" = None,
    ) -> None:
        self.call, self.sizes = call, sizes
        self.refused = ""  # why it is not captured
        self._capture = capture or capture_graph
        self._graphs: dict[Any, tuple[tuple[Tensor, ...], Callable[[], None], Any]] = {}

    def __call__(self, *given: Tensor) -> Any:
        count = len(given[0])
        size = bucket(count, self.sizes)
        if self.refused or count > size:
            return self.call(*given)
        key = (size, *((x.dtype, x.shape[1:]) for x in given))
        try:
            held = self._graphs.get(key) or self._graphs.setdefault(key, self._made(size, given))
        except RuntimeError as error:
            self.refused = str(error)
            return self.call(*given)
        inputs, replay, outputs = held
        for static, x in zip(inputs, given, strict=True):
            static[:count].copy_(x)
            static[count:].zero_()
        replay()
        return _rows(outputs, count)

    def _made(self, size: int, given: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Callable[[], None], Any]:
        inputs = tuple(x.new_zeros((size, *x.shape[1:])) for x in given)
        return (inputs, *self._capture(self.call, inputs))


def _rows(outputs: Any, count: int) -> Any:
    """The first rows of a tensor, or of each tensor of a named tuple; copies, for the graph writes there again."""
    if isinstance(outputs, Tensor):
        return outputs[:count].clone()
    return type(outputs)(*(None if x is None else x[:count].clone() for x in outputs))


def capture_graph(call: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Callable[[], None], Any]:
    """A CUDA graph of ``call(*inputs)``: what replays it, and where its results will lie."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # lazy initialisation must not happen inside a capture
            call(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call(*inputs)
    return graph.replay, outputs
