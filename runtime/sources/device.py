"""Devices that live, hang, vanish and come back: what watches over one, and what a source made of them is.

A *feed* is the blocking side of a device: opened and read in a thread of its own, because drivers block. OpenCV, PyAV
and PortAudio let go of the interpreter while they wait, so a thread is enough; a process would cost a copy of every
picture. A thread that hangs in a driver cannot be ended: it is given up, whatever it still gives goes nowhere, and
the program ends without it. Of one device at most ``hung`` are given up at once.

A *watch* decides when a device is lost, how long to wait before the next try, and that it is back. It has no thread
and no clock of its own: whoever reads the source drives it.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from runtime.clock import Clock, SystemClock
from runtime.errors import LegatoError, SourceError
from runtime.packet import CodecConfig, Decision, Packet, StreamInfo
from runtime.sources.base import LivePackets
from runtime.sources.inbox import Inbox

OPENING, LIVE, LOST, CLOSED = "opening", "live", "lost", "closed"
LONGEST_TURN = 0.1  # seconds between two looks at the devices while nothing comes
LETTING_GO = 0.5  # seconds that a device has to close before its thread is left alone
SMOOTHING = 0.1  # of the frame rate shown to people


@dataclass(frozen=True, kw_only=True)
class DevicePolicy:
    """How patient to be with a device, in seconds."""

    open_seconds: float = 10.0  # from opening to the first packet
    stall_seconds: float = 2.0  # without a packet, and it is lost
    least_wait: float = 0.5  # before the first new try; each further one waits twice as long,
    longest_wait: float = 30.0  # up to this
    healthy_seconds: float = 5.0  # of packets after which waiting starts anew
    hung: int = 3  # threads of one device that may hang in its driver at once


class Backoff:
    """Waiting times that double from the least to the longest, each a quarter more or less by chance."""

    def __init__(self, policy: DevicePolicy, seed: int | None = None) -> None:
        self._policy, self._chance = policy, random.Random(seed)
        self._tries = 0

    def next(self) -> float:
        """Seconds to wait before the next try."""
        wait = self._policy.least_wait * 2 ** min(self._tries, 16) * self._chance.uniform(0.75, 1.25)
        self._tries += 1
        return min(max(wait, self._policy.least_wait), self._policy.longest_wait)

    def reset(self) -> None:
        self._tries = 0


class Feed(Protocol):
    """The blocking side of one device."""

    name: str  # for people; no secrets of an address in it
    sequenced: bool  # what is lost leaves a hole in the numbers

    @property
    def codecs(self) -> Mapping[str, CodecConfig]:
        """What it is expected to give, by modality, before it was ever opened; empty where nobody can know."""
        ...

    def run(self, session: "Session") -> None:
        """Open the device, give packets until ``session.stopped``, let go of it. Raises anything when it fails."""
        ...


class Session:
    """One life of a device, from opening to its end. After it was given up, what it gives goes nowhere."""

    def __init__(self, clock: Clock, inbox: Inbox, begin: Callable[["Session", Mapping[str, CodecConfig]], None]):
        self.clock = clock
        self.stopped = threading.Event()  # asks the feed to let go
        self.ended = threading.Event()  # the feed has let go
        self.reason = ""  # why it ended
        self.heard: float | None = None  # when the last packet came
        self._inbox, self._begin = inbox, begin
        self._lock = threading.Lock()
        self._codecs: dict[str, CodecConfig] = {}

    def opened(self, codecs: Mapping[str, CodecConfig]) -> None:
        """The device is open, or changed its format: what its packets are from here on."""
        with self._lock:
            if not self.stopped.is_set():
                self._codecs.update(codecs)
                self._begin(self, codecs)

    def packet(
        self, modality: str, payload: bytes, capture_time: int, *, missed: int = 0, duration: int = 0, **marks: object
    ) -> None:
        """One packet; arguments as ``Inbox.packet`` has them. ``opened`` comes first."""
        with self._lock:
            if self.stopped.is_set():
                return
            self.heard = self.clock.now()
            self._deliver(modality, payload, capture_time, missed=missed, duration=duration, **marks)

    # The watch puts itself in between: it knows how many packets an outage swallowed.
    _deliver: Callable[..., None]

    def give_up(self) -> None:
        """Ask the feed to let go, and take nothing more from it."""
        self.stopped.set()
        with self._lock:  # a packet that is being put down is put down before the device counts as lost
            pass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """How a device is, for people."""

    name: str
    modalities: tuple[str, ...]
    state: str  # opening, live, lost, closed
    reason: str = ""  # why it is lost
    retry_seconds: float = 0.0  # until the next try
    rates: Mapping[str, float] | None = None  # packets a second, by modality
    lives: int = 0  # how often it was opened


Launch = Callable[[Feed, Session], object]


class Watch:
    """Watches over one device. ``launch`` gives a session its life, by default in a thread."""

    def __init__(
        self,
        feed: Feed,
        inbox: Inbox,
        clock: Clock,
        policy: DevicePolicy,
        *,
        seed: int | None = None,
        launch: "Launch | None" = None,
    ) -> None:
        self.feed, self.policy = feed, policy
        self.state, self.reason = OPENING, ""
        self.codecs: dict[str, CodecConfig] = dict(feed.codecs)  # as last announced
        self.failed = False  # a try has failed since it was live last
        self.lives = 0
        self._inbox, self._clock = inbox, clock
        self._launch = launch or in_a_thread
        self._backoff = Backoff(policy, seed)
        self._session: Session | None = None
        self._given_up: list[Session] = []
        self._began = 0.0
        self._retry = float("-inf")
        self._announced = False  # the source has told what it gives
        self._formats = threading.Lock()
        self._lost: set[str] = set()  # modalities of which the loss was reported
        self._meters = {m: _Meter() for m in self.codecs}

    def poll(self) -> None:
        """Look at the device: start it, find it lost, try again."""
        now = self._clock.now()
        session = self._session
        if self.state == CLOSED:
            return
        if session is None:
            if now >= self._retry:
                self._start(now)
        elif session.ended.is_set():
            self._fail(now, session.reason)
        elif session.heard is None:
            if now - self._began > self.policy.open_seconds:
                self._fail(now, f"it gave nothing within {self.policy.open_seconds:g} s of being opened")
        elif now - session.heard > self.policy.stall_seconds:
            self._fail(now, f"it gave nothing for {self.policy.stall_seconds:g} s")
        elif session.heard - self._began > self.policy.healthy_seconds:
            self._backoff.reset()

    def announce(self) -> dict[str, CodecConfig]:
        """What the source tells its readers that this device gives; changes are format changes from now on."""
        with self._formats:
            self._announced = True
            return dict(self.codecs)

    def status(self) -> DeviceState:
        """How it is."""
        wait = max(self._retry - self._clock.now(), 0.0) if self.state == LOST else 0.0
        rates = {m: meter.rate for m, meter in self._meters.items()} if self.state == LIVE else None
        return DeviceState(
            name=self.feed.name,
            modalities=tuple(self.codecs),
            state=self.state,
            reason=self.reason,
            retry_seconds=wait,
            rates=rates,
            lives=self.lives,
        )

    def stop(self) -> None:
        """Ask the device to let go; does not wait."""
        self.state = CLOSED
        if self._session is not None:
            self._session.give_up()

    def wait(self, until: float) -> None:
        """Give it until a time of ``time.monotonic`` to do so."""
        if self._session is not None:
            self._session.ended.wait(max(until - time.monotonic(), 0.0))

    def _start(self, now: float) -> None:
        self._given_up = [s for s in self._given_up if not s.ended.is_set()]
        if len(self._given_up) >= self.policy.hung:
            self.reason = f"{len(self._given_up)} tries hang in its driver; unplug it, or stop what uses it"
            self._retry = now + self._backoff.next()
            return
        self._began = now
        session = self._session = Session(self._clock, self._inbox, self._opened)
        session._deliver = self._packet
        self._launch(self.feed, session)

    def _opened(self, session: Session, codecs: Mapping[str, CodecConfig]) -> None:
        """In the feed's thread. What was announced otherwise is a format change, before its first packet."""
        with self._formats:
            for modality, codec in codecs.items():
                self._meters.setdefault(modality, _Meter())
                if not self._announced:
                    self.codecs[modality] = codec
                    self._inbox.announce({modality: codec})
                elif modality in self.codecs and self.codecs[modality] != codec:
                    self.codecs[modality] = codec
                    self._inbox.decision("format_change", modality, codec=codec, reason=in_words(codec))

    def _packet(self, modality: str, payload: bytes, capture_time: int, *, missed: int, duration: int, **marks) -> None:  # type: ignore[no-untyped-def]
        """In the feed's thread."""
        if modality not in self.codecs:
            return  # a track that was not there when the stream began
        if self.state != LIVE:
            self.state, self.reason, self.failed = LIVE, "", False
            self.lives += 1
        meter = self._meters[modality]
        seconds = capture_time * self.codecs[modality].time_base
        if modality in self._lost:
            self._lost.discard(modality)
            self._inbox.decision("device_back", modality, reason=self.feed.name)
            missed = max(missed, meter.swallowed(seconds))
        meter.count(seconds, duration * self.codecs[modality].time_base, missed)
        self._inbox.packet(modality, payload, capture_time, missed=missed, duration=duration, **marks)

    def _fail(self, now: float, reason: str) -> None:
        session = self._session
        assert session is not None
        session.give_up()
        if not session.ended.is_set():
            self._given_up.append(session)
        self._session, self.state, self.reason, self.failed = None, LOST, reason, True
        self._retry = now + self._backoff.next()
        for modality in self.codecs:
            if modality not in self._lost:
                self._lost.add(modality)
                self._meters[modality].interrupted()
                self._inbox.decision("device_lost", modality, reason=f"{self.feed.name}: {reason}")


