"""What a receiver gets of a reference call over a lossy link: coverage of clips, what is spoiled (numpy only).

The reference call: audio packets of 20 ms; video of 30 frames a second and 1.5 Mbit/s in packets of 1200 bytes,
a key frame of 38 packets over 33 ms every 60 frames, other frames of 5 packets over 5 ms. A frame that lost a
packet is bad, and so is every later one until an intact key frame. The first is lost, for no decoder gets it whole;
the later ones are spoiled. Sound is coded so that each packet stands alone. Files and live streams take the longer
way through ``runtime``; this is the model for training masks and tables.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.errors import UsageError
from imputation.channel import Channel
from imputation.profiles import Profile

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

AUDIO_SECONDS = 0.02
FRAME_RATE = 30
GOP = 60  # frames from key frame to key frame
_P_PACKETS, _P_SPREAD = 5, 0.005
_KEY_PACKETS, _KEY_SPREAD = 38, 0.033
_REQUEST_FRAMES = 8  # from a bad frame to the key frame it asked for: 267 ms; rate control keeps that one small
_RETRY_SECONDS, _RETRIES = 0.06, 3  # round trip; what fits into 200 ms


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What ends the damage: key frames on request, packets sent again, or no damage beyond the frame at all."""

    request: bool = False
    resend: bool = False
    intra: bool = False


RECOVERIES = {
    "gop": Recovery(),  # RTSP over UDP: the next periodic key frame
    "pli": Recovery(request=True),  # a key frame on request
    "nack": Recovery(request=True, resend=True),  # packets again, else a key frame
    "intra": Recovery(intra=True),  # MJPEG: every frame stands alone
}


def audio_losses(channel: Channel, starts: Floats, seconds: float, *, fec: bool = False) -> Bools:
    """Which audio packets are lost, (B, n), of streams that begin at ``starts`` (B,) and last ``seconds``.

    ``fec``: a packet carries a copy of the one before it, which repairs a loss that stands alone.
    """
    count = round(seconds / AUDIO_SECONDS)
    times = starts[:, None] + AUDIO_SECONDS * np.arange(count + 1)
    lost = channel.lost("audio", times.ravel()).reshape(times.shape)
    return lost[:, :-1] & lost[:, 1:] if fec else lost[:, :-1]


def bad_frames(channel: Channel, starts: Floats, seconds: float, recovery: str = "pli") -> Bools:
    """Which video frames are bad, (B, n), of streams that begin intact at ``starts`` (B,).

    Row b's first key frame is frame ``37 b mod 60``, so that rows see the whole cycle. ``recovery`` is a key of
    RECOVERIES; UsageError for another.
    """
    return broken_frames(channel, starts, seconds, recovery)[0]


def broken_frames(channel: Channel, starts: Floats, seconds: float, recovery: str = "pli") -> tuple[Bools, Bools]:
    """Which video frames are bad, and which of these are only spoiled, (B, n) each; see ``bad_frames``."""
    if recovery not in RECOVERIES:
        raise UsageError(f"unknown recovery {recovery!r}; use {', '.join(RECOVERIES)}")
    how = RECOVERIES[recovery]
    times = starts[:, None] + np.arange(round(seconds * FRAME_RATE)) / FRAME_RATE
    periodic = (np.arange(times.shape[1]) - 37 * np.arange(len(starts))[:, None]) % GOP == 0
    hit = _hit(channel, times, _P_PACKETS, _P_SPREAD, how.resend)
    if how.intra:
        return hit, np.zeros_like(hit)
    hit[periodic] = _hit(channel, times[periodic], _KEY_PACKETS, _KEY_SPREAD, how.resend)
    bad = _spread(hit, periodic, how.request)
    return bad, bad & ~hit


def _hit(channel: Channel, times: Floats, packets: int, spread: float, resend: bool) -> Bools:
    """Whether a frame sent at ``times`` (any shape) in so many packets over ``spread`` seconds misses one."""
    sent = (times[..., None] + spread / packets * np.arange(packets)).ravel()
    missing = np.flatnonzero(channel.lost("video", sent))
    for attempt in range(1, _RETRIES + 1 if resend else 1):
        missing = missing[channel.lost("video", sent[missing] + attempt * _RETRY_SECONDS)]
    out = np.zeros(times.size, bool)
    out[missing // packets] = True
    return out.reshape(times.shape)


def _spread(hit: Bools, periodic: Bools, request: bool) -> Bools:
    """Carries damage forward frame by frame, all rows at once, (B, n)."""
    rows, frames = hit.shape
    out = np.zeros_like(hit)
    bad = np.zeros(rows, bool)
    due = np.full(rows, -1)  # the frame at which a requested key frame comes; -1: none is on its way
    for i in range(frames):
        key = periodic[:, i] | (due == i)
        bad = hit[:, i] | (bad & ~key)
        out[:, i] = bad
        if request:
            due = np.where(due <= i, np.where(bad, i + _REQUEST_FRAMES, -1), due)
    return out


def clip_reception(
    profile: Profile,
    seed: int,
    *,
    batch: int,
    length: int,
    clip_seconds: float,
    recovery: str = "pli",
    fec: bool = False,
) -> tuple[Floats, Floats]:
    """Coverage of clips and the share of them that is spoiled, (B, L, 2) each, video then audio.

    Windows of ``length`` clips along one long run of the link. A device that renders ``frozen`` or ``zeros`` loses
    nothing that coverage could see.
    """
    span, warm_up = length * clip_seconds, clip_seconds * np.ceil(10.0 / clip_seconds)
    # A minute or so between windows, at irregular steps that no cyclic trace can fall in with.
    steps = np.ceil((span + warm_up + 40 + np.random.PCG64(seed).random_raw(batch) % 40) / clip_seconds)
    starts = clip_seconds * np.cumsum(steps)
    channel = Channel(profile, seed)
    coverage, spoiled = np.ones((batch, length, 2)), np.zeros((batch, length, 2))
    if profile.rendering == "absent":
        lost = audio_losses(channel, starts, span, fec=fec)
        frames = broken_frames(channel, starts - warm_up, span + warm_up, recovery)
        bad, only = (x[:, round(warm_up * FRAME_RATE) :] for x in frames)
        coverage[..., 0] -= _share(bad, length, FRAME_RATE * clip_seconds)
        spoiled[..., 0] += _share(only, length, FRAME_RATE * clip_seconds)
        coverage[..., 1] -= _share(lost, length, clip_seconds / AUDIO_SECONDS)
    return coverage, spoiled


def _share(flags: Bools, length: int, per_clip: float) -> Floats:
    """Share of True in each clip, (B, L); items are laid on clips by time, where ``per_clip`` is not whole."""
    clip = np.minimum((np.arange(flags.shape[1]) + 0.5) // per_clip, length - 1).astype(np.int64)
    first = np.searchsorted(clip, np.arange(length))
    return np.add.reduceat(flags, first, axis=1, dtype=np.int64) / np.bincount(clip, minlength=length)
