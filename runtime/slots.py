"""VP9 and AV1 headers: which reference slots a picture reads and writes (pure byte parsing).

Both codecs keep eight reference pictures and every header names the slots it uses, so damage can be followed exactly.
"""

from dataclasses import dataclass

from runtime.picture import Bits, Picture

__all__ = ["Av1Headers", "parse_vp9"]

ALL_SLOTS = 0xFF
HEADER_BYTES = 64


def parse_vp9(payload: bytes) -> tuple[Picture, ...]:
    """Uncompressed headers of the frames of a packet, superframe index included (VP9 bitstream, 6.2 and annex B)."""
    return tuple(_vp9_picture(frame) for frame in _vp9_frames(payload) if frame)


def _vp9_frames(payload: bytes) -> list[bytes]:
    last = payload[-1]
    if last & 0xE0 != 0xC0:
        return [payload]
    width, count = (last >> 3 & 3) + 1, (last & 7) + 1
    index = 2 + width * count
    if len(payload) < index or payload[-index] != last:
        return [payload]
    frames, at = [], 0
    for i in range(count):
        start = len(payload) - index + 1 + i * width
        size = int.from_bytes(payload[start : start + width], "little")
        frames.append(payload[at : at + size])
        at += size
    return frames


def _vp9_picture(frame: bytes) -> Picture:
    bits = Bits(frame[:HEADER_BYTES])
    if bits.u(2) != 2:
        raise ValueError("no VP9 frame marker")
    profile = bits.u(1) | bits.u(1) << 1
    if profile == 3:
        bits.u(1)
    if bits.flag():  # show_existing_frame
        return Picture(kind="P", disposable=True, reads=(bits.u(3),))
    key, shown, resilient = not bits.flag(), bits.flag(), bits.flag()
    if key:
        return Picture(
            kind="I", reset=True, recovery=0, independent=True, shown=shown, writes=ALL_SLOTS, resets_contexts=True
        )
    intra_only = False if shown else bits.flag()
    reset_contexts = 0 if resilient else bits.u(2)
    afresh = resilient or (intra_only and reset_contexts == 3)
    if intra_only:
        _vp9_intra_only_format(bits, profile)
        return Picture(
            kind="I",
            independent=True,
            shown=shown,
            writes=bits.u(8),
            resets_contexts=afresh,
            reads_contexts=not afresh,
        )
    writes = bits.u(8)
    reads = []
    for _ in range(3):
        reads.append(bits.u(3))
        bits.u(1)  # sign bias
    return Picture(
        kind="P",
        shown=shown,
        disposable=writes == 0,
        reads=tuple(sorted(set(reads))),
        writes=writes,
        resets_contexts=afresh,
        reads_contexts=not resilient,
    )


def _vp9_intra_only_format(bits: Bits, profile: int) -> None:
    """Sync code and, above profile 0, the colour format."""
    bits.u(24)
    if profile == 0:
        return
    if profile >= 2:
        bits.u(1)
    if bits.u(3) != 7:  # not RGB
        bits.u(1)
        if profile in (1, 3):
            bits.u(3)
    elif profile in (1, 3):
        bits.u(1)


@dataclass(frozen=True, slots=True)
class _Av1Sequence:
    """What of a sequence header is needed to read frame headers (AV1 specification, section 5.5)."""

    still: bool  # reduced_still_picture_header
    frame_id_bits: int = 0
    delta_frame_id_bits: int = 0
    order_bits: int = 0
    screen_content: int = 2  # 2 = each frame says
    integer_mv: int = 2
    equal_interval: bool = False
    decoder_model: bool = False
    removal_time_bits: int = 0
    operating_points: tuple[tuple[int, bool], ...] = ()  # (idc, decoder model present)
    presentation_time_bits: int = 0


