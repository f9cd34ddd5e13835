"""A job, its segments and its events: the states, the moves between them, and what a user may ask for. Pure."""

from __future__ import annotations

import enum
import json
import re
import struct
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Literal
from urllib.parse import quote

from .errors import BadRequest


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

TERMINAL_EVENTS = frozenset({"completed", "error", "cancelled"})
"""The event types that end a stream."""

TEXT_FRAME = 0x81
"""The first byte of a text message of a WebSocket that is one frame."""

SUPERSEDED_EVENTS = frozenset({"progress", "preview"})
"""Event types of which only the newest matters: replay leaves older ones out."""

NAME_PATTERN = re.compile(r"[A-Za-z0-9_ -][A-Za-z0-9._ -]{0,99}")
CONSENT_LIMIT = 1000
"""The most characters of a consent."""
LABEL_LIMIT = 100
"""The most characters of a label."""
MAX_MAPPED_FACES = 16
"""The most faces of a video that may be named."""
MAX_IMAGES = 8
"""The most pictures of faces that a job may have."""
NOT_EMBEDDED = ("swap_model", "face_restore_model", "face_restore_visibility", "face_boost", "detect_gender")
"""Options that mean something to ReActor only."""
MAX_SECONDS = 1e6
"""The latest moment of a video that may be named, in seconds."""
VIDEO_FORMATS = ("mp4", "webm", "gif")
PICTURE_FORMATS = ("png", "jpg", "webp")
RESULT_TYPES: Mapping[str, str] = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".gif": "image/gif",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
}
"""The media types of results by their extensions."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of surrogate pairs, which no database can store."""
FACE_INDEX_PATTERN = re.compile(r"[0-9]{1,2}(,[0-9]{1,2}){0,15}")
PROMPT_NAMESPACE = uuid.UUID("6f1d4f4e-52b1-4f0e-9d5c-1f2b7a3c9e10")


@dataclass(frozen=True, slots=True)
class FaceMapping:
    """A face of the video and the face that takes its place: one of a picture, each counted from 0."""

    face: int
    image: int = 0
    source_face: int = 0


