"""Stages of jobs: each is timed, and a span of its job's trace where traces are exported (OpenTelemetry, an extra).

A job carries its trace as a `traceparent` (W3C Trace Context): every node and every attempt adds to the same one.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .clock import monotonic
from .metrics import STAGE_S

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""The variables that switch the export on. The rest of it is configured by OpenTelemetry's own variables too."""
NOT_INSTALLED = "needs packages that are not installed: pip install 'faceswap[otel]'"
FLUSH_S = 2.0
"""The time for the last spans to be sent when the service stops."""

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

_tracer: Any = None
"""The tracer of this process; None while nothing is exported."""


class TracingUnavailable(Exception):
    """Traces were asked for, but cannot be made; the message says why."""


def parse_traceparent(header: str | None) -> str | None:
    """Return the `traceparent` of a request as a job keeps it, None where there is none that can be understood."""
    found = _TRACEPARENT.fullmatch(header.strip()) if header else None
    if found is None or (found[1] == "00" and found[5]):
        return None
    return f"00-{found[2]}-{found[3]}-{found[4]}"


@contextmanager
def exporting(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Export spans while the context lasts, if the environment names where to. Raises `TracingUnavailable`."""
    global _tracer
    if not any(environ.get(variable) for variable in ENDPOINTS):
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        name = next(variable for variable in ENDPOINTS if environ.get(variable))
        raise TracingUnavailable(f"{name} {NOT_INSTALLED}") from error
    resource = Resource.create({"service.name": environ.get("OTEL_SERVICE_NAME") or "faceswap"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("faceswap")
    try:
        yield
    finally:
        _tracer = None
        # A collector that does not answer may not hold up the end of the process.
        flush = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
        flush.start()
        flush.join(FLUSH_S)


@contextmanager
def job_span(traceparent: str | None) -> Iterator[str | None]:
    """Make the span of a submission, a child of the client's own; yields the `traceparent` that the job keeps."""
    with _span("submit", parse_traceparent(traceparent), {}) as own:
        yield own


@contextmanager
def stage(name: str, traceparent: str | None, **attributes: str | int) -> Iterator[None]:
    """Time a stage of a job and make it a span of the job's trace."""
    started, outcome = monotonic(), "failed"
    try:
        with _span(name, traceparent, attributes):
            yield
        outcome = "done"
    except asyncio.CancelledError:
        outcome = "stopped"
        raise
    finally:
        STAGE_S.labels(name, outcome).observe(monotonic() - started)


@contextmanager
def _span(name: str, parent: str | None, attributes: Mapping[str, str | int]) -> Iterator[str | None]:
    """Make a span where spans are exported; yields its `traceparent`, else that of its parent."""
    if _tracer is None:
        yield parent
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator()
    above = context.extract({"traceparent": parent}) if parent else None
    with _tracer.start_as_current_span(f"faceswap {name}", above, attributes=dict(attributes)):
        carrier: dict[str, str] = {}
        context.inject(carrier)
        yield carrier.get("traceparent", parent)
