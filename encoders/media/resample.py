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
from numpy.lib.stride_tricks import sliding_window_view

BLOCK = 16  # outputs made together
_CROSSINGS = 16
_PASS = 0.94
_BETA = 9.0  # Kaiser window: about -90 dB beside the pass band


class Resampler:
    """Mono float32 runs from ``rate_in`` to ``rate_out`` Hz; indices count samples from time 0 and may be negative."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        common = gcd(rate_in, rate_out)
        self.up, self.down = rate_out // common, rate_in // common
        self.same = rate_in == rate_out
        self._bank, self._left = _filters(self.up, self.down)
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
        count = ((end + self._left - self._width + 1) * self.up - 1) // (BLOCK * self.down) - self._block + 1
        first = self._next_output
        if count <= 0:
            return first, np.zeros(0, np.float32)
        blocks = range(self._block, self._block + count)
        rows = np.array([self._base(b) - self._left - begin for b in blocks])
        phases = np.arange(self._block, self._block + count) % len(self._bank)
        inputs = sliding_window_view(self._buffer, self._width)[rows]  # (n, K)
        outputs = np.matmul(self._bank[phases], inputs[:, :, None]).reshape(-1)  # (n * 16,)
        skipped = first - self._block * BLOCK
        self._block += count
        self._next_output = self._block * BLOCK
        self._buffer = self._buffer[max(0, self._base(self._block) - self._left - begin) :]
        return first, outputs[skipped:]

    def _base(self, block: int) -> int:
        """The input sample at or before the block's first output."""
        return block * BLOCK * self.down // self.up

    def _at_or_after(self, index: int) -> int:
        """The first output at or after input sample ``index``."""
        return -(-index * self.up // self.down)


@lru_cache(maxsize=16)
def _filters(up: int, down: int) -> tuple[np.ndarray, int]:
    """The matrices (P, 16, K) of the blocks that differ, and how many inputs they reach before a block's base."""
    cutoff = min(1.0, up / down) * _PASS  # of the input's Nyquist frequency
    half = ceil(_CROSSINGS / cutoff)
    width = (BLOCK - 1) * down // up + 2 * half + 2
    period = up // gcd(BLOCK, up)
    if period > 4096:  # rates without a common divisor: never from real devices
        raise ValueError(f"sample rates with the ratio {up}/{down} are not supported")
    block, row = np.arange(period)[:, None, None], np.arange(BLOCK)[None, :, None]
    base = block * BLOCK * down // up
    position = (block * BLOCK + row) * down / up - base  # of each output, in inputs after the base
    distance = position - (np.arange(width)[None, None, :] - half)
    inside = np.clip(1 - (distance / half) ** 2, 0, None)
    taps = np.sinc(distance * cutoff) * np.i0(_BETA * np.sqrt(inside)) * (np.abs(distance) <= half)
    return (taps / taps.sum(-1, keepdims=True)).astype(np.float32), half
