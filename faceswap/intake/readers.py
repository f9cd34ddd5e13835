"""Multipart, JSON, WebSocket or URL in; checked fields, and files in the job's own folder, out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import HttpVersion11, WebSocketError, WSCloseCode, WSMsgType, web
from multipart import (  # type: ignore[import-untyped]  # it ships no types
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from ..config import Settings
from ..errors import BadRequest, RequestTimeout, TooLarge, UnsupportedMedia
from ..jobs import Options, check_output_name
from .fetch import Fetcher, check_url
from .files import FileSink, InputFolder, Room, StoredFile, check_size, new_input_folder

MAX_IMAGE_BYTES = 64 * 1024 * 1024
MAX_TEXT_BYTES = 64 * 1024
"""The longest text field, and the longest JSON request."""
MAX_OVERHEAD_BYTES = 1024 * 1024
"""What a multipart request may hold besides its two files."""
IDLE_S = 60.0
"""The longest wait for the next bytes of a request, in seconds."""
GRACE_S = 600.0
SLOWEST_BYTES_PER_S = 16 * 1024
"""A request that has lasted longer than `GRACE_S` must since have come in at least this fast."""

FILES = ("video", "image")
"""The two inputs, in the order in which a WebSocket client sends them; each has its `…_url` alternative."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A request that was read whole; its two files lie in `folder`, synced to disk, their media not yet checked.

    `digest` tells requests with the same `Idempotency-Key` apart. It covers what is asked for (hashes or URLs of the
    inputs, options, name), not the form it came in.
    """

    folder: Path
    video_file: str
    image_file: str
    video_sha256: str
    image_sha256: str
    video_bytes: int
    output_name: str | None
    options: Options
    respond_async: bool
    id_only: bool
    digest: str


class Intake:
    """Reads requests for a swap. Whatever goes wrong, the job's folder is gone before the error leaves."""

    def __init__(self, settings: Settings, fetcher: Fetcher, check_options: Callable[[Options], object]) -> None:
        """`check_options` raises `Problem` for options that cannot be had, such as of an unknown workflow."""
        self._fetcher = fetcher
        self._check_options = check_options
        self._room = Room(settings.min_free_mb * 1024 * 1024)
        self._max_bytes = {
            "video": settings.max_upload_bytes,
            "image": min(MAX_IMAGE_BYTES, settings.max_upload_bytes),
        }

    async def from_request(self, request: web.Request, folder: Path) -> Submission:
        """Read a `multipart/form-data` or `application/json` request into `folder`, which is created.

        Raises `Problem`.
        """
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMedia("The request must not be compressed.", code="unsupported_content_encoding")
        readers = {
            "multipart/form-data": (_read_multipart, sum(self._max_bytes.values()) + MAX_OVERHEAD_BYTES),
            "application/json": (_read_json, MAX_TEXT_BYTES),
        }
        if request.content_type not in readers:
            raise UnsupportedMedia(f"The request must be {' or '.join(readers)}.", code="unsupported_content_type")
        read, max_bytes = readers[request.content_type]
        arrival = _Arrival(partial(_body_bytes, request), request.content_length or 0, max_bytes)
        async with self._form(folder, max_bytes if request.content_length is None else request.content_length) as form:
            await _invite(request)
            await read(request, arrival, form)
            return await self._submission(form, respond_async=_prefers_async(request))

    async def from_websocket(self, first: object, ws: web.WebSocketResponse, folder: Path) -> Submission:
        """Read the request whose first text frame held the JSON value `first`, with the bytes it announces, from `ws`.

        Binary frames may be of any size up to the socket's own limit. Raises `Problem`.
        """
        fields = dict(_as_object(first))
        sizes = {kind: _announced_size(kind, fields.pop(kind)) for kind in FILES if fields.get(kind) is not None}
        for kind, size in sizes.items():
            check_size(kind, size, self._max_bytes[kind])
        announced = sum(sizes.values())
        async with self._form(folder, announced) as form:
            for name, value in fields.items():
                form.put(name, value)
            arrival = _Arrival(partial(_frame_bytes, ws), announced, announced)
            await _read_frames(sizes, arrival, form)
            return await self._submission(form, respond_async=False)

    @asynccontextmanager
    async def _form(self, folder: Path, announced: int) -> AsyncIterator[_Form]:
        async with new_input_folder(folder, self._room) as inputs:
            inputs.expect(announced)
            yield _Form(inputs, self._max_bytes, self._check_options)

    async def _submission(self, form: _Form, *, respond_async: bool) -> Submission:
        form.check_complete()
        digest = form.digest()
        for kind in reversed(FILES):
            name = f"{kind}_url"
            if name in form.values:
                sink = form.sink(kind)
                await self._fetcher.fetch(
                    name, form.values[name], sink.write, self._max_bytes[kind], form.inputs.expect
                )
                await form.store(sink)
        video, image = form.stored["video"], form.stored["image"]
        return Submission(
            folder=form.inputs.path,
            video_file=video.name,
            image_file=image.name,
            video_sha256=video.sha256,
            image_sha256=image.sha256,
            video_bytes=video.size,
            output_name=form.values.get("output_name"),
            options=form.values.get("options", Options()),
            respond_async=respond_async,
            id_only=form.values.get("return_prompt_id_only", False),
            digest=digest,
        )


