"""What counts as present, and why a clip is not: one rule for training, evaluation and serving (numpy only).

Coverage is the share of a clip's time that came undamaged, 0 to 1. A clip is *present* when its coverage is
strictly above its modality's threshold: its feature may be believed. An absent clip carries one state, the
cause that took the largest share of it. Content flags describe what was seen and are not loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from encoders.errors import ConfigError

OBSERVED = "observed"
ABSENT_STATES = ("damaged", "late", "lost", "shed")  # in the order that breaks ties
STATES = (OBSERVED, *ABSENT_STATES)
FLAGS = ("frozen", "blank", "silent", "no_face", "context_hole")

# Shares are sums of many small float durations: a tie, or a coverage exactly at its threshold, must stay one.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class PresenceRule:
    """Coverage thresholds by modality; a feature is believed strictly above its threshold.

    Raises ConfigError unless both lie in [0, 1).
    """

    video: float = 0.5
    audio: float = 0.75

    def __post_init__(self) -> None:
        for modality in ("video", "audio"):
            value = getattr(self, modality)
            if not 0 <= value < 1:
                raise ConfigError(f"presence threshold {modality}={value} is not in [0, 1); use e.g. 0.5")

    def threshold(self, modality: str) -> float:
        """The threshold of ``"video"`` or ``"audio"``; ConfigError for any other name."""
        if modality not in ("video", "audio"):
            raise ConfigError(f"modality {modality!r} is unknown to the presence rule; use 'video' or 'audio'")
        return float(getattr(self, modality))

    @overload
    def present(self, modality: str, coverage: float) -> bool: ...

    @overload
    def present(self, modality: str, coverage: NDArray[np.floating]) -> NDArray[np.bool_]: ...

    def present(self, modality: str, coverage: float | NDArray[np.floating]) -> bool | NDArray[np.bool_]:
        """Whether clips of this coverage (0 to 1; a number or an array of any shape) may be believed."""
        above = coverage > self.threshold(modality) + _ROUNDING
        return above if isinstance(above, np.ndarray) else bool(above)


def absent_state(missing: Mapping[str, float]) -> str:
    """The state of an absent clip: the cause with the largest missing share.

    ``missing`` maps causes out of ABSENT_STATES to the share of the clip they took. Ties fall in the order
    damaged, late, lost, shed; a clip of which nothing is known was lost.
    """
    unknown = set(missing) - set(ABSENT_STATES)
    assert not unknown, f"unknown causes {sorted(unknown)}"
    largest = max(missing.values(), default=0.0)
    if largest <= 0:
        return "lost"
    return next(state for state in ABSENT_STATES if missing.get(state, -1.0) >= largest - _ROUNDING)
