"""A codec that is fed packets and nothing else: how it is opened, what it is told, how its errors are counted.

Errors of a codec are counted, never raised: a broken packet is data. One thread per decoder keeps replay deterministic.
"""

from fractions import Fraction
from typing import Any, Protocol

import av.error
from av.codec.context import CodecContext, Flags2, ThreadType

from encoders.errors import SourceError

# Where FFmpeg's first choice needs a GPU, dithers to integers by a state that depends on all that was before, or gives
# other samples in another process (its own Opus decoder, by up to 1.5 % of full scale).
_DECODERS = {"av1": "libdav1d", "mp3": "mp3float", "mp2": "mp2float", "mp1": "mp1float", "opus": "libopus"}
_MAX_PIXELS = 8192 * 8192
_RESET_AFTER = 50  # consecutive errors after which a decoder's state is thrown away


class Encoded(Protocol):
    """What the decoders read of a packet (``encoders.media.Demuxed`` or ``runtime.packet.Packet``)."""

    @property
    def seq(self) -> int: ...
    @property
    def capture_time(self) -> int: ...
    @property
    def time_base(self) -> Fraction: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def skip(self) -> int: ...
    @property
    def padding(self) -> int: ...


class Codec(Protocol):
    """What the decoders read of a track (``encoders.media.Track`` or ``runtime.packet.CodecConfig``)."""

    @property
    def codec(self) -> str: ...
    @property
    def extradata(self) -> bytes: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def pixel_format(self) -> str: ...
    @property
    def rotation(self) -> int: ...


class PacketDecoder:
    """The part that both modalities share: a codec context, an error count, a reset."""

    def __init__(self, config: Codec, kind: str) -> None:
        self.errors = 0  # packets that the codec refused
        self.corrupt = 0  # pictures or frames that it called corrupt
        self._failures = 0  # in a row
        self._config = config
        self._context = _context(config, kind)

    def limit_pixels(self, pixels: int) -> None:
        """Refuse pictures of more pixels from now on; before the first packet."""
        self._context.options = {"max_pixels": str(min(pixels, _MAX_PIXELS))}

    def _decode(self, packet: Any) -> list[Any]:
        """Frames that a PyAV packet (None: the end) gives; [] and a count where the codec fails."""
        try:
            frames = self._context.decode(packet)
        except (av.error.FFmpegError, ValueError, MemoryError):
            self.errors += 1
            self._failures += 1
            if self._failures % _RESET_AFTER == 0 and self._context.is_open:
                self._context.flush_buffers()
            return []
        if frames:
            self._failures = 0
        return frames


def _created(name: str) -> Any:
    """A decoder by FFmpeg's name; None where this build has none."""
    try:
        return CodecContext.create(name, "r")
    except (av.error.FFmpegError, ValueError):
        return None


def _context(config: Codec, kind: str) -> Any:
    """A decoder that knows nothing but the config."""
    context = _created(_DECODERS.get(config.codec, config.codec)) or _created(config.codec)
    if context is None:
        raise SourceError(f"codec {config.codec!r} has no decoder here; re-encode to h264 and aac")
    if context.type != kind:
        raise SourceError(f"codec {config.codec!r} is not a {kind} codec")
    context.thread_count = 1
    context.thread_type = ThreadType.NONE
    if config.extradata:
        context.extradata = config.extradata
    if kind == "audio":
        context.flags2 |= Flags2.skip_manual  # priming travels with the packets
        if config.sample_rate:
            context.sample_rate = config.sample_rate
        if config.channels:
            context.layout = {1: "mono", 2: "stereo"}.get(config.channels, f"{config.channels} channels")
        if context.name == "libopus":
            context.options = {"request_sample_fmt": "flt"}  # else it rounds to 16 bits
        return context
    context.options = {"max_pixels": str(_MAX_PIXELS)}
    if config.width and config.height:
        context.width, context.height = config.width, config.height
    if config.pixel_format and config.codec == "rawvideo":
        context.pix_fmt = config.pixel_format
    return context
