"""Webcams: stamps, the newest frame, JPEG at capture, and why a camera cannot be used; on a camera made of a list."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.errors import SourceError
from runtime.packet import Decision, Packet
from runtime.sources import webcam
from runtime.sources.device import DevicePolicy
from runtime.sources.webcam import CameraFeed, FrameClock, Webcam, _Newest
from tests.devices import FakeCapture, read

QUICK = DevicePolicy(open_seconds=2.0, stall_seconds=0.2, least_wait=0.05, longest_wait=0.1, healthy_seconds=0.5)


class Cameras:
    """Gives a new FakeCapture each time one is opened; ``refuse`` says why not."""

    def __init__(self, **options: Any) -> None:
        self.options, self.opened, self.refuse = options, [], ""
        self.ready = threading.Event()

    def __call__(self, camera: Any, size: Any, rate: Any) -> FakeCapture:
        if self.refuse:
            raise SourceError(self.refuse)
        capture = FakeCapture(**self.options)
        capture.show()
        self.opened.append(capture)
        self.ready.set()
        return capture


@pytest.fixture
def cameras():
    return Cameras()


@pytest.fixture
def source(cameras):
    with Webcam(0, opener=cameras, policy=QUICK, seed=1) as made:
        made.read(0.0)
        yield made


def test_a_frame_becomes_a_jpeg_of_quality_90_at_capture(source, cameras):
    cameras.opened[0].show(level=77, size=(30, 40))
    packet = read(source, Packet)
    assert packet.payload == webcam.jpeg(np.full((30, 40, 3), 77, np.uint8)) and packet.keyframe
    seen = cv2.imdecode(np.frombuffer(packet.payload, np.uint8), cv2.IMREAD_COLOR)
    assert seen.shape == (30, 40, 3) and abs(int(seen[0, 0, 0]) - 77) <= 2
    # two frames at one moment are told a millisecond apart, so that the second may seem to come before it is seen
    assert packet.arrival is not None and -0.002 < packet.arrival - packet.seconds < 1


def test_another_size_is_a_format_change(source, cameras):
    cameras.opened[0].show(size=(30, 40))
    change = read(source, Decision)
    assert change.kind == "format_change" and (change.codec.width, change.codec.height) == (40, 30)


def test_a_camera_that_hangs_is_lost_given_up_and_opened_again(source, cameras):
    cameras.opened[0].hang.set()
    lost = read(source, Decision)
    assert lost.kind == "device_lost" and lost.reason == "camera 0: it gave nothing for 0.2 s"
    back = read(source, Decision)
    assert back.kind == "device_back" and len(cameras.opened) == 2
    assert read(source, Packet).seq >= 2  # the outage has a number


def test_a_camera_that_is_unplugged_says_so(cameras):
    patient = replace(QUICK, stall_seconds=5.0)  # so that it is the camera that is noticed, not its silence
    with Webcam(0, opener=cameras, policy=patient, seed=1) as source:
        source.read(0.0)
        says_that_it_is_unplugged(source, cameras)


def says_that_it_is_unplugged(source, cameras):
    cameras.refuse = "there is no camera 0; plug one in, or name an address"
    cameras.opened[0].fail()
    lost = read(source, Decision)
    assert "it stopped giving pictures" in lost.reason
    until = time.monotonic() + 2
    while "there is no camera" not in source.states()[0].reason and time.monotonic() < until:
        source.read(0.02)
    assert source.states()[0].reason == cameras.refuse
    cameras.refuse = ""
    assert read(source, Decision).kind == "device_back"


def test_closing_a_camera_that_hangs_takes_less_than_a_second():
    """A driver that does not come back from read(), whatever happens, holds nobody up."""

    class Stuck(FakeCapture):
        def read(self) -> tuple[bool, Any]:
            if self.count:
                threading.Event().wait(30)
            return super().read()

    def opener(*_: Any) -> FakeCapture:
        capture = Stuck()
        capture.show()
        return capture

    made = Webcam(0, opener=opener, policy=QUICK)
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 1.0


def test_the_newest_frame_overtakes_and_what_it_overtook_is_counted():
    newest = _Newest()
    for level in range(5):
        newest.put(level, float(level))
    assert newest.take() == (4, 4.0, 4)
    newest.put(5, 5.0)
    assert newest.take() == (5, 5.0, 0)
    newest.end()
    assert newest.take() is None


def test_overtaken_frames_are_holes_in_the_numbers(monkeypatch, cameras):
    """The coder is held up while five frames are read: one comes, four are lost."""
    gate = threading.Event()
    real = webcam.jpeg

    def slow(picture: Any, quality: int) -> bytes | None:
        if picture[0, 0, 0] == 201:
            assert gate.wait(5)
        return real(picture, quality)

    monkeypatch.setattr(webcam, "jpeg", slow)
    with Webcam(0, opener=cameras, policy=DevicePolicy()) as made:
        made.read(0.0)
        camera = cameras.opened[0]
        camera.show(level=201)
        while camera.pictures.qsize():
            time.sleep(0.001)
        for level in range(5):
            camera.show(level=10 * level)
        while camera.pictures.qsize():
            time.sleep(0.001)
        time.sleep(0.02)
        gate.set()
        first, second = read(made, Packet), read(made, Packet)
        assert second.seq - first.seq == 5


# -- stamps ---------------------------------------------------------------------------------------------------------


def test_a_stamp_of_the_machines_own_clock_is_taken_as_it_is():
    frames = FrameClock(shift=-100.0)
    assert frames.capture(105.0, 5.03) == pytest.approx(5.0)
    assert frames.capture(105.04, 5.2) == pytest.approx(5.04)  # however late it was read


def test_a_stamp_of_another_axis_is_mapped_by_the_least_delay():
    frames = FrameClock()
    delays = [0.5, 0.03, 0.02, 0.3, 0.02]
    at = [frames.capture(3000 + 0.04 * i, 10 + 0.04 * i + delay) for i, delay in enumerate(delays)]
    assert at[0] == 10.5  # nothing is known yet
    assert at[1:] == pytest.approx([10.501, 10.502, 10.503, 10.504], abs=0.002) or at[-1] == pytest.approx(10.18)
    later = [frames.capture(3000 + 0.04 * i, 10.02 + 0.04 * i + 0.1) for i in range(20, 30)]
    assert later == pytest.approx([10.02 + 0.04 * i for i in range(20, 30)])


@pytest.mark.parametrize("stamp", [None, 0.0, -3.0, float("nan"), float("inf")])
def test_without_a_stamp_the_time_of_reading_counts(stamp):
    frames = FrameClock()
    assert frames.capture(stamp, 7.0) == 7.0 and frames.capture(stamp, 7.04) == 7.04


def test_a_stamp_that_stands_or_jumps_is_not_believed():
    frames = FrameClock()
    assert [frames.capture(5000.0, t) for t in (1.0, 1.04, 1.08)] == [1.0, 1.04, 1.08]
    assert frames.capture(9000.0, 1.12) == 1.12


def test_capture_times_always_grow():
    frames = FrameClock()
    assert frames.capture(4.99, 5.0) < frames.capture(4.95, 5.04) < frames.capture(None, 4.0)


# -- which cameras there are ----------------------------------------------------------------------------------------


@pytest.fixture
def two_cameras(tmp_path, monkeypatch) -> Path:
    """A Linux machine with a webcam of two nodes and a second one that may not be read."""
    monkeypatch.setattr(webcam.sys, "platform", "linux")
    monkeypatch.setattr(webcam, "LINUX_DEVICES", tmp_path / "dev")
    monkeypatch.setattr(webcam, "LINUX_NAMES", tmp_path / "names")
    (tmp_path / "dev").mkdir()
    for number, (name, index) in enumerate([("HD Webcam", 0), ("HD Webcam", 1), ("Desk Camera", 0)]):
        (tmp_path / "dev" / f"video{number}").touch()
        folder = tmp_path / "names" / f"video{number}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "index").write_text(f"{index}\n")
    return tmp_path


def test_cameras_are_listed_by_the_node_that_captures(two_cameras):
    assert webcam.cameras() == {0: "HD Webcam", 2: "Desk Camera"}
    assert webcam.find_camera("desk") == 2 and webcam.find_camera("/dev/video7") == 7
    assert webcam.find_camera("nothing") is None and webcam.find_camera("rtsp://desk/") is None


def test_why_a_camera_cannot_be_used(two_cameras, monkeypatch):
    assert webcam.why_not(5) == "there is no camera 5; there is 0 (HD Webcam), 2 (Desk Camera)"
    assert webcam.why_not(0) == ""
    monkeypatch.setattr(webcam.os, "access", lambda *_: False)
    assert "may not be read; add yourself to the group video" in webcam.why_not(0)


def test_a_node_that_is_no_camera_says_how_to_go_on(two_cameras):
    with pytest.raises(SourceError, match="camera 2 did not open; another program may be using it"):
        webcam.open_capture("Desk", (640, 480), 30.0)


def test_a_text_that_is_no_camera_and_no_address_is_one_sentence():
    with pytest.raises(SourceError, match="camera 'nonsense' is neither a camera of this machine nor an address"):
        webcam.open_capture("nonsense", (640, 480), 30.0)


def test_without_opencv_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(webcam.sys.modules, "cv2", None)
    with pytest.raises(SourceError, match=r"OpenCV cannot be loaded .* install opencv-python"):
        webcam.opencv()


def test_what_cannot_be_coded_is_no_picture():
    assert webcam.jpeg(np.zeros((0, 0, 3), np.uint8)) is None
    assert webcam.jpeg(np.zeros((4, 4, 7), np.uint8)) is None
    assert CameraFeed(1, clock=Any).codecs["video"].codec == "mjpeg"
