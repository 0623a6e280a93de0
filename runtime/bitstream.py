"""What coded pictures say about who depends on whom: headers of H.264, H.265, VP8, MPEG-1/2/4 (pure byte parsing).

``picture_parser(config)`` gives a function from a packet's payload to its pictures, in decode order. Only headers are
read, never picture data; a header that cannot be read gives an empty tuple, never an exception. VP9 and AV1, whose
headers name reference slots, are in ``runtime/slots.py``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from runtime.packet import CodecConfig
from runtime.picture import Bits, Picture
from runtime.slots import Av1Headers, parse_vp9

__all__ = ["picture_parser"]

HEADER_BYTES = 96  # of a NAL unit that is unescaped; slice headers up to pic_order_cnt_lsb take far less


Parser = Callable[[bytes], tuple[Picture, ...]]


def picture_parser(config: CodecConfig) -> Parser | None:
    """A parser for the payloads of one stream, or None where we know no headers of this codec."""
    makers: dict[str, Callable[[CodecConfig], Parser]] = {
        "h264": lambda c: H264Headers(c.extradata).parse,
        "hevc": lambda c: HevcHeaders(c.extradata).parse,
        "h265": lambda c: HevcHeaders(c.extradata).parse,
        "vp8": lambda c: parse_vp8,
        "mpeg1video": lambda c: parse_mpeg12,
        "mpeg2video": lambda c: parse_mpeg12,
        "mpeg4": lambda c: parse_mpeg4,
        "vp9": lambda c: parse_vp9,
        "av1": lambda c: Av1Headers(c.extradata).parse,
    }
    maker = makers.get(config.codec)
    if maker is None:
        return None
    parse = maker(config)

    def guarded(payload: bytes) -> tuple[Picture, ...]:
        try:
            return parse(payload)
        except (IndexError, ValueError, OverflowError):
            return ()

    return guarded


# ---------------------------------------------------------------------------------------------------------- NAL units


def nal_units(payload: bytes, length_size: int) -> Iterator[bytes]:
    """NAL units of an access unit: Annex B start codes for ``length_size`` 0, else lengths of so many bytes."""
    if length_size and (_lengths_add_up(payload, length_size) or not payload.startswith((b"\0\0\0\1", b"\0\0\1"))):
        yield from _length_prefixed(payload, length_size)
        return
    start = payload.find(b"\0\0\1")
    while start >= 0:
        end = payload.find(b"\0\0\1", start + 3)
        unit = payload[start + 3 : end if end >= 0 else None]
        if unit:
            yield unit
        start = end


def _lengths_add_up(payload: bytes, length_size: int) -> bool:
    """A length of 256 to 511 bytes looks like a start code; only the sum tells them apart."""
    at = 0
    while at + length_size < len(payload):
        at += length_size + int.from_bytes(payload[at : at + length_size], "big")
    return at == len(payload)


def _length_prefixed(payload: bytes, length_size: int) -> Iterator[bytes]:
    at = 0
    while at + length_size < len(payload):
        size = int.from_bytes(payload[at : at + length_size], "big")
        at += length_size
        if size:
            yield payload[at : at + size]
        at += size


def unescape(unit: bytes) -> bytes:
    """The first bytes of a NAL unit without emulation prevention (H.264, section 7.4.1)."""
    return unit[:HEADER_BYTES].replace(b"\0\0\3", b"\0\0")


def sei_messages(body: bytes) -> Iterator[tuple[int, bytes]]:
    """(payload type, payload) of each message of an SEI NAL unit, header already removed."""
    at = 0
    while at + 2 <= len(body) and body[at:] != b"\x80":
        numbers = []
        for _ in range(2):
            value = 0
            while body[at] == 0xFF:
                value, at = value + 255, at + 1
            numbers.append(value + body[at])
            at += 1
        kind, size = numbers
        yield kind, body[at : at + size]
        at += size


# -------------------------------------------------------------------------------------------------------------- H.264


@dataclass(frozen=True, slots=True)
class _H264Sequence:
    frame_num_bits: int
    order_bits: int  # 0 unless pic_order_cnt_type is 0
    references: int
    gaps_allowed: bool
    frames_only: bool
    separate_planes: bool


HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
RECOVERY_POINT = 6  # SEI payload type


class H264Headers:
    """Parameter sets seen so far, and the pictures of access units (ITU-T H.264, sections 7.3.2 and 7.3.3)."""

    def __init__(self, extradata: bytes) -> None:
        self._sequences: dict[int, _H264Sequence] = {}
        self._sequence_of: dict[int, int] = {}  # picture parameter set -> sequence parameter set
        self._length_size = 0
        if extradata[:1] == b"\1" and len(extradata) >= 7:
            self._length_size = (extradata[4] & 3) + 1
            units = _avcc_units(extradata)
        else:
            units = nal_units(extradata, 0)
        for unit in units:
            self._learn(unit)

    def parse(self, payload: bytes) -> tuple[Picture, ...]:
        recovery: int | None = None
        for unit in nal_units(payload, self._length_size):
            kind = unit[0] & 31
            if kind in (1, 2, 5):  # slice, partition A, IDR slice: the first one speaks for the picture
                return (self._slice(unit, recovery),)
            if kind == 6:
                for message, body in sei_messages(unescape(unit[1:])):
                    recovery = Bits(body).ue() if message == RECOVERY_POINT else recovery
            else:
                self._learn(unit)
        return ()

    def _learn(self, unit: bytes) -> None:
        kind = unit[0] & 31
        if kind == 8:
            bits = Bits(unescape(unit[1:]))
            self._sequence_of[bits.ue()] = bits.ue()
        elif kind in (7, 15):
            number, sequence = _h264_sequence(Bits(unescape_whole(unit[1:])))
            self._sequences[number] = sequence

    def _slice(self, unit: bytes, recovery: int | None) -> Picture:
        idr = unit[0] & 31 == 5
        bits = Bits(unescape(unit[1:]))
        bits.ue()  # first_mb_in_slice
        slice_type = bits.ue()
        kind = "PBIPI"[slice_type % 5]  # SP counts as P, SI as I
        disposable = unit[0] >> 5 & 3 == 0
        sequence = self._sequences.get(self._sequence_of.get(bits.ue(), -1))
        if sequence is None:
            return Picture(kind=kind, reset=idr, recovery=recovery, disposable=disposable)
        if sequence.separate_planes:
            bits.u(2)
        frame_num = bits.u(sequence.frame_num_bits)
        field = not sequence.frames_only and bits.flag()
        if field:
            bits.u(1)  # bottom_field_flag
        if idr:
            bits.ue()  # idr_pic_id
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
            order=bits.u(sequence.order_bits) if sequence.order_bits else None,
            order_size=1 << sequence.order_bits,
            single_reference=sequence.references <= 1,
        )


def unescape_whole(unit: bytes) -> bytes:
    """A parameter set without emulation prevention; scaling lists make it longer than a slice header."""
    return unit[:4096].replace(b"\0\0\3", b"\0\0")


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


def _h264_sequence(bits: Bits) -> tuple[int, _H264Sequence]:
    profile = bits.u(8)
    bits.u(16)  # constraints, level
    number = bits.ue()
    separate = False
    if profile in HIGH_PROFILES:
        chroma = bits.ue()
        separate = chroma == 3 and bits.flag()
        bits.ue(), bits.ue(), bits.u(1)  # bit depths, lossless bypass
        if bits.flag():
            _skip_scaling_lists(bits, 8 if chroma != 3 else 12)
    frame_num_bits = bits.ue() + 4
    order_type = bits.ue()
    order_bits = bits.ue() + 4 if order_type == 0 else 0
    if order_type == 1:
        bits.u(1), bits.se(), bits.se()
        for _ in range(bits.ue()):
            bits.se()
    references, gaps = bits.ue(), bits.flag()
    bits.ue(), bits.ue()  # size in macroblocks
    sequence = _H264Sequence(min(frame_num_bits, 16), min(order_bits, 16), references, gaps, bits.flag(), separate)
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


# -------------------------------------------------------------------------------------------------------------- H.265


class HevcHeaders:
    """Random access points, leading and disposable pictures by NAL unit type (ITU-T H.265, table 7-1)."""

    def __init__(self, extradata: bytes) -> None:
        configured = len(extradata) > 22 and extradata[:3] not in (b"\0\0\0", b"\0\0\1")
        self._length_size = (extradata[21] & 3) + 1 if configured else 0
        self._highest_layer = 0  # temporal

    def parse(self, payload: bytes) -> tuple[Picture, ...]:
        recovery: int | None = None
        for unit in nal_units(payload, self._length_size):
            kind = unit[0] >> 1 & 63
            if kind < 32:
                return (self._picture(kind, (unit[1] & 7) - 1, recovery),)
            if kind == 39:  # prefix SEI
                for message, body in sei_messages(unescape(unit[2:])):
                    recovery = max(0, Bits(body).se()) if message == RECOVERY_POINT else recovery
        return ()

    def _picture(self, kind: int, layer: int, recovery: int | None) -> Picture:
        self._highest_layer = max(self._highest_layer, layer)
        random_access = 16 <= kind <= 23
        return Picture(
            kind="I" if random_access else "P",
            reset=16 <= kind <= 20,  # BLA and IDR; a clean random access picture (21) may have leading ones
            recovery=0 if random_access else recovery,
            # types 0, 2, ... 14 are not used by their own layer; by a higher one only where there is one
            disposable=kind < 16 and kind % 2 == 0 and layer == self._highest_layer,
            leading=kind in (8, 9),
            independent=random_access,
        )


# ---------------------------------------------------------------------------------------------------------------- VP8


class _BoolDecoder:
    """The arithmetic decoder of VP8 for bits of probability one half (RFC 6386, section 7)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._value = int.from_bytes(data[:2], "big")
        self._at, self._range, self._shifted = 2, 255, 0

    def bit(self) -> int:
        split = 1 + ((self._range - 1) * 128 >> 8)
        one = self._value >= split << 8
        if one:
            self._range -= split
            self._value -= split << 8
        else:
            self._range = split
        while self._range < 128:
            self._value, self._range, self._shifted = self._value << 1, self._range << 1, self._shifted + 1
            if self._shifted == 8:
                if self._at >= len(self._data):
                    raise IndexError("header ends early")
                self._value |= self._data[self._at]
                self._at, self._shifted = self._at + 1, 0
        return int(one)

    def literal(self, n: int) -> int:
        value = 0
        for _ in range(n):
            value = value << 1 | self.bit()
        return value

    def optional(self, n: int) -> None:
        """A flag, and if it is set n bits."""
        if self.bit():
            self.literal(n)


