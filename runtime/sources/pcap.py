"""Captures (pcap and pcapng) of RTP, replayed with the arrival times that they hold: deterministic.

Which streams of a capture are played is said by a session description beside it (``call.sdp`` for ``call.pcap``), or,
without one, told from the packets (``runtime.recognise``). Of several of a modality the one with the most packets is
taken; what was left out is said in the labels of ``info``.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from runtime.closing import Closing
from runtime.datagrams import Datagram, Datagrams
from runtime.errors import MissingExtraError, SourceError
from runtime.packet import MODALITIES, Decision, Packet, StreamInfo
from runtime.recognise import Sample
from runtime.rtp import RtpError, is_rtcp, parse_rtp
from runtime.rtp_session import REORDER_SECONDS, RtpSession, choose_media
from runtime.sdp import Format, parse_sdp
from runtime.sources.rtp_udp import read_sdp

__all__ = ["CaptureSource", "recorded_frames"]

MOST_RECORD = 1 << 20  # bytes of one record; a frame has 64 kB at most
MOST_STEP = 600.0  # seconds between two records; a longer one is a clock that was set
MOST_FLOWS = 1024  # UDP flows that are looked at
PURE = 0.9  # share of a flow's datagrams that must parse as RTP

Flow = tuple[bytes, int, bytes, int]


class CaptureSource(Closing):
    """One capture as one stream. It is read twice, once to see what is in it.

    ``info.labels["note"]`` says what was left out. Raises SourceError for what is no capture or holds no RTP that can
    be played, MissingExtraError without the extra ``pcap``.
    """

    def __init__(
        self,
        path: Path,
        *,
        sdp: Path | None = None,
        name: str | None = None,
        delay: float = REORDER_SECONDS,
    ) -> None:
        self._path, self._delay = path, delay
        beside = path.with_suffix(".sdp")
        description = sdp if sdp is not None else beside if beside.is_file() else None
        seen = _Contents(path)
        chosen = _described(description, seen) if description is not None else seen.recognised()
        if not chosen:
            raise SourceError(_nothing(path, seen, description))
        flows = {flow: m for m, (flow, _) in chosen.items()}
        self._channels = {flow: i for i, flow in enumerate(flows)}
        self._formats = {m: (self._channels[flow], formats) for m, (flow, formats) in chosen.items()}
        self.session = RtpSession(self._formats, delay)
        notes = seen.notes(chosen)
        self.info = StreamInfo(
            name=name or path.stem,
            codecs=self.session.codecs,
            labels={"note": "; ".join(notes)} if notes else {},
            sequence_numbers=True,
        )

    def packets(self) -> Iterator[Packet | Decision]:
        """Every frame, with the arrival time of the RTP packet that completed it, in seconds since the first record."""
        session = self.session = RtpSession(self._formats, self._delay)
        now = 0.0
        for now, datagram in _datagrams(self._path, lambda _: None):
            channel = self._channels.get(datagram.flow)
            if channel is not None or is_rtcp(datagram.payload):
                yield from session.receive(datagram.payload, now, -1 if channel is None else channel)
        yield from session.finish(now)



class _Contents:
    """What a first look at a capture finds: UDP flows, and what their RTP seems to be."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[Flow] = Counter()
        self._rtp: Counter[Flow] = Counter()
        self._samples: dict[Flow, Sample] = {}
        self._notes: list[str] = []
        for _, datagram in _datagrams(path, self._notes.append):
            self._add(datagram)

    def _add(self, datagram: Datagram) -> None:
        flow = datagram.flow
        if flow not in self.counts and len(self.counts) >= MOST_FLOWS:
            return
        self.counts[flow] += 1
        if is_rtcp(datagram.payload):
            self._rtp[flow] += 1
            return
        try:
            packet = parse_rtp(datagram.payload)
        except RtpError:
            return
        self._rtp[flow] += 1
        self._samples.setdefault(flow, Sample()).add(packet)

    def recognised(self) -> dict[str, tuple[Flow, Mapping[int, Format]]]:
        """By modality: the flow that carries it, and what its payload types mean."""
        out: dict[str, tuple[Flow, Mapping[int, Format]]] = {}
        for flow, count in self.counts.most_common():
            if flow not in self._samples or self._rtp[flow] < PURE * count:
                continue
            for modality, chosen in self._samples[flow].formats().items():
                if modality not in out:
                    out[modality] = flow, {chosen.payload_type: chosen}
        return {m: out[m] for m in MODALITIES if m in out}

    def to_port(self, port: int) -> Flow | None:
        """The flow of RTP to a port with the most packets."""
        return next((f for f, _ in self.counts.most_common() if f[3] == port and f in self._samples), None)

    def notes(self, chosen: Mapping[str, tuple[Flow, Mapping[int, Format]]]) -> list[str]:
        """What a user should know of this capture."""
        taken = {flow for flow, _ in chosen.values()}
        others = sum(
            self._rtp[flow] >= PURE * count and bool(sample.formats())
            for flow, count in self.counts.items()
            if flow not in taken and (sample := self._samples.get(flow)) is not None
        )
        left = f"{others} more RTP stream{'s' * (others != 1)} left out; the ones with the most packets are played"
        return [*self._notes, left] if others else self._notes


