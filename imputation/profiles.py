"""Loss profiles by name: what a network or device does to a stream, independent of packet rates (numpy only).

A profile is a *process* in continuous time, shared by the modalities it touches, plus a delay. ``open_profile``
reads every spelling that ``--loss`` takes; ``PROFILES`` holds the named ones.
"""

import difflib
import gzip
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from encoders.errors import UsageError
from imputation.gilbert import GilbertElliott

SLOT_SECONDS = 0.02  # of traces and of ge:, the spacing of audio packets
_MAX_TRACE_BYTES = 64 << 20  # unpacked; ten days of slots


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link that is good, then bad, for random times; dwell in good is exponential.

    ``good_seconds`` = inf gives independent losses at ``loss_good``. ``bad_sigma`` > 0 makes the bad dwell
    log-normal with that deviation of the logarithm; 0 makes it exponential.
    """

    good_seconds: float
    bad_seconds: float
    loss_good: float
    loss_bad: float
    bad_sigma: float = 0.0

    @property
    def bad_share(self) -> float:
        return self.bad_seconds / (self.good_seconds + self.bad_seconds)

    @property
    def loss(self) -> float:
        """Mean share of packets lost."""
        return (1 - self.bad_share) * self.loss_good + self.bad_share * self.loss_bad


@dataclass(frozen=True, kw_only=True)
class Slots:
    """A Gilbert-Elliott chain that moves every 20 ms, so that p and r hold for audio packets exactly."""

    chain: GilbertElliott

    @property
    def loss_good(self) -> float:
        return self.chain.loss_good

    @property
    def loss_bad(self) -> float:
        return self.chain.loss_bad

    @property
    def loss(self) -> float:
        """Mean share of packets lost."""
        return self.chain.loss


@dataclass(frozen=True, kw_only=True)
class WholeClips:
    """Each clip of the grid is lost whole, independently per clip and modality."""

    rate: float
    clip_seconds: float
    origin: float  # capture time of the grid's zero, seconds
    loss_good: float = 0.0
    loss_bad: float = 1.0

    @property
    def loss(self) -> float:
        """Mean share of packets lost."""
        return self.rate


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Recorded losses, a byte 0 or 1 per 20 ms, repeated for ever from a random start."""

    slots: bytes
    loss_good: float = 0.0
    loss_bad: float = 1.0

    @property
    def loss(self) -> float:
        """Mean share of packets lost."""
        return self.slots.count(1) / len(self.slots)


