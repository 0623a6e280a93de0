"""Rich statuses: why a call ends, in words, in a code, and in details that a program can act on.

``Refused`` is raised anywhere in the service and becomes a gRPC status at its edge: the code, one sentence, and a
google.rpc.Status with BadRequest (which field), RetryInfo (when to try again) and ErrorInfo (one word for machines).
Nothing here imports grpc: codes are names, as in https://grpc.github.io/grpc/core/md_doc_statuscodes.html.
"""

from typing import Any

__all__ = [
    "Refused",
    "cut_off",
    "data_loss",
    "denied",
    "draining",
    "exhausted",
    "failed",
    "invalid",
    "out_of_order",
    "rich_status",
    "timed_out",
    "unauthenticated",
    "unexpected",
    "unknown_name",
    "worker_gone",
]

DOMAIN = "legato"
RETRY_SECONDS = 1.0  # what a refused client should wait at least
DETAILS_KEY = "grpc-status-details-bin"  # where gRPC carries a google.rpc.Status


class Refused(Exception):
    """A call that ends with a status other than OK.

    ``code`` is the name of a gRPC status code; ``reason`` one word of ours for metrics, logs and ErrorInfo, never what
    a client sent; ``field`` the field of the request that is wrong; ``retry`` seconds after which it may work.
    """

    def __init__(self, code: str, message: str, *, reason: str, field: str = "", retry: float | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.reason, self.field, self.retry = code, message, reason, field, retry


def invalid(field: str, message: str, reason: str = "config") -> Refused:
    """A field of the request that cannot be: INVALID_ARGUMENT with BadRequest."""
    return Refused("INVALID_ARGUMENT", f"{field}: {message}", reason=reason, field=field)


def out_of_order(message: str, field: str = "") -> Refused:
    """A message that is right in itself, at the wrong time: FAILED_PRECONDITION."""
    return Refused("FAILED_PRECONDITION", message, reason="order", field=field)


def unexpected(kind: str | None) -> Refused:
    """A request that does not belong into a stream that runs; ``kind`` None: it cannot be told."""
    if kind == "config":
        return out_of_order("config: a second StreamConfig; to change a track, send a CodecConfig", "config")
    return invalid("request", "an empty message, or of a kind that this server does not know", "request")


def unknown_name(field: str, message: str) -> Refused:
    """A bundle that is not served here: NOT_FOUND with BadRequest."""
    return Refused("NOT_FOUND", f"{field}: {message}", reason="unknown", field=field)


def exhausted(message: str, reason: str, retry: float | None = RETRY_SECONDS) -> Refused:
    """A bound was reached: RESOURCE_EXHAUSTED, with RetryInfo where waiting helps."""
    return Refused("RESOURCE_EXHAUSTED", message, reason=reason, retry=retry)


def timed_out(message: str, reason: str) -> Refused:
    """The client kept silent for too long: DEADLINE_EXCEEDED."""
    return Refused("DEADLINE_EXCEEDED", message, reason=reason)


def draining(retry: float = RETRY_SECONDS) -> Refused:
    """The server stops: UNAVAILABLE with RetryInfo."""
    return Refused(
        "UNAVAILABLE", "the server is going away; resume elsewhere, or here later", reason="draining", retry=retry
    )


def worker_gone() -> Refused:
    """The worker that had, or was to have, a stream is not there: UNAVAILABLE, and what was not lost can be resumed."""
    message = "the worker of this stream is gone; come back with the last resume point"
    return Refused("UNAVAILABLE", message, reason="worker", retry=RETRY_SECONDS)


def cut_off(message: str) -> Refused:
    """The stream goes on over another connection: ABORTED."""
    return Refused("ABORTED", message, reason="resumed")


def data_loss(message: str) -> Refused:
    """What was missed while away is no longer there: DATA_LOSS."""
    return Refused("DATA_LOSS", message, reason="too_old")


def unauthenticated(message: str) -> Refused:
    """No token, or none that counts: UNAUTHENTICATED."""
    return Refused("UNAUTHENTICATED", message, reason="unauthenticated")


def denied(message: str) -> Refused:
    """A caller who is known and may not: PERMISSION_DENIED."""
    return Refused("PERMISSION_DENIED", message, reason="denied")


def failed(message: str) -> Refused:
    """A mistake of ours: INTERNAL."""
    return Refused("INTERNAL", message, reason="internal")


def rich_status(refused: Refused) -> Any:
    """The google.rpc.Status of a refusal."""
    from google.protobuf.duration_pb2 import Duration
    from google.rpc import code_pb2, error_details_pb2, status_pb2

    status = status_pb2.Status(code=code_pb2.Code.Value(refused.code), message=refused.message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=refused.reason.upper(), domain=DOMAIN))
    if refused.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=refused.field, description=refused.message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if refused.retry is not None:
        delay = Duration()
        delay.FromMilliseconds(round(refused.retry * 1e3))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status
