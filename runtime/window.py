"""``legato live --window``: the picture, what came and what did not, what is said and how surely; drawn with OpenCV.

``compose`` is pure and tested; ``Window`` puts its picture on the screen, from the main thread, where macOS wants it.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imputation.presence import OBSERVED
from runtime.clip import Clip
from runtime.errors import MissingExtraError
from runtime.packet import Decision, Packet
from runtime.prediction import Prediction
from runtime.table import sure
from runtime.wording import words

Image = NDArray[np.uint8]  # (H, W, 3) BGR

WIDTH, HEIGHT = 640, 480  # of the picture
PANEL = 96  # pixels below it
MARGIN, STRIP = 12, 14
FONT_PIXELS = 22.0  # height of a capital at scale 1 of OpenCV's plain font
INK, DIM, RED = (235, 235, 235), (150, 150, 150), (60, 60, 230)
# BGR, the table's colours
STATES = {OBSERVED: (90, 180, 60), "damaged": (40, 190, 220), "late": (190, 80, 190), "lost": (60, 60, 220)}
SHED = (200, 120, 60)
QUIT = (ord("q"), 27)  # q, Escape


class Window:
    """A window with the newest picture. ``packet`` and ``clip`` may be called from any thread, all else from one.

    Raises MissingExtraError where OpenCV cannot draw windows.
    """

    def __init__(self, title: str, modalities: Sequence[str], window: int) -> None:
        self._cv2 = _opencv_with_windows()
        self._title, self._modalities, self._window = title, tuple(modalities), window
        self._lock = threading.Lock()
        self._coded: bytes | None = None  # the newest JPEG
        self._picture: Image | None = None
        self._prediction: Prediction | None = None
        try:
            self._cv2.namedWindow(title, self._cv2.WINDOW_AUTOSIZE)
        except self._cv2.error as error:
            raise MissingExtraError(f"OpenCV cannot open a window ({_first_line(error)}); leave out --window") from None

    def packet(self, item: Packet | Decision) -> None:
        """A JPEG is shown as it came."""
        if isinstance(item, Packet) and item.modality == "video" and item.payload.startswith(b"\xff\xd8"):
            with self._lock:
                self._coded = item.payload

    def clip(self, clip: Clip) -> None:
        """What is coded otherwise is shown as the encoder sees it, once a clip."""
        if clip.video is not None:
            with self._lock:
                if self._coded is None:
                    self._picture = bgr(clip.video[-1])

    def show(self, prediction: Prediction) -> None:
        """One prediction."""
        self._prediction = prediction

    def refresh(self, status: str = "", recording: bool = False) -> bool:
        """Draw; False when its user closed it."""
        with self._lock:
            coded, self._coded = self._coded, None
            picture = self._picture
        if coded is not None:
            picture = self._cv2.imdecode(np.frombuffer(coded, np.uint8), self._cv2.IMREAD_COLOR)
            with self._lock:
                self._picture = picture
        drawn = compose(picture, self._prediction, self._modalities, self._window, status=status, recording=recording)
        self._cv2.imshow(self._title, drawn)
        pressed = self._cv2.waitKey(1) & 0xFF
        return pressed not in QUIT and self._cv2.getWindowProperty(self._title, self._cv2.WND_PROP_VISIBLE) >= 1

    def close(self) -> None:
        self._cv2.destroyWindow(self._title)

    def __enter__(self) -> "Window":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(self._cv2.error):  # its user was quicker
            self.close()


def compose(
    picture: Image | None,
    prediction: Prediction | None,
    modalities: Sequence[str],
    window: int,
    *,
    status: str = "",
    recording: bool = False,
) -> Image:
    """What the window shows: (HEIGHT + PANEL, WIDTH, 3) BGR."""
    canvas = np.full((HEIGHT + PANEL, WIDTH, 3), 24, np.uint8)
    if picture is not None:
        _paste(canvas, picture)
    else:
        _write(canvas, "no picture", (MARGIN, HEIGHT // 2), DIM, 24)
    if recording:
        _write(canvas, "REC", (WIDTH - 60, 30), RED, 20)
    top = HEIGHT + MARGIN
    for modality in modalities:
        _write(canvas, modality, (MARGIN, top + STRIP - 2), DIM, 13)
        _strip(canvas, prediction, modality, window, top)
        top += STRIP + 6
    if prediction is not None:
        label = "abstained" if prediction.abstained else f"{words(prediction.label or '')} {sure(prediction)}"
        _write(canvas, label, (WIDTH // 2, HEIGHT + MARGIN + 24), INK, 24)
    _write(canvas, status, (MARGIN, HEIGHT + PANEL - MARGIN), DIM, 12)
    return canvas


def bgr(pixels: NDArray[np.uint8]) -> Image:
    """A frame of a clip, gray (H, W) or rgb24 (H, W, 3), as OpenCV draws it."""
    return np.ascontiguousarray(np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels[..., ::-1])


def _paste(canvas: Image, picture: Image) -> None:
    """The whole picture, as large as fits, in the middle."""
    import cv2

    height, width = picture.shape[:2]
    share = min(WIDTH / width, HEIGHT / height)
    size = max(1, round(width * share)), max(1, round(height * share))
    left, top = (WIDTH - size[0]) // 2, (HEIGHT - size[1]) // 2
    canvas[top : top + size[1], left : left + size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _strip(canvas: Image, prediction: Prediction | None, modality: str, window: int, top: int) -> None:
    """A box per clip of the window, the newest on the right; nothing where the window reaches back before the start."""
    left, length = MARGIN + 60, WIDTH // 2 - 60 - 3 * MARGIN
    box = length / window
    clips = [] if prediction is None else prediction.clips
    for place, clip in enumerate(clips, window - len(clips)):
        x = left + round(place * box)
        canvas[top : top + STRIP, x : max(x + 1, left + round((place + 1) * box) - 2)] = STATES.get(
            clip.state.get(modality, ""), SHED
        )


def _write(canvas: Image, text: str, at: tuple[int, int], colour: tuple[int, int, int], pixels: int) -> None:
    """A line whose capitals are so high; OpenCV's font knows ASCII only."""
    import cv2

    plain = text.replace("│", "|").replace("●", "*").encode("ascii", "replace").decode()
    cv2.putText(canvas, plain, at, cv2.FONT_HERSHEY_SIMPLEX, pixels / FONT_PIXELS * 0.8, colour, 1, cv2.LINE_AA)


def _opencv_with_windows() -> Any:
    from runtime.sources.webcam import opencv

    cv2 = opencv()
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise MissingExtraError("there is no screen to open a window on (DISPLAY is not set); leave out --window")
    if _has_no_windows(cv2.getBuildInformation()):
        raise MissingExtraError(
            "this OpenCV was built without windows; replace it (pip uninstall opencv-python-headless, "
            "pip install opencv-python), or leave out --window"
        )
    return cv2


def _has_no_windows(build: str) -> bool:
    lines = (line.strip() for line in build.splitlines())
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("GUI:")), "") == "NONE"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
