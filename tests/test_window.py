"""``--window``: what is drawn, and what is said where nothing can be drawn. No screen is needed."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime import window
from runtime.errors import MissingExtraError
from runtime.packet import Packet
from runtime.sources.webcam import jpeg
from runtime.window import HEIGHT, PANEL, STATES, WIDTH, Window, bgr, compose
from tests.test_table import prediction

BOTH = ("video", "audio")


def colours(image: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()}


def test_the_picture_is_shown_whole_whatever_its_shape():
    tall = np.full((480, 240, 3), 200, np.uint8)
    drawn = compose(tall, None, BOTH, 4)
    assert drawn.shape == (HEIGHT + PANEL, WIDTH, 3)
    shown = (drawn[:HEIGHT] == 200).all(-1)
    assert shown.sum() == 480 * 240 and shown[0, WIDTH // 2] and not shown[0, 0]


def test_strips_label_status_and_recording_are_drawn():
    plain = compose(None, None, BOTH, 4)
    drawn = compose(None, prediction(3, lost=(1,)), BOTH, 4, status="camera 0 │ ● live", recording=True)
    assert colours(drawn[HEIGHT:]) >= {STATES["observed"], STATES["lost"]}
    assert not colours(plain) & {STATES["observed"], STATES["lost"]}
    assert (drawn[:HEIGHT] != plain[:HEIGHT]).any()  # REC
    assert (compose(None, prediction(3, label=None), BOTH, 4) != drawn).any()


def test_frames_of_a_clip_are_turned_round_for_opencv():
    rgb = np.zeros((2, 2, 3), np.uint8)
    rgb[..., 0] = 9
    assert bgr(rgb)[0, 0].tolist() == [0, 0, 9] and bgr(np.full((2, 2), 7, np.uint8))[1, 1].tolist() == [7, 7, 7]


class FakeScreen:
    """OpenCV's windows, as a record of what they showed."""

    error = RuntimeError
    IMREAD_COLOR, WINDOW_AUTOSIZE, WND_PROP_VISIBLE = 1, 1, 4

    def __init__(self, build: str = "  GUI:   QT5\n") -> None:
        self.build, self.shown, self.key, self.visible = build, [], -1, 1.0
        self.utils = SimpleNamespace(logging=SimpleNamespace(setLogLevel=lambda level: None, LOG_LEVEL_SILENT=0))

    def getBuildInformation(self) -> str:
        return self.build

    def namedWindow(self, title: str, mode: int) -> None:
        if self.key == -2:
            raise RuntimeError("no display\nat all")

    def imdecode(self, data: np.ndarray, mode: int) -> Any:
        import cv2

        return cv2.imdecode(data, mode)

    def imshow(self, title: str, image: np.ndarray) -> None:
        self.shown.append(image)

    def waitKey(self, milliseconds: int) -> int:
        return self.key

    def getWindowProperty(self, title: str, prop: int) -> float:
        return self.visible

    def destroyWindow(self, title: str) -> None:
        raise RuntimeError("it is gone")


@pytest.fixture
def screen(monkeypatch) -> FakeScreen:
    made = FakeScreen()
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("runtime.sources.webcam.opencv", lambda: made)
    return made


@pytest.fixture
def coded() -> bytes:
    """A gray picture; asked for before ``screen``, which takes OpenCV's place."""
    made = jpeg(np.full((48, 64, 3), 180, np.uint8))
    assert made is not None
    return made


def frame(payload: bytes) -> Packet:
    return Packet(modality="video", seq=0, capture_time=0, time_base=Fraction(1), payload=payload)


def test_a_window_shows_the_newest_jpeg_and_closes_when_asked(coded, screen):
    with Window("Legato", BOTH, 4) as shown:
        assert shown.refresh()
        shown.packet(frame(coded))
        shown.clip(SimpleNamespace(video=np.zeros((2, 8, 8), np.uint8)))  # coarser than what came
        shown.show(prediction(3))
        assert shown.refresh("status", recording=True)
        assert abs(int(screen.shown[-1][HEIGHT // 2, WIDTH // 2, 0]) - 180) < 3
        screen.key = ord("q")
        assert not shown.refresh()
        screen.key, screen.visible = -1, 0.0
        assert not shown.refresh()


def test_what_is_no_jpeg_is_shown_as_the_encoder_sees_it(screen):
    with Window("Legato", BOTH, 4) as shown:
        shown.packet(frame(b"\0\0\0\1h264"))
        shown.clip(SimpleNamespace(video=np.full((2, 8, 8), 90, np.uint8)))
        shown.refresh()
        assert screen.shown[-1][HEIGHT // 2, WIDTH // 2].tolist() == [90, 90, 90]


def test_a_jpeg_that_is_broken_leaves_the_picture_out(screen):
    with Window("Legato", BOTH, 4) as shown:
        shown.packet(frame(b"\xff\xd8broken"))
        assert shown.refresh()


def test_where_no_window_can_be_drawn_one_sentence_says_why(screen, monkeypatch):
    screen.key = -2
    with pytest.raises(MissingExtraError, match=r"OpenCV cannot open a window \(no display\); leave out --window"):
        Window("Legato", BOTH, 4)
    screen.build = "  GUI:                           NONE\n"
    with pytest.raises(MissingExtraError, match="built without windows; replace it"):
        Window("Legato", BOTH, 4)
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(window.sys, "platform", "linux")
    with pytest.raises(MissingExtraError, match="no screen to open a window on"):
        Window("Legato", BOTH, 4)