def parse_vp8(payload: bytes) -> tuple[Picture, ...]:
    """Frame tag and the refresh flags of the first partition (RFC 6386, sections 9.1 to 9.11, 19.2)."""
    if not payload:
        return ()
    shown = bool(payload[0] & 16)
    if not payload[0] & 1:
        return (Picture(kind="I", reset=True, recovery=0, independent=True, shown=shown),)
    try:
        disposable = not _vp8_updates(_BoolDecoder(payload[3 : 3 + 256]))
    except IndexError:
        disposable = False
    return (Picture(kind="P", disposable=disposable, shown=shown),)


def _vp8_updates(bits: _BoolDecoder) -> bool:
    """True if an inter frame changes anything that later frames read: references or probabilities."""
    if bits.bit():  # segmentation
        update_map, update_data = bits.bit(), bits.bit()
        if update_map or update_data:
            return True  # both stay in force
    bits.literal(10)  # filter type, level, sharpness
    if bits.bit() and bits.bit():  # filter deltas, and their update, which stays in force
        return True
    bits.literal(2 + 7)  # partitions, quantiser index
    for _ in range(5):
        bits.optional(5)
    golden, altref = bits.bit(), bits.bit()
    copies = (0 if golden else bits.literal(2)) | (0 if altref else bits.literal(2))
    bits.literal(2)  # sign biases
    entropy, last = bits.bit(), bits.bit()
    return bool(golden or altref or copies or entropy or last)


