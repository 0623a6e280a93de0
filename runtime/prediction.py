"""What the runtime says about a window: the same fields in Python, JSONL and protobuf."""

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ClipProvenance:
    """Where one clip of the window came from, per modality ("video", "audio")."""

    clip: int
    state: dict[str, str]  # observed, damaged, late, lost, shed
    flags: dict[str, tuple[str, ...]]  # frozen, blank, silent, no_face, context_hole, spoiled (believed all the same)
    rung: dict[str, str]  # "observed", or the rung of the fill ladder that filled it
    coverage: dict[str, float]  # share of the clip's time that was present and undamaged


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Milliseconds spent on the newest clip: waiting for packets, decoding, encoding, filling; and their sum."""

    wait_ms: float = 0.0
    decode_ms: float = 0.0
    encode_ms: float = 0.0
    fill_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One statement about the window of clips that ends with ``clip``.

    Its identity is (stream, epoch, clip, head, revision); a ``final`` prediction never changes.
    """

    stream: str
    epoch: int
    clip: int
    start_seconds: float  # capture time of the window's first clip
    end_seconds: float  # capture time at the end of the window's last clip
    head: str
    label: str | None  # None when abstained
    probabilities: dict[str, float]
    confidence: float
    status: str  # provisional, final
    revision: int
    abstained: bool
    observed_share: dict[str, float]  # per modality, over the window's existing clips
    clips: tuple[ClipProvenance, ...] = ()
    longest_gap_ms: float = 0.0
    bundle: str = ""  # the bundle's hash
    timings: Timings = field(default_factory=Timings)

    def as_dict(self, *, timings: bool = True) -> dict[str, Any]:
        """Plain values for JSON; without ``timings`` two replays of one recording are byte-equal."""
        out = _plain(self)
        if not timings:
            del out["timings"]
        return out


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return round(value, 6) if isinstance(value, float) else value
