"""Merged: the metrics of several workers as those of one server, for Prometheus.

Counts, histograms and gauges add up; of what cannot be added (when a process began, how many files it may open) the
first or the largest counts. A worker that does not answer in time is left out of that scrape.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from runtime import logs

__all__ = ["Merged", "merge"]

log = logs.of(__name__)

FETCH_SECONDS = 2.0  # for one worker's page
CHOSEN: dict[str, Callable[[Iterable[float]], float]] = {
    "process_start_time_seconds": min,
    "process_max_fds": max,
    "legato_info": max,
}


class Merged:
    """What ``runtime.serve.web`` shows of several workers; ``ports`` says where theirs can be read now."""

    def __init__(self, ports: Callable[[], Sequence[int]]) -> None:
        self._ports = ports

    async def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type, as ``runtime.observe.Metrics`` gives them."""
        from prometheus_client.exposition import choose_encoder

        pages = await asyncio.gather(*(_fetched(port) for port in self._ports()))
        encode, content_type = choose_encoder(accept)
        return encode(_Families(merge([page for page in pages if page]))), content_type


class _Families:
    """As much of a registry as an encoder asks for."""

    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> list[Any]:
        return self._families


def merge(pages: Sequence[str]) -> list[Any]:
    """Pages in Prometheus' text format as one: families in the order in which they are first seen."""
    from prometheus_client.parser import text_string_to_metric_families

    families: dict[str, Any] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], list[float]]] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            families.setdefault(family.name, family)
            found = values.setdefault(family.name, {})
            for sample in family.samples:
                found.setdefault((sample.name, tuple(sorted(sample.labels.items()))), []).append(sample.value)
    for name, family in families.items():
        family.samples = []
        for (sample_name, labels), numbers in values[name].items():
            family.add_sample(sample_name, dict(labels), CHOSEN.get(sample_name, sum)(numbers))
    return list(families.values())


async def _fetched(port: int) -> str:
    """A worker's page, or nothing."""
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: worker\r\n\r\n")
                await writer.drain()
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        log.warning("worker left out of metrics", why=type(error).__name__)
        return ""
    head, _, body = answer.partition(b"\r\n\r\n")
    return body.decode() if b" 200 " in head.partition(b"\r\n")[0] else ""
