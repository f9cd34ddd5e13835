"""Every event that a watcher can be told: its type and its data, one function each. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .jobs import Job, JobState, download_path
from .progress import Report

QUEUED_MESSAGE = "Face swap workflow queued successfully!"
COMPLETED_MESSAGE = "🎉 Face swap completed successfully!"
CANCELLED_MESSAGE = "Face swap cancelled."


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
