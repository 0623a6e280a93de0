"""Entries: where a fresh receiver may begin, so that everything from some moment on is as it was.

A sender that may have to send again (a resumed stream) keeps what lies above an entry and forgets the rest. Video
begins at a picture that needs none before it (``runtime.damage`` says which); what leads that picture in order of
presentation is not shown right, so it serves only moments from its own time on. Sound begins as many frames earlier
as a hole would spoil, and a moment more where it is resampled, for the filter to fill.

Times are flicks on the stream's axis. The test is the definition itself (tests/test_entries.py).
"""

from bisect import bisect_right
from collections import deque

from encoders.clips import FLICKS, AudioSpec, VideoSpec
from runtime.packet import CodecConfig
from runtime.sound_damage import spoiled_bytes, spoiled_frames

__all__ = ["Entries"]

KEPT = 2048  # entries: a minute of intra-only video, 40 s of sound in packets of 20 ms
# A decoder forgets what was before by halves, frame by frame: 80 ms after a hole its sound may be heard (within 0.05 of
# full scale, measured), but only after 0.5 s it is the same sample for sample.
SETTLES = {"opus": 0.6}  # seconds
FILTER_SECONDS = 0.003  # of sound that a resampled sample depends on, to each side; encoders.media.resample
LARGEST = 1 << 62  # above every number


class Entries:
    """The places of one modality at which a fresh receiver may begin, in order of epoch and time."""

    def __init__(self, config: CodecConfig, spec: VideoSpec | AudioSpec) -> None:
        self._known: deque[tuple[int, int, int, int]] = deque(maxlen=KEPT)  # epoch, time, seq, bytes of payload
        self._lead = self._frames = self._bytes = 0
        if isinstance(spec, AudioSpec):
            resampled = config.sample_rate != spec.sample_rate
            self._lead = int((SETTLES.get(config.codec, 0.0) + resampled * FILTER_SECONDS) * FLICKS)
            self._frames, self._bytes = spoiled_frames(config), spoiled_bytes(config)

    def add(self, epoch: int, time: int, seq: int, size: int = 0) -> None:
        """Everything from ``time`` on needs nothing before packet ``seq`` (sound: but for what its codec spoils)."""
        self._known.append((epoch, time, seq, size))

    def needed(self, epoch: int, time: int) -> int | None:
        """The highest number that a fresh receiver can do without, to be right from ``time`` on; None: none known."""
        place = bisect_right(self._known, (epoch, time - self._lead, LARGEST, 0)) - 1
        left = self._bytes
        while left > 0 and place > 0:
            place -= 1
            left -= self._known[place][3]
        place -= self._frames
        return self._known[place][2] - 1 if place >= 0 and self._known[place][2] > 0 else None
