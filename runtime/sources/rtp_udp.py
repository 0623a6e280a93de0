"""RTP from a socket: ``rtp://HOST:PORT`` or a session description (``*.sdp``), as a live source.

A thread takes datagrams off the sockets and stamps them; ``read`` does the rest in the caller's thread. When the caller
does not keep up, the newest datagrams are dropped and counted (``overruns``): a hole that damage tracking sees.
"""

import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from runtime.clock import Clock, SystemClock
from runtime.errors import SourceError
from runtime.packet import MODALITIES, Decision, Packet, StreamInfo
from runtime.recognise import Sample
from runtime.rtp import RtpError, parse_rtp
from runtime.rtp_session import REORDER_SECONDS, RtpSession, choose_media
from runtime.sdp import MOST_BYTES, Format, Media, parse_sdp
from runtime.sources.base import LivePackets

__all__ = ["RtpSource", "open_rtp", "read_sdp"]

BACKLOG = 8192  # datagrams between the thread and the reader
BUFFER = 4 << 20  # bytes asked of the system for each socket
TURN = 0.1  # seconds after which the thread looks whether it is to stop
WAIT = 10.0  # seconds that an address without a description is given to show what it carries
SECOND = 1.0  # further seconds for the second modality
AFTER = 0.5  # seconds without a packet after the last goodbye, until the stream has ended
SILENT = 2.0  # seconds without a packet until a sender counts as lost


@dataclass(frozen=True, slots=True)
class _Datagram:
    data: bytes
    arrival: float  # seconds on the source's clock
    channel: int


def open_rtp(
    target: str | os.PathLike[str],
    *,
    clock: Clock | None = None,
    name: str | None = None,
    modalities: Sequence[str] = MODALITIES,
    delay: float = REORDER_SECONDS,
    wait: float = WAIT,
) -> "RtpSource":
    """Listen for RTP at ``rtp://HOST:PORT`` (an address of this machine, or a multicast group) or as ``x.sdp`` says.

    ``modalities`` chooses among what is sent.
    Without a description, what comes within ``wait`` seconds must be recognised: H.264, Opus, PCMU or PCMA, audio and
    video on one port or one of them. ``delay``: seconds that a hole in RTP numbers waits for reordered packets.

    Raises SourceError in one sentence where nothing can be received.
    """
    text = os.fspath(target)
    clock = clock or SystemClock()
    if text.lower().startswith("rtp:"):
        host, port = _address(text)
        inbox = _Inbox([(host, port, 0), (host, port + 1, 0)], clock)
        with _closed_on_error(inbox):
            formats = _listen(inbox, clock, wait, text)
        found = {m: (0, {f.payload_type: f}) for m, f in formats.items() if m in modalities}
        return RtpSource(inbox, found, name or text, clock, delay)
    path = Path(text)
    media = parse_sdp(read_sdp(path))
    chosen = {m: i for m, i in choose_media(media).items() if m in modalities}
    if not chosen:
        raise SourceError(f"{path} describes nothing that is played here; H.264, Opus, PCMU and PCMA are")
    inbox = _Inbox([port for i in chosen.values() for port in _ports(media[i], i)], clock)
    formats_of = {m: (i, {f.payload_type: f for f in media[i].formats}) for m, i in chosen.items()}
    return RtpSource(inbox, formats_of, name or path.stem, clock, delay)


def read_sdp(path: Path) -> str:
    """The text of a session description. Raises SourceError."""
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1).decode("utf-8", "replace")
    except OSError as error:
        raise SourceError(f"session description {path} cannot be read ({error.strerror})") from None


class RtpSource(LivePackets):
    """Sockets as a live source; see the module's docstring. ``formats`` as ``RtpSession`` takes them."""

    def __init__(
        self,
        inbox: "_Inbox",
        formats: Mapping[str, tuple[int, Mapping[int, Format]]],
        name: str,
        clock: Clock,
        delay: float,
    ) -> None:
        self.session = RtpSession(formats, delay)
        self.info = StreamInfo(name=name, codecs=self.session.codecs, sequence_numbers=True)
        self._inbox, self.clock = inbox, clock
        self._ready: deque[Packet | Decision] = deque()
        self._lost: set[str] = set()  # modalities whose sender is silent
        self._newest = clock.now()  # when the newest datagram came
        self._told = float("-inf")  # up to when the reader knows that nothing came
        self._closed = False

    @property
    def overruns(self) -> int:
        """Datagrams dropped because nobody read them."""
        return self._inbox.overruns

    @property
    def ended(self) -> bool:
        """Closed, or every sender said goodbye and nothing came since."""
        if self._closed:
            return True
        if self._ready or len(self._inbox):
            return False
        return self.session.gone and self.clock.now() - self._newest > AFTER

    def read(self, timeout: float) -> Packet | Decision | None:
        """The next frame or decision, waiting up to ``timeout`` seconds."""
        until = self.clock.now() + timeout
        while not self._ready:
            now = self.clock.now()
            due = self.session.next_deadline
            left = (until if due is None else min(until, due)) - now
            found = None if self._closed else self._inbox.take(max(left, 0.0))
            if found is not None:
                self._newest = found.arrival
                self._ready.extend(self.session.receive(found.data, found.arrival, found.channel))
                self._look(found.arrival)
                continue
            now = self.clock.now()
            # Later than the deadline said, and by then the receiver's clock has moved on too.
            self._ready.extend(replace(item, arrival=now) for item in self.session.advance(now))
            self._look(now)
            if not self._ready and (now >= until or self._closed or self.ended):
                self._told = now
                return None
        item = self._ready.popleft()
        # Who was told that nothing had come by then has let its clock run on; nothing may come before that.
        return item if item.arrival is None or item.arrival >= self._told else replace(item, arrival=self._told)

    def close(self) -> None:
        """Let go of the sockets, within a second."""
        self._closed = True
        self._ready.clear()
        self._inbox.close()

    def _look(self, now: float) -> None:
        """Senders that fell silent, and those that are back."""
        for modality, track in self.session.tracks.items():
            if track.sender is None:
                continue
            silent = now - track.sender.heard > SILENT
            if silent == (modality in self._lost):
                continue
            (self._lost.add if silent else self._lost.discard)(modality)
            kind = "device_lost" if silent else "device_back"
            reason = f"nothing from its sender for {SILENT:g} s" if silent else "its sender is heard again"
            self._ready.append(Decision(kind=kind, modality=modality, arrival=now, reason=reason))