class Av1Headers:
    """Frame headers of temporal units (AV1 specification, sections 5.3 to 5.9)."""

    def __init__(self, extradata: bytes) -> None:
        self._sequence: _Av1Sequence | None = None
        self._slot_kind = [""] * 8  # kind of picture in each slot: showing a key frame again refreshes all
        if extradata[:1] == b"\x81" and len(extradata) > 4:  # AV1CodecConfigurationRecord
            try:
                self.parse(extradata[4:])
            except (IndexError, ValueError):
                self._sequence = None

    def parse(self, payload: bytes) -> tuple[Picture, ...]:
        pictures = []
        at = 0
        while at < len(payload):
            header = payload[at]
            kind, extension, sized = header >> 3 & 15, header >> 2 & 1, header >> 1 & 1
            layers = payload[at + 1] if extension else 0
            at += 1 + extension
            size = len(payload) - at
            if sized:
                size, at = _leb128(payload, at)
            body = payload[at : at + size]
            at += size
            if kind == 1:
                self._sequence = _av1_sequence(Bits(body[:256]))
            elif kind in (3, 6) and self._sequence is not None:  # frame header, frame
                pictures.append(self._frame(Bits(body[:HEADER_BYTES]), self._sequence, layers if extension else None))
        return tuple(pictures)

    def _frame(self, bits: Bits, sequence: _Av1Sequence, layers: int | None) -> Picture:
        if sequence.still:
            return Picture(kind="I", reset=True, recovery=0, independent=True, writes=ALL_SLOTS)
        if bits.flag():  # show_existing_frame
            return self._again(bits.u(3))
        kind, shown = bits.u(2), bits.flag()
        if shown and sequence.decoder_model and not sequence.equal_interval:
            bits.u(sequence.presentation_time_bits)
        if not shown:
            bits.u(1)  # showable_frame
        key, intra_only, switch = kind == 0, kind == 2, kind == 3
        resilient = True if switch or (key and shown) else bits.flag()
        bits.u(1)  # disable_cdf_update
        screen = bits.u(1) if sequence.screen_content == 2 else sequence.screen_content
        if screen and sequence.integer_mv == 2:
            bits.u(1)
        if sequence.frame_id_bits:
            bits.u(sequence.frame_id_bits)
        if not switch:
            bits.u(1)  # frame_size_override_flag
        bits.u(sequence.order_bits)
        if not (key or intra_only or resilient):
            bits.u(3)  # primary_ref_frame: contexts live in the slots, so they need no state of their own
        self._skip_decoder_model(bits, sequence, layers)
        writes = ALL_SLOTS if switch or (key and shown) else bits.u(8)
        if key or intra_only:
            return self._store(
                Picture(
                    kind="I",
                    reset=key and shown,
                    recovery=0 if key and shown else None,
                    independent=True,
                    shown=shown,
                    writes=writes,
                ),
                "key" if key else "",
            )
        return self._store(
            Picture(
                kind="P",
                disposable=writes == 0,
                shown=shown,
                reads=_av1_references(bits, sequence, writes, resilient),
                writes=writes,
            ),
            "",
        )

    def _again(self, slot: int) -> Picture:
        """A stored picture is shown; a stored key frame then counts as a key frame (section 7.21)."""
        if self._slot_kind[slot] == "key":
            self._slot_kind = ["key"] * 8
            return Picture(kind="P", reads=(slot,), writes=ALL_SLOTS)
        return Picture(kind="P", disposable=True, reads=(slot,))

    def _store(self, picture: Picture, kind: str) -> Picture:
        for slot in range(8):
            if picture.writes >> slot & 1:
                self._slot_kind[slot] = kind
        return picture

    def _skip_decoder_model(self, bits: Bits, sequence: _Av1Sequence, layers: int | None) -> None:
        if not sequence.decoder_model or not bits.flag():
            return
        for idc, present in sequence.operating_points:
            if not present:
                continue
            temporal, spatial = (0, 0) if layers is None else (layers >> 5, layers >> 3 & 3)
            if idc == 0 or layers is None or (idc >> temporal & 1 and idc >> (spatial + 8) & 1):
                bits.u(sequence.removal_time_bits)


def _av1_references(bits: Bits, sequence: _Av1Sequence, writes: int, resilient: bool) -> tuple[int, ...]:
    if writes != ALL_SLOTS and resilient and sequence.order_bits:
        bits.u(8 * sequence.order_bits)  # ref_order_hint
    if sequence.order_bits and bits.flag():  # frame_refs_short_signaling: two named, the rest derived
        return tuple(range(8))
    slots = []
    for _ in range(7):
        slots.append(bits.u(3))
        if sequence.frame_id_bits:
            bits.u(sequence.delta_frame_id_bits)
    return tuple(sorted(set(slots)))


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = data[at + i]
        value |= (byte & 127) << 7 * i
        if not byte & 128:
            return value, at + i + 1
    raise ValueError("leb128 too long")


def _av1_sequence(bits: Bits) -> _Av1Sequence:
    bits.u(3)  # profile
    bits.u(1)  # still_picture
    if bits.flag():
        return _Av1Sequence(still=True)
    equal_interval = decoder_model = False
    delay_bits = removal_bits = presentation_bits = 0
    if bits.flag():  # timing information
        bits.u(64)
        equal_interval = bits.flag()
        if equal_interval:
            bits.ue()
        decoder_model = bits.flag()
        if decoder_model:
            delay_bits = bits.u(5) + 1
            bits.u(32)
            removal_bits, presentation_bits = bits.u(5) + 1, bits.u(5) + 1
    points = _av1_operating_points(bits, decoder_model, delay_bits)
    width, height = bits.u(4) + 1, bits.u(4) + 1
    bits.u(width + height)
    frame_id = delta_id = 0
    if bits.flag():
        delta_id = bits.u(4) + 2
        frame_id = bits.u(3) + delta_id + 1
    bits.u(3)  # 128 superblocks, filter intra, intra edge filter
    bits.u(4)  # interintra, masked, warped, dual filter
    order_hint = bits.flag()
    if order_hint:
        bits.u(2)  # jnt_comp, ref_frame_mvs
    screen = 2 if bits.flag() else bits.u(1)
    integer_mv = 2
    if screen:
        integer_mv = 2 if bits.flag() else bits.u(1)
    return _Av1Sequence(
        still=False,
        frame_id_bits=frame_id,
        delta_frame_id_bits=delta_id,
        order_bits=bits.u(3) + 1 if order_hint else 0,
        screen_content=screen,
        integer_mv=integer_mv,
        equal_interval=equal_interval,
        decoder_model=decoder_model,
        removal_time_bits=removal_bits,
        operating_points=points,
        presentation_time_bits=presentation_bits,
    )


def _av1_operating_points(bits: Bits, decoder_model: bool, delay_bits: int) -> tuple[tuple[int, bool], ...]:
    display_delay = bits.flag()
    points = []
    for _ in range(bits.u(5) + 1):
        idc = bits.u(12)
        if bits.u(5) > 7:
            bits.u(1)  # tier
        present = decoder_model and bits.flag()
        if present:
            bits.u(2 * delay_bits + 1)
        if display_delay and bits.flag():
            bits.u(4)
        points.append((idc, present))
    return tuple(points)