class _Form:
    """The fields of one request, each checked as it comes in, so that a wrong one ends an upload at once."""

    def __init__(
        self, inputs: InputFolder, max_bytes: Mapping[str, int], check_options: Callable[[Options], object]
    ) -> None:
        self.inputs = inputs
        self._check_options = check_options
        self.values: dict[str, Any] = {}
        self.stored: dict[str, StoredFile] = {}
        self._max_bytes = max_bytes
        self._claimed: set[str] = set()

    def put(self, name: str, raw: object) -> None:
        """Take a field's text or JSON value. Null and the empty text of a form left blank are as if not given."""
        _check_known(name)
        if raw is None or raw == "":
            return
        self._claim(name)
        self.values[name] = value = _CHECKS[name](name, raw)
        if isinstance(value, Options):
            self._check_options(value)

    def open(self, kind: str) -> FileSink:
        """Begin with an uploaded file."""
        self._claim(kind)
        return self.sink(kind)

    def sink(self, kind: str) -> FileSink:
        """Where the bytes of a file go, wherever they come from."""
        return FileSink(self.inputs, kind, self._max_bytes[kind])

    async def store(self, sink: FileSink) -> None:
        """End a file."""
        self.stored[sink.kind] = await sink.finish()

    def check_complete(self) -> None:
        """Raise `BadRequest` unless both inputs were given, as file or as URL."""
        for kind in FILES:
            if not self._claimed & {kind, f"{kind}_url"}:
                raise BadRequest(f"Give '{kind}' or '{kind}_url'.", code=f"missing_{kind}")

    def digest(self) -> str:
        """SHA-256 of what is asked for, whatever form it came in."""
        asked = {name: str(value) for name, value in self.values.items() if name != "return_prompt_id_only"}
        asked["options"] = self.values.get("options", Options()).to_dict()
        asked |= {kind: file.sha256 for kind, file in self.stored.items()}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _claim(self, name: str) -> None:
        if name in self._claimed:
            raise BadRequest(f"'{name}' was given twice.", code="duplicate_field")
        self._claimed.add(name)
        for kind in FILES:
            if self._claimed >= {kind, f"{kind}_url"}:
                raise BadRequest(f"Give either '{kind}' or '{kind}_url', not both.", code=f"duplicate_{kind}")


