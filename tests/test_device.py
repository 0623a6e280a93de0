"""Devices: when one counts as lost, how long until the next try, what comes back; and the inbox they all put into."""

from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest

from runtime.errors import SourceError
from runtime.packet import CodecConfig, Decision, Packet
from runtime.sources import LiveSource
from runtime.sources.device import (
    CLOSED,
    LIVE,
    LOST,
    OPENING,
    Backoff,
    DevicePolicy,
    DeviceSource,
    Session,
    Watch,
)
from runtime.sources.inbox import CODED_SECONDS, INTRA_SECONDS, Inbox
from tests.fakes import TICK, FakeClock

VIDEO = CodecConfig(codec="mjpeg", time_base=TICK)
AUDIO = CodecConfig(codec="pcm_s16le", time_base=TICK, sample_rate=1000, channels=1)
CODECS = {"video": VIDEO, "audio": AUDIO}


class FakeFeed:
    """A device that the test plays; ``lives`` are its sessions, the newest last."""

    sequenced = True

    def __init__(self, name: str = "camera 0", codecs: Mapping[str, CodecConfig] | None = None) -> None:
        self.name, self.codecs = name, {"video": VIDEO} if codecs is None else codecs
        self.lives: list[Session] = []

    def run(self, session: Session) -> None:
        raise AssertionError("the test plays it")

    def launch(self, feed: Any, session: Session) -> None:
        self.lives.append(session)

    def give(self, ms: float, modality: str = "video", **fields: Any) -> None:
        self.lives[-1].packet(modality, b"x", round(ms), **fields)

    def end(self, reason: str) -> None:
        self.lives[-1].reason = reason
        self.lives[-1].ended.set()


class Scene:
    """One watched device, a clock that stands, and what came out."""

    def __init__(self, codecs: Mapping[str, CodecConfig] | None = None, **policy: Any) -> None:
        self.clock, self.feed = FakeClock(), FakeFeed(codecs=codecs)
        self.inbox = Inbox(self.clock)
        self.inbox.announce(self.feed.codecs)
        self.watch = Watch(self.feed, self.inbox, self.clock, DevicePolicy(**policy), seed=1, launch=self.feed.launch)
        self.watch.announce()
        self.watch.poll()

    def at(self, seconds: float) -> None:
        self.clock.seconds = seconds
        self.watch.poll()

    def came(self) -> list[Packet | Decision]:
        items = []
        while (item := self.inbox.read()) is not None:
            items.append(item)
        return items

    def until_opened_again(self) -> float:
        lives = len(self.feed.lives)
        while len(self.feed.lives) == lives:
            self.at(round(self.clock.seconds + 0.01, 6))
            assert self.clock.seconds < 1000
        return self.clock.seconds


def kinds(items: list[Packet | Decision]) -> list[Any]:
    return [i.kind if isinstance(i, Decision) else i.seq for i in items]


def test_a_device_that_stalls_is_lost_once_and_its_thread_is_asked_to_let_go():
    scene = Scene(stall_seconds=2.0)
    assert scene.watch.state == OPENING
    for i in range(3):
        scene.at(0.04 * i)
        scene.feed.give(40 * i)
    assert scene.watch.state == LIVE
    scene.at(2.05)
    assert scene.watch.state == LIVE
    scene.at(2.1)
    scene.at(2.2)
    assert scene.watch.state == LOST and scene.feed.lives[0].stopped.is_set()
    items = scene.came()
    assert kinds(items) == [2, "device_lost"]  # the two before grew too old for the reader
    assert items[-1].reason == "camera 0: it gave nothing for 2 s" and items[-1].arrival == 2.1


def test_what_a_given_up_device_still_gives_goes_nowhere():
    scene = Scene()
    scene.feed.give(0)
    scene.at(5.0)
    scene.came()
    scene.feed.give(5000)
    assert scene.came() == [] and scene.watch.state == LOST


def test_a_device_that_comes_back_says_so_and_the_outage_has_its_numbers():
    scene = Scene()
    for i in range(5):
        scene.at(0.04 * i)
        scene.feed.give(40 * i, duration=40)
    scene.feed.end("unplugged")
    scene.at(0.2)
    scene.came()
    scene.until_opened_again()
    scene.clock.seconds = 1.0
    scene.feed.give(1000, duration=40)
    back, packet = scene.came()
    assert isinstance(back, Decision) and back.kind == "device_back"
    # 25 a second: 0..4 came, 5..24 would have, this is the 25th
    assert isinstance(packet, Packet) and packet.seq == 25
    assert scene.watch.state == LIVE and scene.watch.lives == 2


