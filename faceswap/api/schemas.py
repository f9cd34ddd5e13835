"""JSON Schemas (2020-12) of what the API takes and gives. `tests/test_openapi.py` holds them against the code."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from ..deliveries import WEBHOOK_TYPES, DeliveryKind, DeliveryState
from ..intake import MAX_TEXT_BYTES
from ..jobs import JobState
from ..options import (
    CONSENT_LIMIT,
    LABEL_LIMIT,
    MAX_IMAGES,
    MAX_MAPPED_FACES,
    MAX_SECONDS,
    NAME_PATTERN,
    PICTURE_FORMATS,
    VIDEO_FORMATS,
)

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SHA256: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
TIME: Schema = {"type": "string", "format": "date-time", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
"""A moment in UTC, with milliseconds."""
PROMPT_ID: Schema = {"type": "string", "description": "The id of a job."}
UPLOAD_ID: Schema = {"type": "string", "pattern": "^[ -~]{1,100}$"}
URL: Schema = {"type": "string", "format": "uri", "maxLength": 4096}
PERCENTAGE: Schema = {"type": "number", "minimum": 0, "maximum": 100}
STATE: Schema = {"type": "string", "enum": [*JobState]}
NAME: Schema = {"type": "string", "pattern": f"^{NAME_PATTERN.pattern}$"}


def ref(name: str) -> Schema:
    """Return a reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def record(properties: Mapping[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    """Return the schema of an object that has these properties and no others."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def nullable(schema: Schema) -> Schema:
    """Return the schema of what may be null instead."""
    if "enum" in schema or "type" not in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"]}


def array(items: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items}


def _number(low: float, high: float, *, whole: bool = False) -> Schema:
    return {"type": "integer" if whole else "number", "minimum": low, "maximum": high}


_FACE_INDEX: Schema = {
    "anyOf": [
        {"type": "string", "pattern": "^ *[0-9] *[0-9]? *(, *[0-9] *[0-9]? *){0,15}$"},
        {"type": "integer", "minimum": 0, "maximum": 99},
    ],
}

OPTIONS: Mapping[str, Schema] = {
    "face_index": {
        **_FACE_INDEX,
        "description": "Faces of the video to replace, as ReActor counts; several by commas.",
    },
    "source_face_index": {**_FACE_INDEX, "description": "Faces of the picture to take; several by commas."},
    "swap_model": NAME,
    "face_restore_model": NAME,
    "face_restore_visibility": _number(0.1, 1),
    "face_boost": FLAG,
    "detect_gender": {"type": "string", "enum": ["no", "female", "male"]},
    "frame_rate": {**_number(1, 60), "description": "Frames a second of the result; the clip's own by default."},
    "crf": {**_number(0, 51, whole=True), "description": "Quality of the result: lower is better; 20 by default."},
    "workflow": {**NAME, "description": "A workflow of the service, by name."},
    "priority": {**_number(-10, 10, whole=True), "description": "Higher goes first."},
    "start": {**_number(0, MAX_SECONDS), "description": "Only what comes after this second of the video."},
    "end": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": MAX_SECONDS,
        "description": "Only what comes before this second of the video.",
    },
    "at": {**_number(0, MAX_SECONDS), "description": "Only the frame at this second, as a picture."},
    "format": {"type": "string", "enum": [*VIDEO_FORMATS, *PICTURE_FORMATS], "description": "The kind of file."},
    "mapping": {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_MAPPED_FACES,
        "items": record(
            {
                "face": {**_number(0, 99, whole=True), "description": "A face of the video."},
                "image": {**_number(0, MAX_IMAGES - 1, whole=True), "description": "A picture; the first by default."},
                "source_face": {**_number(0, 99, whole=True), "description": "The face of the picture to take."},
            },
            optional=("image", "source_face"),
        ),
        "description": "Which face of the video gets which face of which picture; each face once.",
    },
    "one_person": {**FLAG, "description": "The pictures show the same person: one identity out of all."},
}


def _one_or_several(schema: Schema) -> Schema:
    return {"anyOf": [schema, {**array(schema), "minItems": 1, "maxItems": MAX_IMAGES}]}


FIELDS: Mapping[str, Schema] = {
    "video": {"type": "string", "format": "binary", "description": "The clip to change."},
    "video_url": {**URL, "description": "Its address, in place of the file."},
    "image": {
        **_one_or_several({"type": "string", "format": "binary"}),
        "description": f"The face to put in: a picture, or up to {MAX_IMAGES}.",
    },
    "image_url": {**_one_or_several(URL), "description": "Its address, in place of the file."},
    "video_upload": {**UPLOAD_ID, "description": "A resumable upload that is whole, in place of the file."},
    "image_upload": {**_one_or_several(UPLOAD_ID), "description": "The same for the picture."},
    "from_job": {**PROMPT_ID, "description": "A job of which the inputs are taken that are not given."},
    "output_name": {**NAME, "description": "The name of the result, without extension."},
    "return_prompt_id_only": {
        "anyOf": [FLAG, {"enum": ["true", "false", "1", "0", "yes", "no", "on", "off", 1, 0]}],
        "description": "Answer with the job's id at once, not with its events.",
    },
    "options": {
        "anyOf": [ref("Options"), {"type": "string", "contentMediaType": "application/json"}],
        "description": "Workflow options: a JSON object, or its text.",
    },
    "webhook_url": {
        **URL,
        "description": "An address that is sent a `Webhook` when the job ends, signed as Standard Webhooks says.",
    },
    "result_put_url": {**URL, "description": "An address, signed for that, that the result is sent to by `PUT`."},
    "consent": {
        "type": "string",
        "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$",
        "maxLength": CONSENT_LIMIT,
        "description": "A text or reference, more than spaces, that says that the person shown has agreed.",
    },
    "label": {
        "type": "string",
        "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$",
        "maxLength": LABEL_LIMIT,
        "description": "Words of your own, more than spaces, to find the job by.",
    },
}
"""The fields of a request for a swap."""

STATUS = record(
    {
        "prompt_id": PROMPT_ID,
        "status": STATE,
        "progress": record(
            {
                "percentage": PERCENTAGE,
                "step": {**TEXT, "description": "What the job does now."},
                "current": {**COUNT, "description": "Frames that are done."},
                "total": {**COUNT, "description": "Frames of the whole video."},
                "fps": nullable({"type": "number"}),
            }
        ),
        "created_at": TIME,
        "updated_at": TIME,
        "started_at": nullable(TIME),
        "finished_at": nullable(TIME),
        "result": nullable({**TEXT, "description": "The path of the result, `/download/…`."}),
        "error": nullable({**TEXT, "description": "A sentence that says why the job failed."}),
        "code": nullable({**TEXT, "description": "The same in a word."}),
        "queue_position": nullable({"type": "integer", "minimum": 1}),
        "wait_seconds": nullable({"type": "number", "minimum": 0, "description": "The likely time until it starts."}),
        "eta_seconds": nullable({"type": "number"}),
        "output_prefix": TEXT,
        "media": {"type": "string", "enum": ["video", "image"], "description": "The kind of the result."},
        "label": nullable(TEXT),
        "options": ref("ChosenOptions"),
        "consent": nullable(TEXT),
        "segments": record({"done": COUNT, "total": COUNT}),
        "attempts": {**COUNT, "description": "Prompts that were given to engines."},
        "warnings": array(TEXT),
        "sha256": nullable(SHA256),
        "bytes": nullable(COUNT),
        "trace_id": nullable({"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "The trace of the job."}),
    }
)

EVENTS: Mapping[str, Schema] = {
    "queued": record(
        {
            "prompt_id": PROMPT_ID,
            "message": TEXT,
            "status_url": TEXT,
            "events_url": TEXT,
            "queue_position": {"type": "integer", "minimum": 1},
            "warnings": array(TEXT),
        }
    ),
    "executing": record({"node": TEXT, "title": TEXT, "message": TEXT}),
    "progress": record(
        {
            "percentage": {**PERCENTAGE, "description": "It never falls."},
            "current": COUNT,
            "total": COUNT,
            "message": TEXT,
            "eta_seconds": nullable({"type": "number"}),
            "fps": nullable({"type": "number"}),
        }
    ),
    "preview": record({"url": TEXT, "frame": COUNT}),
    "status": record({"status": STATE, "message": TEXT}),
    "completed": record(
        {
            "message": TEXT,
            "filename": TEXT,
            "download_url": TEXT,
            "prompt_id": PROMPT_ID,
            "output_prefix": TEXT,
            "bytes": COUNT,
            "sha256": SHA256,
            "warnings": array(TEXT),
        }
    ),
    "error": record({"detail": TEXT, "code": TEXT, "prompt_id": PROMPT_ID}),
    "cancelled": record({"prompt_id": PROMPT_ID, "message": TEXT}),
}
"""The data of each kind of event; `error`, `completed` and `cancelled` are the last of a stream."""

_BACKEND = record(
    {
        "url": TEXT,
        "listener": {"type": "string", "enum": ["connecting", "connected", "disconnected"]},
        "answers": FLAG,
        "stuck": FLAG,
        "abandoned": {**COUNT, "description": "Prompts that were given up and may still run there."},
        "problems": array(TEXT),
        "running": COUNT,
        "last_event_age_s": nullable({"type": "number"}),
        "reconnects": COUNT,
    }
)

_CHECKS = record(
    {"database": FLAG, "disk": FLAG, "queue": FLAG, "engine": FLAG, "files": FLAG, "feed": FLAG},
    optional=("files", "feed"),
)

_TOLD_STRANGERS = ("status", "database")
_HEALTH_PROPERTIES: Mapping[str, Schema] = {
    "status": {"type": "string", "enum": ["healthy", "degraded"]},
    "comfyui_status": {"type": "string", "enum": ["healthy", "unreachable", "starting"]},
    "outage": nullable(TEXT),
    "workflow_status": {"type": "string", "enum": ["valid", "invalid"]},
    "server_address": TEXT,
    "workflow_path": TEXT,
    "communication_method": {"const": "websocket"},
    "version": TEXT,
    "database": {"type": "string", "enum": ["writable", "unwritable"]},
    "queue": record({"queued": COUNT, "processing": COUNT}, optional=("queued", "processing")),
    "backends": array(_BACKEND),
    "disk_free_mb": nullable({"type": "integer"}),
    "watchers": COUNT,
    "node": TEXT,
    "nodes": array(
        record({"name": TEXT, "version": TEXT, "seen_s_ago": {"type": "number"}, "backends": array(_BACKEND)})
    ),
    "leases": array(record({"name": TEXT, "holder": TEXT, "epoch": COUNT, "left_s": {"type": "number"}})),
}
_HEALTH = record(_HEALTH_PROPERTIES, optional=tuple(name for name in _HEALTH_PROPERTIES if name not in _TOLD_STRANGERS))
"""Without a key only what is required is told."""

_DELIVERY = record(
    {
        "id": {**TEXT, "description": "The `webhook-id`: the same whenever it is sent again."},
        "kind": {"type": "string", "enum": [*DeliveryKind]},
        "url": {**TEXT, "description": "The address, without its query."},
        "state": {"type": "string", "enum": [*DeliveryState]},
        "attempts": COUNT,
        "created_at": TIME,
        "attempted_at": nullable(TIME),
        "delivered_at": nullable(TIME),
        "next_attempt_at": nullable(TIME),
        "last_status": nullable({"type": "integer", "description": "The HTTP status of the last answer."}),
        "last_error": nullable(TEXT),
    }
)

LOOK_FIELDS: Mapping[str, Schema] = {
    "role": {"enum": ["video", "image"], "description": "Of that job: its video, or one of its pictures."},
    "number": {
        "anyOf": [{"type": "integer", "minimum": 0, "maximum": 7}, {"type": "string", "pattern": "^[0-7]$"}],
        "description": "The number of that picture, from 0.",
    },
    "at": {
        "anyOf": [
            {"type": "number", "minimum": 0, "maximum": 1_000_000},
            {"type": "string", "pattern": r"^[0-9]{1,6}(\.[0-9]{1,9})?$"},
        ],
        "description": "The time of the frame of a video, in seconds.",
    },
}
"""The fields of a request for faces, beside those by which the file is given."""

_VIDEO_FACTS: Mapping[str, Schema] = {
    "at": {"type": "number", "minimum": 0, "description": "The time, in seconds, of the frame that was looked at."},
    "duration": {"type": "number", "minimum": 0, "description": "Seconds."},
    "frame_rate": {"type": "number", "description": "Frames a second, on average where they vary."},
    "frames": COUNT,
}
"""The part of an answer that is about a video, and not there for a picture."""

_EVENT_ID = {"anyOf": [COUNT, TEXT], "description": "The number of the last event that was seen."}
_ANNOUNCED = record({"filename": TEXT, "size": COUNT}, optional=("filename",))
_VIDEOS, _IMAGES = ("video", "video_url", "video_upload"), ("image", "image_url", "image_upload")


def _form(*inputs: str) -> Schema:
    """Return the schema of a form with these inputs."""
    others = {name: schema for name, schema in FIELDS.items() if name not in (*_VIDEOS, *_IMAGES, "from_job")}
    return record({**{name: FIELDS[name] for name in inputs}, **others}, optional=tuple(others))


def _forms(videos: Iterable[str], images: Iterable[str]) -> Schema:
    """Return the schema of a form with one of these videos and one of these images, or those of another job."""
    pairs = itertools.product((*videos, None), (*images, None))
    inputs = [[name for name in pair if name] + ["from_job"] * (None in pair) for pair in pairs]
    return {"anyOf": [_form(*names) for names in inputs]}


def _look(*ways: str) -> Schema:
    """Return the schema of a request for the faces of one file, given in one of these ways."""
    return {"anyOf": [record({way: _ONE_FILE[way], **LOOK_FIELDS}, optional=tuple(LOOK_FIELDS)) for way in ways]}


_ONE_FILE: Mapping[str, Schema] = {
    **{name: FIELDS[name] for name in ("video", "video_url", "video_upload", "image", "from_job")},
    "image_url": URL,
    "image_upload": UPLOAD_ID,
}
"""The ways to give one file."""
_SOCKET_FIELDS = {name: schema for name, schema in FIELDS.items() if name not in ("video", "image")}


def _event_data(name: str) -> Schema:
    data = {"contentMediaType": "application/json", "contentSchema": ref(f"Event_{name}")}
    return {"if": {"properties": {"event": {"const": name}}}, "then": {"properties": {"data": data}}}


SCHEMAS: Mapping[str, Schema] = {
    "Problem": {
        "type": "object",
        "description": "Problem details (RFC 9457).",
        "properties": {
            "type": TEXT,
            "title": TEXT,
            "status": {"type": "integer"},
            "detail": {**TEXT, "description": "A sentence for a person."},
            "code": {**TEXT, "description": "A stable word for a program."},
            "prompt_id": PROMPT_ID,
        },
        "required": ["type", "title", "status", "detail", "code"],
    },
    "Options": {
        **record({name: nullable(schema) for name, schema in OPTIONS.items()}, optional=tuple(OPTIONS)),
        "description": "Workflow options, all optional; null leaves the workflow's own value.",
    },
    "ChosenOptions": {**record(OPTIONS, optional=tuple(OPTIONS)), "description": "The options that were chosen."},
    "SwapForm": {
        "description": "The video and the picture, each as a file, as its address, as an upload, or another job's.",
        **_forms(_VIDEOS, _IMAGES),
    },
    "SwapRequest": {
        **_forms(_VIDEOS[1:], _IMAGES[1:]),
        "description": f"At most {MAX_TEXT_BYTES:,} bytes.",
    },
    "Status": STATUS,
    "JobChange": {
        **record(
            {
                "priority": {**OPTIONS["priority"], "description": "Higher goes first."},
                "label": {**nullable(FIELDS["label"]), "description": "Other words, or none."},
            },
            optional=("priority", "label"),
        ),
        "minProperties": 1,
    },
    "Upload": record(
        {
            "id": {**TEXT, "description": "The id by which it is used."},
            "length": {**COUNT, "description": "Bytes of the whole."},
            "offset": {**COUNT, "description": "Bytes that have arrived."},
            "created_at": TIME,
            "expires_at": TIME,
        }
    ),
    "Accepted": record(
        {
            "prompt_id": PROMPT_ID,
            "status": STATE,
            "message": TEXT,
            "status_url": TEXT,
            "output_prefix": TEXT,
            "warnings": array(TEXT),
        }
    ),
    "FacesForm": {"description": "One picture or one video.", **_look(*_ONE_FILE)},
    "FacesRequest": {
        "description": "The same without a file.",
        **_look(*(way for way in _ONE_FILE if way not in ("video", "image"))),
    },
    "Faces": record(
        {
            "width": COUNT,
            "height": COUNT,
            "faces": array(
                record(
                    {
                        "index": {**COUNT, "description": "Its number, as `face_index` counts: from large to small."},
                        "box": {
                            **array(COUNT),
                            "minItems": 4,
                            "maxItems": 4,
                            "description": "Left, top, width and height in pixels, upright.",
                        },
                        "score": {"type": "number", "minimum": 0, "maximum": 1},
                        "thumbnail": {**TEXT, "description": "A JPEG of at most 160 pixels a side, as a `data:` URI."},
                    }
                )
            ),
            **_VIDEO_FACTS,
        },
        optional=tuple(_VIDEO_FACTS),
    ),
    "Jobs": record({"jobs": array(ref("Status")), "next_cursor": nullable(TEXT)}),
    "Deliveries": record({"deliveries": array(_DELIVERY)}),
    "Webhook": {
        **record({"type": {"type": "string", "enum": [*WEBHOOK_TYPES.values()]}, "timestamp": TIME, "data": STATUS}),
        "description": "The body of the `POST` to a job's `webhook_url` when it has ended.",
    },
    "Links": record(
        {
            "expires_at": TIME,
            "links": record(
                {
                    "events": {**TEXT, "description": "The event stream."},
                    "preview": {**TEXT, "description": "The newest preview."},
                    "video": {**TEXT, "description": "The video that was sent."},
                    "image": {**TEXT, "description": "The picture that was sent."},
                    "thumbnail": {**TEXT, "description": "A small picture of the job."},
                    "result": {**TEXT, "description": "The result, where there is one."},
                },
                optional=("result",),
            ),
        }
    ),
    "Live": record({"status": {"const": "alive"}}),
    "Ready": record({"ready": FLAG, "checks": _CHECKS}),
    "Health": _HEALTH,
    "Information": record(
        {"name": TEXT, "version": TEXT, "endpoints": {"type": "object", "additionalProperties": TEXT}}
    ),
    "SocketRequest": {
        "description": "The first text frame of the WebSocket: a job from addresses, or from bytes that follow.",
        **record(
            {**_SOCKET_FIELDS, "video": _ANNOUNCED, "image": _ANNOUNCED}, optional=("video", "image", *_SOCKET_FIELDS)
        ),
    },
    "SocketSubscription": {
        "description": "The first text frame of the WebSocket, to watch a job that is there already.",
        **record(
            {"action": {"const": "subscribe"}, "prompt_id": PROMPT_ID, "last_event_id": _EVENT_ID},
            optional=("last_event_id",),
        ),
    },
    "SocketCancel": {
        "description": "A text frame that cancels the job the WebSocket watches.",
        **record({"action": {"const": "cancel"}}),
    },
    "SocketEvent": {
        "description": "A text frame of the service: an event.",
        **record({"id": COUNT, "event": {"type": "string", "enum": [*EVENTS]}, "data": {"type": "object"}}),
    },
    "Event": {
        "description": "An event of a stream: its number, its kind, and its data as JSON in one line.",
        **record({"id": {**TEXT, "pattern": "^[0-9]+$"}, "event": {"type": "string", "enum": [*EVENTS]}, "data": TEXT}),
        "allOf": [_event_data(name) for name in EVENTS],
    },
    **{f"Event_{name}": {"description": f"The data of a `{name}` event.", **data} for name, data in EVENTS.items()},
}
"""The schemas of the document, by name."""