@dataclass(frozen=True, slots=True)
class Options:
    """The choices a user has about a swap. `None` leaves the workflow's own value.

    `start`, `end` and `at` are seconds of the video: only that part of it, or only that frame, as a picture.
    """

    face_index: str | None = None
    source_face_index: str | None = None
    swap_model: str | None = None
    face_restore_model: str | None = None
    face_restore_visibility: float | None = None
    face_boost: bool | None = None
    detect_gender: str | None = None
    frame_rate: float | None = None
    crf: int = 20
    workflow: str | None = None
    priority: int = 0
    start: float | None = None
    end: float | None = None
    at: float | None = None
    format: str | None = None
    mapping: tuple[FaceMapping, ...] | None = None
    one_person: bool | None = None

    @classmethod
    def parse(cls, raw: object) -> Options:
        """Check the JSON value of a request's `options`; raises `BadRequest` naming what is wrong and allowed."""
        if raw is None:
            return cls()
        if not isinstance(raw, Mapping):
            raise BadRequest("'options' must be a JSON object.", code="invalid_option")
        allowed = [option.name for option in fields(cls)]
        for name in raw:
            if name not in allowed:
                raise BadRequest(
                    f"Unknown option {str(name)[:40]!r}; allowed are {', '.join(allowed)}.",
                    code="unknown_option",
                )
        options = cls(**{name: _OPTION_CHECKS[name](name, value) for name, value in raw.items() if value is not None})
        options._check_together()
        return options

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Options:
        """Return the options that `to_dict` gave."""
        mapping = values.get("mapping")
        pairs = None if mapping is None else tuple(FaceMapping(**pair) for pair in mapping)
        return cls(**{**values, "mapping": pairs})

    def _check_together(self) -> None:
        """Raise `BadRequest` for options that contradict each other."""
        if self.at is not None and (self.start is not None or self.end is not None):
            raise BadRequest("Option 'at' is one frame: leave 'start' and 'end' out.", code="invalid_option")
        if self.end is not None and self.end <= (self.start or 0):
            raise BadRequest("Option 'end' must be later than 'start'.", code="invalid_option")
        if self.mapping is not None and (self.face_index is not None or self.source_face_index is not None):
            raise BadRequest(
                "Option 'mapping' takes the place of 'face_index' and 'source_face_index': leave them out.",
                code="invalid_option",
            )
        if (
            self.mapping is not None
            and self.one_person
            and any(pair.image or pair.source_face for pair in self.mapping)
        ):
            raise BadRequest(
                "With 'one_person' all pictures show one face: leave 'image' and 'source_face' out of 'mapping'.",
                code="invalid_option",
            )

    @property
    def least_images(self) -> int:
        """The number of pictures that the mapping needs."""
        return 1 + max((pair.image for pair in self.mapping or ()), default=0)

    @property
    def rate(self) -> Fraction | None:
        """The frame rate that was chosen, exactly."""
        return None if self.frame_rate is None else Fraction(self.frame_rate).limit_denominator(1001)

    @property
    def embedded_warnings(self) -> tuple[str, ...]:
        """A sentence that names what was chosen and means nothing to the embedded engine."""
        ignored = [name for name in NOT_EMBEDDED if getattr(self, name) not in (None, False, "no", "none")]
        return (f"The embedded engine has no use for {', '.join(ignored)}: that is ReActor's.",) if ignored else ()

    def to_dict(self) -> dict[str, Any]:
        """Return the options that were chosen, as JSON values."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        if self.mapping is not None:
            values["mapping"] = [asdict(pair) for pair in self.mapping]
        return {name: value for name, value in values.items() if value is not None}


def _refuse(name: str, value: object, allowed: str) -> BadRequest:
    return BadRequest(f"Option {name!r} is {str(value)[:40]!r}; allowed is {allowed}.", code="invalid_option")


def _face_index(name: str, value: object) -> str:
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    text = text.replace(" ", "")
    if not FACE_INDEX_PATTERN.fullmatch(text):
        raise _refuse(name, value, "a face number from 0, or several with commas")
    return text


def _name(name: str, value: object) -> str:
    if not isinstance(value, str) or not NAME_PATTERN.fullmatch(value):
        raise _refuse(name, value, "a name of 1-100 letters, digits, '.', '_', '-' and space")
    return value


def _number(low: float, high: float, *, whole: bool = False) -> Any:
    def check(name: str, value: object) -> float | int:
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise _refuse(name, value, f"{'a whole number' if whole else 'a number'} from {low:g} to {high:g}")
        return value

    return check


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _refuse(name, value, "true or false")
    return value


def _gender(name: str, value: object) -> str:
    if value not in ("no", "female", "male"):
        raise _refuse(name, value, "'no', 'female' or 'male'")
    return str(value)


def _format(name: str, value: object) -> str:
    if value not in VIDEO_FORMATS + PICTURE_FORMATS:
        raise _refuse(
            name, value, f"one of {', '.join(VIDEO_FORMATS)} for videos, {', '.join(PICTURE_FORMATS)} for pictures"
        )
    return str(value)


def _mapping(name: str, value: object) -> tuple[FaceMapping, ...]:
    allowed = "a list of objects such as {'face': 1, 'image': 0, 'source_face': 0}, each face once"
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MAPPED_FACES:
        raise _refuse(name, value, allowed)
    limits = {"face": 99, "image": MAX_IMAGES - 1, "source_face": 99}
    pairs = []
    for pair in value:
        if not isinstance(pair, Mapping) or "face" not in pair or not pair.keys() <= limits.keys():
            raise _refuse(name, pair, allowed)
        pairs.append(FaceMapping(**{key: _number(0, limits[key], whole=True)(key, pair[key]) for key in pair}))
    if len({pair.face for pair in pairs}) < len(pairs):
        raise _refuse(name, value, allowed)
    return tuple(pairs)


_OPTION_CHECKS: Mapping[str, Any] = {
    "face_index": _face_index,
    "source_face_index": _face_index,
    "swap_model": _name,
    "face_restore_model": _name,
    "face_restore_visibility": _number(0.1, 1),
    "face_boost": _flag,
    "detect_gender": _gender,
    "frame_rate": _number(1, 60),
    "crf": _number(0, 51, whole=True),
    "workflow": _name,
    "priority": _number(-10, 10, whole=True),
    "start": _number(0, MAX_SECONDS),
    "end": _number(0, MAX_SECONDS),
    "at": _number(0, MAX_SECONDS),
    "format": _format,
    "mapping": _mapping,
    "one_person": _flag,
}


def check_output_name(name: str) -> str:
    """Return the name a user wants for the result, without extension; raises `BadRequest`."""
    if not NAME_PATTERN.fullmatch(name):
        raise BadRequest(
            "'output_name' must be 1-100 of A-Z a-z 0-9 . _ - and space, and not start with a dot.",
            code="invalid_output_name",
        )
    return name


def check_consent(text: object) -> str:
    """Return the text or reference that a user gives as consent; raises `BadRequest`."""
    if not isinstance(text, str) or len(text) > CONSENT_LIMIT or not text.strip() or _CONTROL.search(text):
        raise BadRequest(
            f"'consent' must be one line of text, of at most {CONSENT_LIMIT} characters.", code="invalid_consent"
        )
    return text.strip()


def check_label(text: object) -> str:
    """Return the words that a user wants to find a job by; raises `BadRequest`."""
    if not isinstance(text, str) or len(text) > LABEL_LIMIT or not text.strip() or _CONTROL.search(text):
        raise BadRequest(
            f"'label' must be one line of text, of at most {LABEL_LIMIT} characters.", code="invalid_label"
        )
    return text.strip()


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
        return self._once("chunk", lambda: chunk(self.sse()))

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
