"""L clips of a recording, equally spaced: what curri-MAE's features are made of (Chochlakis et al., Interspeech 2024).

The paper gives the length of a clip and how many there are of a recording (``PROTOCOL``), not where they lie. Here they
stand side by side in the middle of the recording; where it is too short for that, they are spread from its beginning to
its end and overlap. There is no chance in it: features can be kept, and every head sees the same.
"""

from fractions import Fraction
from typing import NamedTuple

from encoders.errors import DataError

__all__ = ["PROTOCOL", "Protocol", "Spread", "spread"]


class Protocol(NamedTuple):
    """A dataset's clips in the paper's experiments."""

    clips: int
    seconds: Fraction


PROTOCOL = {
    "crema_d": Protocol(5, Fraction(2, 5)),
    "ravdess": Protocol(10, Fraction(2, 5)),
    "lombard_grid": Protocol(5, Fraction(1, 2)),
    "audioset_20k": Protocol(10, Fraction(1, 2)),
    # not the paper's: as many as fit into most of their recordings
    "java_sed": Protocol(10, Fraction(2, 5)),
    "grid": Protocol(7, Fraction(2, 5)),
}


class Spread(NamedTuple):
    """Where clips begin, in seconds; and whether neighbours share a part of the recording."""

    starts: tuple[float, ...]
    overlap: bool


def spread(seconds: float, clip: Fraction, count: int, *, later: float = 0.0, apart: bool = False) -> Spread:
    """``count`` clips of a recording of ``seconds``. Raises DataError where not even one fits.

    ``later``: the first begins so many seconds later than it would, as far as there is room; the last ends with the
    recording at the latest. ``apart``: clips never overlap, a recording too short for ``count`` has fewer.
    """
    if seconds < clip:
        raise DataError(f"it lasts {seconds:.3f} s, less than one clip of {float(clip):g} s; leave it out")
    exact = Fraction(seconds).limit_denominator(1_000_000)  # 2.4 is a little less than six clips of 0.4
    if apart:
        count = min(count, int(exact / clip))
    room = seconds - float(clip)
    if count * clip <= exact:
        first = min((seconds - float(count * clip)) / 2 + later, seconds - float(count * clip))
        return Spread(tuple(round(first + float(i * clip), 6) for i in range(count)), False)
    if count == 1:
        return Spread((round(min(room / 2 + later, room), 6),), False)
    first = min(later, room)
    return Spread(tuple(round(first + (room - first) * i / (count - 1), 6) for i in range(count)), True)