class _Meter:
    """How fast the packets of a modality come, by their capture times, and how many an outage swallowed."""

    def __init__(self) -> None:
        self.rate = 0.0  # a second
        self._end: Fraction | None = None  # capture time
        self._last: Fraction | None = None
        self._period = Fraction(0)

    def count(self, at: Fraction, duration: Fraction, missed: int) -> None:
        if self._last is not None and at > self._last:
            period = (at - self._last) / (missed + 1)
            self._period = duration or period
            rate = float(1 / period)
            self.rate += (rate - self.rate) * (SMOOTHING if self.rate else 1.0)
        self._last, self._end = at, at + (duration or self._period)

    def interrupted(self) -> None:
        self._last, self.rate = None, 0.0

    def swallowed(self, at: Fraction) -> int:
        """Packets that would have come between the last one and this; without numbers the hole would be silence."""
        if self._end is None or not self._period:
            return 0 if self._end is None else 1
        return max(1, round((at - self._end) / self._period))


class DeviceSource(LivePackets):
    """A live source made of devices that run side by side, all on one capture clock.

    The constructor waits until every device gave a packet or failed. It raises SourceError when none could be opened,
    or one of those in ``required`` (by name) could not; afterwards a device that fails is a decision among the packets.

    clock: arrivals are read from it, and capture times are on its axis. ``seed`` repeats the waits between tries.
    """

    def __init__(
        self,
        feeds: Sequence[Feed],
        *,
        name: str = "live",
        clock: Clock | None = None,
        policy: DevicePolicy | None = None,
        required: Sequence[str] = (),
        seed: int | None = None,
        launch: "Launch | None" = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.ended = False
        self._read = False  # the stream begins when it is first read: what came before that is nobody's loss
        self._inbox = Inbox(self.clock)
        policy = policy or DevicePolicy()
        self._watches = [
            Watch(feed, self._inbox, self.clock, policy, seed=None if seed is None else seed + i, launch=launch)
            for i, feed in enumerate(feeds)
        ]
        try:
            self._settle(policy.open_seconds + 1.0, required)
        except BaseException:
            self.close()
            raise
        codecs = {m: codec for watch in self._watches for m, codec in watch.announce().items()}
        self._inbox.announce(codecs)
        self.info = StreamInfo(
            name=name,
            codecs=dict(sorted(codecs.items(), reverse=True)),
            sequence_numbers=all(watch.feed.sequenced for watch in self._watches),
        )

    def read(self, timeout: float) -> Packet | Decision | None:
        """The next item, waiting up to ``timeout`` seconds for it."""
        if not self._read:
            self._read = True
            self._inbox.forget()
        until = time.monotonic() + timeout
        while not self.ended:
            for watch in self._watches:
                watch.poll()
            item = self._inbox.read(min(max(until - time.monotonic(), 0.0), LONGEST_TURN))
            if item is not None:
                return item
            if time.monotonic() >= until:
                break
        return None

    def states(self) -> list[DeviceState]:
        """How each device is."""
        return [watch.status() for watch in self._watches]

    @property
    def dropped(self) -> Mapping[str, int]:
        """Packets that nobody read in time, by modality."""
        return dict(self._inbox.dropped)

    def close(self) -> None:
        """Let go of every device, within a second; a driver that hangs is left alone."""
        self.ended = True
        self._inbox.close()
        for watch in self._watches:
            watch.stop()
        until = time.monotonic() + LETTING_GO
        for watch in self._watches:
            watch.wait(until)

    def _settle(self, seconds: float, required: Sequence[str]) -> None:
        until = time.monotonic() + seconds
        while True:
            for watch in self._watches:
                watch.poll()
            self._check(required)
            if all(watch.lives or watch.failed for watch in self._watches) or time.monotonic() >= until:
                return
            time.sleep(0.01)

    def _check(self, required: Sequence[str]) -> None:
        failed = [w for w in self._watches if w.failed]
        for watch in failed:
            if watch.feed.name in required or not watch.codecs:
                raise SourceError(f"{watch.feed.name} cannot be used: {watch.reason}")
        if len(failed) == len(self._watches):
            raise SourceError("; ".join(f"{w.feed.name} cannot be used: {w.reason}" for w in failed))


def in_words(codec: CodecConfig) -> str:
    """A format for people."""
    if codec.sample_rate:
        return f"{codec.codec} {codec.sample_rate} Hz, {codec.channels} channel{'' if codec.channels == 1 else 's'}"
    size = f" {codec.width}x{codec.height}" if codec.width else ""
    return f"{codec.codec}{size}"


def in_a_thread(feed: Feed, session: Session) -> None:
    """Give a session its life; the program does not wait for it to end."""
    threading.Thread(target=_live, args=(feed, session), name=f"legato-{feed.name}"[:40], daemon=True).start()


def _live(feed: Feed, session: Session) -> None:
    """One life of a feed; whatever a driver raises is a reason, never a traceback."""
    try:
        feed.run(session)
        session.reason = session.reason or "it ended"
    except LegatoError as error:
        session.reason = str(error).removeprefix(f"{feed.name} ")
    except Exception as error:
        session.reason = f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
    finally:
        session.ended.set()
