"""How far a stream has come, as its client must know it to go on elsewhere: what it may forget, and where to begin.

After the answer to clip c everything final about clips up to c - F has been said. The oldest window that is not final
belongs to clip c - F + 1 and begins W - 1 clips earlier; what a fresh server needs to rebuild that clip is what
``Receiver.needed`` said when it closed.

A stream that another server began goes on under its old name and numbers, while the receiver here counts from zero;
``rename`` and the resume point translate.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from protos import stream_pb2 as pb
from runtime.clip import Clip
from runtime.packet import Decision
from runtime.serve.convert import rational
from runtime.serve.limits import Resumption
from runtime.serve.outbox import Ack

__all__ = ["Progress"]


@dataclass(frozen=True, slots=True)
class _Epoch:
    """The grid of an epoch."""

    first: int  # clip that closed first in it
    origin: Fraction  # capture time, seconds
    zero: int  # clip that starts at the origin


class Progress:
    """Follows the clips of one stream of windows of ``window`` clips and ``lookahead`` clips more."""

    def __init__(self, stream: str, window: int, lookahead: int, resumption: Resumption | None = None) -> None:
        self._stream, self._window, self._lookahead = stream, window, lookahead
        self._shift = (0, 0) if resumption is None else (resumption.epoch, resumption.first_clip)
        self._from = 0 if resumption is None else resumption.next_clip
        self._oldest = 0 if resumption is None else resumption.oldest_clip
        self._faces: dict[int, tuple[float, ...]] = {}  # clip -> the face's box after it
        if resumption is not None:
            self._faces[resumption.oldest_clip - 1] = resumption.face
        self._needed: dict[int, Mapping[str, int]] = {}  # clip -> by modality, what nobody needs to rebuild it
        self._epochs: dict[int, _Epoch] = {}

    def rename(self, clip: Clip) -> Clip:
        """A clip of the receiver under the number that it has on the wire."""
        epoch, index = self._shift
        return clip if not (epoch or index) else replace(clip, epoch=clip.epoch + epoch, index=clip.index + index)

    def own(self, decision: Decision) -> Decision:
        """A decision about a clip under the receiver's number, as a recording keeps it."""
        epoch, index = self._shift
        clip = None if decision.clip is None else decision.clip - index
        return replace(decision, clip=clip, epoch=decision.epoch - epoch) if epoch or index else decision

    def foreign(self, clip: int) -> bool:
        """Whether the server before this one spoke about a clip for the last time."""
        return clip < self._from

    def useless(self, clip: Clip) -> bool:
        """Whether a renamed clip came only because decoding had to begin before those that are needed."""
        return clip.index < self._oldest

    def closed(self, clip: Clip, needed: Mapping[str, int]) -> None:
        """A renamed clip closed, and ``needed`` is what a fresh receiver would not need for it."""
        if clip.version:
            return
        self._needed[clip.index] = needed
        if clip.epoch not in self._epochs:
            zero = self._zero(clip)
            self._epochs[clip.epoch] = _Epoch(clip.index, clip.start - (clip.index - zero) * clip.seconds, zero)

    def answered(self, clip: int, epoch: int, face: tuple[float, ...] = ()) -> Ack | None:
        """Everything due was said when this clip was answered, after which the face's box was ``face``."""
        self._faces[clip] = face
        grid = self._epochs.get(epoch)
        if grid is None:
            return None
        following = max(clip - self._lookahead + 1, grid.first)
        oldest = max(following - self._window + 1, grid.first)
        needed = self._needed.get(oldest)
        if needed is None:
            return None
        for old in [c for c in self._needed if c < oldest]:
            del self._needed[old]
        for old in [c for c in self._faces if c < oldest - 1]:
            del self._faces[old]
        for old in [e for e in self._epochs if e < epoch]:
            del self._epochs[old]
        return Ack(needed, self._point(epoch, grid, oldest, max(following, self._from)))

    def finished(self, received: Iterable[tuple[str, int]]) -> Ack:
        """Everything was said: nothing is needed any more."""
        return Ack(dict(received), None)

    def _point(self, epoch: int, grid: _Epoch, oldest: int, following: int) -> pb.ResumePoint:
        return pb.ResumePoint(
            stream=self._stream,
            epoch=epoch,
            first_clip=grid.zero,
            origin=rational(grid.origin),
            next_clip=following,
            oldest_clip=oldest,
            face=self._faces.get(oldest - 1, ()),
        )

    def _zero(self, clip: Clip) -> int:
        """The clip at an epoch's origin. The first epoch may be joined late; a later one begins with its first clip."""
        first = clip.epoch == self._shift[0]
        return self._shift[1] if first else clip.index
