"""Every operation of the API as its description tells it: what it takes, what it answers, and why it refuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..jobs import RESULT_TYPES, JobState
from .files import MEDIA_TYPES
from .jobs import DEFAULT_PAGE, LARGEST_PAGE
from .schemas import COUNT, TEXT, Schema, ref
from .signing import LIFETIME_S, LONGEST_LIFETIME_S
from .status import MAX_WAIT_S

JSON = "application/json"
STREAM = "text/event-stream"

PROBLEMS: Mapping[str, int] = {
    # 400: the request is not one that makes sense
    "malformed_request": 400,
    "malformed_json": 400,
    "malformed_multipart": 400,
    "malformed_field": 400,
    "incomplete_body": 400,
    "unknown_field": 400,
    "duplicate_field": 400,
    "missing_video": 400,
    "missing_image": 400,
    "duplicate_video": 400,
    "duplicate_image": 400,
    "invalid_video": 400,
    "invalid_image": 400,
    "empty_video": 400,
    "empty_image": 400,
    "invalid_url": 400,
    "invalid_id": 400,
    "invalid_output_name": 400,
    "invalid_flag": 400,
    "invalid_consent": 400,
    "invalid_label": 400,
    "too_many_images": 400,
    "consent_required": 400,
    "invalid_option": 400,
    "unknown_option": 400,
    "unknown_workflow": 400,
    "invalid_idempotency_key": 400,
    "invalid_wait": 400,
    "invalid_last_event_id": 400,
    "invalid_status": 400,
    "invalid_limit": 400,
    "invalid_cursor": 400,
    "invalid_expires_in": 400,
    "invalid_upload_length": 400,
    "invalid_upload_offset": 400,
    "invalid_upload_metadata": 400,
    "invalid_method_override": 400,
    "nothing_to_change": 400,
    "http_error": 400,
    # 401 and 403: nobody who is let in, and browsers of other sites
    "missing_key": 401,
    "invalid_key": 401,
    "invalid_authorization": 401,
    "invalid_link": 403,
    "link_expired": 403,
    "foreign_host": 403,
    "foreign_origin": 403,
    # 404 and 405: there is no such thing
    "not_found": 404,
    "unknown_prompt_id": 404,
    "unknown_file": 404,
    "no_such_image": 404,
    "unknown_upload": 404,
    "no_preview": 404,
    "no_thumbnail": 404,
    "method_not_allowed": 405,
    # 408 to 415: the body
    "upload_stalled": 408,
    "job_ended": 409,
    "not_retryable": 409,
    "nothing_to_deliver": 409,
    "upload_unfinished": 409,
    "too_many_parts": 409,
    "upload_offset_mismatch": 409,
    "inputs_erased": 410,
    "result_expired": 410,
    "unsupported_tus_version": 412,
    "too_large": 413,
    "field_too_large": 413,
    "url_too_large": 413,
    "unsupported_content_type": 415,
    "unsupported_content_encoding": 415,
    "not_a_video": 415,
    "not_an_image": 415,
    # 422: it makes sense and cannot be done
    "idempotency_key_reused": 422,
    "url_not_allowed": 422,
    "url_unreachable": 422,
    "url_failed": 422,
    "url_timeout": 422,
    "video_damaged": 422,
    "video_truncated": 422,
    "video_without_frames": 422,
    "video_too_large": 422,
    "video_too_long": 422,
    "video_too_many_tracks": 422,
    "video_has_gaps": 422,
    "empty_range": 422,
    "image_too_large": 422,
    "no_face_in_image": 422,
    "no_such_source_face": 422,
    "one_person_unavailable": 422,
    "undecodable": 422,
    "upload_locked": 423,
    "headers_too_large": 431,
    "internal_error": 500,
    # 429 and 503: it may be done later
    "rate_limited": 429,
    "key_queue_full": 429,
    "too_many_uploads": 429,
    "queue_full": 503,
    "disk_low": 503,
    "disk_full": 503,
    "database_unavailable": 503,
    "files_unavailable": 503,
    "too_busy": 503,
    "still_stopping": 503,
    "stopping": 503,
}
"""The code of every problem that a request may be answered with over HTTP, and its status."""

SOCKET_PROBLEMS: Mapping[str, int] = {"unexpected_message": 400, "unknown_action": 400, "frame_too_large": 413}
"""The codes of problems that only a WebSocket is told, as an `error` event."""

ANYWHERE = (
    "malformed_request",
    "foreign_host",
    "foreign_origin",
    "headers_too_large",
    "internal_error",
    "disk_full",
    "database_unavailable",
    "files_unavailable",
)
"""The problems that any request may meet with."""

WITH_KEY = ("missing_key", "invalid_key", "invalid_authorization")
"""The problems of an operation that needs a key."""
WITH_LINK = ("invalid_link", "link_expired")
"""The problems of an operation that a signed link may lead to."""

_MEDIA = (
    *("malformed_json", "malformed_multipart", "malformed_field", "incomplete_body", "unknown_field"),
    *("duplicate_field", "duplicate_video", "duplicate_image", "invalid_video", "invalid_image", "empty_video"),
    *("empty_image", "invalid_url", "upload_stalled", "too_large", "field_too_large", "url_too_large"),
    *("unsupported_content_type", "unsupported_content_encoding", "not_a_video", "not_an_image", "url_not_allowed"),
    *("url_unreachable", "url_failed", "url_timeout", "video_damaged", "video_truncated", "video_without_frames"),
    *("video_too_large", "video_too_long", "video_too_many_tracks", "image_too_large", "undecodable", "disk_low"),
    *("too_many_images", "invalid_id", "unknown_upload", "upload_unfinished", "unknown_prompt_id", "inputs_erased"),
)
"""The problems of an operation that takes files."""
_INPUTS = (
    *(*_MEDIA, "missing_video", "missing_image", "invalid_output_name", "idempotency_key_reused", "video_has_gaps"),
    *("invalid_flag", "invalid_option", "unknown_option", "unknown_workflow", "invalid_idempotency_key"),
    *("queue_full", "invalid_consent", "consent_required", "invalid_label"),
    *("no_face_in_image", "no_such_source_face", "empty_range", "one_person_unavailable"),
)
_QUEUES = ("rate_limited", "key_queue_full")
"""The problems of an operation that puts a job into the queue."""
_JOB = ("unknown_prompt_id", "not_found", "method_not_allowed")

REQUIRED_HEADERS = frozenset({"Tus-Resumable", "Upload-Length", "Upload-Offset", "X-HTTP-Method-Override"})
"""The headers without which a request that may have them is refused."""

_BYTES: Schema = {**TEXT, "pattern": "^[0-9]{1,15}$"}

HEADERS: Mapping[str, Schema] = {
    "Location": {**TEXT, "description": "The path of the job's status."},
    "ETag": {**TEXT, "description": "The version of what was answered."},
    "Preference-Applied": {"const": "respond-async"},
    "Content-Disposition": {**TEXT, "description": "The name of the file."},
    "Content-Range": {**TEXT, "description": "The bytes that were sent, and how many there are."},
    "Accept-Ranges": {"const": "bytes"},
    "Tus-Resumable": {"const": "1.0.0"},
    "Tus-Version": {"const": "1.0.0"},
    "Tus-Extension": {**TEXT, "description": "The extensions of tus that are understood."},
    "Tus-Max-Size": {**_BYTES, "description": "The size of the largest upload."},
    "Upload-Offset": {**_BYTES, "description": "The bytes that have arrived."},
    "Upload-Length": {**_BYTES, "description": "The bytes of the whole."},
    "Upload-Metadata": {**TEXT, "description": "As it was given."},
    "Upload-Expires": {**TEXT, "description": "The time at which the upload is erased, unless it is used before."},
    "WWW-Authenticate": {**TEXT, "description": "How to send a key."},
    "Retry-After": {**TEXT, "pattern": "^[0-9]+$", "description": "Seconds after which to try again."},
}
"""The headers of answers that mean something to a program."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no problem: its content by media type, and its headers."""

    text: str
    content: Mapping[str, Schema] = field(default_factory=dict)
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation. Its summary is the docstring of its handler, its path parameters stand in its path."""

    tag: str
    answers: Mapping[int, Answer]
    problems: tuple[str, ...] = ()
    query: Mapping[str, Schema] = field(default_factory=dict)
    headers: Mapping[str, Schema] = field(default_factory=dict)
    body: Mapping[str, Schema] = field(default_factory=dict)
    text: str = ""
    needs_key: bool = True
    tells_strangers: bool = False
    """True where a request without a key is told a part of it."""
    takes_link: bool = False
    """True where a signed link may take the place of a key."""

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of all its problems, those that any operation of its kind may have included."""
        access = (*(WITH_KEY if self.needs_key else ()), *(WITH_LINK if self.takes_link else ()))
        return (*ANYWHERE, *access, *self.problems)