def _described(path: Path, seen: _Contents) -> dict[str, tuple[Flow, Mapping[int, Format]]]:
    """The flows that a session description names by their port."""
    media = parse_sdp(read_sdp(path))
    out: dict[str, tuple[Flow, Mapping[int, Format]]] = {}
    for modality, i in choose_media(media).items():
        flow = seen.to_port(media[i].port)
        if flow is not None:
            out[modality] = flow, {f.payload_type: f for f in media[i].formats}
    return out


def _datagrams(path: Path, note: Callable[[str], None]) -> Iterator[tuple[float, Datagram]]:
    """(seconds since the first record, datagram) of a capture; what went wrong is told to ``note`` at the end."""
    with _opened(path) as file:
        reader = _reader(file, path)
        datagrams = Datagrams(reader.datalink())
        if not datagrams.known:
            raise SourceError(
                f"{path} was captured on a link of type {datagrams.link}, which is not read; "
                "capture on Ethernet, loopback or any (Linux)"
            )
        times = _RecordTimes()
        for stamp, frame in recorded_frames(reader, note):
            at = times.since_first(stamp)
            datagram = datagrams.read(frame)
            if datagram is not None:
                yield at, datagram
        datagrams.finish()
        if times.jumps:
            many = "once" if times.jumps == 1 else f"{times.jumps} times"
            note(f"the capture's clock jumps {many} by more than {MOST_STEP:g} s; jumps are left out")
        if datagrams.fragments_lost:
            note(f"{datagrams.fragments_lost} datagrams lack a fragment")


class _RecordTimes:
    """Seconds since the first record, never going back. A leap of the capture's clock is none of the network's."""

    def __init__(self) -> None:
        self.jumps = 0
        self._zero: float | None = None
        self._now = 0.0

    def since_first(self, stamp: float) -> float:
        if self._zero is None:
            self._zero = stamp
        at = stamp - self._zero
        if not abs(at - self._now) <= MOST_STEP:
            self.jumps += 1
            self._zero += at - self._now
            at = self._now
        self._now = max(self._now, at)
        return self._now


def recorded_frames(reader: Any, note: Callable[[str], None]) -> Iterator[tuple[float, bytes]]:
    """(capture time in seconds, frame) up to the last whole record."""
    frames = iter(reader)
    count = 0
    while True:
        try:
            at, frame = next(frames)
        except StopIteration:
            return
        except Exception:  # the library raises many kinds for a file that is cut off or damaged; none is ours
            note(f"the capture is cut off or damaged after {count} records")
            return
        count += 1
        yield float(at), bytes(frame)


class _Whole:
    """A file that gives what was asked for, nothing, or an error: a cut record is not half a record."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MOST_RECORD:
            raise ValueError(f"record of {size} bytes")
        data = self._file.read(size)
        if 0 < len(data) < size:
            raise EOFError(f"record of {size} bytes, {len(data)} left")
        return data

    def seek(self, place: int) -> int:
        return self._file.seek(place)


def _reader(file: BinaryIO, path: Path) -> Any:
    try:
        from dpkt.pcap import UniversalReader
    except ImportError:
        raise MissingExtraError(
            f"reading {path.name} takes the package dpkt, which is not installed; pip install 'legato[pcap]'"
        ) from None
    try:
        return UniversalReader(_Whole(file))
    except Exception:  # as above
        raise SourceError(f"{path} is no capture of pcap or pcapng, or its head is damaged") from None


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise SourceError(f"capture {path} cannot be read ({error.strerror})") from None


def _nothing(path: Path, seen: _Contents, description: Path | None) -> str:
    total, flows = sum(seen.counts.values()), len(seen.counts)
    if description is not None:
        return f"{path} holds no RTP to the ports that {description.name} names; correct their m= lines or remove it"
    return (
        f"{path} holds no RTP that is recognised ({total} UDP datagrams in {flows} flows); "
        f"describe it in {path.with_suffix('.sdp').name} beside it, H.264, Opus, PCMU and PCMA are played"
    )
