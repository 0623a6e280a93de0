"""Costs: how long a batch will take, from how long batches took; a running average by stage and batch size.

Pure: seconds are passed in. Sizes are kept by class (1, 2, 3, 4, 6, 8, 12, ...), each with its seconds per row; between
classes the cost per row is on a straight line, beyond them it is that of the nearest. What nothing is known of is free.
"""

from bisect import bisect_left

from runtime.tickets import Load

CLASSES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
WEIGHT = 0.2  # of the newest batch


class CostModel:
    """Predicted seconds of a batch (``seconds``), learned from those that were served (``observe``)."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, float]] = {}  # stage -> class -> seconds per row
        self._told: dict[tuple[str, int], float] = {}

    def observe(self, stage: str, rows: int, seconds: float) -> None:
        """A batch of ``rows`` took so long in a stage (video, audio, windows)."""
        if rows < 1 or seconds < 0:
            return
        known, size = self._rows.setdefault(stage, {}), CLASSES[min(bisect_left(CLASSES, rows), len(CLASSES) - 1)]
        each = seconds / rows
        self._told.clear()
        known[size] = each if size not in known else known[size] + WEIGHT * (each - known[size])

    def seconds(self, load: Load) -> float:
        """How long a batch is expected to take."""
        return self._of("video", load.video) + self._of("audio", load.audio) + self._of("windows", load.windows)

    def _of(self, stage: str, rows: int) -> float:
        told = self._told.get((stage, rows))
        if told is None:
            told = self._told[stage, rows] = self._stage(stage, rows)
        return told

    def _stage(self, stage: str, rows: int) -> float:
        known = self._rows.get(stage)
        if not known or not rows:
            return 0.0
        sizes = sorted(known)
        right = bisect_left(sizes, rows)
        if right == 0 or right == len(sizes):
            return rows * known[sizes[min(right, len(sizes) - 1)]]
        low, high = sizes[right - 1], sizes[right]
        weight = (rows - low) / (high - low)
        return rows * (known[low] + weight * (known[high] - known[low]))