class _TextPart:
    """A text field of a multipart request."""

    def __init__(self, form: _Form, name: str) -> None:
        self._form = form
        self._name = name
        self._text = bytearray()

    async def write(self, piece: bytes) -> None:
        self._text += piece
        if len(self._text) > MAX_TEXT_BYTES:
            raise TooLarge(f"'{self._name}' is longer than {MAX_TEXT_BYTES:,} bytes.", code="field_too_large")

    async def end(self) -> None:
        try:
            text = self._text.decode()
        except UnicodeDecodeError:
            raise BadRequest(f"'{self._name}' is not UTF-8 text.", code="malformed_field") from None
        self._form.put(self._name, text)


class _FilePart:
    """A file of a multipart request. A browser sends a file input left blank as no bytes with an empty file name."""

    def __init__(self, form: _Form, kind: str, *, may_be_blank: bool) -> None:
        self._form = form
        self._kind = kind
        self._may_be_blank = may_be_blank
        self._sink: FileSink | None = None

    async def write(self, piece: bytes) -> None:
        if self._sink is None:
            self._sink = self._form.open(self._kind)
        await self._sink.write(piece)

    async def end(self) -> None:
        if self._sink is None and self._may_be_blank:
            return
        await self._form.store(self._sink or self._form.open(self._kind))


async def _read_multipart(request: web.Request, arrival: _Arrival, form: _Form) -> None:
    """Parts in any order (RFC 7578). The parser is not strict: there a line break after the last boundary, which
    every client sends, is an error when it comes in a packet of its own."""
    _, options = parse_options_header(request.headers["Content-Type"])
    part: _TextPart | _FilePart | None = None
    try:
        parser = PushMultipartParser(options.get("boundary", ""))
        while piece := await arrival.read():
            for event in parser.parse(piece):
                if isinstance(event, MultipartSegment):
                    part = _new_part(form, event)
                elif part is not None and event is None:
                    await part.end()
                elif part is not None:
                    await part.write(event)
    except (MultipartError, UnicodeError):
        raise BadRequest("The request is not well-formed multipart/form-data.", code="malformed_multipart") from None
    try:
        parser.close()
    except MultipartError:
        raise BadRequest("The request ended before its last boundary.", code="incomplete_body") from None


def _new_part(form: _Form, segment: MultipartSegment) -> _TextPart | _FilePart:
    _check_known(segment.name)
    if segment.name in FILES:
        return _FilePart(form, segment.name, may_be_blank=segment.filename == "")
    return _TextPart(form, segment.name)


async def _read_json(request: web.Request, arrival: _Arrival, form: _Form) -> None:
    body = bytearray()
    while piece := await arrival.read():
        body += piece
    for name, value in parse_object(bytes(body)).items():
        form.put(name, value)