def test_waits_double_with_chance_from_half_a_second_to_thirty():
    waits = [Backoff(DevicePolicy(), seed=3) for _ in range(2)]
    first, again = ([backoff.next() for _ in range(12)] for backoff in waits)
    assert first == again
    assert all(0.5 <= wait <= 30 for wait in first) and first[-1] > 20
    assert all(abs(wait / (0.5 * 2**i) - 1) <= 0.25 for i, wait in enumerate(first[1:6], 1))
    assert first != [Backoff(DevicePolicy(), seed=4).next() for _ in range(12)]


def test_a_device_that_never_opens_is_tried_again_and_again():
    scene = Scene(open_seconds=10.0, hung=99)
    times = [0.0]
    for _ in range(8):
        times.append(scene.until_opened_again())
    waits = [b - a for a, b in pairwise(times)]
    assert all(10.5 <= wait <= 40.1 for wait in waits) and waits[-1] > 30
    assert kinds(scene.came()) == ["device_lost"]
    assert scene.watch.status().reason == "it gave nothing within 10 s of being opened"


def test_waiting_starts_anew_after_a_healthy_while():
    scene = Scene(healthy_seconds=5.0)
    for _ in range(4):
        scene.feed.end("broken")
        scene.at(scene.clock.seconds + 0.01)
        scene.until_opened_again()
    start = scene.clock.seconds
    for i in range(60):
        scene.clock.seconds = start + 0.1 * i
        scene.feed.give(scene.clock.seconds * 1000)
        scene.watch.poll()
    scene.feed.end("broken")
    scene.at(scene.clock.seconds + 0.01)
    assert scene.watch.status().retry_seconds <= 0.625


def test_threads_that_hang_are_given_up_but_only_a_few():
    scene = Scene(hung=2)
    for _ in range(2):
        scene.at(scene.clock.seconds + 10.1)
        scene.at(scene.clock.seconds + 30)
    assert len(scene.feed.lives) == 2
    assert "2 tries hang in its driver" in scene.watch.status().reason
    scene.feed.lives[0].ended.set()  # the driver came to its senses
    scene.until_opened_again()
    assert len(scene.feed.lives) == 3


def test_another_format_is_a_decision_before_its_first_packet():
    scene = Scene()
    scene.feed.lives[-1].opened({"video": VIDEO})
    scene.feed.give(0)
    larger = CodecConfig(codec="mjpeg", time_base=Fraction(1, 90_000), width=1280, height=720)
    scene.feed.lives[-1].opened({"video": larger})
    scene.feed.give(3600)
    first, change, second = scene.came()
    assert isinstance(change, Decision) and change.kind == "format_change" and change.codec == larger
    assert change.reason == "mjpeg 1280x720"
    assert first.time_base == TICK and second.time_base == larger.time_base and second.seq == 1


def test_a_track_that_was_not_announced_is_passed_over():
    scene = Scene()
    scene.feed.lives[-1].opened({"video": VIDEO, "audio": AUDIO})
    scene.feed.give(0)
    scene.feed.give(0, "audio")
    assert [i.modality for i in scene.came()] == ["video"]


def test_a_stopped_device_is_never_opened_again():
    scene = Scene()
    scene.feed.give(0)
    scene.watch.stop()
    scene.at(100.0)
    assert scene.watch.state == CLOSED and len(scene.feed.lives) == 1 and scene.feed.lives[0].stopped.is_set()


# -- the inbox ------------------------------------------------------------------------------------------------------


def inbox(capacity: int = 100) -> tuple[Inbox, FakeClock]:
    clock = FakeClock()
    made = Inbox(clock, capacity=capacity)
    made.announce(CODECS)
    return made, clock


def test_arrivals_never_go_back_whatever_the_clock_does():
    box, clock = inbox()
    for now in (1.0, 3.0, 2.0):
        clock.seconds = now
        box.packet("audio", b"x", 0)
    assert [box.read().arrival for _ in range(3)] == [1.0, 3.0, 3.0]


def test_a_slow_reader_never_sees_old_pictures_and_their_numbers_are_holes():
    box, clock = inbox()
    for i in range(20):
        clock.seconds = 0.1 * i
        box.packet("video", b"x", 100 * i)
    clock.seconds = 2.0
    seen = [item.seq for _ in range(20) if (item := box.read()) is not None]
    assert seen == [15, 16, 17, 18, 19] and box.dropped == {"video": 15}
    assert clock.seconds - 1.5 <= INTRA_SECONDS


