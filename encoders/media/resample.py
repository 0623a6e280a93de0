"""A sample rate converter on an absolute grid (numpy only).

Output sample k always stands at k / rate_out seconds and input sample i at i / rate_in, whatever packet a run began
with. So the same sound gives the same samples, bit for bit, however it was cut into packets, and a file read from its
middle agrees with the whole. (FFmpeg's resampler starts its grid at the first sample it sees.)

The filter is a sinc under a Kaiser window, 16 zero crossings to each side, pass band to 94 % of the lower
Nyquist frequency. Outputs are made in blocks of 16, each one small matrix product of fixed shape, because a product's
rounding may depend on its shape.
"""

from functools import lru_cache
from math import ceil, gcd

import numpy as np

BLOCK = 16  # outputs made together
_TOGETHER = 32  # blocks in one call
_CROSSINGS = 16
_PASS = 0.94
_BETA = 9.0  # Kaiser window: about -90 dB beside the pass band


class Resampler:
    """Mono float32 runs from ``rate_in`` to ``rate_out`` Hz; indices count samples from time 0 and may be negative."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        common = gcd(rate_in, rate_out)
        self.up, self.down = rate_out // common, rate_in // common
        self.same = rate_in == rate_out
        self._bank, self._period, self._left = _filters(self.up, self.down)
        self._width = self._bank.shape[2]
        self.start(0)

    def start(self, index: int) -> None:
        """Begin a run: the next input sample is number ``index``; what was before is silence."""
        self._next_output = self._at_or_after(index)
        self._block = self._next_output // BLOCK
        self._input = index  # number of the next input sample
        lead = index - self._base(self._block) + self._left
        self._buffer = np.zeros(0 if self.same else max(lead, 0), np.float32)

    def push(self, samples: np.ndarray) -> tuple[int, np.ndarray]:
        """Take the run's next samples (S,); returns (number of the first output, outputs that are ready)."""
        samples = np.asarray(samples, np.float32)
        self._input += len(samples)
        if self.same:
            first, self._next_output = self._next_output, self._input
            return first, samples
        self._buffer = np.concatenate((self._buffer, samples))
        return self._make(self._input)

    def finish(self) -> tuple[int, np.ndarray]:
        """End the run: silence follows; returns the outputs that were waiting for it."""
        end = self._at_or_after(self._input)
        if self.same or end <= self._next_output:
            return self._next_output, np.zeros(0, np.float32)
        blocks = ceil(end / BLOCK) - self._block
        last = self._base(self._block + blocks - 1) - self._left + self._width
        padding = max(0, last - self._input)
        self._buffer = np.concatenate((self._buffer, np.zeros(padding, np.float32)))
        first, samples = self._make(self._input + padding)
        return first, samples[: end - first]

    def _make(self, end: int) -> tuple[int, np.ndarray]:
        """Every block whose inputs all lie before input sample ``end``."""
        begin = end - len(self._buffer)  # number of the buffer's first sample
        # the last block b with base(b) - left + width <= end
        last = ((end + self._left - self._width + 1) * self.up - 1) // (BLOCK * self.down)
        first, count = self._next_output, last - self._block + 1
        if count <= 0:
            return first, np.zeros(0, np.float32)
        # every stretch of K inputs, without copying (as sliding_window_view, at a hundredth of its overhead)
        stretches = np.ndarray((len(self._buffer) - self._width + 1, self._width), np.float32, self._buffer, 0, (4, 4))
        parts = []
        for block in range(self._block, last + 1, _TOGETHER):
            numbers = np.arange(block, min(block + _TOGETHER, last + 1))
            rows = numbers * (BLOCK * self.down) // self.up - (self._left + begin)
            inputs = stretches[rows]  # (n, K)
            phase = block % self._period
            bank = self._bank[phase : phase + len(numbers)]  # (n, 16, K), a view
            parts.append(np.matmul(bank, inputs[:, :, None]).reshape(-1))  # (n * 16,)
        skipped = first - self._block * BLOCK
        self._block = last + 1
        self._next_output = self._block * BLOCK
        self._buffer = self._buffer[max(0, self._base(self._block) - self._left - begin) :]
        outputs = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return first, outputs[skipped:]

    def _base(self, block: int) -> int:
        """The input sample at or before the block's first output."""
        return block * BLOCK * self.down // self.up

    def _at_or_after(self, index: int) -> int:
        """The first output at or after input sample ``index``."""
        return -(-index * self.up // self.down)


@lru_cache(maxsize=16)
def _filters(up: int, down: int) -> tuple[np.ndarray, int, int]:
    """Matrices (P + 31, 16, K) of the blocks in their cyclic order, the period P, and the inputs before a base."""
    cutoff = min(1.0, up / down) * _PASS  # of the input's Nyquist frequency
    half = ceil(_CROSSINGS / cutoff)
    width = (BLOCK - 1) * down // up + 2 * half + 2
    period = up // gcd(BLOCK, up)
    block, row = np.arange(period)[:, None, None], np.arange(BLOCK)[None, :, None]
    base = block * BLOCK * down // up
    position = (block * BLOCK + row) * down / up - base  # of each output, in inputs after the base
    distance = position - (np.arange(width)[None, None, :] - half)
    taps = np.sinc(distance * cutoff) * _window(np.abs(distance) / half)
    bank = (taps / taps.sum(-1, keepdims=True)).astype(np.float32)
    return np.concatenate([bank] * (1 + -(-(_TOGETHER - 1) // period)))[: period + _TOGETHER - 1], period, half


def _window(distance: np.ndarray) -> np.ndarray:
    """A Kaiser window, 1 at 0 and 0 beyond 1, from a table: numpy's Bessel function is slow."""
    table = np.linspace(0, 1, 4097)
    values = np.i0(_BETA * np.sqrt(1 - table**2)) / np.i0(_BETA)
    return np.interp(distance, table, values, right=0.0)
