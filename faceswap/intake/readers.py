"""Readers of requests: multipart, JSON or WebSocket in; a filled form, and files in the job's own folder, out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeAlias, TypeVar

from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web
from multipart import (  # type: ignore[import-untyped]  # it ships no types
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from ..config import Settings
from ..errors import BadRequest, TooLarge, UnsupportedMedia
from ..files import Files
from ..jobs import new_prompt_id
from ..options import MAX_IMAGES, Options
from .body import BoundedBytes, body_bytes, check_uncompressed, send_continue
from .fetch import Fetcher
from .files import FileSink, Room, check_size, new_input_folder
from .form import INPUTS, MAX_TEXT_BYTES, Form, Look, LookForm, Submission, SwapForm, as_object, parse_object
from .kept import KeptInputs

F = TypeVar("F", bound=Form)

MAX_IMAGE_BYTES = 64 * 1024 * 1024
MAX_OVERHEAD_BYTES = 1024 * 1024
"""The most bytes of a multipart request besides its two files."""

_Read: TypeAlias = "Callable[[web.Request, BoundedBytes, Form], Awaitable[None]]"


class RequestReader:
    """Reads requests for a swap. After any error the job's folder is removed before the error is raised."""

    def __init__(
        self,
        settings: Settings,
        files: Files,
        room: Room,
        fetcher: Fetcher,
        kept: KeptInputs,
        check_options: Callable[[Options], object],
    ) -> None:
        """`check_options` raises `Problem` for options that cannot be had, such as of an unknown workflow."""
        self._files = files
        self._looked_at = files.looked_at()
        self._room = room
        self._fetcher = fetcher
        self._kept = kept
        self._check_options = check_options
        self._require_consent = settings.require_consent
        self._max_bytes = {
            "video": settings.max_upload_bytes,
            "image": min(MAX_IMAGE_BYTES, settings.max_upload_bytes),
        }

    async def from_request(self, request: web.Request, owner: str | None, prompt_id: str) -> Submission:
        """Read a `multipart/form-data` or `application/json` request into a new job's folder, which is created.

        Raises `Problem`.
        """
        body, read = self._body(request)
        async with self._form(SwapForm, self._files, prompt_id, body.announced) as form:
            await _receive(request, body, read, form)
            return await self._complete(form, owner, respond_async=_prefers_async(request))

    async def from_websocket(
        self, first: object, socket: web.WebSocketResponse, owner: str | None, prompt_id: str
    ) -> Submission:
        """Read the request whose first text frame held the JSON value `first`, with the bytes it announces.

        Binary frames may be of any size up to the socket's own limit. Raises `Problem`.
        """
        fields = dict(as_object(first))
        sizes = [pair for kind in INPUTS for pair in _announced_sizes(kind, fields.pop(kind, None))]
        for kind, size in sizes:
            check_size(kind, size, self._max_bytes[kind])
        announced = sum(size for _, size in sizes)
        async with self._form(SwapForm, self._files, prompt_id, announced) as form:
            for name, value in fields.items():
                form.put(name, value)
            await _read_frames(sizes, BoundedBytes(partial(_frame_bytes, socket), announced, announced), form)
            return await self._complete(form, owner, respond_async=False)

    @asynccontextmanager
    async def looked_at(self, request: web.Request, owner: str | None) -> AsyncIterator[Look]:
        """Read a request to look at one file, which is gone after the block. Raises `Problem`."""
        look_id, body, read = new_prompt_id(), *self._body(request)
        async with self._form(LookForm, self._looked_at, look_id, body.announced) as form:
            await _receive(request, body, read, form)
            form.check_complete()
            await self._fetch(form, owner, form.wanted)
        try:
            yield form.look()
        finally:
            await asyncio.shield(self._looked_at.delete_upload(look_id))

    def _body(self, request: web.Request) -> tuple[BoundedBytes, _Read]:
        """Return the body of a request, and the function that reads such a one into a form. Raises `Problem`."""
        check_uncompressed(request)
        inputs_bytes = self._max_bytes["video"] + MAX_IMAGES * self._max_bytes["image"]
        readers: Mapping[str, tuple[_Read, int]] = {
            "multipart/form-data": (_read_multipart, inputs_bytes + MAX_OVERHEAD_BYTES),
            "application/json": (_read_json, MAX_TEXT_BYTES),
        }
        if request.content_type not in readers:
            raise UnsupportedMedia(f"The request must be {' or '.join(readers)}.", code="unsupported_content_type")
        read, max_bytes = readers[request.content_type]
        announced = max_bytes if request.content_length is None else request.content_length
        return BoundedBytes(partial(body_bytes, request), announced, max_bytes), read

    @asynccontextmanager
    async def _form(self, kind: type[F], files: Files, prompt_id: str, announced: int) -> AsyncIterator[F]:
        async with new_input_folder(files, prompt_id, self._room) as inputs:
            await inputs.expect(announced)
            yield kind(
                inputs,
                self._max_bytes,
                self._check_options,
                self._fetcher.guard.check_literal,
                require_consent=self._require_consent,
            )

    async def _complete(self, form: SwapForm, owner: str | None, *, respond_async: bool) -> Submission:
        form.check_complete()
        await self._fetch(form, owner, form.wanted)
        return form.submission(respond_async=respond_async)

    async def _fetch(self, form: Form, owner: str | None, wanted: Sequence[str]) -> None:
        """Get the inputs that are not in the request, the smaller ones first; `wanted` are those of another job."""
        for kind in reversed(INPUTS):
            for url in form.several(f"{kind}_url"):
                sink = form.open(kind)
                await self._fetcher.fetch(f"{kind}_url", url, sink.write, self._max_bytes[kind], form.inputs.expect)
                await form.close(sink)
            for upload_id in form.several(f"{kind}_upload"):
                await form.take(kind, await self._kept.of_upload(upload_id, owner))
            if kind in wanted:
                for kept in form.chosen(await self._kept.of_job(form.values["from_job"], owner, kind)):
                    await form.take(kind, kept)