# --------------------------------------------------------------------------------------------------------- MPEG-1/2/4


def parse_mpeg12(payload: bytes) -> tuple[Picture, ...]:
    """Group and picture headers (ISO/IEC 13818-2, sections 6.2.2.6 and 6.2.3)."""
    new_group = closed = False
    at = payload.find(b"\0\0\1")
    while 0 <= at < len(payload) - 5:
        code = payload[at + 3]
        if code == 0xB8:  # group of pictures: 25 bits of time code, closed_gop, broken_link
            new_group, closed = True, bool(payload[at + 7] & 0x40)
        elif code == 0x00:
            order = payload[at + 4] << 2 | payload[at + 5] >> 6
            kind = {1: "I", 2: "P", 3: "B", 4: "I"}.get(payload[at + 5] >> 3 & 7, "")
            return (
                Picture(
                    kind=kind,
                    disposable=kind == "B",
                    independent=kind == "I",
                    order=order,
                    order_size=1024,
                    new_group=new_group,
                    closed=closed,
                ),
            )
        at = payload.find(b"\0\0\1", at + 3)
    return ()


def parse_mpeg4(payload: bytes) -> tuple[Picture, ...]:
    """Coding types of the video object planes of a packet; packed AVI files have two (ISO/IEC 14496-2, 6.2.5)."""
    pictures = []
    at = payload.find(b"\0\0\1\xb6")
    while 0 <= at < len(payload) - 4:
        kind = "IPBP"[payload[at + 4] >> 6]
        pictures.append(Picture(kind=kind, disposable=kind == "B", independent=kind == "I"))
        at = payload.find(b"\0\0\1\xb6", at + 4)
    return tuple(pictures)
