"""H.264 headers: parameter sets, slice headers up to the marking of references, recovery points (ITU-T H.264).

A slice header names the pictures it may be predicted from: how many, and in which order. ``runtime.h264_references``
follows damage through them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, cast

from runtime.nal import HEADER_BYTES, RECOVERY_POINT, first_unit, nal_units, sei_messages, unescape
from runtime.picture import Bits, Lists, Picture

__all__ = ["Glance", "H264Headers"]

HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
PARAMETER_BYTES = 4096  # of a parameter set; scaling lists make it longer than a slice header
MOST_REFERENCES = 32  # fields of 16 frames
GLANCE_BYTES = 12  # after the unit's type, in which a slice header tells its order of presentation at the latest
GLANCE_REST = 16 + 33  # bits after the frame number until then: the order, and which IDR picture it is
KINDS = "PBIPI"  # of slice_type modulo 5; SP counts as P, SI as I


@dataclass(frozen=True, slots=True)
class _Sequence:
    """What of a sequence parameter set is needed to read slice headers (7.3.2.1)."""

    frame_num_bits: int
    order_type: int
    order_bits: int  # 0 unless order_type is 0
    order_deltas: bool  # order_type 1: slices carry differences
    references: int
    gaps_allowed: bool
    frames_only: bool
    separate_planes: bool
    chroma: bool


@dataclass(frozen=True, slots=True)
class _PictureSet:
    """What of a picture parameter set is needed (7.3.2.2)."""

    sequence: int
    bottom_order: bool
    slice_groups: bool
    active: tuple[int, int]
    weighted: tuple[bool, bool]  # P, B
    redundant: bool


class Glance(NamedTuple):
    """What the first bits of an access unit tell: enough to see that nothing is missing before it."""

    frame_num: int
    max_frame_num: int
    reset: bool  # IDR
    disposable: bool
    independent: bool
    unit: bytes  # the start of the slice, for ``H264Headers.slice``


class H264Headers:
    """Parameter sets seen so far, and the pictures of access units."""

    def __init__(self, extradata: bytes) -> None:
        self._sequences: dict[int, _Sequence] = {}
        self._sets: dict[int, _PictureSet] = {}
        self._known_bits: dict[int, int | None] = {}  # by picture parameter set, for ``glance``
        self._length_size = 0
        if extradata[:1] == b"\1" and len(extradata) >= 7:
            self._length_size = (extradata[4] & 3) + 1
            units = _avcc_units(extradata)
        else:
            units = nal_units(extradata, 0)
        for unit in units:
            self._learn(unit)

    def parse(self, payload: bytes) -> tuple[Picture, ...]:
        """The picture of an access unit, as its first slice describes it; () if there is none."""
        recovery: int | None = None
        for unit in nal_units(payload, self._length_size):
            kind = unit[0] & 31
            if kind in (1, 2, 5):  # slice, partition A, IDR slice
                return (self.slice(unit, recovery),)
            if kind == 6:
                for message, body in sei_messages(unescape(unit[1:])):
                    recovery = Bits(body).ue() if message == RECOVERY_POINT else recovery
            else:
                self._learn(unit)
        return ()

    def glance(self, payload: bytes) -> Glance | None:
        """The same in a tenth of the time for an access unit that begins with a slice, as nearly all do; else None.

        Of a frame, with nothing in front of it and its parameter sets known; what it tells is what ``parse`` tells.
        """
        unit = first_unit(payload, self._length_size, HEADER_BYTES + 1)
        first = unit[1 : GLANCE_BYTES + 1]
        if len(first) < 2 or unit[0] & 31 not in (1, 5) or b"\0\0\3" in first:
            return None
        beginning = _beginning(first[0] << 8 | first[1])
        if beginning is None or (bits := self._frame_num_bits(beginning[1])) is None:
            return None
        slice_type, _, length = beginning
        reset, left = unit[0] & 31 == 5, 8 * len(first) - length - bits
        if left < (GLANCE_REST if reset else 16):
            return None
        largest = (1 << bits) - 1
        frame_num = int.from_bytes(first, "big") >> left & largest
        return Glance(frame_num, largest + 1, reset, unit[0] & 96 == 0, slice_type in (7, 9), unit)

    def _frame_num_bits(self, number: int) -> int | None:
        """How long the frame number is that follows a reference to picture parameter set ``number``."""
        if number not in self._known_bits:
            picture_set = self._sets.get(number)
            sequence = None if picture_set is None else self._sequences.get(picture_set.sequence)
            plain = sequence is not None and sequence.frames_only and not sequence.separate_planes
            plain = plain and sequence is not None and not sequence.gaps_allowed
            self._known_bits[number] = sequence.frame_num_bits if plain and sequence is not None else None
        return self._known_bits[number]

    def _learn(self, unit: bytes) -> None:
        """Take in a parameter set; a broken one is passed over, as a decoder does."""
        kind = unit[0] & 31
        self._known_bits.clear()
        try:
            if kind == 8:
                number, picture_set = _picture_set(Bits(unescape(unit[1:])))
                self._sets[number] = picture_set
            elif kind in (7, 15):
                number, sequence = _sequence(Bits(unescape(unit[1:], PARAMETER_BYTES)))
                self._sequences[number] = sequence
        except IndexError:
            pass

    def slice(self, unit: bytes, recovery: int | None) -> Picture:
        """The picture that a slice belongs to, ``recovery`` being what a message before it said."""
        idr, disposable = unit[0] & 31 == 5, unit[0] >> 5 & 3 == 0
        bits = Bits(unescape(unit[1:]))
        bits.ue()  # first_mb_in_slice
        slice_type = bits.ue()
        kind = KINDS[slice_type % 5]
        picture_set = self._sets.get(bits.ue())
        sequence = None if picture_set is None else self._sequences.get(picture_set.sequence)
        if picture_set is None or sequence is None:
            return Picture(kind=kind, reset=idr, recovery=recovery, disposable=disposable)
        if sequence.separate_planes:
            bits.u(2)
        frame_num = bits.u(sequence.frame_num_bits)
        field = not sequence.frames_only and bits.flag()
        if field:
            bits.u(1)  # bottom_field_flag
        if idr:
            bits.ue()  # idr_pic_id
        order = bits.u(sequence.order_bits) if sequence.order_type == 0 else None
        lists = None
        if not field and not picture_set.slice_groups:
            lists = _lists(bits, kind, idr, disposable, sequence, picture_set)
        return Picture(
            kind=kind,
            reset=idr,
            recovery=recovery,
            disposable=disposable,
            field=field,
            independent=slice_type in (7, 9),  # 5 to 9: all slices of the picture are of this type
            frame_num=frame_num,
            max_frame_num=1 << sequence.frame_num_bits,
            gaps_allowed=sequence.gaps_allowed,
            order=order,
            order_size=1 << sequence.order_bits,
            references=sequence.references,
            lists=lists,
        )


@lru_cache(maxsize=4096)
def _beginning(bits: int) -> tuple[int, int, int] | None:
    """Slice type, parameter set, and the bits that they took, of the first 16 of a picture; None of a later slice."""
    reader = Bits(bits.to_bytes(2, "big"))
    try:
        first, slice_type, number = reader.ue(), reader.ue(), reader.ue()
    except IndexError:
        return None
    return None if first or slice_type > 9 else (slice_type, number, 16 - reader.left)


def _lists(
    bits: Bits, kind: str, idr: bool, disposable: bool, sequence: _Sequence, picture_set: _PictureSet
) -> Lists | None:
    """The rest of a slice header of a frame; None if it cannot be read (7.3.3)."""
    try:
        if sequence.order_type == 0 and picture_set.bottom_order:
            bits.se()
        if sequence.order_type == 1 and sequence.order_deltas:
            bits.se()
            if picture_set.bottom_order:
                bits.se()
        if picture_set.redundant:
            bits.ue()
        active = _active(bits, kind, picture_set)
        moves: tuple[tuple[int, ...] | None, ...] = ()
        if kind != "I":
            moves = (_moves(bits), _moves(bits)) if kind == "B" else (_moves(bits),)
        if picture_set.weighted[kind == "B"] and kind != "I":
            _skip_weights(bits, active[: len(moves)], sequence.chroma)
        forgets: tuple[int, ...] | None = ()
        if idr:
            bits.u(1)
            forgets = None if bits.flag() else ()  # long-term reference
        elif not disposable and bits.flag():
            forgets = _forgets(bits)
        if forgets is None or None in moves:
            return None
        return Lists(active[: len(moves)], cast("tuple[tuple[int, ...], ...]", moves), forgets)
    except IndexError:
        return None


def _active(bits: Bits, kind: str, picture_set: _PictureSet) -> tuple[int, int]:
    if kind == "B":
        bits.u(1)  # direct_spatial_mv_pred_flag
    if kind == "I" or not bits.flag():
        return picture_set.active
    first = bits.ue() + 1
    return min(first, MOST_REFERENCES), min(bits.ue() + 1 if kind == "B" else 1, MOST_REFERENCES)


def _moves(bits: Bits) -> tuple[int, ...] | None:
    """Signed steps of PicNum of ref_pic_list_modification; None with long-term references (7.3.3.1)."""
    moves: list[int] = []
    if not bits.flag():
        return ()
    while (operation := bits.ue()) != 3:
        if operation > 1 or len(moves) > MOST_REFERENCES:
            return None
        step = bits.ue() + 1
        moves.append(-step if operation == 0 else step)
    return tuple(moves)


def _skip_weights(bits: Bits, active: tuple[int, ...], chroma: bool) -> None:
    """pred_weight_table (7.3.3.2)."""
    bits.ue()
    if chroma:
        bits.ue()
    for count in active:
        for _ in range(count):
            for values in (2, 4)[: 1 + chroma]:
                if bits.flag():
                    for _ in range(values):
                        bits.se()


def _forgets(bits: Bits) -> tuple[int, ...] | None:
    """PicNum differences of the short-term references that are given up; None for any other operation (7.3.3.3)."""
    forgets: list[int] = []
    while (operation := bits.ue()) != 0:
        if operation != 1 or len(forgets) > MOST_REFERENCES:
            return None
        forgets.append(bits.ue() + 1)
    return tuple(forgets)


def _avcc_units(extradata: bytes) -> Iterator[bytes]:
    """Parameter sets of an AVCDecoderConfigurationRecord (ISO/IEC 14496-15, section 5.3.3)."""
    at = 5
    for mask in (31, 255):
        if at >= len(extradata):
            return
        count = extradata[at] & mask
        at += 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            if extradata[at + 2 : at + 2 + size]:
                yield extradata[at + 2 : at + 2 + size]
            at += 2 + size


def _picture_set(bits: Bits) -> tuple[int, _PictureSet]:
    number, sequence = bits.ue(), bits.ue()
    bits.u(1)  # entropy coding
    bottom_order = bits.flag()
    if bits.ue():  # slice groups: what follows has another form, and nobody sends them
        return number, _PictureSet(sequence, bottom_order, True, (1, 1), (False, False), False)
    active = min(bits.ue() + 1, MOST_REFERENCES), min(bits.ue() + 1, MOST_REFERENCES)
    weighted = bits.flag(), bits.u(2) == 1
    bits.se(), bits.se(), bits.se()  # quantisers
    bits.u(2)  # deblocking control, constrained intra
    return number, _PictureSet(sequence, bottom_order, False, active, weighted, bits.flag())


def _sequence(bits: Bits) -> tuple[int, _Sequence]:
    profile = bits.u(8)
    bits.u(16)  # constraints, level
    number = bits.ue()
    separate, chroma = False, 1
    if profile in HIGH_PROFILES:
        chroma = bits.ue()
        separate = chroma == 3 and bits.flag()
        bits.ue(), bits.ue(), bits.u(1)  # bit depths, lossless bypass
        if bits.flag():
            _skip_scaling_lists(bits, 8 if chroma != 3 else 12)
    frame_num_bits, order_type = bits.ue() + 4, bits.ue()
    order_bits = bits.ue() + 4 if order_type == 0 else 0
    order_deltas = order_type == 1 and not bits.flag()
    if order_type == 1:
        bits.se(), bits.se()
        for _ in range(min(bits.ue(), 255)):
            bits.se()
    references, gaps = bits.ue(), bits.flag()
    bits.ue(), bits.ue()  # size in macroblocks
    sequence = _Sequence(
        frame_num_bits=min(frame_num_bits, 16),
        order_type=order_type,
        order_bits=min(order_bits, 16),
        order_deltas=order_deltas,
        references=references,
        gaps_allowed=gaps,
        frames_only=bits.flag(),
        separate_planes=separate,
        chroma=chroma != 0 and not separate,
    )
    return number, sequence


def _skip_scaling_lists(bits: Bits, count: int) -> None:
    for i in range(count):
        if not bits.flag():
            continue
        last, step = 8, 8
        for _ in range(16 if i < 6 else 64):
            if step:
                step = (last + bits.se()) % 256
            last = step or last
