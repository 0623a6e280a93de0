"""Feeds packets to aiortc's JitterBuffer, in aiortc's own environment: JSON in, JSON out.

In: a list of runs: {"capacity", "prefetch", "is_video", "packets": [[number, timestamp], ...]}, in order of arrival.
Out: for each run the packets that it delivered, as [number, index of the arrival at which it came out].
"""

import json
import sys

from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtp import RtpPacket


def deliver(run: dict) -> list[list[int]]:
    buffer = JitterBuffer(capacity=run["capacity"], prefetch=run["prefetch"], is_video=run["is_video"])
    delivered = []
    for arrival, (number, timestamp) in enumerate(run["packets"]):
        packet = RtpPacket(sequence_number=number % 65536, timestamp=timestamp % 2**32)
        packet._data = number.to_bytes(4, "big")  # a frame's data joins its packets: it tells which they were
        _, frame = buffer.add(packet)
        if frame is not None:
            data = frame.data
            delivered += [[int.from_bytes(data[i : i + 4], "big"), arrival] for i in range(0, len(data), 4)]
    return delivered


if __name__ == "__main__":
    json.dump([deliver(run) for run in json.load(sys.stdin)], sys.stdout)
