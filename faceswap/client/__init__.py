"""The API from outside: for `faceswap swap`, for the tests and for users' own programs."""

from __future__ import annotations

from .documents import Face, Faces, JobStatus, Result
from .errors import FaceSwapError, JobFailed
from .event_stream import MAX_EVENT_CHARS, EventStreamParser, JobEvent, ServerSentEvent
from .service import DEFAULT_URL, RESUMES, FaceSwap
from .transfer import Source, Upload, is_url

__all__ = [
    "DEFAULT_URL",
    "MAX_EVENT_CHARS",
    "RESUMES",
    "EventStreamParser",
    "Face",
    "FaceSwap",
    "FaceSwapError",
    "Faces",
    "JobEvent",
    "JobFailed",
    "JobStatus",
    "Result",
    "ServerSentEvent",
    "Source",
    "Upload",
    "is_url",
]