def test_the_newest_picture_is_never_too_old_and_sound_keeps_longer():
    box, clock = inbox()
    box.packet("video", b"x", 0)
    for i in range(3):
        clock.seconds = 0.5 * i
        box.packet("audio", b"x", 500 * i)
    clock.seconds = CODED_SECONDS + 0.4
    assert [(i.modality, i.seq) for i in (box.read(), box.read(), box.read())] == [
        ("video", 0),
        ("audio", 1),
        ("audio", 2),
    ]
    assert box.read() is None and box.dropped == {"audio": 1}


def test_a_full_inbox_drops_its_oldest_packet_and_no_decision():
    box, _ = inbox(capacity=3)
    box.decision("device_lost", "video")
    for i in range(4):
        box.packet("audio", b"x", i)
    assert kinds([box.read() for _ in range(3)]) == ["device_lost", 2, 3]
    assert box.dropped == {"audio": 2} and len(box) == 0


def test_missed_packets_leave_a_hole():
    box, _ = inbox()
    box.packet("video", b"x", 0)
    box.packet("video", b"x", 120, missed=2)
    assert [box.read().seq, box.read().seq] == [0, 3]


def test_a_closed_inbox_takes_nothing_more():
    box, _ = inbox()
    box.packet("video", b"x", 0)
    box.close()
    box.packet("video", b"x", 40)
    box.decision("device_lost", "video")
    assert box.read(timeout=5).seq == 0 and box.read(timeout=5) is None


# -- the source -----------------------------------------------------------------------------------------------------


class AtOnce(FakeFeed):
    """A device that gives a packet, or fails, the moment it is opened."""

    def __init__(self, name: str, codecs: Mapping[str, CodecConfig] | None = None, failure: str = "") -> None:
        super().__init__(name, codecs)
        self.failure = failure

    def launch(self, feed: Any, session: Session) -> None:
        super().launch(feed, session)
        if self.failure:
            self.end(self.failure)
            return
        session.opened(self.codecs)
        for modality in self.codecs:
            session.packet(modality, b"x", 0)


def source(*feeds: AtOnce, **options: Any) -> DeviceSource:
    return DeviceSource(feeds, clock=FakeClock(), launch=lambda feed, session: feed.launch(feed, session), **options)


def test_devices_side_by_side_are_one_live_source():
    with source(AtOnce("camera 0"), AtOnce("microphone", {"audio": AUDIO}), name="desk") as made:
        assert isinstance(made, LiveSource)
        assert list(made.info.codecs) == ["video", "audio"] and made.info.name == "desk" and not made.ended
        assert made.info.sequence_numbers and made.info.origin is None
        assert [s.state for s in made.states()] == [LIVE, LIVE]
    assert made.ended and made.read(5) is None and list(made.packets()) == []


def test_what_came_before_the_first_reading_is_nobodys_loss():
    feed = AtOnce("camera 0")
    made = source(feed)
    feed.give(40)
    assert made.read(0) is None
    feed.give(80)
    assert made.read(0).seq == 2 and made.dropped == {}


def test_without_one_device_the_stream_goes_on_and_tries_again():
    with source(AtOnce("camera 0", failure="there is no camera 0"), AtOnce("microphone", {"audio": AUDIO})) as made:
        assert list(made.info.codecs) == ["video", "audio"]  # it may come back
        item = made.read(0)
        assert isinstance(item, Decision) and item.kind == "device_lost" and item.modality == "video"
        assert made.states()[0].state == LOST and made.states()[0].retry_seconds > 0


def test_a_device_asked_for_by_name_must_be_there():
    with pytest.raises(SourceError, match="camera 3 cannot be used: there is no camera 3"):
        source(
            AtOnce("camera 3", failure="there is no camera 3"), AtOnce("mic", {"audio": AUDIO}), required=["camera 3"]
        )


def test_without_any_device_there_is_no_stream():
    with pytest.raises(SourceError, match="camera 0 cannot be used: gone; microphone cannot be used: deaf"):
        source(AtOnce("camera 0", failure="gone"), AtOnce("microphone", {"audio": AUDIO}, failure="deaf"))


def test_an_address_that_never_answered_is_no_stream_for_nobody_knows_what_it_gives():
    with pytest.raises(SourceError, match="http://x cannot be used: refused"):
        source(AtOnce("http://x", {}, failure="refused"), AtOnce("microphone", {"audio": AUDIO}))


def test_whatever_a_driver_raises_is_a_reason_and_a_hang_does_not_hold_up_closing():
    class Broken(FakeFeed):
        def run(self, session: Session) -> None:
            raise ZeroDivisionError("division by zero\nin the driver")

    with pytest.raises(SourceError, match=r"camera 0 cannot be used: division by zero$"):
        DeviceSource([Broken()])
