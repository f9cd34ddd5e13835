"""The answers of the service, as types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict


class JobProgress(TypedDict):
    """The progress of a job: frames are those of the whole video."""

    percentage: float
    step: str
    current: int
    total: int
    fps: float | None


class SegmentCount(TypedDict):
    """The number of segments of a job, and of those that are done."""

    done: int
    total: int


class JobStatus(TypedDict):
    """A job, as `GET /status/{prompt_id}` and `GET /jobs` tell it. Times are ISO 8601 in UTC."""

    prompt_id: str
    status: str
    label: str | None
    media: str
    progress: JobProgress
    created_at: str
    updated_at: str
    started_at: str | None
    finished_at: str | None
    result: str | None
    error: str | None
    code: str | None
    queue_position: int | None
    eta_seconds: float | None
    wait_seconds: float | None
    output_prefix: str
    options: dict[str, Any]
    consent: str | None
    segments: SegmentCount
    attempts: int
    warnings: list[str]
    sha256: str | None
    bytes: int | None
    trace_id: str | None


class Face(TypedDict):
    """A face: `index` as `face_index` counts, `box` as x, y, width, height in pixels, `thumbnail` as a `data:` URI."""

    index: int
    box: list[float]
    score: float
    thumbnail: str


class Faces(TypedDict):
    """The faces in a picture, or in a frame of a video: `at` is the frame's time in seconds."""

    width: int
    height: int
    faces: list[Face]
    at: NotRequired[float]
    duration: NotRequired[float]
    frame_rate: NotRequired[float]
    frames: NotRequired[int]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a job. `path` is the file that it was saved to, if it was."""

    prompt_id: str
    filename: str
    bytes: int
    sha256: str
    warnings: tuple[str, ...] = ()
    path: Path | None = None

    @classmethod
    def of_event(cls, data: Mapping[str, Any]) -> Result:
        """Return the result that a `completed` event tells of."""
        return cls(
            str(data["prompt_id"]),
            str(data["filename"]),
            int(data["bytes"]),
            str(data["sha256"]),
            tuple(data.get("warnings", ())),
        )