_STATUS = Answer("The job.", {JSON: ref("Status")})
_EVENT_STREAM = Answer("The job's events, until its end; the schema is of each.", {STREAM: ref("Event")}, ("Location",))
_LAST_EVENT_ID = {**TEXT, "pattern": "^[0-9]{0,15}$", "description": "The id of the last event that was seen."}
_NO_CONTENT: Mapping[str, Schema] = {}

_INPUT_TYPES = (*MEDIA_TYPES.values(), "application/octet-stream")
_INLINE: Mapping[str, Schema] = {"inline": {**TEXT, "description": "1 to play it in place."}}
_RANGE_HEADERS: Mapping[str, Schema] = {
    "Range": {**TEXT, "description": "The bytes to send."},
    "If-Range": {**TEXT, "description": "Send all where this is not its `ETag`."},
    "If-None-Match": {**TEXT, "description": "The `ETag` of what is known."},
}


_UPLOAD = ("unknown_upload", "not_found", "method_not_allowed")
_TUS = {"Tus-Resumable": HEADERS["Tus-Resumable"]}
_UPLOAD_HEADERS = ("Tus-Resumable", "Upload-Offset", "Upload-Expires")
_APPENDING = (
    *(*_UPLOAD, "unsupported_tus_version", "unsupported_content_type", "unsupported_content_encoding"),
    *("invalid_upload_offset", "upload_offset_mismatch", "too_many_parts", "upload_locked"),
    *("incomplete_body", "upload_stalled"),
    *("too_large", "disk_low", "stopping"),
)
_OFFSET_BYTES: Mapping[str, Schema] = {"application/offset+octet-stream": {**TEXT, "format": "binary"}}
_APPENDED: Mapping[int, Answer] = {204: Answer("The bytes are stored.", _NO_CONTENT, _UPLOAD_HEADERS)}
_AT_OFFSET: Mapping[str, Schema] = {
    **_TUS,
    "Upload-Offset": {**_BYTES, "description": "The bytes that have arrived before."},
}


