"""NAL units of H.264 and H.265: finding them, undoing emulation prevention, SEI messages (pure byte parsing)."""

from collections.abc import Iterator

__all__ = ["HEADER_BYTES", "RECOVERY_POINT", "first_unit", "nal_units", "sei_messages", "unescape"]

HEADER_BYTES = 160  # of a NAL unit that is unescaped; a slice header with weights for 4 references takes 80
RECOVERY_POINT = 6  # SEI payload type


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


def first_unit(payload: bytes, length_size: int, most: int) -> bytes:
    """The first unit that ``nal_units`` would give, at most so many bytes of it; b"" where that takes a search."""
    if length_size:
        size = int.from_bytes(payload[:length_size], "big")
        whole = length_size + size == len(payload) or _lengths_add_up(payload, length_size)
        return payload[length_size : length_size + min(size, most)] if whole else b""
    start = 4 if payload.startswith(b"\0\0\0\1") else 3 if payload.startswith(b"\0\0\1") else 0
    if not start:
        return b""
    unit = payload[start : start + most + 2]
    end = unit.find(b"\0\0\1")
    return unit[:most] if end < 0 else unit[:end]


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


def unescape(unit: bytes, size: int = HEADER_BYTES) -> bytes:
    """The first bytes of a NAL unit without emulation prevention (H.264, section 7.4.1)."""
    return unit[:size].replace(b"\0\0\3", b"\0\0")


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
