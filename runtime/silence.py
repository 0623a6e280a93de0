"""What a muted microphone sends: a packet of digital silence, as long as the one it stands for.

Used by the ``+zeros`` rendering of a device loss: the packets keep coming, so sequence numbers show nothing.
"""

from runtime.errors import UsageError
from runtime.packet import CodecConfig

# Raw AAC-LC frames whose spectrum is empty: one channel element, then the end tag (ISO/IEC 14496-3, 4.4.2.1).
_AAC = {1: bytes.fromhex("00c800802380"), 2: bytes.fromhex("210049900219002380")}
_PCM_REST = {"pcm_u8": b"\x80", "pcm_mulaw": b"\xff", "pcm_alaw": b"\xd5"}  # the code of zero; others: 0
_OPUS_SILENCE = b"\xff\xfe"  # a CELT frame with its silence flag set


def silent_payload(codec: CodecConfig, payload: bytes) -> bytes:
    """A payload that decodes to digital silence of the same duration as ``payload``.

    Knows PCM, Opus, AAC-LC (raw or ADTS) and MPEG audio layers II and III; UsageError names any other codec.
    """
    name = codec.codec
    if name.startswith("pcm_"):
        return _PCM_REST.get(name, b"\0") * len(payload)
    if name in ("opus", "libopus") and payload:
        return _opus(payload)
    if name == "aac":
        return _aac(payload, codec.channels)
    if name == "mp2":
        return payload[:4] + bytes(max(len(payload) - 4, 0))  # no bits allotted to any band
    if name in ("mp3", "mp3float") and len(payload) >= 4:
        return _mp3(payload)
    raise UsageError(f"loss variant +zeros knows no silence for codec {name}; use mic-mute without +zeros")


def _aac(payload: bytes, channels: int) -> bytes:
    frame = _AAC.get(channels)
    if frame is None:
        raise UsageError(f"loss variant +zeros knows no AAC silence for {channels} channels; use mic-mute without it")
    if len(payload) < 7 or payload[0] != 0xFF or payload[1] & 0xF6 != 0xF0:
        return frame
    header = bytearray(payload[:7])  # ADTS: 13 bits of length lie across bytes 3 to 5; without a CRC
    length = 7 + len(frame)
    header[1] |= 1
    header[3] = header[3] & 0xFC | length >> 11
    header[4] = length >> 3 & 0xFF
    header[5] = (length & 7) << 5 | header[5] & 0x1F
    header[6] &= 0xFC
    return bytes(header) + frame


def _mp3(payload: bytes) -> bytes:
    """No bits for any granule; the rest stays, for later frames reach back for the bits they kept there."""
    mpeg1, mono, crc = payload[1] >> 3 & 3 == 3, payload[3] >> 6 == 3, not payload[1] & 1
    start = 6 if crc else 4
    side = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[mpeg1, mono]
    return payload[:start] + bytes(side) + payload[start + side :]


def _opus(payload: bytes) -> bytes:
    """CELT frames of silence of the same total duration and channel count (RFC 6716, section 3)."""
    toc = payload[0]
    duration = _opus_units(toc, payload[1] & 63 if len(payload) > 1 else 1)
    # Configurations 28 to 31 are full-band CELT of 2.5, 5, 10 and 20 ms: 1, 2, 4 and 8 units.
    config, frame = next((c, units) for c, units in ((31, 8), (30, 4), (29, 2), (28, 1)) if duration % units == 0)
    count = duration // frame
    head = config << 3 | toc & 0x04  # bit 2: stereo
    if count == 1:
        return bytes([head]) + _OPUS_SILENCE
    return bytes([head | 3, count]) + _OPUS_SILENCE * count  # code 3: that many frames of equal size


def _opus_units(toc: int, count_byte: int) -> int:
    """Duration of a packet in units of 2.5 ms (RFC 6716, table 2 and section 3.2)."""
    config, code = toc >> 3, toc & 3
    if config < 12:
        frame = (4, 8, 16, 24)[config & 3]
    elif config < 16:
        frame = (4, 8)[config & 1]
    else:
        frame = (1, 2, 4, 8)[config & 3]
    return frame * (1, 2, 2, max(count_byte, 1))[code]
