"""Spans: how long each part of a stream took, for OpenTelemetry; free when off.

    with spans.span("encode", clips=8):
        ...

Off until ``start`` finds that the standard environment variables ask for spans (OTEL_TRACES_EXPORTER, or an
OTEL_EXPORTER_OTLP_ENDPOINT); it needs the extra ``otel``, and for OTLP the exporter's own package. Samplers, batching
and resources are OpenTelemetry's and read from the environment too. Attributes pass the filter of the logs: no token,
no content.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import entry_points
from typing import Any

from runtime import logs
from runtime.errors import MissingExtraError, UsageError

__all__ = ["outgoing", "span", "start", "stop", "wanted"]

SERVICE = "legato"  # service.name, unless OTEL_SERVICE_NAME says otherwise
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
OTLP = {"otlp": "opentelemetry-exporter-otlp"}  # exporters that come in packages of their own
OFF: AbstractContextManager[None] = nullcontext()

_tracer: Any = None  # None: off
_shutdown: Callable[[], None] = lambda: None  # noqa: E731


def span(name: str, traceparent: str = "", **attributes: Any) -> AbstractContextManager[Any]:
    """Times the block as a span inside the one around it, and records what it raises.

    ``traceparent`` (W3C Trace Context) puts it under a caller's span where there is none around it. Lines logged inside
    carry its trace id.
    """
    tracer = _tracer
    return OFF if tracer is None else _span(tracer, name, traceparent, attributes)


def wanted(environment: Mapping[str, str] = os.environ) -> str:
    """The exporters that the environment asks for, such as "otlp" or "console"; empty: none."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    named = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if named:
        return "" if named == "none" else named
    return "otlp" if any(environment.get(name) for name in ENDPOINTS) else ""


def start(environment: Mapping[str, str] = os.environ) -> bool:
    """Begin to export spans if the environment asks for it; whether it does. Again replaces what was begun.

    Raises:
        MissingExtraError: it is asked for and not installed.
        UsageError: an exporter that nobody knows.
    """
    names = wanted(environment)
    stop()
    if not names:
        return False
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError(
            f"spans are asked for (OTEL_TRACES_EXPORTER={names}) and OpenTelemetry is not installed; "
            "pip install 'legato[otel]' or set OTEL_TRACES_EXPORTER=none"
        ) from error
    exporters = [_exporter(name.strip()) for name in names.split(",")]
    install([BatchSpanProcessor(exporter) for exporter in exporters], environment)
    return True


def install(processors: list[Any], environment: Mapping[str, str] = os.environ) -> None:
    """Send spans to these OpenTelemetry processors; what ``start`` does once it has made them, and tests do."""
    global _tracer, _shutdown
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    from runtime import __version__

    name = environment.get("OTEL_SERVICE_NAME") or SERVICE
    provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": __version__}))
    for processor in processors:
        provider.add_span_processor(processor)
    _tracer, _shutdown = provider.get_tracer("legato", __version__), provider.shutdown


def stop() -> None:
    """Send what is left and turn off; harmless when off."""
    global _tracer, _shutdown
    _tracer, shutdown = None, _shutdown
    _shutdown = lambda: None  # noqa: E731
    shutdown()


def outgoing() -> dict[str, str]:
    """Metadata that puts the callee's spans under the one around the caller; empty when off."""
    if _tracer is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier


@contextmanager
def _span(tracer: Any, name: str, traceparent: str, attributes: Mapping[str, Any]) -> Iterator[Any]:
    values = {key: _plain(value) for key, value in logs.clean(attributes).items()}
    with (
        tracer.start_as_current_span(name, context=_parent(traceparent), attributes=values) as current,
        logs.context(trace=f"{current.get_span_context().trace_id:032x}"),
    ):
        yield current


def _parent(traceparent: str) -> Any:
    """A caller's context, unless a span is open here already; None: whatever is current."""
    if not traceparent:
        return None
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if trace.get_current_span().get_span_context().is_valid:
        return None
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def _plain(value: Any) -> Any:
    """What OpenTelemetry takes as an attribute."""
    return value if isinstance(value, str | bool | int | float) else str(value)


def _exporter(name: str) -> Any:
    """An exporter by the name that OTEL_TRACES_EXPORTER gives it."""
    found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    known = sorted({point.name for point in entry_points(group="opentelemetry_traces_exporter")} | set(OTLP))
    if not found and name not in OTLP:
        raise UsageError(f"OTEL_TRACES_EXPORTER={name} is unknown; known: {', '.join(known)}, none")
    try:
        return found[0].load()()
    except (IndexError, ImportError) as error:
        package = OTLP.get(name, name)
        raise MissingExtraError(
            f"spans are to be exported by {name}, which is not installed; "
            f"pip install {package} or set OTEL_TRACES_EXPORTER=none"
        ) from error
