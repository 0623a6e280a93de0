"""Client: a source's packets to a server, its predictions back, whatever happens to the connection in between.

    with Client("localhost:50051") as client:
        for prediction in client.run(open_source("meeting.mkv")):
            print(prediction.label, prediction.confidence)

It reconnects and resumes by itself (``runtime.serve.client_session``). Without TLS it speaks to this machine only,
unless ``insecure`` is said: a token and what people said must not cross a network in the open.
"""

import ipaddress
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from protos import stream_pb2 as pb
from protos import stream_pb2_grpc as services
from runtime.closing import Closing
from runtime.errors import ServiceError, UsageError
from runtime.prediction import Prediction
from runtime.serve.answers import ServedBundle, bundle_from_wire
from runtime.serve.capture import Capture
from runtime.serve.client_session import Patience, Session, Wanted
from runtime.serve.client_state import Progress
from runtime.serve.refusals import Backoff, read_refusal
from runtime.serve.sender import KEEP_BYTES, Feed, Kept, Reread
from runtime.sources.base import Source

__all__ = ["Client", "Tls"]

PORT = 50051
MESSAGE_BYTES = 64 << 20  # received; what is sent is bounded in runtime.serve.outgoing
OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),  # a link that died without a word is noticed
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),  # each try connects anew; when, is ours to say
    ("grpc.enable_retries", 0),
]


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How to trust a server and be trusted: PEM files; without ``ca`` the system's authorities decide."""

    ca: str | Path | None = None
    cert: str | Path | None = None  # ours, where the server asks for one
    key: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises UsageError where a file cannot be read, or one of a pair is missing."""
        if (self.cert is None) != (self.key is None):
            raise UsageError("a client certificate needs both --tls-cert and --tls-key")
        ca, cert, key = (None if path is None else _read(path) for path in (self.ca, self.cert, self.key))
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


class Client(Closing):
    """A server's predictions for sources of ours.

    address: ``host:port``, ``[::1]:port`` or ``unix:PATH``; the port is 50051 where it is not named. token: sent as
    ``authorization: Bearer``. tls: None means TLS by the system's authorities for another machine and none for this
    one; ``insecure`` does without everywhere. patience: seconds without any progress after which it gives up; by
    default 60, and 10 where nothing was ever reached.

    Raises UsageError for an address, token or certificate that cannot be used.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str = "",
        tls: Tls | None = None,
        insecure: bool = False,
        patience: float | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.address, loopback = parse_address(address)
        if tls is not None and insecure:
            raise UsageError("TLS and --insecure contradict each other; choose one")
        if not re.fullmatch(r"[\x21-\x7e]*", token):
            raise UsageError("the token holds a space or a character that no token has; copy it again")
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        plain = insecure or (loopback and tls is None)
        self._credentials = None if plain else (tls or Tls()).credentials()
        self._patience, self._rng = patience, rng

    def run(
        self,
        source: Source | str | Path | Callable[[], Source],
        *,
        bundle: str = "",
        heads: Sequence[str] = (),
        lookahead: int | None = None,
        speed: str = "max",
        consent: bool = False,
        progress: Progress | None = None,
        stored: Callable[[Progress], None] | None = None,
        observe: Callable[[Any], None] | None = None,
        batch_ms: float = 50.0,
        keep_bytes: int = KEEP_BYTES,
    ) -> Iterator[Prediction]:
        """Predictions as they come, until the source has ended and the last one is final.

        A path, or a function that opens the source, can be read again after a cut; of an open source what the server
        may still need is kept, ``keep_bytes`` at most. A prediction counts as stored when the next one is asked for.

        Args:
            heads: which heads speak; none: all of the bundle.
            speed: for sources that are not live, ``max``, which is answered as a replay of them is, or ``realtime``,
                which is answered as a device would be.
            consent: the server may record what is sent.
            progress: of an earlier client that sent the same; ``stored`` is shown it whenever it may be saved.
            observe: is shown all else that happens: Started, Retrying, Gap, ClipReport, StreamStats.
            batch_ms: of packets in one message, for live and ``realtime``; at most 100.

        Raises:
            ServiceError: the server refuses, or cannot be reached for ``patience`` seconds.
            SourceError: the source cannot be read.
        """
        if speed not in ("max", "realtime"):
            raise UsageError(f"speed {speed!r} is unknown; use max or realtime")
        if not 0 <= batch_ms <= 100:
            raise UsageError(f"batch_ms {batch_ms:g} is not between 0 and 100")
        feed = open_feed(source, progress, keep_bytes)
        recorded = speed == "max" and not is_live(source)
        wanted = Wanted(bundle=bundle, heads=tuple(heads), lookahead=lookahead, consent=consent, recorded=recorded)
        session = Session(
            self._call,
            self.address,
            feed,
            wanted,
            progress or Progress(),
            realtime=speed == "realtime" or is_live(source),
            batch_seconds=batch_ms / 1e3,
            backoff=Backoff(self._rng),
            patience=Patience.of(self._patience, known=progress is not None and bool(progress.token)),
            stored=stored,
            observe=observe,
        )
        return session.predictions()

    def describe(self, bundle: str = "", *, timeout: float = 10.0) -> ServedBundle:
        """What the server says of a bundle; its default where no name is given. Raises ServiceError."""
        with self._channel() as channel:
            stub = services.InferenceServiceStub(channel)
            try:
                request = pb.DescribeBundleRequest(bundle=bundle)
                answer = stub.DescribeBundle(request, metadata=self._metadata, timeout=timeout)
                return bundle_from_wire(answer.bundle)
            except grpc.RpcError as error:
                raise read_refusal(error).error(self.address) from None
            except ValueError as error:
                raise ServiceError(f"server {self.address} described its bundle wrongly: {error}") from None


    def _channel(self) -> grpc.Channel:
        if self._credentials is None:
            return grpc.insecure_channel(self.address, options=OPTIONS)
        return grpc.secure_channel(self.address, self._credentials, options=OPTIONS)

    def _call(self, requests: Iterator[pb.StreamRequest]) -> tuple[grpc.Channel, Any]:
        """A connection of its own, and the call on it."""
        channel = self._channel()
        return channel, services.InferenceServiceStub(channel).Stream(requests, metadata=self._metadata)


