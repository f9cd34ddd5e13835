"""A job and its segments: the states, and the moves between them. Pure."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Literal
from urllib.parse import quote

from .options import Options


class JobState(enum.StrEnum):
    """The state of a job, as `/status` tells it."""

    QUEUED = "QUEUED"
    """Accepted and on disk; no frame has been given to an engine yet."""
    PROCESSING = "PROCESSING"
    """At least one segment was given to an engine."""
    SUCCESS = "SUCCESS"
    """The result is there and was checked."""
    FAILED = "FAILED"
    """Ended with an error; `retry` may queue it again."""
    CANCELLED = "CANCELLED"
    """Ended because the user asked; `retry` may queue it again."""


class SegmentState(enum.StrEnum):
    """The state of one prompt's worth of frames."""

    WAITING = "waiting"
    """To be given to a backend."""
    SUBMITTED = "submitted"
    """Its `comfy_prompt_id` is committed; the backend may know it."""
    DONE = "done"
    """Its checked output lies in the job's work folder."""
    FAILED = "failed"
    """Gave up; the job fails with it."""


TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.PROCESSING, JobState.FAILED, JobState.CANCELLED}),
    JobState.PROCESSING: frozenset({JobState.SUCCESS, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCESS: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
}
"""The allowed moves; the two into QUEUED are a retry."""

TERMINAL = frozenset({JobState.SUCCESS, JobState.FAILED, JobState.CANCELLED})
RESULT_TYPES: Mapping[str, str] = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".gif": "image/gif",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
}
"""The media types of results by their extensions."""
PROMPT_NAMESPACE = uuid.UUID("6f1d4f4e-52b1-4f0e-9d5c-1f2b7a3c9e10")


def default_output_name(now: datetime) -> str:
    """Return the name of a result for which the user chose none."""
    return now.strftime("faceswap_%Y%m%d_%H%M%S")


def download_path(result_file: str) -> str:
    """Return the path, as it stands in a URL, at which a result is fetched."""
    return f"/download/{quote(result_file)}"


def stored_name(owner: str | None, name: str) -> str:
    """Return the name under which a result is kept, with or without its extension: each owner has their own."""
    return name if owner is None else f"{owner}/{name}"


def new_prompt_id() -> str:
    """Make a job's public id."""
    return str(uuid.uuid4())


def comfy_prompt_id(prompt_id: str, segment: int, attempt: int) -> str:
    """Return the id under which ComfyUI knows an attempt at a segment: the same after a crash as before it."""
    return str(uuid.uuid5(PROMPT_NAMESPACE, f"{prompt_id}/{segment}/{attempt}"))


def iso(milliseconds: int | None) -> str | None:
    """Return Unix time in milliseconds as UTC, ISO 8601 with milliseconds and `Z`."""
    if milliseconds is None:
        return None
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture of a face in a job's input folder, and its SHA-256, hexadecimal."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """The input files of a job, in its input folder, and the facts found out about them before it was accepted.

    `is_still`: the video is a picture. `first_frame`: the first of the result's, counted from the beginning of the
    video at the result's frame rate.
    """

    video_file: str
    images: tuple[ImageFile, ...]
    video_sha256: str
    video_bytes: int
    width: int
    height: int
    frames: int
    frame_rate: Fraction
    duration_s: float
    has_audio: bool
    is_still: bool = False
    first_frame: int = 0


def media_of(options: Options, inputs: Inputs) -> Literal["video", "image"]:
    """Return the kind of the result of a job."""
    return "image" if inputs.is_still or options.at is not None else "video"


def extension_of(options: Options, inputs: Inputs) -> str:
    """Return the extension of the result of a job, without a dot."""
    return options.format or ("png" if media_of(options, inputs) == "image" else "mp4")


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """A run of frames that is one prompt, counted from the result's first and after the frame rate was changed."""

    number: int
    first_frame: int
    frame_count: int


