"""The trace of a job: taken from its request, kept with it, and exported as OpenTelemetry's own collector reads it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiohttp import FormData
from clips import make_clip
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from service_rig import ServiceRig, service_and_engines

from faceswap import samples
from faceswap.tracing import ENDPOINTS, TracingUnavailable, exporting, job_span, parse_traceparent

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize("header", [TRACEPARENT, f" {TRACEPARENT} ", f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be"])
def test_a_traceparent_is_understood_also_one_of_a_later_version(header: str) -> None:
    assert parse_traceparent(header) == TRACEPARENT


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00",
        TRACEPARENT.upper(),
        f"ff-{TRACE}-{PARENT}-01",
        f"{TRACEPARENT}-more",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-01\n{TRACEPARENT}",
        f"00-{TRACE[:-1]}-{PARENT}-01",
    ],
)
def test_what_is_no_traceparent_is_as_if_there_were_none(header: str | None) -> None:
    assert parse_traceparent(header) is None


async def submit(service: ServiceRig, clip: Path, **headers: str) -> dict[str, Any]:
    """Submit a job with headers of the caller's own; returns its status at the end."""
    form = FormData({"return_prompt_id_only": "true"})
    form.add_field("video", clip.read_bytes(), filename="clip.mp4")
    form.add_field("image", samples.FACE.read_bytes(), filename="face.png")
    async with service.client.post("/face-swap", data=form, headers=headers) as response:
        assert response.status == 200, await response.text()
        return await service.ended((await response.json())["prompt_id"])


async def test_a_job_keeps_the_trace_of_its_request_without_anything_being_exported(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=3)
    async with service_and_engines(tmp_path, paint=True) as (service, _):
        assert (await submit(service, clip, traceparent=TRACEPARENT))["trace_id"] == TRACE
        assert (await submit(service, clip))["trace_id"] is None


class Collector:
    """An OpenTelemetry collector that keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = ExportTraceServiceRequest()
                message.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
                collector.spans += [
                    span
                    for resource in message.resource_spans
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Collector]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


async def test_every_stage_of_a_job_is_a_span_of_the_trace_of_its_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=3)
    with Collector().running() as collector:
        monkeypatch.setenv(ENDPOINTS[0], collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        with exporting():
            async with service_and_engines(tmp_path, paint=True) as (service, (engine,)):
                url = engine.url
                status = await submit(service, clip, traceparent=TRACEPARENT)
                own = await submit(service, clip)
        spans = {span.name: span for span in collector.spans if span.trace_id.hex() == TRACE}
        assert set(spans) == {
            f"faceswap {name}" for name in ("submit", "receive", "probe", "upload", "swap", "collect", "join")
        }
        assert status["trace_id"] == TRACE
        top = spans.pop("faceswap submit")
        assert top.parent_span_id.hex() == PARENT
        assert {span.parent_span_id for span in spans.values()} == {top.span_id}
        attributes = {item.key: item.value for item in spans["faceswap swap"].attributes}
        assert attributes["prompt_id"].string_value == status["prompt_id"]
        assert attributes["engine"].string_value == url
        assert sum(span.trace_id.hex() == own["trace_id"] for span in collector.spans) == 7


def test_a_collector_that_is_away_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        with job_span(None) as traceparent:
            assert traceparent

    monkeypatch.setenv(ENDPOINTS[0], "http://127.0.0.1:9")
    with exporting():
        asyncio.run(work())


def test_traces_without_their_packages_stop_the_start_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with (
        pytest.raises(TracingUnavailable, match=r"OTEL_EXPORTER_OTLP_ENDPOINT needs .*faceswap\[otel\]"),
        exporting({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}),
    ):
        raise AssertionError