async def _read_frames(sizes: Mapping[str, int], arrival: _Arrival, form: _Form) -> None:
    """The announced files one after the other; a frame may hold the end of one and the start of the next."""
    sinks = {kind: form.open(kind) for kind in sizes}
    form.check_complete()
    rest = b""
    for kind, missing in sizes.items():
        while missing:
            piece = rest or await arrival.read()
            taken, rest = piece[:missing], piece[missing:]
            missing -= len(taken)
            await sinks[kind].write(taken)
        await form.store(sinks[kind])


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a request's body or a WebSocket's text; raises `BadRequest` where it is none.

    Read, JSON takes up to thirty times its bytes; therefore it raises `TooLarge` before it reads a long one.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise TooLarge(f"The JSON is longer than {MAX_TEXT_BYTES:,} bytes.", code="too_large")
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise BadRequest("The request is not well-formed JSON.", code="malformed_json") from None
    return _as_object(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise BadRequest("A name was given twice in the JSON.", code="duplicate_field")
    return value


def _as_object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest("The request must be a JSON object.", code="malformed_json")
    return value


class _Arrival:
    """The bytes of one request as they come in, with a bound on their number, their pauses and their pace."""

    def __init__(self, receive: Callable[[], Awaitable[bytes]], announced: int, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._received = 0
        self._deadline = time.monotonic() + GRACE_S
        self._check(announced)

    async def read(self) -> bytes:
        """The next bytes, none at the end. Raises `TooLarge`, `RequestTimeout`, or what the transport says."""
        try:
            async with asyncio.timeout(IDLE_S):
                piece = await self._receive()
        except TimeoutError:
            raise RequestTimeout("The upload stalled.", code="upload_stalled") from None
        self._received += len(piece)
        self._check(self._received)
        if time.monotonic() > self._deadline + self._received / SLOWEST_BYTES_PER_S:
            raise RequestTimeout("The upload is too slow.", code="upload_stalled")
        return piece

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise TooLarge(f"The request is larger than {self._max_bytes:,} bytes, the most that is taken.")


async def leave_waiting(_request: web.Request) -> None:
    """Do not ask for a body yet: what `Expect: 100-continue` is answered with before a handler runs."""


async def _invite(request: web.Request) -> None:
    """Ask for the body where the client waits to be asked (RFC 9110, 10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


async def _body_bytes(request: web.Request) -> bytes:
    try:
        return await request.content.readany()
    except TimeoutError:
        raise
    except (OSError, web.RequestPayloadError):
        raise BadRequest("The request's body was cut off.", code="incomplete_body") from None


async def _frame_bytes(ws: web.WebSocketResponse) -> bytes:
    message = await ws.receive()
    if message.type is WSMsgType.BINARY:
        return bytes(message.data)
    if message.type is WSMsgType.TEXT:
        raise BadRequest("A text frame came in the middle of an upload.", code="unexpected_message")
    if isinstance(message.data, WebSocketError) and message.data.code == WSCloseCode.MESSAGE_TOO_BIG:
        raise TooLarge("A frame is larger than is taken; send smaller ones.", code="frame_too_large")
    raise BadRequest("The socket was closed in the middle of an upload.", code="incomplete_body")


def _announced_size(kind: str, upload: object) -> int:
    """The `size` of a WebSocket's `{"filename", "size"}`; the name does not matter."""
    size = upload.get("size") if isinstance(upload, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BadRequest(f"'{kind}' must be an object with the file's 'size' in bytes.", code=f"invalid_{kind}")
    return size


def _prefers_async(request: web.Request) -> bool:
    """Whether a `Prefer` header (RFC 7240) holds `respond-async`."""
    preferences = ",".join(request.headers.getall("Prefer", ())).split(",")
    return any(preference.split(";")[0].strip().lower() == "respond-async" for preference in preferences)


def _file(name: str, _raw: object) -> None:
    raise BadRequest(
        f"'{name}' is a file: send it as multipart/form-data, or give '{name}_url'.", code=f"invalid_{name}"
    )


def _unsupported(name: str, _raw: object) -> None:
    raise BadRequest(f"'{name}' is not supported by this version.", code="unsupported_field")


def _output_name(name: str, raw: object) -> str:
    if not isinstance(raw, str):
        raise BadRequest(f"'{name}' must be a text.", code="invalid_output_name")
    return check_output_name(raw)


def _flag(name: str, raw: object) -> bool:
    text = str(raw).strip().lower()
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off"):
        return False
    raise BadRequest(f"'{name}' must be true or false.", code="invalid_flag")


def _options(_name: str, raw: object) -> Options:
    return Options.parse(parse_object(raw) if isinstance(raw, str) else raw)


_CHECKS: Mapping[str, Callable[[str, object], Any]] = {
    "video": _file,
    "video_url": check_url,
    "image": _file,
    "image_url": check_url,
    "output_name": _output_name,
    "return_prompt_id_only": _flag,
    "options": _options,
    "webhook_url": _unsupported,
}
"""The fields there are, each with what turns its text or JSON value into what it means."""


def _check_known(name: str) -> None:
    """Raise `BadRequest` where no field of a request has this name."""
    if name not in _CHECKS:
        raise BadRequest(f"Unknown field {name[:40]!r}; allowed are {', '.join(_CHECKS)}.", code="unknown_field")
