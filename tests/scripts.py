"""Live sources that follow a script: no device, no sleeping, the same every time."""

from collections.abc import Sequence
from fractions import Fraction

import cv2
import numpy as np

from runtime.packet import CodecConfig, Decision, Packet, StreamInfo
from runtime.sources.base import LivePackets
from runtime.sources.device import DeviceState
from tests.fakes import INFO, FakeClock

Item = Packet | Decision


class Script(LivePackets):
    """A live source that plays items at their arrivals, on a clock that moves only while somebody waits."""

    def __init__(self, items: Sequence[Item], info: StreamInfo = INFO, start: float = 0.0) -> None:
        self.info, self.clock = info, FakeClock(start)
        self._items = sorted(items, key=lambda i: i.arrival)
        self.closed = False

    @property
    def ended(self) -> bool:
        return self.closed or not self._items

    def read(self, timeout: float) -> Item | None:
        assert timeout >= 0
        if self.ended:
            return None
        due = self._items[0].arrival
        if due > self.clock.seconds + timeout:
            self.clock.move(timeout)
            return None
        self.clock.sleep_until(due)
        return self._items.pop(0)

    def states(self) -> list[DeviceState]:
        return [DeviceState(name="camera 0", modalities=("video",), state="live", rates={"video": 25.0}, lives=1)]

    def close(self) -> None:
        self.closed = True


VIDEO = CodecConfig(codec="mjpeg", time_base=Fraction(1, 90_000), width=64, height=48)
SOUND = CodecConfig(
    codec="pcm_s16le", time_base=Fraction(1, 16_000), sample_rate=16_000, channels=1, sample_format="s16"
)
DESK = StreamInfo(name="desk", codecs={"video": VIDEO, "audio": SOUND})


def desk(seconds: float, seed: int = 0) -> list[Item]:
    """A moving square and a rising tone as devices give them, with an outage of each, a hole, and a late block."""
    items: list[Item] = []
    for i in range(round(25 * seconds)):
        picture = np.full((48, 64, 3), 60, np.uint8)
        picture[10:30, i % 40 : i % 40 + 16] = 200
        coded = cv2.imencode(".jpg", picture)[1].tobytes()
        at = i / 25
        if not 2.0 < at < 3.4 and i % 17:
            items.append(
                Packet(
                    modality="video", seq=i, capture_time=3600 * i, time_base=VIDEO.time_base,
                    payload=coded, keyframe=True, arrival=at + 0.03,
                )
            )  # fmt: skip
    for i in range(round(50 * seconds)):
        t = (np.arange(320) + 320 * i) / 16_000
        at = i / 50
        late = 0.25 if i % 31 == 0 else 0.0
        if not 4.0 < at < 4.9:
            sound = (0.3 * np.sin(2 * np.pi * (200 + 50 * t) * t) * 32767).astype("<i2").tobytes()
            items.append(
                Packet(
                    modality="audio", seq=i, capture_time=320 * i, time_base=SOUND.time_base,
                    payload=sound, duration=320, keyframe=True, arrival=at + 0.04 + late,
                )
            )  # fmt: skip
    items.append(Decision(kind="device_lost", modality="video", arrival=4.05, reason="camera 0: unplugged"))
    items.append(Decision(kind="device_back", modality="video", arrival=3.42))
    return items
