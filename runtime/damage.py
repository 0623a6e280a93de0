"""Which pictures a loss spoils, until when, in decode order; sound is in ``runtime.sound_damage``.

Decoders conceal what they miss and hardly ever say so, so damage is followed here: what was lost (gaps in the sequence
numbers, or steps of the decode time in a container), what depends on it (headers, ``runtime.references``), and what
the decoder did report. Truth in the tests: mean absolute luma error above 0.5 grey levels, or the frame is missing.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.bitstream import guarded, picture_parser
from runtime.h264 import H264Headers
from runtime.h264_references import H264References
from runtime.packet import CodecConfig, Gap, Packet
from runtime.picture import Picture
from runtime.references import Alone, Anchors, Chain, References, Slots
from runtime.sound_damage import AudioDamage
from runtime.steps import StepRule
from runtime.verdict import CORRUPT_SEVERITY, INTACT, Damage

__all__ = ["INTACT", "AudioDamage", "Damage", "StepRule", "VideoDamage"]

EVENTS = 48  # packets whose verdict may still be revised; decoders hold back 16 pictures at most, threads aside
PUT_OFF = 300  # pictures judged at a glance, until which references are followed at last: a group, nearly always
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
    severity_before: float = 0.0
    damage: Damage = INTACT
    corrupt: bool = False
    out: bool = False  # its frame has left the decoder, or there will be none
    swallowed: bool = False  # a later frame came out first
    unit: bytes = b""  # judged at a glance: the start of its slice, which is read when its pictures are asked for
    reset: bool = False  # judged at a glance: an IDR picture


class VideoDamage:
    """Follows the damage of one video stream; packets go in in decode order, frames are checked as they come out.

    ``push`` judges a packet before it is decoded. ``decode_error`` says that the decoder refused the packet pushed
    last. ``frame_flag`` is called for every frame that leaves the decoder, in order of presentation, with the number
    of its packet, and returns the final verdict: it takes in what the decoder said of this frame and of those before
    it, and frames that the decoder swallowed. Frames that were already handed out are not recalled.
    """

    def __init__(self, config: CodecConfig, *, sequence_numbers: bool = True) -> None:
        self._headers = H264Headers(config.extradata) if config.codec == "h264" else None
        self._parse = picture_parser(config) if self._headers is None else guarded(self._headers.parse)
        self._references = references_for(config.codec)
        self._whole = False  # nothing is wrong, lost or doubtful: pictures may be judged at a glance
        self._frame_num = 0  # of the last reference picture, while that is so
        self._put_off: list[_Event] = []  # judged so; ``_references`` is the state before them
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
        if self._whole and self._passes(item):
            return INTACT
        self._work_off()
        pictures = self._pictures(item)
        if not self._events and pictures and self._in_open_group(pictures[0]):
            self._joined = item.capture_time
        event = _Event(item.seq, item.capture_time, 0, pictures, self._references, self._severity, corrupt=item.corrupt)
        event.out = bool(item.skip) or not _gives_a_frame(pictures)
        self._judge(event)
        self._append(event)
        independent = pictures[0].independent if len(pictures) == 1 else any(p.independent for p in pictures)
        self._learn_size(independent, len(item.payload))
        self._whole = self._is_whole()
        self.entry = self._entry(item.seq, pictures[0]) if pictures else None
        return event.damage

    def _passes(self, packet: Packet) -> bool:
        """Judge a packet at a glance, if that is enough: an H.264 picture to which nothing happened.

        The state is whole and the frame number shows no gap, so the references would say that it is intact
        (tests/test_glance.py). They are stepped over it only when something does happen: ``_work_off``.
        """
        assert self._headers is not None
        leads = self._joined is not None and packet.capture_time < self._joined
        if leads or packet.corrupt or self._refreshing:
            return False
        glance = self._headers.glance(packet.payload)
        if glance is None:
            return False
        if not glance.reset and (glance.frame_num - self._frame_num) % glance.max_frame_num > 1:
            return False
        if not glance.disposable:
            self._frame_num = glance.frame_num
        event = _Event(packet.seq, packet.capture_time, 0, (), self._references)
        event.unit, event.reset, event.out = glance.unit, glance.reset, packet.skip > 0
        if glance.reset or len(self._put_off) >= PUT_OFF:
            self._forget_groups()
        self._put_off.append(event)
        self._append(event)
        self._learn_size(glance.independent, len(packet.payload))
        self.entry = packet.seq if glance.reset else None
        return True

    def _is_whole(self) -> bool:
        """Whether the next picture may be judged at a glance."""
        state = self._references
        if self._headers is None or not isinstance(state, H264References) or state.broken or self._severity:
            return False
        chain = state.chain
        self._frame_num = chain.last_reference or 0
        doubt = chain.lost or chain.refresh_left is not None or chain.clean_from is not None
        return not doubt and chain.last_reference is not None

    def _forget_groups(self) -> None:
        """Pictures put off matter no more once an IDR picture came so long ago that nothing before it is judged again.

        Of them the references only keep the pace of the clock, which the first group tells.
        """
        clock = self._references.chain if isinstance(self._references, H264References) else None
        if len(self._put_off) >= PUT_OFF or (clock is not None and clock.clock is not None and clock.pace is None):
            self._work_off()
        for place in range(len(self._put_off) - EVENTS, 0, -1):
            if self._put_off[place].reset:
                del self._put_off[:place]
                return

    def _work_off(self) -> None:
        """Follow the references over every picture that was judged at a glance."""
        if not self._put_off:
            return
        put_off, self._put_off = self._put_off, []
        assert self._headers is not None
        for event in put_off:
            event.pictures = (self._headers.slice(event.unit, None),)
            event.before, event.severity_before = self._references, self._severity
            self._judge(event)

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
        for event in self._inside:
            if event.seq == seq and not corrupt and not event.swallowed:
                event.out = True
                self._inside.remove(event)
                if self._inside and self._times_order:
                    self._find_swallowed(event.time)
                return event.damage
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
        self._work_off()
        self._whole = False
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
        self._work_off()
        events = list(self._events)[first:]
        self._references, self._severity = events[0].before, events[0].severity_before
        for event in events:
            event.before, event.severity_before = self._references, self._severity
            self._judge(event)
        self._whole = self._is_whole()

    def _share(self) -> float:
        """How much of a picture one lost packet carries: inter pictures against independent ones, by bytes."""
        if len(self._sizes) < 2 or not self._sizes[True]:
            return 0.25
        return min(1.0, self._sizes[False] / self._sizes[True])

    def _learn_size(self, independent: bool, size: int) -> None:
        before = self._sizes.get(independent, size)
        self._sizes[independent] = before + (size - before) / 8


def _gives_a_frame(pictures: Sequence[Picture]) -> bool:
    return True in [p.shown and not p.field for p in pictures]  # a generator would cost twice as much
