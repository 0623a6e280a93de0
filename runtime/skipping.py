"""Skipping: which clips of a stream are not even decoded, and where decoding goes on.

A clip that was shed after decoding costs nothing more; one that is shed before (``packet.BACKLOG``) saves its decoding
too. To a decoder, what is skipped is lost: damage is followed as after a loss, and pictures that build on others come
again from the next one with which decoding may begin. A replay is told all such clips before its first packet, a live
receiver each of them when it is decided; both skip the same clips.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from runtime.packet import BACKLOG, Gap, Packet

__all__ = ["Skips"]

REMEMBERED = 256  # clips of each modality, once the stream has passed them


class Skips:
    """Of one stream, by modality and the index of the clip."""

    def __init__(self) -> None:
        self._clips: dict[str, set[int]] = defaultdict(set)
        self._resting: set[str] = set()  # modalities whose decoder waits for a place to begin
        self._begun: dict[str, int] = {}  # the skipped clip in which it found one

    def __bool__(self) -> bool:
        return bool(self._clips)

    def heed(self, modality: str, clip: int, reason: str) -> None:
        """A clip was shed: if before it was decoded, nothing of it is to be."""
        if reason == BACKLOG:
            self._clips[modality].add(clip)

    def over(self, modality: str, clip: int, *, begins: bool, alone: bool) -> bool:
        """Whether a packet of this clip is passed over. ``begins``: decoding may begin with it; ``alone``: with any.

        A picture with which decoding may begin is decoded though its clip is skipped, if the next clip is not.
        """
        clips = self._clips.get(modality)
        if clips is None:
            return False
        here = clip in clips
        if alone:
            (self._resting.add if here else self._resting.discard)(modality)
            return here
        if begins and not (here and clip + 1 in clips):
            self._resting.discard(modality)
            self._begun[modality] = clip
            return False
        if here and self._begun.get(modality) != clip:
            self._resting.add(modality)
        return modality in self._resting

    def skip(self, lane: Any, assembler: Any, packet: Packet, at: int, lay: Callable[[Any, list[Any]], None]) -> bool:
        """Pass a packet over whose clip is shed: lost to its decoder, but not to those who count; False: it is not.

        ``at`` is its place on the assembler's grid, ``lay`` puts down what the decoder held.
        """
        modality, rested = packet.modality, packet.modality in self._resting
        self._tidy(modality, assembler.next_index)
        clip, alone = assembler.index_at(at), not lane.dependent
        if not self.over(modality, clip, begins=packet.keyframe, alone=alone):
            return False
        if not rested:  # decoding begins anew after this, the same wherever in the clip it broke off
            lay(lane, lane.flush())
        lane.damage.push(Gap(modality=modality, first_seq=packet.seq, count=1))
        assembler.gap(modality, at, at + lane.length_of(packet))
        return True

    def _tidy(self, modality: str, following: int) -> None:
        """Clips before ``following`` are closed."""
        clips = self._clips.get(modality, ())
        if len(clips) > REMEMBERED and min(clips) < following:
            self._clips[modality] = {c for c in clips if c >= following}

    def forget(self) -> None:
        """The epoch ended: whatever comes is judged anew."""
        self._resting.clear()
