"""An RTP session: datagrams with their arrival times in, packets of the runtime out. Pure: no socket, no clock.

Whatever comes is counted and survived. Audio and video are put on one capture clock: each sender's first packet is
taken for captured when it arrived, and as soon as sender reports of both are known (with one canonical name, or none),
sound is moved to where its own wall clock says it was captured, pictures being the ones that stay (``Track.steer``).
Later reports correct drift in the same way, so capture times that leave here need no remap by the receiver.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from runtime.packet import MODALITIES, CodecConfig, Decision, Packet
from runtime.rtcp import Goodbye, SenderReport, SourceDescription, parse_rtcp
from runtime.rtp import RtpError, is_rtcp, parse_rtp
from runtime.sdp import Format, Media, codec_of
from runtime.ssrc import Track

__all__ = ["REORDER_SECONDS", "RtpSession", "choose_media"]

REORDER_SECONDS = 0.03  # that a hole in RTP numbers waits: networks reorder within milliseconds
EARLY = 16  # senders whose report is kept until they are listened to

Item = Packet | Decision


def choose_media(media: Sequence[Media]) -> dict[str, int]:
    """The index of the first medium of each modality that can be received here."""
    chosen: dict[str, int] = {}
    for i, one in enumerate(media):
        if one.formats and one.port:
            chosen.setdefault(one.formats[0].modality, i)
    return {m: chosen[m] for m in MODALITIES if m in chosen}


class RtpSession:
    """The tracks of one stream.

    ``formats[modality]``: (channel, its payload types). A channel is whatever tells media apart outside of RTP, a port
    as a rule; several may share one. ``delay``: seconds that a hole in the numbers waits.
    """

    def __init__(self, formats: Mapping[str, tuple[int, Mapping[int, Format]]], delay: float = REORDER_SECONDS) -> None:
        self.tracks = {m: Track(m, formats[m][1], delay) for m in MODALITIES if m in formats}
        self.malformed = 0  # datagrams that are no RTP and no RTCP
        self.ignored = 0  # RTP of a payload type or channel that nobody asked for
        self.reports = 0  # sender reports of senders that are listened to
        self._channels = {m: formats[m][0] for m in self.tracks}
        self._early: OrderedDict[int, SenderReport] = OrderedDict()  # of senders that are not listened to yet, by SSRC

    @property
    def codecs(self) -> dict[str, CodecConfig]:
        """By modality."""
        return {m: codec_of(track.format) for m, track in self.tracks.items()}

    @property
    def next_deadline(self) -> float | None:
        """When ``advance`` will have something to give if nothing more arrives; None = never."""
        return min((d for t in self.tracks.values() if (d := t.next_deadline) is not None), default=None)

    @property
    def gone(self) -> bool:
        """Every sender that was listened to has said goodbye."""
        senders = [t.sender for t in self.tracks.values() if t.sender is not None]
        return bool(senders) and all(sender.gone for sender in senders)

    @property
    def stats(self) -> dict[str, dict[str, int]]:
        """Counts of RTP packets by modality, and of what belongs to none of them."""
        rest = {"malformed": self.malformed, "ignored": self.ignored}
        return {**{m: asdict(track.stats) for m, track in self.tracks.items()}, "session": rest}

    def receive(self, data: bytes, now: float, channel: int = 0) -> list[Item]:
        """A datagram that arrived at ``now`` seconds, not before the one before it; what became ready, in order."""
        out = self.advance(now)
        if is_rtcp(data):
            return out + self._control(data, now)
        try:
            packet = parse_rtp(data)
        except RtpError:
            self.malformed += 1
            return out
        track = self._track(packet.payload_type, packet.ssrc, channel)
        if track is None:
            self.ignored += 1
            return out
        out += track.receive(packet, now)
        if self._early and track.sender is not None and track.sender.ssrc in self._early:
            self._report(track, self._early[track.sender.ssrc])
            self._synchronize()
        return out

    def advance(self, now: float) -> list[Item]:
        """Time passed: holes that have waited long enough, in the order of their deadlines."""
        out: list[Item] = []
        while True:
            waiting = [(d, t) for t in self.tracks.values() if (d := t.next_deadline) is not None and d <= now]
            if not waiting:
                return out
            due, track = min(waiting, key=lambda pair: pair[0])
            out += track.advance(due)

    def finish(self, now: float) -> list[Item]:
        """Nothing more will come."""
        out = self.advance(now)
        for track in self.tracks.values():
            out += track.finish(now)
        return out

    def _track(self, payload_type: int, ssrc: int, channel: int) -> Track | None:
        """Whose packet this is: by payload type; by sender where the type means nothing."""
        here = [t for m, t in self.tracks.items() if self._channels[m] == channel]
        known = [t for t in here if payload_type in t.formats]
        return next(iter(known or (t for t in here if t.sender is not None and t.sender.ssrc == ssrc)), None)

    def _control(self, data: bytes, now: float) -> list[Item]:
        try:
            packets = parse_rtcp(data)
        except RtpError:
            self.malformed += 1
            return []
        out: list[Item] = []
        for packet in packets:
            if isinstance(packet, SenderReport):
                self._keep(packet)
            for track in self.tracks.values():
                if isinstance(packet, SenderReport):
                    self._report(track, packet)
                elif isinstance(packet, SourceDescription) and track.sender is not None:
                    track.sender.cname = packet.cname(track.sender.ssrc) or track.sender.cname
                elif isinstance(packet, Goodbye):
                    for ssrc in packet.ssrcs:
                        out += track.goodbye(ssrc, now)
        self._synchronize()
        return out

    def _keep(self, report: SenderReport) -> None:
        """The first report often comes before the first packet, and the next one seconds later."""
        self._early[report.ssrc] = report
        self._early.move_to_end(report.ssrc)
        if len(self._early) > EARLY:
            self._early.popitem(last=False)

    def _report(self, track: Track, report: SenderReport) -> None:
        sender = track.sender
        if sender is not None and sender.ssrc == report.ssrc and sender.timestamp is not None:
            sender.clock.report(report, sender.timestamp)
            self.reports += 1
            self._early.pop(report.ssrc, None)

    def _synchronize(self) -> None:
        """Sound where its sender's wall clock puts it, on the pictures' capture clock."""
        if len(self.tracks) < 2:
            return
        video, audio = self.tracks["video"].sender, self.tracks["audio"].sender
        if video is None or audio is None or not (video.clock.known and audio.clock.known):
            return
        if video.cname is not None and audio.cname is not None and video.cname != audio.cname:
            return  # two machines, whose clocks may differ by anything (RFC 3550, section 6.5.1)
        if video.timestamp is None or video.offset is None or audio.timestamp is None:
            return
        passed = audio.clock.wall(audio.timestamp) - video.clock.wall(video.timestamp)
        captured = (video.timestamp + video.offset) / video.clock.rate + passed
        self.tracks["audio"].steer(round(captured * audio.clock.rate) - audio.timestamp)