async def _receive(request: web.Request, body: BoundedBytes, read: _Read, form: Form) -> None:
    await send_continue(request)
    await read(request, body, form)


async def _read_multipart(request: web.Request, body: BoundedBytes, form: Form) -> None:
    """Read parts in any order (RFC 7578).

    The parser is not strict: a strict one refuses the line break after the last boundary, which every client sends,
    when it comes in a packet of its own.
    """
    _, options = parse_options_header(request.headers["Content-Type"])
    part: _TextPart | _FilePart | None = None
    try:
        parser = PushMultipartParser(options.get("boundary", ""))
        while piece := await body.read():
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


def _new_part(form: Form, segment: MultipartSegment) -> _TextPart | _FilePart:
    form.check_known(segment.name)
    if segment.name in INPUTS:
        return _FilePart(form, segment.name, may_be_blank=segment.filename == "")
    return _TextPart(form, segment.name)


class _TextPart:
    """A text field of a multipart request."""

    def __init__(self, form: Form, name: str) -> None:
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

    def __init__(self, form: Form, kind: str, *, may_be_blank: bool) -> None:
        self._form = form
        self._kind = kind
        self._may_be_blank = may_be_blank
        self._sink: FileSink | None = None

    async def write(self, piece: bytes) -> None:
        if self._sink is None:
            self._sink = self._form.open_upload(self._kind)
        await self._sink.write(piece)

    async def end(self) -> None:
        if self._sink is None and self._may_be_blank:
            return
        await self._form.close(self._sink or self._form.open_upload(self._kind))


async def _read_json(request: web.Request, body: BoundedBytes, form: Form) -> None:
    for name, value in (await _object_in(body)).items():
        form.put(name, value)


async def read_object(request: web.Request) -> dict[str, Any]:
    """Read a request that is a JSON object. Raises `Problem`."""
    check_uncompressed(request)
    if request.content_type != "application/json":
        raise UnsupportedMedia("The request must be application/json.", code="unsupported_content_type")
    return await _object_in(BoundedBytes(partial(body_bytes, request), request.content_length or 0, MAX_TEXT_BYTES))


async def _object_in(body: BoundedBytes) -> dict[str, Any]:
    text = bytearray()
    while piece := await body.read():
        text += piece
    return parse_object(bytes(text))


async def _read_frames(sizes: Sequence[tuple[str, int]], body: BoundedBytes, form: Form) -> None:
    """Read the announced files one after the other; a frame may hold the end of one and the start of the next."""
    sinks = [(form.open_upload(kind), size) for kind, size in sizes]
    form.check_complete()
    rest = b""
    for sink, missing in sinks:
        while missing:
            piece = rest or await body.read()
            taken, rest = piece[:missing], piece[missing:]
            missing -= len(taken)
            await sink.write(taken)
        await form.close(sink)


async def _frame_bytes(socket: web.WebSocketResponse) -> bytes:
    message = await socket.receive()
    if message.type is WSMsgType.BINARY:
        return bytes(message.data)
    if message.type is WSMsgType.TEXT:
        raise BadRequest("A text frame came in the middle of an upload.", code="unexpected_message")
    if isinstance(message.data, WebSocketError) and message.data.code == WSCloseCode.MESSAGE_TOO_BIG:
        raise TooLarge("A frame is larger than is taken; send smaller ones.", code="frame_too_large")
    raise BadRequest("The socket was closed in the middle of an upload.", code="incomplete_body")


def _announced_sizes(kind: str, uploads: object) -> list[tuple[str, int]]:
    """Return the kind and the size of each file that a WebSocket's first frame announces: pictures may be a list."""
    if uploads is None:
        return []
    several = uploads if kind == "image" and isinstance(uploads, list) else [uploads]
    return [(kind, _announced_size(kind, upload)) for upload in several]


def _announced_size(kind: str, upload: object) -> int:
    """Return the `size` of a WebSocket's `{"filename", "size"}`; the name does not matter."""
    size = upload.get("size") if isinstance(upload, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BadRequest(f"'{kind}' must be an object with the file's 'size' in bytes.", code=f"invalid_{kind}")
    return size


def _prefers_async(request: web.Request) -> bool:
    """Tell whether a `Prefer` header (RFC 7240) holds `respond-async`."""
    preferences = ",".join(request.headers.getall("Prefer", ())).split(",")
    return any(preference.split(";")[0].strip().lower() == "respond-async" for preference in preferences)
