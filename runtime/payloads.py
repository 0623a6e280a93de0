"""What RTP payloads hold: H.264 (RFC 6184), Opus (RFC 7587, RFC 6716), G.711 (RFC 3551); and how to make them. Pure.

Only the payload's own bytes are judged here; frames are put together from them by ``runtime.depacketize``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from runtime.rtp import RtpError

__all__ = [
    "START_CODE",
    "Nal",
    "looks_like_h264",
    "opus_samples",
    "packetize_h264",
    "split_h264",
    "starts_picture",
]

START_CODE = b"\0\0\0\1"
STAP_A, FU_A = 24, 28
SLICE, PARTITION_A, IDR, SEI, SPS, PPS, DELIMITER = 1, 2, 5, 6, 7, 8, 9
UNSUPPORTED = {25: "STAP-B", 26: "MTAP16", 27: "MTAP24", 29: "FU-B"}  # interleaved mode (RFC 6184, section 5.2)
MTU = 1200  # bytes of payload that pass everywhere
OPUS_RATE = 48_000  # Hz, whatever was recorded (RFC 7587, section 4.1)
OPUS_MOST = 5760  # samples in a packet: 120 ms
_SILK_MS, _HYBRID_MS, _CELT_MS = (10, 20, 40, 60), (10, 20), (2.5, 5, 10, 20)


@dataclass(frozen=True, slots=True)
class Nal:
    """A NAL unit, or the part of one that a fragmentation unit carries; a first part brings the NAL's header byte."""

    data: bytes
    first: bool = True
    last: bool = True
    header: int = 0  # of the whole NAL unit

    @property
    def kind(self) -> int:
        return self.header & 31


def split_h264(payload: bytes) -> list[Nal]:
    """The NAL units, or the fragment, of one payload (RFC 6184, section 5). Raises RtpError."""
    if not payload:
        raise RtpError("H.264 payload is empty")
    kind = payload[0] & 31
    if 1 <= kind < STAP_A:
        return [Nal(payload, header=payload[0])]
    if kind == STAP_A:
        return list(_aggregated(payload))
    if kind == FU_A:
        return [_fragment(payload)]
    name = UNSUPPORTED.get(kind)
    if name:
        raise RtpError(f"H.264 payload is a {name}; interleaved packetization is not supported, use mode 0 or 1")
    raise RtpError(f"H.264 payload has the reserved NAL unit type {kind}")


def _aggregated(payload: bytes) -> Iterator[Nal]:
    """Section 5.7.1."""
    at = 1
    if len(payload) == at:
        raise RtpError("H.264 STAP-A holds no NAL unit")
    while at < len(payload):
        size = int.from_bytes(payload[at : at + 2], "big")
        unit = payload[at + 2 : at + 2 + size]
        if at + 2 > len(payload) or len(unit) != size:
            left = max(len(payload) - at - 2, 0)
            raise RtpError(f"H.264 STAP-A announces a NAL unit of {size} bytes, and {left} are left")
        if not unit:
            raise RtpError("H.264 STAP-A holds a NAL unit of 0 bytes")
        if not 1 <= unit[0] & 31 < STAP_A:
            raise RtpError(f"H.264 STAP-A holds a NAL unit of type {unit[0] & 31}")
        yield Nal(unit, header=unit[0])
        at += 2 + size


def _fragment(payload: bytes) -> Nal:
    """Section 5.8."""
    if len(payload) < 2:
        raise RtpError("H.264 FU-A ends within its header")
    first, last = bool(payload[1] & 0x80), bool(payload[1] & 0x40)
    header = payload[0] & 0xE0 | payload[1] & 31
    if not 1 <= header & 31 < STAP_A:
        raise RtpError(f"H.264 FU-A carries a NAL unit of type {header & 31}")
    body = payload[2:]
    return Nal(bytes([header]) + body if first else body, first, last, header)


def starts_picture(nal: Nal) -> bool:
    """Whether nothing of its picture comes before this: no slice does, or it is the first macroblock's."""
    if not nal.first or len(nal.data) < 2:
        return False
    if nal.kind in (SLICE, PARTITION_A, IDR):
        return nal.data[1] >= 0x80  # first_mb_in_slice is 0, as Exp-Golomb code
    return nal.kind in (SEI, SPS, PPS, DELIMITER, 14, 15)