Process = Link | Slots | WholeClips | Trace


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What happens to the packets of a stream; made by ``open_profile``.

    ``name`` seeds the random streams and leaves variants out: ``wifi-poor+dup`` loses what ``wifi-poor`` loses.
    ``rendering`` is ``absent`` (packets do not come) or, for a device, ``frozen`` or ``zeros`` (packets keep
    coming and show the last picture, or digital silence).
    """

    name: str
    process: Process
    modalities: tuple[str, ...] = ("video", "audio")  # those it touches
    base_delay: float = 0.0  # seconds one way
    jitter: float = 0.0  # seconds, deviation of the normal delay; cut at zero delay and at +3
    reordered: float = 0.0  # share of packets that later ones overtake
    duplicated: float = 0.0  # share of packets that come twice
    rendering: str = "absent"
    text: str = ""  # as the user wrote it

    @property
    def loss(self) -> float:
        """Mean share of packets lost in the modalities it touches."""
        return self.process.loss


def _link(
    name: str, good: float, bad: float, loss_good: float, loss_bad: float, *, sigma: float = 0.0, jitter_ms: float = 0.0
) -> Profile:
    link = Link(good_seconds=good, bad_seconds=bad, loss_good=loss_good, loss_bad=loss_bad, bad_sigma=sigma)
    return Profile(name=name, process=link, base_delay=0.03 if jitter_ms else 0.0, jitter=jitter_ms / 1e3, text=name)


def _independent(name: str, loss: float) -> Profile:
    return _link(name, float("inf"), 0.0, loss, loss, jitter_ms=3)


_LOGN = 0.8  # deviation of the logarithm of an outage's length
_ALL = (
    _link("clean", float("inf"), 0.0, 0.0, 0.0),
    _independent("wired", 0.0005),
    *(_independent(f"iid-{percent}", percent / 100) for percent in (1, 5, 10, 20)),
    _link("wifi-good", 4, 0.04, 0.001, 1.0, jitter_ms=8),
    _link("wifi-burst", 2, 0.08, 0.002, 0.7, jitter_ms=20),
    _link("wifi-poor", 0.8, 0.10, 0.01, 0.7, jitter_ms=20),
    _link("lte-handover", 20, 0.30, 0.003, 1.0, sigma=_LOGN, jitter_ms=20),
    _link("lte-driving", 5, 0.35, 0.005, 1.0, sigma=_LOGN, jitter_ms=20),
    _link("congestion", 4, 1.5, 0.005, 0.25, jitter_ms=40),
    _link("congestion-severe", 3, 2, 0.02, 0.45, jitter_ms=40),
    replace(_link("camera-stall", 25, 1.5, 0.0, 1.0, sigma=_LOGN), modalities=("video",)),
    replace(_link("mic-mute", 40, 4, 0.0, 1.0, sigma=_LOGN), modalities=("audio",)),
    _link("both-drop", 25, 2, 0.002, 1.0, sigma=_LOGN, jitter_ms=20),
)
PROFILES: dict[str, Profile] = {profile.name: profile for profile in _ALL}

_SPELLINGS = "iid-N, clips-N, ge:p,r,loss_good,loss_bad or trace:FILE"
_VARIANTS = ("reorder", "dup", "absent", "frozen", "zeros")


def open_profile(text: str, *, clip_seconds: float = 0.4, origin: float = 0.0) -> Profile:
    """The profile that ``text`` spells, e.g. as given to ``--loss``.

    A name of PROFILES; ``iid-N``: N % of packets, independently; ``clips-N``: N % of whole clips (of
    ``clip_seconds`` from ``origin``), each modality for itself; ``ge:p,r[,loss_good,loss_bad]`` per 20 ms;
    ``trace:FILE``, ``lte-trace:FILE`` or a path: a line 0 or 1 per 20 ms, gzip allowed. Variants are appended:
    ``+reorder``, ``+dup``, and ``+absent``, ``+frozen`` (camera-stall), ``+zeros`` (mic-mute).
    Raises UsageError in one sentence, with close names.
    """
    base, variants = _split_variants(text.strip())
    profile = _open_base(base, clip_seconds, origin)
    for variant in variants:
        profile = _with_variant(profile, variant)
    return replace(profile, text=text.strip())


def _split_variants(text: str) -> tuple[str, list[str]]:
    """Known suffixes only: a path may hold a plus sign itself."""
    base, plus, last = text.rpartition("+")
    if not plus or (last not in _VARIANTS and _looks_like_a_path(text)):
        return text, []
    base, variants = _split_variants(base)
    return base, [*variants, last]


def _with_variant(profile: Profile, variant: str) -> Profile:
    if variant == "reorder":
        return replace(profile, reordered=0.001)
    if variant == "dup":
        return replace(profile, duplicated=0.001)
    device = {"frozen": "camera-stall", "zeros": "mic-mute"}
    if variant == "absent" or device.get(variant) == profile.name:
        return replace(profile, rendering=variant)
    if variant in device:
        raise UsageError(f"variant +{variant} is a rendering of {device[variant]}, not of {profile.name}; leave it out")
    raise UsageError(f"unknown variant +{variant} of loss profile {profile.name}; use +{', +'.join(_VARIANTS)}")


def _open_base(text: str, clip_seconds: float, origin: float) -> Profile:
    if text in PROFILES:
        return PROFILES[text]
    kind, colon, rest = text.partition(":")
    if colon and kind in ("trace", "lte-trace"):
        return _trace(Path(rest))
    if colon and kind == "ge":
        return _gilbert_elliott(rest)
    family, _, amount = text.partition("-")
    if family == "iid" and amount:
        return _independent(text, _percent(text, amount))
    if family == "clips" and amount:
        clips = WholeClips(rate=_percent(text, amount), clip_seconds=clip_seconds, origin=origin)
        return Profile(name=text, process=clips)
    if _looks_like_a_path(text):
        return _trace(Path(text))
    _unknown(text)


def _unknown(text: str) -> NoReturn:
    close = difflib.get_close_matches(text, PROFILES, n=3, cutoff=0.5) or list(PROFILES)
    raise UsageError(f"unknown loss profile {text!r}; use {', '.join(close)}, or {_SPELLINGS}")


def _percent(text: str, amount: str) -> float:
    try:
        percent = float(amount)
    except ValueError:
        _unknown(text)
    if not 0 <= percent <= 100:
        raise UsageError(f"loss profile {text!r} asks for {percent:g} %; give a percentage from 0 to 100")
    return percent / 100


def _gilbert_elliott(numbers: str) -> Profile:
    try:
        values = [float(part) for part in numbers.split(",")]
    except ValueError:
        values = []
    if len(values) not in (2, 4):
        raise UsageError(
            f"loss profile 'ge:{numbers}' does not hold 2 or 4 numbers; "
            "write ge:p,r or ge:p,r,loss_good,loss_bad as fractions, e.g. ge:0.1,0.4,0.02,0.9"
        )
    model = GilbertElliott(**dict(zip(("p", "r", "loss_good", "loss_bad"), values, strict=False)))
    name = "ge:" + ",".join(f"{value:.12g}" for value in (model.p, model.r, model.loss_good, model.loss_bad))
    return Profile(name=name, process=Slots(chain=model), base_delay=0.03, jitter=0.003)


def _looks_like_a_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.endswith((".txt", ".gz")) or Path(text).is_file()


def _trace(path: Path) -> Profile:
    slots = read_trace(path).tobytes()
    # Named by content, not by path: a trace loses the same packets wherever it lies.
    name = f"trace:{zlib.crc32(slots):08x}"
    return Profile(name=name, process=Trace(slots=slots), base_delay=0.03, jitter=0.02)


def read_trace(path: Path) -> NDArray[np.uint8]:
    """The slots (n,) of a loss trace, 0 or 1 per 20 ms, from text with one digit a line; gzip allowed.

    UsageError names the file and, where the content is at fault, the first bad line.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if packed else file as plain:
                content = plain.read(_MAX_TRACE_BYTES + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"loss trace {str(path)!r} cannot be read ({reason}); give a text file of 0 and 1") from error
    if len(content) > _MAX_TRACE_BYTES:
        raise UsageError(f"loss trace {str(path)!r} is larger than {_MAX_TRACE_BYTES >> 20} MiB; give a shorter one")
    lines = content.split()
    wrong = next((i for i, line in enumerate(lines) if line not in (b"0", b"1")), None)
    if wrong is not None:
        found = lines[wrong][:12].decode("ascii", "backslashreplace")
        raise UsageError(f"loss trace {str(path)!r} has {found!r} in line {wrong + 1}; write 0 or 1, one per 20 ms")
    if not lines:
        raise UsageError(f"loss trace {str(path)!r} is empty; write 0 or 1 a line, one per 20 ms")
    return np.frombuffer(b"".join(lines), np.uint8) - np.uint8(ord("0"))
