"""Which sound a loss spoils, until when: in time, or by what a codec carries from frame to frame."""

from runtime.packet import CodecConfig, Gap, Packet
from runtime.verdict import CORRUPT_SEVERITY, INTACT, Damage

__all__ = ["AudioDamage", "spoiled_bytes", "spoiled_frames"]

# How long a hole is heard after it, by codec: frames whose decoding overlaps or predicts from what was lost.
SPOILED_FRAMES = {
    "aac": 1,
    "aac_latm": 1,
    "ac3": 1,
    "eac3": 1,
    "mp2": 1,
    "mp1": 1,
    "vorbis": 1,
    "wmav1": 1,
    "wmav2": 1,
    "mp3": 1,  # counted from the first frame whose main_data_begin is covered
    "amr_nb": 4,
    "amr_wb": 4,
    "speex": 4,
}
SPOILED_SECONDS = {"opus": 0.08}
SAMPLE_CODECS = ("pcm_", "flac", "alac", "adpcm_ima_wav", "adpcm_ms", "wavpack", "tta")  # each packet stands alone
DTX_CODECS = frozenset({"opus", "speex", "amr_nb", "amr_wb", "g723_1", "g729"})  # silent where time steps
HE_AAC_FRAMES = 2
MP3_RESERVOIR = 511  # bytes; main_data_begin has nine bits


class AudioDamage:
    """Which audio packets are missing or spoiled by a hole before them; packets and gaps in order.

    PCM, FLAC and ALAC are never spoiled by a neighbour; AAC-LC, Vorbis, AC-3 and MP2 for one frame, HE-AAC for two,
    MP3 until the bit reservoir is full again and one frame more, Opus for 80 ms. In a container without sequence
    numbers a step of the capture time is a hole, unless the codec falls silent on purpose (DTX).
    """

    def __init__(self, config: CodecConfig, *, sequence_numbers: bool = True) -> None:
        self._codec = config.codec
        self._frames = spoiled_frames(config)
        self._seconds = SPOILED_SECONDS.get(config.codec, 0.0)
        self._by_time = not sequence_numbers and config.codec not in DTX_CODECS
        self._left = 0  # spoiled frames still to come
        self._until: float | None = None  # seconds; None = not known before the next packet
        self._hole = False  # the next packet is the first after a hole
        self._end: int | None = None  # ticks where the last packet ended
        self._reservoir: int | None = None  # MP3: bytes of main data at hand since the last hole; None = enough
        self.errors = 0

    def push(self, item: Packet | Gap) -> Damage:
        """The verdict on the next packet or gap."""
        if isinstance(item, Gap):
            self._hole = True
            return Damage(True, "lost", 1.0)
        if self._by_time and self._end is not None and item.duration:
            self._hole |= item.capture_time - self._end > item.duration // 2
        self._end = item.capture_time + item.duration if item.duration else None
        if self._hole:
            self._begin_again(item)
        spoiled = self._spoils(item)
        if item.corrupt:
            self._hole = True
            return Damage(True, "corrupt", CORRUPT_SEVERITY)
        return Damage(True, "reference", CORRUPT_SEVERITY) if spoiled else INTACT

    def decode_error(self) -> Damage:
        """The decoder refused the packet pushed last."""
        self.errors += 1
        self._hole = True
        return Damage(True, "corrupt", 1.0)

    def _begin_again(self, packet: Packet) -> None:
        self._hole = False
        self._left = self._frames
        self._until = packet.seconds + self._seconds if self._seconds else None
        self._reservoir = 0 if self._codec == "mp3" else None

    def _spoils(self, packet: Packet) -> bool:
        if self._reservoir is not None and not self._fill_reservoir(packet.payload):
            return True
        if self._left:
            self._left -= 1
            return True
        if self._until is not None and packet.seconds < self._until - 1e-6:
            return True
        self._until = None
        return False

    def _fill_reservoir(self, payload: bytes) -> bool:
        """True if the MP3 frame finds all of its main data in what came since the hole."""
        found = _mp3_main_data(payload)
        if found is None:
            return False
        assert self._reservoir is not None
        begin, size = found
        covered = begin <= self._reservoir
        self._reservoir = min(self._reservoir + size, MP3_RESERVOIR)
        if covered:
            self._reservoir = None
        return covered


def spoiled_bytes(config: CodecConfig) -> int:
    """How many bytes of payload a frame may lean on besides its own."""
    return MP3_RESERVOIR if config.codec == "mp3" else 0


def spoiled_frames(config: CodecConfig) -> int:
    """How many frames after a hole are not right, where a codec counts in frames."""
    if config.codec.startswith(SAMPLE_CODECS):
        return 0
    if config.codec in SPOILED_SECONDS:
        return 0
    if config.codec == "aac" and _is_he_aac(config):
        return HE_AAC_FRAMES
    return SPOILED_FRAMES.get(config.codec, 1)


def _is_he_aac(config: CodecConfig) -> bool:
    """Spectral band replication, by AudioSpecificConfig (ISO/IEC 14496-3, 1.6.2.1) or by a doubled sample rate."""
    data = config.extradata
    if len(data) < 2:
        return False
    if data[0] >> 3 in (5, 29):  # SBR, parametric stereo
        return True
    rates = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
    index = (data[0] & 7) << 1 | data[1] >> 7
    doubled = index < len(rates) and config.sample_rate == 2 * rates[index]
    # the sync word 0x2b7 and object type 5 of a trailing extension, then whether SBR is there
    return doubled or (data[2:4] == b"\x56\xe5" and len(data) > 4 and data[4] & 0x80 != 0)


def _mp3_main_data(payload: bytes) -> tuple[int, int] | None:
    """(main_data_begin, bytes of main data in this frame) of an MPEG audio layer III frame (ISO/IEC 11172-3)."""
    if len(payload) < 8 or payload[0] != 0xFF or payload[1] & 0xE6 != 0xE2:
        return None
    mpeg1 = payload[1] >> 3 & 3 == 3
    checked = not payload[1] & 1
    mono = payload[3] >> 6 == 3
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    at = 4 + 2 * checked
    begin = payload[at] << 1 | payload[at + 1] >> 7 if mpeg1 else payload[at]
    return begin, max(0, len(payload) - at - side)
