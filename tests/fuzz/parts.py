"""What fuzz targets share: decoders that take anything, and a scratch file in memory."""

import atexit
import os
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from runtime.packet import CodecConfig, Packet
from tests.fakes import FakeDamage, FakeDecoder

LONGEST = 2  # seconds of sound in one packet: real decoders are bounded by the payload, the fakes by this


class BoundedDecoder(FakeDecoder):
    """A fake decoder that does not believe what a packet says of its length."""

    def decode(self, packet: Packet, damage: Any = None) -> list[Any]:
        most = int(LONGEST / packet.time_base)
        return super().decode(replace(packet, duration=min(packet.duration, most)), damage)


def bounded_parts(modality: str, config: CodecConfig, spec: Any, sequenced: bool) -> tuple[Any, Any]:
    """What ``Receiver(parts=...)`` takes."""
    return FakeDamage(chained=modality == "video"), BoundedDecoder(modality, spec)


@cache
def scratch(suffix: str) -> Path:
    """A file for this process, in memory where the system has such a place."""
    shared = Path("/dev/shm")
    folder = shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    path = folder / f"legato-fuzz-{os.getpid()}{suffix}"
    atexit.register(path.unlink, missing_ok=True)
    return path
