"""The verdict of damage tracking on one packet or frame."""

from dataclasses import dataclass

__all__ = ["CORRUPT_SEVERITY", "INTACT", "Damage"]

CORRUPT_SEVERITY = 0.5  # of a picture or block whose own bytes are wrong, what it leans on being right


@dataclass(frozen=True, slots=True)
class Damage:
    """The verdict on one packet or frame.

    ``reason``: ``lost`` (it is a gap), ``corrupt`` (its own bytes are wrong), ``reference`` (it is decoded from a
    wrong picture). ``severity`` is an estimate, 0 (not visible) to 1 (nothing of the picture is right).
    """

    damaged: bool = False
    reason: str = ""
    severity: float = 0.0


INTACT = Damage()