def looks_like_h264(payloads: Sequence[bytes]) -> bool:
    """Whether payloads of one stream are H.264: all parse, none breaks its syntax, and what a stream needs is there."""
    kinds = set()
    for payload in payloads:
        try:
            nals = split_h264(payload)
        except RtpError:
            return False
        if any(nal.header & 0x80 for nal in nals):  # forbidden_zero_bit
            return False
        if any(nal.kind in (IDR, SPS, PPS) and not nal.header & 0x60 for nal in nals):  # nal_ref_idc 0 is forbidden
            return False
        kinds |= {nal.kind for nal in nals}
    known = {SLICE, IDR, SEI, SPS, PPS, DELIMITER}
    return bool(kinds & {SLICE, IDR}) and kinds <= known


def packetize_h264(units: Iterable[bytes], mtu: int = MTU) -> list[tuple[bytes, bool]]:
    """Payloads of one access unit, each with its marker bit: single NAL units, STAP-A for small neighbours, FU-A."""
    out: list[bytes] = []
    small: list[bytes] = []
    for unit in units:
        size = 1 + sum(2 + len(s) for s in (*small, unit))
        if size > mtu:
            out += _together(small)
            small = []
        if len(unit) > mtu:
            out += _fragments(unit, mtu)
        elif 3 + len(unit) > mtu:
            out.append(unit)
        else:
            small.append(unit)
    out += _together(small)
    return [(payload, i == len(out) - 1) for i, payload in enumerate(out)]


def _together(units: list[bytes]) -> list[bytes]:
    if len(units) < 2:
        return list(units)
    reference = max(unit[0] & 0x60 for unit in units)
    body = b"".join(len(unit).to_bytes(2, "big") + unit for unit in units)
    return [bytes([reference | STAP_A]) + body]


def _fragments(unit: bytes, mtu: int) -> list[bytes]:
    indicator, kind, body, step = unit[0] & 0xE0 | FU_A, unit[0] & 31, unit[1:], mtu - 2
    starts = range(0, len(body), step)
    return [
        bytes([indicator, kind | (at == 0) << 7 | (at + step >= len(body)) << 6]) + body[at : at + step]
        for at in starts
    ]


def opus_samples(payload: bytes) -> int:
    """Samples at 48 kHz that an Opus packet decodes to (RFC 6716, section 3). Raises RtpError for a malformed one."""
    if not payload:
        raise RtpError("Opus packet is empty")
    config, code = payload[0] >> 3, payload[0] & 3
    if config < 12:
        milliseconds: float = _SILK_MS[config % 4]
    elif config < 16:
        milliseconds = _HYBRID_MS[config % 2]
    else:
        milliseconds = _CELT_MS[config % 4]
    samples = int(milliseconds * OPUS_RATE / 1000) * _opus_frames(payload, code)
    if samples > OPUS_MOST:
        raise RtpError(f"Opus packet lasts {samples / 48:g} ms; 120 ms is the most")
    return samples


def _opus_frames(payload: bytes, code: int) -> int:
    """How many frames, after checking that their lengths fit (section 3.2, R1 to R7)."""
    size = len(payload)
    if code == 0:
        return 1
    if code == 1:
        if size % 2 == 0:
            raise RtpError(f"Opus packet of two equal frames has {size - 1} bytes for them, an odd number")
        return 2
    if code == 2:
        length, at = _opus_length(payload, 1)
        if at + length > size:
            raise RtpError(f"Opus frame announces {length} bytes, and {size - at} are left")
        return 2
    return _opus_many(payload)


def _opus_many(payload: bytes) -> int:
    if len(payload) < 2 or payload[1] & 63 == 0:
        raise RtpError("Opus packet of many frames holds none")
    count, variable, padded = payload[1] & 63, payload[1] >> 7, payload[1] >> 6 & 1
    at, padding = 2, 0
    while padded:
        if at >= len(payload):
            raise RtpError("Opus packet ends within its padding length")
        step = payload[at]
        padding += min(step, 254)
        at += 1
        padded = step == 255
    left = len(payload) - at - padding
    for _ in range(count - 1 if variable else 0):
        length, after = _opus_length(payload, at)
        left -= length + after - at
        at = after
    if left < 0 or (not variable and left % count):
        raise RtpError(f"Opus frames do not fit: {left} bytes are left for {count} frames")
    return count


def _opus_length(payload: bytes, at: int) -> tuple[int, int]:
    """A frame length of one or two bytes, and where it ends (section 3.2.1)."""
    if at >= len(payload) or (payload[at] >= 252 and at + 1 >= len(payload)):
        raise RtpError("Opus packet ends within a frame length")
    if payload[at] < 252:
        return payload[at], at + 1
    return payload[at] + 4 * payload[at + 1], at + 2