def open_feed(
    source: Source | str | Path | Callable[[], Source], progress: Progress | None, keep_bytes: int = KEEP_BYTES
) -> Feed:
    """What is to be sent, by how often it can be read."""
    acknowledged = progress.acknowledged if progress is not None else {}
    if isinstance(source, str | Path):
        from runtime.sources import open_source

        return Reread(lambda: open_source(source), acknowledged)
    if callable(source):
        return Reread(source, acknowledged)
    if is_live(source):
        return Capture(source, keep_bytes)
    return Kept(source.info, iter(source.packets()), max_bytes=keep_bytes, close=source.close)


def is_live(source: object) -> bool:
    """Whether a source's packets come when they come (``runtime.sources.base.LiveSource``)."""
    return hasattr(source, "read") and hasattr(source, "ended")


def parse_address(text: str) -> tuple[str, bool]:
    """The address with its port, and whether it is this machine. Raises UsageError."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return text, True
    match = re.fullmatch(r"(?:(\[[0-9A-Fa-f:.%]+\])|([^\s:/\[\]]+))(?::(\d{1,5}))?", text)
    if match is None:
        if _is_ipv6(text):
            return f"[{text}]:{PORT}", ipaddress.ip_address(text).is_loopback
        raise UsageError(f"address {text!r} is not host:port; for example localhost:{PORT}")
    host, port = match[1] or match[2], int(match[3] or PORT)
    if not 0 < port < 1 << 16:
        raise UsageError(f"port {port} of {text!r} is not between 1 and 65535")
    return f"{host}:{port}", _is_loopback(host.strip("[]"))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); name a PEM file") from None
