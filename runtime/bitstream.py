"""What coded pictures say about who depends on whom: headers of H.265, VP8 and MPEG-1/2/4, and the way to all parsers.

``picture_parser(config)`` gives a function from a packet's payload to its pictures, in decode order. Only headers are
read, never picture data; a header that cannot be read gives an empty tuple, never an exception. H.264 is in
``runtime/h264.py``; VP9 and AV1, whose headers name reference slots, in ``runtime/slots.py``.
"""

from collections.abc import Callable

from runtime.h264 import H264Headers
from runtime.nal import RECOVERY_POINT, nal_units, sei_messages, unescape
from runtime.packet import CodecConfig
from runtime.picture import Bits, Picture
from runtime.slots import Av1Headers, parse_vp9

__all__ = ["guarded", "picture_parser"]


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
    return guarded(maker(config))


def guarded(parse: Parser) -> Parser:
    """The same parser, but a header that cannot be read gives no picture."""

    def parse_anything(payload: bytes) -> tuple[Picture, ...]:
        try:
            return parse(payload)
        except (IndexError, ValueError, OverflowError):
            return ()

    return parse_anything


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
