"""The events that watchers are told: their encodings, and the type and data of each, one function each. Pure."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .jobs import Job, JobState, download_path
from .progress import Report

TERMINAL_EVENTS = frozenset({"completed", "error", "cancelled"})
"""The event types that end a stream."""

TEXT_FRAME = 0x81
"""The first byte of a text message of a WebSocket that is one frame."""

SUPERSEDED_EVENTS = frozenset({"progress", "preview"})
"""Event types of which only the newest matters: replay leaves older ones out."""

QUEUED_MESSAGE = "Face swap workflow queued successfully!"
COMPLETED_MESSAGE = "🎉 Face swap completed successfully!"
CANCELLED_MESSAGE = "Face swap cancelled."


@dataclass(frozen=True, slots=True)
class Event:
    """An event that watchers are told, numbered within its job. Encoded once, however many watch."""

    prompt_id: str
    seq: int
    type: str
    data: Mapping[str, Any]
    _encoded: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)

    @property
    def terminal(self) -> bool:
        """True when the stream ends after this event."""
        return self.type in TERMINAL_EVENTS

    def sse(self) -> bytes:
        """Return the event as Server-Sent Events bytes."""
        return self._once("sse", self._sse)

    def _sse(self) -> bytes:
        data = json.dumps(self.data, ensure_ascii=False)
        return f"id: {self.seq}\nevent: {self.type}\ndata: {data}\n\n".encode()

    def chunk(self) -> bytes:
        """Return the event as Server-Sent Events bytes in a chunk of an answer of HTTP/1.1."""
        return self._once("chunk", self._chunk)

    def _chunk(self) -> bytes:
        return chunk(self.sse())

    def frame(self) -> bytes:
        """Return the event as a text frame of a server's WebSocket (RFC 6455, 5.2)."""
        return self._once("frame", self._frame)

    def _frame(self) -> bytes:
        document = {"id": self.seq, "event": self.type, "data": self.data}
        text = json.dumps(document, ensure_ascii=False).encode()
        if len(text) < 126:
            return struct.pack(">BB", TEXT_FRAME, len(text)) + text
        if len(text) < 2**16:
            return struct.pack(">BBH", TEXT_FRAME, 126, len(text)) + text
        return struct.pack(">BBQ", TEXT_FRAME, 127, len(text)) + text

    def _once(self, form: str, encode: Callable[[], bytes]) -> bytes:
        encoded = self._encoded.get(form)
        if encoded is None:
            encoded = self._encoded[form] = encode()
        return encoded


def chunk(data: bytes) -> bytes:
    """Return bytes as a chunk of an answer of HTTP/1.1 (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(frozen=True, slots=True)
class Payload:
    """The content of an event that has no number yet."""

    type: str
    data: Mapping[str, Any]


def queued(prompt_id: str, queue_position: int, warnings: tuple[str, ...]) -> Payload:
    """Tell that the job was accepted, and what its user is to be warned of."""
    data = {
        "prompt_id": prompt_id,
        "message": QUEUED_MESSAGE,
        "status_url": f"/status/{prompt_id}",
        "events_url": f"/events/{prompt_id}",
        "queue_position": queue_position,
        "warnings": list(warnings),
    }
    return Payload("queued", data)


def status(state: JobState, message: str) -> Payload:
    """Tell what the job, which is in this state, does now."""
    return Payload("status", {"status": state.value, "message": message})


def executing(node: str, title: str) -> Payload:
    """Tell which node of the workflow ComfyUI has come to."""
    return Payload("executing", {"node": node, "title": title, "message": f"Executing: {title}"})


def progress(report: Report) -> Payload:
    """Tell how far the job is."""
    data = {
        "percentage": report.percentage,
        "current": report.current,
        "total": report.total,
        "message": f"Face swap progress: {report.percentage:.2f}%",
        "eta_seconds": report.eta_s,
        "fps": report.fps,
    }
    return Payload("progress", data)


def preview(prompt_id: str, frame: int) -> Payload:
    """Tell that there is a new picture of the running job."""
    return Payload("preview", {"url": f"/preview/{prompt_id}", "frame": frame})


def completed(job: Job, *, result_file: str, size: int, sha256: str, warnings: tuple[str, ...]) -> Payload:
    """Tell that the job has ended with a result of `size` bytes."""
    data = {
        "message": COMPLETED_MESSAGE,
        "filename": result_file,
        "download_url": download_path(result_file),
        "prompt_id": job.prompt_id,
        "output_prefix": job.output_name,
        "bytes": size,
        "sha256": sha256,
        "warnings": list(warnings),
    }
    return Payload("completed", data)


def error(prompt_id: str, code: str, message: str) -> Payload:
    """Tell that the job has failed, and why."""
    return Payload("error", {"detail": message, "code": code, "prompt_id": prompt_id})


def cancelled(prompt_id: str) -> Payload:
    """Tell that the job has ended because its end was asked for."""
    return Payload("cancelled", {"prompt_id": prompt_id, "message": CANCELLED_MESSAGE})