class _Inbox:
    """Sockets and the thread that empties them. ``ports``: (address, port, channel)."""

    def __init__(self, ports: Sequence[tuple[str, int, int]], clock: Clock) -> None:
        self.overruns = 0
        self._clock = clock
        self._waiting: deque[_Datagram] = deque()
        self._news = threading.Condition()
        self._stop = False
        self._selector = selectors.DefaultSelector()
        try:
            for place, (host, port, channel) in enumerate(ports):
                self._open(host, port, channel, optional=place > 0 and (host, port - 1, channel) in ports)
        except BaseException:
            self._close_sockets()
            raise
        self._thread = threading.Thread(target=self._run, name="legato-rtp", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, timeout: float) -> _Datagram | None:
        """The oldest datagram, waiting for one up to ``timeout`` seconds."""
        with self._news:
            if not self._waiting and not self._stop:
                self._news.wait(timeout)
            return self._waiting.popleft() if self._waiting else None

    def give_back(self, datagrams: Sequence[_Datagram]) -> None:
        """Datagrams that were only looked at."""
        with self._news:
            self._waiting.extendleft(reversed(datagrams))

    def close(self) -> None:
        with self._news:
            self._stop = True
            self._waiting.clear()
            self._news.notify_all()
        self._thread.join(2 * TURN + 0.5)
        self._close_sockets()

    def _open(self, host: str, port: int, channel: int, *, optional: bool) -> None:
        """Reports travel on a port of their own, and are worth having, not needing."""
        try:
            self._selector.register(_socket(host, port), selectors.EVENT_READ, channel)
        except OSError as error:
            if optional:
                return
            raise SourceError(
                f"UDP port {port} of {host} cannot be opened for RTP ({error.strerror}); "
                "choose an address of this machine and a free port"
            ) from None

    def _close_sockets(self) -> None:
        if self._selector.get_map() is None:
            return
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            cast(socket.socket, key.fileobj).close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stop:
            for key, _ in self._selector.select(TURN):
                with suppress(OSError):  # of an earlier datagram that somebody refused
                    self._put(cast(socket.socket, key.fileobj).recv(65536), key.data)

    def _put(self, data: bytes, channel: int) -> None:
        datagram = _Datagram(data, self._clock.now(), channel)
        with self._news:
            if len(self._waiting) >= BACKLOG:
                self.overruns += 1
                return
            self._waiting.append(datagram)
            self._news.notify()


def _socket(host: str, port: int) -> socket.socket:
    """Bound, and in its group if the address is a multicast one."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)[0]
    out = socket.socket(family, socket.SOCK_DGRAM)
    try:
        with suppress(OSError):
            out.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        group = ip_address(str(address[0]).partition("%")[0])
        if group.is_multicast:
            out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        out.bind(address)
        if group.is_multicast and group.version == 4:
            out.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group.packed + bytes(4))
        elif group.is_multicast:
            out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group.packed + bytes(4))
        out.setblocking(False)
        return out
    except BaseException:
        out.close()
        raise


def _address(text: str) -> tuple[str, int]:
    """Host and port of an rtp:// address."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or port == 65535:
        raise SourceError(
            f"{text} is not an address that RTP can come to; write rtp://HOST:PORT, such as rtp://0.0.0.0:5004"
        )
    return host, port


def _ports(media: Media, channel: int) -> Iterator[tuple[str, int, int]]:
    host = media.address or "0.0.0.0"
    yield host, media.port, channel
    if media.rtcp_port not in (0, media.port):
        yield host, media.rtcp_port, channel


class _closed_on_error:
    """Closes a thing if the block fails."""

    def __init__(self, thing: _Inbox) -> None:
        self._thing = thing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None:
            self._thing.close()


def _listen(inbox: _Inbox, clock: Clock, wait: float, where: str) -> dict[str, Format]:
    """What comes to a port, told from its first packets; they stay in the inbox."""
    sample, seen = Sample(), list[_Datagram]()
    until = clock.now() + wait
    found: dict[str, Format] = {}
    while (now := clock.now()) < until and len(found) < 2 and len(seen) < BACKLOG // 2:
        datagram = inbox.take(min(until - now, TURN))
        if datagram is None:
            continue
        seen.append(datagram)
        with suppress(RtpError):
            sample.add(parse_rtp(datagram.data))
        both = sample.formats()
        if both and not found:
            until = min(until, clock.now() + SECOND)
        found = both
    inbox.give_back(seen)
    if not found:
        what = f"{len(seen)} datagrams came, none of them RTP that is recognised" if seen else "nothing came"
        raise SourceError(f"{where}: within {wait:g} s {what}; start its sender, or give a session description (*.sdp)")
    return found
