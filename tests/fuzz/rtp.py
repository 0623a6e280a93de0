"""Fuzz target: datagrams that a stranger sends to our RTP ports.

The first byte chooses the formats; then the input is cut into datagrams: one byte of length (times 8), one that says
how much time passes (5 ms each) and, in its lowest bit, to which port; then the datagram, as it is or, where its first
byte is below 0x40, as payload behind a header that fits the stream, so that the fuzzer need not guess headers to reach
what lies behind them. What comes out is replayed through a receiver with fake decoders.
"""

from runtime.packet import Packet, StreamInfo
from runtime.pipeline import receive
from runtime.receive import Receiver
from runtime.recognise import Sample
from runtime.rtp import RtpError, RtpPacket, is_rtcp, parse_extensions, parse_rtp
from runtime.rtp_session import RtpSession
from runtime.sdp import Format, static_format
from tests.fakes import SPEC
from tests.fuzz.parts import bounded_parts

H264 = Format(payload_type=96, encoding="H264", rate=90_000)
OPUS = Format(payload_type=97, encoding="OPUS", rate=48_000, channels=2)
PCMU, PCMA = static_format(0), static_format(8)
MOST_DATAGRAMS = 300


def one(data: bytes) -> None:
    assert PCMU is not None and PCMA is not None
    sound = {0: PCMU, 8: PCMA, 97: OPUS} if data[:1] and data[0] & 1 else {97: OPUS}
    session = RtpSession({"video": (0, {96: H264}), "audio": (1, sound)})
    sample = Sample()
    items = []
    for at, channel, datagram in datagrams(data[1:]):
        items += session.receive(datagram, at, channel)
        look(datagram, sample)
        assert all(item.arrival is not None and item.arrival <= at for item in items[-5:])
    items += session.finish(9.9)
    sample.formats()
    seqs = [i.seq for i in items if isinstance(i, Packet) and i.modality == "video"]
    assert seqs == sorted(set(seqs)), "numbers of pictures grow"
    for track in session.tracks.values():
        stats = track.stats
        assert stats.lost >= 0 and stats.foreign >= 0, stats
        assert len(track._candidates) <= 16
    receiver = Receiver(StreamInfo(name="rtp", codecs=session.codecs), SPEC, delay=0.1, parts=bounded_parts)
    list(receive(items[:200], receiver))
    receiver.ledger.check()


def datagrams(data: bytes) -> list[tuple[float, int, bytes]]:
    """(arrival, channel, datagram): see the module's docstring."""
    out: list[tuple[float, int, bytes]] = []
    now, numbers = 0.0, [0, 0]
    while len(data) > 2 and len(out) < MOST_DATAGRAMS:
        size, control, body, data = 8 * data[0], data[1], data[2 : 2 + 8 * data[0]], data[2 + 8 * data[0] :]
        now += (control >> 1) * 0.005
        channel = control & 1
        if body and body[0] < 0x40:
            body = bytes(header(body, channel, numbers))
        out.append((now, channel, body))
        assert size >= 0
    return out


def header(body: bytes, channel: int, numbers: list[int]) -> RtpPacket:
    """``body[0]``: 0-3 the next number, else a step; 0x20 the marker bit; ``body[1]``: frames that passed."""
    numbers[channel] += 1 + max((body[0] & 15) - 3, 0)
    time = (3600, 960)[channel] * (numbers[channel] // 2 + (body[1] if len(body) > 1 and body[1] > 250 else 0))
    return RtpPacket(
        payload_type=96 + channel,
        seq=numbers[channel] % 65536,
        timestamp=time % 2**32,
        ssrc=1 + channel + (body[0] >> 4 & 1),
        payload=body[2:],
        marker=bool(body[0] & 0x20),
    )


def look(datagram: bytes, sample: Sample) -> None:
    """What is read of a packet nobody listens to, and what a parsed packet is worth: its bytes again."""
    if is_rtcp(datagram):
        return
    try:
        packet = parse_rtp(datagram)
    except RtpError as error:
        assert str(error)
        return
    assert parse_rtp(bytes(packet)) == packet
    sample.add(packet)
    try:
        parse_extensions(packet.profile, packet.extension)
    except RtpError as error:
        assert str(error)


if __name__ == "__main__":
    from tests.fuzz.run import run

    run("rtp")
