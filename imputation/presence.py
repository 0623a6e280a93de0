"""What counts as present, and why a clip is not: one rule for training, evaluation and serving (numpy only).

Coverage is the share of a clip's time that came undamaged, 0 to 1. A clip is *present* when its coverage is
strictly above its modality's threshold: its feature may be believed. What came but decodes from something broken is
*spoiled*; a rule may forgive a clip so much of it, which then counts as covered and is looked at, since what is
spoiled can be nearer to the truth than any fill (``python -m bench.severity``). What never came is forgiven nobody.
An absent clip carries one state, the cause that took the largest share of it. Content flags describe what was seen
and are not loss; ``spoiled`` says that a clip is believed with damage in it.
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
SPOILED = "spoiled"
FLAGS = ("frozen", "blank", "silent", "no_face", "context_hole", SPOILED)

# Shares are sums of many small float durations: a tie, or a coverage exactly at its threshold, must stay one.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class PresenceRule:
    """Coverage thresholds by modality; a feature is believed strictly above its threshold.

    ``forgive_video`` and ``forgive_audio``: a clip of which no larger share is spoiled counts its spoiled time as
    covered; 0 forgives nothing, 1 everything. Raises ConfigError unless thresholds lie in [0, 1) and these in [0, 1].
    """

    video: float = 0.5
    audio: float = 0.75
    forgive_video: float = 0.0
    forgive_audio: float = 0.0

    def __post_init__(self) -> None:
        for modality in ("video", "audio"):
            value, forgiven = getattr(self, modality), getattr(self, f"forgive_{modality}")
            if not 0 <= value < 1:
                raise ConfigError(f"presence threshold {modality}={value} is not in [0, 1); use e.g. 0.5")
            if not 0 <= forgiven <= 1:
                raise ConfigError(
                    f"presence forgive_{modality}={forgiven} is not in [0, 1]; use 0 to forgive nothing, 1 everything"
                )

    def threshold(self, modality: str) -> float:
        """The threshold of ``"video"`` or ``"audio"``; ConfigError for any other name."""
        return float(getattr(self, _known(modality)))

    @overload
    def forgives(self, modality: str, spoiled: float) -> bool: ...

    @overload
    def forgives(self, modality: str, spoiled: NDArray[np.floating]) -> NDArray[np.bool_]: ...

    def forgives(self, modality: str, spoiled: float | NDArray[np.floating]) -> bool | NDArray[np.bool_]:
        """Whether clips with this share spoiled (0 to 1) have something spoiled, and are looked at all the same."""
        most = float(getattr(self, f"forgive_{_known(modality)}"))
        inside = (spoiled > 0) & (spoiled <= most + _ROUNDING) & (most > 0)
        return inside if isinstance(inside, np.ndarray) else bool(inside)

    @overload
    def present(self, modality: str, coverage: float, spoiled: float = 0.0) -> bool: ...

    @overload
    def present(
        self, modality: str, coverage: NDArray[np.floating], spoiled: float | NDArray[np.floating] = 0.0
    ) -> NDArray[np.bool_]: ...

    def present(
        self, modality: str, coverage: float | NDArray[np.floating], spoiled: float | NDArray[np.floating] = 0.0
    ) -> bool | NDArray[np.bool_]:
        """Whether clips may be believed of which these shares came undamaged, and came spoiled.

        Shares are from 0 to 1; numbers, or arrays of any shape.
        """
        above = coverage + self.forgives(modality, spoiled) * spoiled > self.threshold(modality) + _ROUNDING
        return above if isinstance(above, np.ndarray) else bool(above)


def _known(modality: str) -> str:
    if modality not in ("video", "audio"):
        raise ConfigError(f"modality {modality!r} is unknown to the presence rule; use 'video' or 'audio'")
    return modality


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
