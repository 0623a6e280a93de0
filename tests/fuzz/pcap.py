"""Fuzz target: a capture file, and a session description beside it, that somebody gives us.

The first byte chooses: bit 0, the rest is a file as it is, else its records are framed here; bit 1, the link layer is
raw IP, else Ethernet; bit 2, the first 64 bytes are the description of what is in it.
"""

import struct

from runtime.errors import SourceError
from runtime.packet import Decision, Packet, StreamInfo
from runtime.pipeline import receive
from runtime.receive import Receiver
from runtime.sdp import codec_of, parse_sdp
from runtime.sources.pcap import CaptureSource
from tests.fakes import SPEC
from tests.fuzz.parts import bounded_parts, scratch

HEAD = struct.Struct("<IHHiIII")
RECORD = struct.Struct("<IIII")
SDP = b"v=0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\nm=audio 5006 RTP/AVP 97 0 8\na=rtpmap:97 opus/48000/2\n"


def one(data: bytes) -> None:
    choice, data = (data[0], data[1:]) if data else (1, b"")
    path, beside = scratch(".pcap"), None
    if choice & 4:
        beside = scratch(".sdp")
        beside.write_bytes(SDP + data[:64])
        describe(beside.read_text("utf-8", "replace"))
        data = data[64:]
    path.write_bytes(data if choice & 1 else framed(data, 101 if choice & 2 else 1))
    try:
        with CaptureSource(path, sdp=beside) as source:
            items = list(source.packets())
            assert items == list(source.packets()), "reading again gives the same"
            replay(source.info, items[:200])
    except SourceError as error:
        assert str(error) and "\n" not in str(error)


def describe(text: str) -> None:
    try:
        for media in parse_sdp(text):
            assert all(codec_of(f).codec for f in media.formats)
    except SourceError as error:
        assert "\n" not in str(error)


def replay(info: StreamInfo, items: list[Packet | Decision]) -> None:
    times = [item.arrival for item in items if item.arrival is not None]
    assert times == sorted(times) and len(times) == len(items)
    if times and times[-1] - times[0] > 600:  # time that passes is clips that close
        return
    receiver = Receiver(info, SPEC, delay=0.1, parts=bounded_parts)
    list(receive(items, receiver))
    receiver.ledger.check()


def framed(data: bytes, link: int) -> bytes:
    """A capture whose records are pieces of ``data``: two bytes of length, one of milliseconds, the frame."""
    out, now = bytearray(HEAD.pack(0xA1B2C3D4, 2, 4, 0, 0, 65535, link)), 0
    while len(data) > 3:
        length = int.from_bytes(data[:2], "little")
        now += data[2] * 1000
        frame, data = data[3 : 3 + length], data[3 + length :]
        out += RECORD.pack(now // 10**6, now % 10**6, len(frame), len(frame)) + frame
    return bytes(out)


if __name__ == "__main__":
    from tests.fuzz.run import run

    run("pcap")