@dataclass(frozen=True, slots=True)
class NewJob:
    """Everything `store.create` needs to accept a job."""

    prompt_id: str
    output_name: str
    options: Options
    workflow: str
    inputs: Inputs
    segments: tuple[SegmentPlan, ...]
    owner: str | None = None
    idempotency_key: str | None = None
    request_digest: str | None = None
    webhook_url: str | None = None
    result_put_url: str | None = None
    traceparent: str | None = None
    consent: str | None = None
    label: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the database holds it. Times are Unix milliseconds."""

    prompt_id: str
    owner: str | None
    state: JobState
    step: str
    options: Options
    workflow: str
    output_name: str
    inputs: Inputs
    created_at: int
    updated_at: int
    started_at: int | None
    finished_at: int | None
    error: str | None
    code: str | None
    warnings: tuple[str, ...]
    result_file: str | None
    result_bytes: int | None
    result_sha256: str | None
    cancel_requested: bool
    percentage: float
    current_frame: int
    total_frames: int
    fps: float | None
    eta_s: float | None
    segments_done: int
    segments_total: int
    attempts: int
    request_digest: str | None = None
    webhook_url: str | None = None
    result_put_url: str | None = None
    consent: str | None = None
    traceparent: str | None = None
    """The trace that the job belongs to, as W3C Trace Context writes it."""
    label: str | None = None

    @property
    def media(self) -> Literal["video", "image"]:
        """The kind of its result."""
        return media_of(self.options, self.inputs)

    @property
    def extension(self) -> str:
        """The extension of its result, without a dot."""
        return extension_of(self.options, self.inputs)

    @property
    def is_whole(self) -> bool:
        """True if nothing of the video is left out."""
        return self.options.start is None and self.options.end is None

    @property
    def trace_id(self) -> str | None:
        """The id of the job's trace, to find it by."""
        return self.traceparent.split("-")[1] if self.traceparent else None

    @property
    def stored_result(self) -> str:
        """The name under which its result is kept, or is to be."""
        return stored_name(self.owner, self.result_file or f"{self.output_name}.{self.extension}")

    @property
    def needs_engine(self) -> bool:
        """True while frames are still to be swapped."""
        return self.state not in TERMINAL and self.segments_done < self.segments_total

    def status(
        self, queue_position: int | None = None, outage: str | None = None, wait_s: float | None = None
    ) -> dict[str, Any]:
        """Return the document of `GET /status/{prompt_id}`.

        During an `outage` of the engines its step is that a job waits for them. `wait_s` is the time until a queued one
        starts, as far as that can be told.
        """
        return {
            "prompt_id": self.prompt_id,
            "status": self.state.value,
            "progress": {
                "percentage": self.percentage,
                "step": outage if outage and self.needs_engine else self.step,
                "current": self.current_frame,
                "total": self.total_frames,
                "fps": self.fps,
            },
            "created_at": iso(self.created_at),
            "updated_at": iso(self.updated_at),
            "started_at": iso(self.started_at),
            "finished_at": iso(self.finished_at),
            "result": download_path(self.result_file) if self.result_file else None,
            "error": self.error,
            "code": self.code,
            "queue_position": queue_position,
            "wait_seconds": wait_s,
            "eta_seconds": self.eta_s,
            "output_prefix": self.output_name,
            "media": self.media,
            "label": self.label,
            "options": self.options.to_dict(),
            "consent": self.consent,
            "segments": {"done": self.segments_done, "total": self.segments_total},
            "attempts": self.attempts,
            "warnings": list(self.warnings),
            "sha256": self.result_sha256,
            "bytes": self.result_bytes,
            "trace_id": self.trace_id,
        }


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as the database holds it, with the attempt under way."""

    prompt_id: str
    number: int
    first_frame: int
    frame_count: int
    state: SegmentState
    attempt: int
    failures: int
    losses: int
    comfy_prompt_id: str | None
    backend: str | None
    output_file: str | None
    changed_share: float | None
    warnings: tuple[str, ...] = ()
    deaths: int = 0
    epoch: int = 0
    """Of the backend's lease under which it was submitted, or taken over."""

    @property
    def attempt_key(self) -> tuple[str, int, int]:
        """Key of the attempt that it is at, among those of all jobs."""
        return self.prompt_id, self.number, self.attempt
