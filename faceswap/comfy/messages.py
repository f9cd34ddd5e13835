"""The messages of ComfyUI's WebSocket as a small typed union.

`parse` is the border: nothing behind it ever sees raw JSON. The shapes are those of ComfyUI's `server.py` and
`execution.py`. Two kinds of frames are no messages here: `progress_state` repeats `progress`, and `status` counts the
prompts of all clients.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

PREVIEW_IMAGE = 1
PREVIEW_IMAGE_WITH_METADATA = 4

_REPEATED = '{"type": "progress_state"'
"""The beginning of a frame that repeats what `progress` tells, for all nodes each time: the longest of all."""

IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
"""First bytes of JPEG and PNG, the formats of previews."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that a node made, by the three words that `/view` takes. `type` is `output`, `temp` or `input`."""

    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True, slots=True)
class Activity:
    """A frame that only shows that ComfyUI works on the prompt: it starts, a node has an output, it succeeds.

    History tells the outputs and the success; the end itself is an `Executing` without a node.
    """

    prompt_id: str


@dataclass(frozen=True, slots=True)
class Executing:
    """A node runs. `node` is None once the prompt has ended, in any way; history knows it by then.

    `prompt_id` is None in the one frame that greets a client which reconnects.
    """

    prompt_id: str | None
    node: str | None


@dataclass(frozen=True, slots=True)
class Progress:
    """A node's progress, usually in frames: finite numbers, `maximum` above zero."""

    prompt_id: str
    node: str
    value: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A node raised. `message` is the exception's text as it came; see `failures.failure_from_error`."""

    prompt_id: str
    node: str
    node_type: str
    exception_type: str
    message: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The prompt was stopped on request."""

    prompt_id: str


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture of the running work, JPEG or PNG. Without metadata it names neither prompt nor node."""

    prompt_id: str | None
    node: str | None
    image: bytes


Message = Activity | Executing | Progress | Failed | Interrupted | Preview


def parse(frame: str | bytes) -> Message | None:
    """Return the message in a text or binary frame, None if unknown, malformed or of no use. Never raises."""
    if isinstance(frame, bytes):
        return _preview(frame)
    if frame.startswith(_REPEATED):
        return None
    try:
        document = decode_json(frame)
    except ValueError:
        return None
    match document:
        case {"type": str(kind), "data": data}:
            return from_event(kind, data)
    return None


def from_event(kind: str, data: object) -> Message | None:
    """Return the message of one event, as frames carry it and as history lists it. Never raises."""
    match kind, data:
        case (
            ("execution_start" | "execution_cached" | "executed" | "execution_success"),
            {"prompt_id": str(prompt_id)},
        ):
            return Activity(prompt_id)
        case "executing", {"prompt_id": str(prompt_id), "node": (str() | None) as node}:
            return Executing(prompt_id, node)
        case "executing", {"node": str(node)}:
            return Executing(None, node)
        case "progress", {"prompt_id": str(prompt_id), "node": str(node), "value": value, "max": maximum}:
            return _progress(prompt_id, node, value, maximum)
        case "execution_error", {"prompt_id": str(prompt_id), **details}:
            names = ("node_id", "node_type", "exception_type", "exception_message")
            return Failed(prompt_id, *(_text(details.get(name)) for name in names))
        case "execution_interrupted", {"prompt_id": str(prompt_id)}:
            return Interrupted(prompt_id)
    return None


def output_files(output: object) -> tuple[OutputFile, ...]:
    """Return the files in a node's output from all its lists: `gifs` of VHS_VideoCombine, `images` and others."""
    if not isinstance(output, dict):
        return ()
    files = []
    for entries in output.values():
        for entry in entries if isinstance(entries, list) else ():
            match entry:
                case {"filename": str(filename), "subfolder": str(subfolder), "type": str(type_)}:
                    files.append(OutputFile(filename, subfolder, type_))
                case {"filename": str(filename)}:
                    files.append(OutputFile(filename, "", "output"))
    return tuple(files)


def decode_json(text: str | bytes) -> Any:
    """Parse JSON from outside, safe to store and send on: lone surrogates become `?`. Raises only ValueError."""
    try:
        document = json.loads(text)
        if text.isascii() and ("\\u" not in text if isinstance(text, str) else b"\\u" not in text):
            return document  # whose strings are as plain
        whole = json.dumps(document, ensure_ascii=False)
        return document if whole.isascii() else json.loads(whole.encode("utf-8", "replace"))
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error


def _progress(prompt_id: str, node: str, value: object, maximum: object) -> Progress | None:
    current, whole = _number(value), _number(maximum)
    if current is None or whole is None or whole <= 0:
        return None
    return Progress(prompt_id, node, current, whole)


def _number(value: object) -> float | None:
    """Return a finite float; None for NaN, infinities, integers that no float can hold, and other types."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _preview(frame: bytes) -> Preview | None:
    try:
        kind, number = struct.unpack_from(">II", frame)
    except struct.error:
        return None
    if kind == PREVIEW_IMAGE:
        return _picture(None, None, frame[8:])
    if kind != PREVIEW_IMAGE_WITH_METADATA:
        return None
    try:
        metadata = decode_json(frame[8 : 8 + number])
    except ValueError:
        return None
    match metadata:
        case {"prompt_id": str(prompt_id), "node_id": str(node)}:
            return _picture(prompt_id, node, frame[8 + number :])
    return None


def _picture(prompt_id: str | None, node: str | None, image: bytes) -> Preview | None:
    return Preview(prompt_id, node, image) if image.startswith(IMAGE_SIGNATURES) else None
