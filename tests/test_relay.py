"""The relay between workers by itself: what goes out first, and what is heard last."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import stream_pb2 as pb
from runtime.serve.auth import LOCAL
from runtime.serve.calls import refuse
from runtime.serve.relay import Behind, Relay
from runtime.serve.seat import Seat
from runtime.serve.status import invalid
from tests.fakes import stream
from tests.serving import batch
from tests.test_servicer import run


def first_of_two(folder: Path) -> Seat:
    return Seat(index=0, loads=[0, 0], folder=folder)


class Aborted(Exception):
    pass


class Slow:
    """A call whose metadata takes its time to go out, and whose client has so much to say."""

    def __init__(self, requests: int = 0) -> None:
        self.sent: list[str] = []
        self.requests, self.request = requests, batch(stream(0.4))

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None

    async def send_initial_metadata(self, _metadata: Any) -> None:
        await asyncio.sleep(0.001)
        self.sent.append("metadata")

    async def read(self) -> Any:
        self.requests -= 1
        return self.request if self.requests >= 0 else grpc.aio.EOF

    async def abort(self, code: grpc.StatusCode, _message: str, _trailing: Any) -> None:
        raise Aborted(code.name)

    async def write(self, _response: Any) -> None:
        self.sent.append("response")


def test_metadata_goes_out_before_the_first_response_however_quick_that_is(tmp_path):
    """grpc.aio would send it twice, and the call would hang."""

    async def quick(context: Any, _caller: Any) -> None:
        await context.write(pb.StreamResponse())

    async def scenario() -> None:
        behind = Behind(tmp_path / "1", quick)
        await behind.start()
        call = Slow()
        await Relay(first_of_two(tmp_path)).run(1, pb.StreamConfig(), LOCAL, call)
        await behind.close()
        assert call.sent == ["metadata", "response"]

    run(scenario)


def test_a_status_is_heard_although_much_is_still_being_sent(tmp_path):
    """As when a worker refuses a config while its client sends on."""

    async def refusing(context: Any, _caller: Any) -> None:
        await context.read()
        await refuse(context, invalid("bundle", "nobody has it"))

    async def once() -> None:
        call = Slow(requests=200)
        with pytest.raises(Aborted, match="INVALID_ARGUMENT"):
            await Relay(first_of_two(tmp_path)).run(1, pb.StreamConfig(), LOCAL, call)

    async def scenario() -> None:
        behind = Behind(tmp_path / "1", refusing)
        await behind.start()
        for _ in range(20):
            await once()
        await behind.close()

    run(scenario)
