"""Calls: reading the next request of one, and ending one with a status. What the servicer and its relay share."""

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from runtime.serve.status import DETAILS_KEY, Refused, invalid, rich_status

__all__ = ["GARBLED", "abort", "garbled", "next_request", "readable", "refuse"]

LAST_WORD = 2.0  # seconds that a client has to take the status with which its call ends
GARBLED = object()  # stands for a request that could not be read


async def next_request(context: Any) -> Any:
    """The next request, or EOF. Raises Refused for bytes that are none."""
    request = await context.read()
    if request is GARBLED:
        raise garbled()
    return request


def garbled() -> Refused:
    """Bytes that are no message: INVALID_ARGUMENT, where gRPC itself would say UNKNOWN."""
    return invalid("request", "these bytes are no message of legato.v1; send what protos/stream.proto says", "request")


def readable(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Reads requests; what cannot be read is GARBLED, for a handler to refuse."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return GARBLED

    return read


async def refuse(context: Any, refused: Refused) -> NoReturn:
    """End a call with a rich status."""
    details = rich_status(refused).SerializeToString()
    await abort(context, grpc.StatusCode[refused.code], refused.message, ((DETAILS_KEY, details),))


async def abort(context: Any, code: grpc.StatusCode, message: str, trailing: Any = ()) -> NoReturn:
    """End a call. Of a client that reads nothing, its status waits for its turn behind what was sent before: it is
    left with the transport, and the call is over for us.
    """
    try:
        async with asyncio.timeout(LAST_WORD):
            await context.abort(code, message, trailing)
    except TimeoutError:
        raise asyncio.CancelledError from None  # which ends the handler without another status
    raise AssertionError("abort returned")
