"""Why a call ended, read from its rich status: try again, and when; or give up, in a sentence with the way out."""

import random
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from runtime.errors import ServiceError

__all__ = ["Backoff", "Refusal", "read_refusal"]

DETAILS = "grpc-status-details-bin"

# May be over in a moment. INTERNAL, UNKNOWN and CANCELLED are what a connection that was cut looks like from here.
PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
}
# The server does not have, or no longer has, what the resume token names: a fresh stream from what we kept will do.
FORGOTTEN = {grpc.StatusCode.DATA_LOSS, grpc.StatusCode.NOT_FOUND}

_WAYS_OUT = {
    grpc.StatusCode.UNAUTHENTICATED: "give a token that it knows with --token or LEGATO_TOKEN",
    grpc.StatusCode.PERMISSION_DENIED: "ask for a token that may do this",
    grpc.StatusCode.UNIMPLEMENTED: "check that a Legato server listens there",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "send less, or elsewhere",
}
_NOT_TRUSTED = ("certificate", "wrong_version_number", "unknown_ca")


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call ended. ``passing``: worth another try, not before ``retry_after`` seconds where it says so."""

    code: grpc.StatusCode
    details: str
    passing: bool = False
    retry_after: float | None = None
    forgotten: bool = False  # what a resume token names is gone: without one, another try is worth it
    fields: tuple[str, ...] = ()  # of the request, that were wrong

    def error(self, address: str) -> ServiceError:
        """The sentence for giving up."""
        said = self.details.rstrip(".") or self.code.name.lower()
        if self.code is grpc.StatusCode.UNAVAILABLE and untrusted(said):
            return ServiceError(
                f"server {address} could not be trusted or spoken to with TLS ({said}); name its authority with "
                "--tls-ca, or say --insecure where it has no TLS"
            )
        what = f" ({', '.join(self.fields)})" if self.fields and not any(f in said for f in self.fields) else ""
        way_out = _WAYS_OUT.get(self.code, "")
        return ServiceError(f"server {address} refused: {said}{what}" + (f"; {way_out}" if way_out else ""))


def read_refusal(error: Any) -> Refusal:
    """A failed call's status. ``error`` is the ``grpc.RpcError`` (or the call)."""
    code, details = error.code(), error.details() or ""
    retry_after, fields = None, []
    for detail in _details(error):
        retry, bad = error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(retry):
            retry_after = max(0.0, retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
        elif detail.Unpack(bad):
            fields += [violation.field for violation in bad.field_violations if violation.field]
    forgotten = code in FORGOTTEN
    passing = code in PASSING and not untrusted(details)
    passing = passing or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after is not None)
    return Refusal(code, details, passing, retry_after, forgotten, tuple(fields))


def untrusted(details: str) -> bool:
    """Whether a connection failed over certificates: no second try will help."""
    return any(word in details.lower() for word in _NOT_TRUSTED)


def _details(error: Any) -> list[Any]:
    """The details of a rich status; none where it is cut or of another kind."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS:
            try:
                return list(status_pb2.Status.FromString(value).details)
            except ValueError:  # protobuf's DecodeError is one
                return []
    return []


class Backoff:
    """How long to wait before the next try: from 0.1 s, doubling up to 5 s, half of it at random (so that clients
    which lost the same server do not come back in step); never before the server said.
    """

    FIRST, MOST = 0.1, 5.0

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._tries = 0

    def succeeded(self) -> None:
        """The last try came through."""
        self._tries = 0

    def delay(self, retry_after: float | None = None) -> float:
        """Seconds to wait now."""
        step = min(self.MOST, self.FIRST * 2 ** min(self._tries, 16))
        self._tries += 1
        wait = step * (0.5 + 0.5 * self._rng.random())
        return wait if retry_after is None else retry_after + wait * 0.5
