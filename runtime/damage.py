"""Which frames a loss spoils, until when: in decode order for video, in time for audio.

Decoders conceal what they miss and hardly ever say so, so damage is followed here: what was lost (gaps in the sequence
numbers, or steps of the decode time in a container), what depends on it (headers, ``runtime.references``), and what
the decoder did report. Truth in the tests: mean absolute luma error above 0.5 grey levels, or the frame is missing.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from runtime.bitstream import picture_parser
from runtime.h264_references import H264References
from runtime.packet import CodecConfig, Gap, Packet
from runtime.picture import Picture
from runtime.references import Alone, Anchors, Chain, References, Slots

__all__ = [
    "INTACT",
    "AudioDamage",
    "Damage",
    "StepRule",
    "VideoDamage",
    "spoiled_bytes",
    "spoiled_frames",
]

EVENTS = 48  # packets whose verdict may still be revised; decoders hold back 16 pictures at most, threads aside
CORRUPT_SEVERITY = 0.5  # of a picture whose own bytes are wrong, its references being right
# FFmpeg calls intact pictures of these corrupt, not the same ones in every process; errors it raises still count.
UNRELIABLE_FLAGS = frozenset({"mpeg4"})
HEALING = 0.97  # what is left of a severity after one more picture: its intra blocks repair the rest


INTRA_ONLY = frozenset(
    {
        "asv1",
        "asv2",
        "bmp",
        "cfhd",
        "dnxhd",
        "dpx",
        "dvvideo",
        "exr",
        "ffvhuff",
        "huffyuv",
        "jpeg2000",
        "jpegls",
        "ljpeg",
        "magicyuv",
        "mjpeg",
        "mjpegb",
        "pam",
        "pgm",
        "png",
        "ppm",
        "prores",
        "qoi",
        "r10k",
        "r210",
        "rawvideo",
        "sgi",
        "targa",
        "tiff",
        "utvideo",
        "v210",
        "v308",
        "v408",
        "v410",
        "webp",
        "wrapped_avframe",
        "yuv4",
    }
)


@dataclass(frozen=True, slots=True)
class Damage:
    """The verdict on one packet or frame.

    ``reason``: ``lost`` (it is a gap), ``corrupt`` (its own bytes are wrong), ``reference`` (it is decoded from a
    wrong picture). ``severity`` is an estimate, 0 (not visible) to 1 (nothing of the picture is right).
    """

    damaged: bool = False
    reason: str = ""
    severity: float = 0.0


INTACT = Damage()


class StepRule:
    """Finds lost packets where no sequence numbers tell: a decode-time step larger than 1.5 times the running median.

    Only where steps vary by less than 5 %; with a variable frame rate it says nothing and ``unknown`` is True.
    """

    def __init__(self, window: int = 48, least: int = 6) -> None:
        self._steps: deque[int] = deque()
        self._counts: Counter[int] = Counter()  # the same steps; only few differ, which keeps each packet cheap
        self._window, self._least = window, least
        self._last: int | None = None
        self.unknown = True

    def lost_before(self, decode_time: int) -> int:
        """How many packets are missing between the last one and this one; ticks."""
        last, self._last = self._last, decode_time
        if last is None or decode_time <= last:
            return 0
        step = decode_time - last
        middle = self._median() if len(self._steps) >= self._least else 0
        self._note(step)
        if len(self._counts) == 1 and step == middle:  # every step is the same
            self.unknown = False
            return 0
        steady = sum(n for s, n in self._counts.items() if _near(s, middle)) if middle else 0
        self.unknown = steady * 4 < len(self._steps) * 3 or not middle
        return 0 if self.unknown or step <= 1.5 * middle else max(0, round(step / middle) - 1)

    def _note(self, step: int) -> None:
        self._steps.append(step)
        self._counts[step] += 1
        if len(self._steps) > self._window:
            old = self._steps.popleft()
            self._counts[old] -= 1
            if not self._counts[old]:
                del self._counts[old]

    def _median(self) -> float:
        return next(iter(self._counts)) if len(self._counts) == 1 else median(self._steps)


def _near(step: int, middle: float) -> bool:
    """A whole multiple of the median, within 5 % or the rounding of one tick: a steady rate with holes is steady."""
    times = max(1, round(step / middle))
    return times <= 16 and abs(step - times * middle) <= max(0.05 * middle, 1)


def references_for(codec: str) -> References:
    """The state a decoder of this codec starts with; nothing has come, so nothing is wrong."""
    if codec in INTRA_ONLY:
        return Alone()
    if codec == "h264":
        return H264References()
    if codec in {"mpeg1video", "mpeg2video", "mpeg4"}:
        return Anchors()
    return Slots() if codec in {"vp9", "av1"} else Chain()


@dataclass(slots=True, eq=False)
class _Event:
    """One packet or loss in decode order, and what is needed to judge it again."""

    seq: int | None  # of the packet; None for a loss
    time: int  # capture time, ticks
    lost: int
    pictures: tuple[Picture, ...]
    before: References
    severity_before: float
    damage: Damage = INTACT
    corrupt: bool = False
    out: bool = False  # its frame has left the decoder, or there will be none
    swallowed: bool = False  # a later frame came out first


class VideoDamage:
    """Follows the damage of one video stream; packets go in in decode order, frames are checked as they come out.

    ``push`` judges a packet before it is decoded. ``decode_error`` says that the decoder refused the packet pushed
    last. ``frame_flag`` is called for every frame that leaves the decoder, in order of presentation, with the number
    of its packet, and returns the final verdict: it takes in what the decoder said of this frame and of those before
    it, and frames that the decoder swallowed. Frames that were already handed out are not recalled.
    """

    def __init__(self, config: CodecConfig, *, sequence_numbers: bool = True) -> None:
        self._parse = picture_parser(config)
        self._references = references_for(config.codec)
        self._steps = None if sequence_numbers else StepRule()
        self._events: deque[_Event] = deque(maxlen=EVENTS)
        self._inside: list[_Event] = []  # of these, packets whose frame has not come out
        self._severity = 0.0
        self._sizes: dict[bool, float] = {}  # running mean payload of independent pictures (True) and others
        self._flags_count = config.codec not in UNRELIABLE_FLAGS
        self._times_order = True  # False once frames came out in another order than their times
        self._joined: int | None = None  # ticks; of the picture that the stream was joined at: what leads it is wrong
        self._refreshing: list[tuple[int, int]] = []  # recovery points: seq, reference pictures until it is kept
        self.entry: int | None = None
        """The packet at which a fresh decoder may begin, for everything shown from the last one pushed on to be right;
        None where that is no place to begin."""
        self.errors = 0

    @property
    def unknown(self) -> bool:
        """True where losses cannot be told: a container with a variable frame rate. Decode errors still count."""
        return self._steps is not None and self._steps.unknown

    def push(self, item: Packet | Gap) -> Damage:
        """The next packet or gap in decode order; the verdict on it."""
        if isinstance(item, Gap):
            return self._lose(item.count)
        if self._steps is not None:
            missing = self._steps.lost_before(item.capture_time if item.decode_time is None else item.decode_time)
            if missing:
                self._lose(missing)
        pictures = self._pictures(item)
        if not self._events and pictures and self._in_open_group(pictures[0]):
            self._joined = item.capture_time
        event = _Event(item.seq, item.capture_time, 0, pictures, self._references, self._severity, corrupt=item.corrupt)
        event.out = bool(item.skip) or not _gives_a_frame(pictures)
        self._judge(event)
        self._append(event)
        self._learn_sizes(item, pictures)
        self.entry = self._entry(item.seq, pictures[0]) if pictures else None
        return event.damage

    def decode_error(self, seq: int | None = None) -> Damage:
        """The decoder could not decode the packet pushed last, or packet ``seq``; the new verdict on it."""
        self.errors += 1
        for i in range(len(self._events) - 1, -1, -1):
            event = self._events[i]
            if event.seq is not None and seq in (None, event.seq):
                event.corrupt = True
                self._judge_again(i)
                return event.damage
        return INTACT

    def frame_flag(self, seq: int, *, corrupt: bool = False) -> Damage:
        """The frame of packet ``seq`` left the decoder, which says whether it is ``corrupt``; the verdict on it."""
        corrupt = corrupt and self._flags_count
        place = self._place(seq)
        if place is None:
            return Damage(True, "corrupt", CORRUPT_SEVERITY) if corrupt else INTACT
        event = self._events[place]
        if not event.out:
            event.out = True
            self._inside.remove(event)
        if event.swallowed:  # not swallowed after all: the container's times are decode times
            event.swallowed = self._times_order = False
            event.corrupt = corrupt
            self._judge_again(place)
        elif corrupt:
            self.decode_error(seq)
        if self._times_order:
            self._find_swallowed(event.time)
        return event.damage

    def _find_swallowed(self, time: int) -> None:
        """Frames that should have come before ``time`` and did not: their packets could not be decoded."""
        for event in [e for e in self._inside if e.time < time]:
            event.out = True
            self._inside.remove(event)
            if not event.damage.damaged:
                event.swallowed = event.corrupt = True
                self._judge_again(self._events.index(event))

    def _place(self, seq: int) -> int | None:
        """Where the event of a packet is; a frame's is among the newest."""
        for place in range(len(self._events) - 1, -1, -1):
            if self._events[place].seq == seq:
                return place
        return None

    def _append(self, event: _Event) -> None:
        """Keep an event, and forget the oldest."""
        if len(self._events) == EVENTS and not self._events[0].out:
            self._inside.remove(self._events[0])
        self._events.append(event)
        if not event.out:
            self._inside.append(event)

    def _entry(self, seq: int, picture: Picture) -> int | None:
        """Where decoding may begin for the sake of what is shown from this picture on: see ``entry``."""
        after = 0 if picture.reset else self._refreshed_after(picture)
        if after == 0:
            self._refreshing.clear()
            return seq
        found = None
        if self._refreshing and not picture.disposable:
            self._refreshing = [(first, left - 1) for first, left in self._refreshing]
            while self._refreshing and self._refreshing[0][1] <= 0:
                found = self._refreshing.pop(0)[0]
        if after is not None:
            self._refreshing.append((seq, after))
        return found

    def _refreshed_after(self, picture: Picture) -> int | None:
        """How many reference pictures more a decoder wants that begins here; None: this is no place to begin."""
        if isinstance(self._references, Alone):
            return 0
        if isinstance(self._references, Anchors):  # without two anchors it drops B pictures
            return 1 if picture.kind == "I" else None
        return picture.recovery

    def _in_open_group(self, picture: Picture) -> bool:
        """Whether a picture that a decoder begins with may be led by ones that need what was before it."""
        if picture.reset or picture.closed or isinstance(self._references, Alone):
            return False
        return self._refreshed_after(picture) is not None

    def _lose(self, count: int) -> Damage:
        event = _Event(None, 0, count, (), self._references, self._severity, Damage(True, "lost", 1.0), out=True)
        self._judge(event)
        self._append(event)
        return event.damage

    def _pictures(self, packet: Packet) -> tuple[Picture, ...]:
        pictures = self._parse(packet.payload) if self._parse else ()
        if pictures or isinstance(self._references, Alone):
            return pictures or (Picture(kind="I", independent=True),)
        # A header we cannot read: the transport's word, which may only make us more careful than the headers would.
        key = packet.keyframe and self._parse is None
        return (
            Picture(
                kind="I" if key else "P",
                reset=key,
                independent=key,
                disposable=packet.disposable,
                reads=tuple(range(8)),
                writes=0xFF,
                reads_contexts=True,
            ),
        )

    def _judge(self, event: _Event) -> None:
        """Step the references over one event and set its verdict."""
        state, severity = event.before, event.severity_before
        if event.lost:
            self._references = state.lose(event.lost)
            self._severity = min(1.0, severity + event.lost * self._share())
            return
        wrong = leads = self._joined is not None and event.time < self._joined
        for picture in event.pictures:
            from_wrong, state = state.step(picture, event.time)
            if event.corrupt and not leads:
                state = state.spoil(picture)
            wrong = wrong or (from_wrong and picture.shown)
        severity = severity * HEALING if state.broken else 0.0
        if wrong and not severity:
            severity = self._share()  # leading pictures, or a loss that only frame numbers tell of
        event.damage = Damage(True, "reference", severity) if wrong else INTACT
        if event.corrupt:
            severity = max(severity, CORRUPT_SEVERITY)
            event.damage = Damage(True, "corrupt", severity)
        self._references, self._severity = state, severity

    def _judge_again(self, first: int) -> None:
        """Something new is known of event ``first``: judge it and all later ones again."""
        events = list(self._events)[first:]
        self._references, self._severity = events[0].before, events[0].severity_before
        for event in events:
            event.before, event.severity_before = self._references, self._severity
            self._judge(event)

    def _share(self) -> float:
        """How much of a picture one lost packet carries: inter pictures against independent ones, by bytes."""
        if len(self._sizes) < 2 or not self._sizes[True]:
            return 0.25
        return min(1.0, self._sizes[False] / self._sizes[True])

    def _learn_sizes(self, packet: Packet, pictures: Sequence[Picture]) -> None:
        independent = pictures[0].independent if len(pictures) == 1 else any(p.independent for p in pictures)
        size = len(packet.payload)
        before = self._sizes.get(independent, float(size))
        self._sizes[independent] = before + (size - before) / 8


def _gives_a_frame(pictures: Sequence[Picture]) -> bool:
    return True in [p.shown and not p.field for p in pictures]  # a generator would cost twice as much


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
