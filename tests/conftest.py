"""What every test may rely on: quiet threads, and recordings where there are some."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported: spinning OpenMP threads slow everything beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

import tests.shapes  # the hook names it, and must find it there

# Shapes written as types are promises; here, and only here, they are held to.
assert tests.shapes.check_shapes
install_import_hook(["encoders", "imputation"], "tests.shapes.check_shapes")

# A loaded machine is no reason to fail: examples are counted, never timed.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    """At most two of torch's threads, as on the machines that CI has; and none started for tests without torch."""
    import sys

    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def legato_data() -> Path:
    """The folder of recordings that the environment variable LEGATO_DATA names; skips where there is none."""
    name = os.environ.get("LEGATO_DATA", "")
    if not name:
        pytest.skip("LEGATO_DATA is not set; it names a folder of recordings")
    path = Path(name)
    if not path.is_dir():
        pytest.skip(f"LEGATO_DATA names {name}, which is no folder")
    return path


@pytest.fixture(scope="session")
def decoder_torture(legato_data: Path) -> Path:
    """Files that are broken in one way each."""
    return _part(legato_data, "decoder-torture")


@pytest.fixture(scope="session")
def loss_traces(legato_data: Path) -> Path:
    """Packet losses as they were measured on real links."""
    return _part(legato_data, "loss-traces")


@pytest.fixture(scope="session")
def grid_av(legato_data: Path) -> Path:
    """Talking heads with sound."""
    return _part(legato_data, "grid-av")


def _part(data: Path, name: str) -> Path:
    if not (data / name).is_dir():
        pytest.skip(f"LEGATO_DATA has no folder {name}")
    return data / name


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """Starts servers that act a script (``tests.fake_service``) and stops them."""
    from tests.fake_service import Running, start

    running: list[Running] = []

    def begin(acts: Any = (), token: str = "") -> Running:
        running.append(start(acts, token))
        return running[-1]

    yield begin
    for one in running:
        one.server.stop(None)