def _ranges(text: str, media_types: Iterable[str]) -> Mapping[int, Answer]:
    """Return the answers with a file, or a part of it."""
    content: Mapping[str, Schema] = {media_type: {**TEXT, "format": "binary"} for media_type in media_types}
    return {
        200: Answer(text, content, ("ETag", "Content-Disposition", "Accept-Ranges")),
        206: Answer("The bytes that were asked for.", content, ("Content-Range",)),
        304: Answer("It is as the client knows it.", _NO_CONTENT),
        412: Answer("It is not what the client knows.", _NO_CONTENT),
        416: Answer("It has no such bytes.", _NO_CONTENT, ("Content-Range",)),
    }


OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/face-swap"): Operation(
        "swap",
        {
            200: Answer(
                "The job's events until its end; with `return_prompt_id_only` its id at once.",
                {**_EVENT_STREAM.content, JSON: ref("Accepted")},
                ("Location",),
            ),
            202: Answer(
                "The job's id, with `Prefer: respond-async`.",
                {JSON: ref("Accepted")},
                ("Location", "Preference-Applied"),
            ),
        },
        (*_INPUTS, *_QUEUES),
        headers={
            "Idempotency-Key": {
                **TEXT,
                "pattern": "^[ -~]{1,255}$",
                "description": "The same key with the same request gives the first job, for 24 hours.",
            },
            "Prefer": {
                **TEXT,
                "description": "`respond-async`: answer with the job's id at once.",
            },
            "traceparent": {**TEXT, "description": "The trace that the job becomes a part of."},
        },
        body={"multipart/form-data": ref("SwapForm"), JSON: ref("SwapRequest")},
        text="The parts may come in any order. The job is on the disk before it is answered: no crash loses it.",
    ),
    ("POST", "/faces"): Operation(
        "swap",
        {200: Answer("The faces, large to small.", {JSON: ref("Faces")})},
        (*_MEDIA, "missing_video", "no_such_image", "rate_limited", "too_busy"),
        body={"multipart/form-data": ref("FacesForm"), JSON: ref("FacesRequest")},
        text="Of a picture, or of one frame of a video: each with the number that `face_index`, `source_face_index` and"
        " `mapping` take. Nothing is kept.",
    ),
    ("GET", "/face-swap-ws"): Operation(
        "swap",
        {101: Answer("The WebSocket is open.", _NO_CONTENT)},
        ("http_error",),
        text="First a text frame: `SocketRequest`, with the bytes of its files in binary frames after it, or"
        " `SocketSubscription`. The service answers in frames of `SocketEvent` and closes after the last. While the job"
        " runs, `SocketCancel` cancels it.",
    ),
    ("GET", "/status/{prompt_id}"): Operation(
        "jobs",
        {
            200: Answer("The job.", {JSON: ref("Status")}, ("ETag",)),
            304: Answer("It is as the client knows it.", _NO_CONTENT, ("ETag",)),
        },
        (*_JOB, "invalid_wait"),
        query={
            "wait": {
                "type": "number",
                "minimum": 0,
                "maximum": MAX_WAIT_S,
                "description": "Seconds to wait for a change.",
            }
        },
        headers={"If-None-Match": {**TEXT, "description": "The `ETag` of what is known."}},
    ),
    ("GET", "/events/{prompt_id}"): Operation(
        "jobs",
        {200: _EVENT_STREAM},
        (*_JOB, "invalid_last_event_id"),
        query={"last_event_id": _LAST_EVENT_ID},
        headers={"Last-Event-ID": _LAST_EVENT_ID},
        takes_link=True,
    ),
    ("GET", "/preview/{prompt_id}"): Operation(
        "jobs",
        {200: Answer("The picture.", {"image/jpeg": {**TEXT, "format": "binary"}})},
        (*_JOB, "no_preview"),
        takes_link=True,
    ),
    ("GET", "/jobs"): Operation(
        "jobs",
        {200: Answer("A page of jobs.", {JSON: ref("Jobs")})},
        ("invalid_status", "invalid_limit", "invalid_cursor"),
        query={
            "status": {
                "type": "string",
                "enum": ["", *JobState, *map(str.lower, JobState)],
                "description": "Only jobs in this state.",
            },
            "label": {**TEXT, "description": "Only jobs of this label."},
            "limit": {"type": "integer", "minimum": 1, "maximum": LARGEST_PAGE, "default": DEFAULT_PAGE},
            "cursor": {**TEXT, "pattern": "^[0-9]{1,15}-.+$", "description": "`next_cursor` of the page before."},
        },
    ),
    ("POST", "/jobs/{prompt_id}/cancel"): Operation("jobs", {202: _STATUS}, (*_JOB, "job_ended")),
    ("POST", "/jobs/{prompt_id}/retry"): Operation(
        "jobs", {202: _STATUS}, (*_JOB, *_QUEUES, "not_retryable", "inputs_erased")
    ),
    ("PATCH", "/jobs/{prompt_id}"): Operation(
        "jobs",
        {200: _STATUS},
        (
            *(*_JOB, "malformed_json", "duplicate_field", "incomplete_body", "upload_stalled", "too_large"),
            *("unsupported_content_type", "unsupported_content_encoding", "unknown_field", "nothing_to_change"),
            *("invalid_option", "invalid_label", "job_ended"),
        ),
        body={JSON: ref("JobChange")},
        text="The priority of what waits decides from then on; that of a job that has ended cannot be changed.",
    ),
    ("DELETE", "/jobs/{prompt_id}"): Operation(
        "jobs", {204: Answer("It is erased.", _NO_CONTENT)}, (*_JOB, "still_stopping", "stopping")
    ),
    ("GET", "/jobs/{prompt_id}/deliveries"): Operation(
        "jobs", {200: Answer("The job's deliveries.", {JSON: ref("Deliveries")})}, _JOB
    ),
    ("POST", "/jobs/{prompt_id}/deliveries/redeliver"): Operation(
        "jobs",
        {202: Answer("The job's deliveries, to be sent again.", {JSON: ref("Deliveries")})},
        (*_JOB, "nothing_to_deliver"),
        text="Those that arrived are sent too, under the same id.",
    ),
    ("POST", "/jobs/{prompt_id}/links"): Operation(
        "files",
        {200: Answer("The links, by what they lead to.", {JSON: ref("Links")})},
        (*_JOB, "invalid_expires_in"),
        query={
            "expires_in": {
                "type": "integer",
                "minimum": 1,
                "maximum": LONGEST_LIFETIME_S,
                "default": LIFETIME_S,
                "description": "The seconds for which the links are good.",
            }
        },
        text="Who has a link needs no key. It ends when it expires, and when the job is deleted.",
    ),
    ("GET", "/jobs/{prompt_id}/video"): Operation(
        "files",
        _ranges("The video.", _INPUT_TYPES),
        (*_JOB, "inputs_erased"),
        query=_INLINE,
        headers=_RANGE_HEADERS,
        takes_link=True,
    ),
    ("GET", "/jobs/{prompt_id}/image"): Operation(
        "files",
        _ranges("A picture of a face.", _INPUT_TYPES),
        (*_JOB, "inputs_erased", "no_such_image"),
        query={**_INLINE, "number": {**COUNT, "description": "Its number, from 0."}},
        headers=_RANGE_HEADERS,
        takes_link=True,
    ),
    ("GET", "/jobs/{prompt_id}/thumbnail"): Operation(
        "files",
        {
            200: Answer("The picture.", {"image/jpeg": {**TEXT, "format": "binary"}}, ("ETag",)),
            304: Answer("It is as the client knows it.", _NO_CONTENT, ("ETag",)),
        },
        (*_JOB, "no_thumbnail", "inputs_erased"),
        query={"v": {**TEXT, "description": "Any text: another one has a browser ask again."}},
        headers={"If-None-Match": {**TEXT, "description": "The `ETag` of what is known."}},
        takes_link=True,
    ),
    ("GET", "/download/{filename}"): Operation(
        "files",
        {
            **_ranges("The result.", RESULT_TYPES.values()),
            307: Answer("The address where it lies, good for five minutes.", _NO_CONTENT, ("Location",)),
        },
        ("unknown_file", "not_found", "method_not_allowed", "result_expired"),
        query=_INLINE,
        headers=_RANGE_HEADERS,
        takes_link=True,
    ),
    ("OPTIONS", "/uploads"): Operation(
        "uploads",
        {
            204: Answer(
                "The version, the extensions and the limit.",
                _NO_CONTENT,
                ("Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size"),
            )
        },
    ),
    ("POST", "/uploads"): Operation(
        "uploads",
        {201: Answer("The upload, without a byte yet.", {JSON: ref("Upload")}, ("Location", *_UPLOAD_HEADERS))},
        (
            *("invalid_upload_length", "invalid_upload_metadata", "unsupported_tus_version", "too_large"),
            *("rate_limited", "too_many_uploads", "disk_low"),
        ),
        headers={
            **_TUS,
            "Upload-Length": {**_BYTES, "description": "The bytes of the whole."},
            "Upload-Metadata": {**TEXT, "description": "Pairs of a key and a Base64 value, with commas between."},
        },
        text="tus 1.0. When it is whole its id is given as `video_upload` or `image_upload`, in as many requests as"
        " wanted, until it expires.",
    ),
    ("GET", "/uploads/{upload_id}"): Operation(
        "uploads",
        {200: Answer("The upload.", {JSON: ref("Upload")}, (*_UPLOAD_HEADERS, "Upload-Length", "Upload-Metadata"))},
        (*_UPLOAD, "unsupported_tus_version"),
    ),
    ("PATCH", "/uploads/{upload_id}"): Operation(
        "uploads", _APPENDED, _APPENDING, headers=_AT_OFFSET, body=_OFFSET_BYTES
    ),
    ("POST", "/uploads/{upload_id}"): Operation(
        "uploads",
        _APPENDED,
        (*_APPENDING, "invalid_method_override"),
        headers={**_AT_OFFSET, "X-HTTP-Method-Override": {"enum": ["PATCH", "DELETE"]}},
        body=_OFFSET_BYTES,
    ),
    ("DELETE", "/uploads/{upload_id}"): Operation(
        "uploads", {204: Answer("It is erased.", _NO_CONTENT)}, (*_UPLOAD, "unsupported_tus_version"), headers=_TUS
    ),
    ("GET", "/health"): Operation(
        "service",
        {200: Answer("How the service is; without a key, in short.", {JSON: ref("Health")})},
        tells_strangers=True,
    ),
    ("GET", "/livez"): Operation("service", {200: Answer("It runs.", {JSON: ref("Live")})}, needs_key=False),
    ("GET", "/readyz"): Operation(
        "service",
        {
            200: Answer("It is ready.", {JSON: ref("Ready")}),
            503: Answer("It is not.", {JSON: ref("Ready")}),
        },
        needs_key=False,
    ),
    ("GET", "/metrics"): Operation("service", {200: Answer("The figures.", {"text/plain": TEXT})}),
    ("GET", "/openapi.json"): Operation(
        "service", {200: Answer("This document.", {JSON: {"type": "object"}}, ("ETag",))}, needs_key=False
    ),
    ("GET", "/docs"): Operation("service", {200: Answer("The page.", {"text/html": TEXT})}, needs_key=False),
    ("GET", "/"): Operation(
        "service",
        {
            200: Answer("The page, or the description.", {JSON: ref("Information"), "text/html": TEXT}),
            304: Answer("It is as the client knows it.", _NO_CONTENT),
        },
        needs_key=False,
    ),
    ("GET", "/web/{name}"): Operation(
        "service",
        {
            200: Answer(
                "The file.",
                {"text/javascript": TEXT, "text/css": TEXT}
                | {sample: {**TEXT, "format": "binary"} for sample in ("image/jpeg", "video/mp4")},
            ),
            304: Answer("It is as the client knows it.", _NO_CONTENT),
        },
        ("not_found", "method_not_allowed"),
        needs_key=False,
    ),
}
"""Every operation by its method and path."""
