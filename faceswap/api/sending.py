"""Files as answers: whole, in ranges, or their headers only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from io import FileIO
from os import fstat, pread
from pathlib import Path
from typing import Protocol

from aiohttp import ETag, hdrs, web

from ..files import RemoteFile
from ..metrics import SENT_BYTES

SHORT_BYTES = 64 * 1024
"""The most bytes that are read in the call which opens a file; the kernel sends what is longer, without a copy."""
TURN_BYTES = 8 * 1024 * 1024
"""The most bytes that the kernel sends in one call, in which nothing else is done."""


async def send_file(request: web.Request, file: Path | RemoteFile, headers: Mapping[str, str]) -> web.StreamResponse:
    """Send what a request asks for of a file, no faster than the client takes it.

    Raises `FileNotFoundError` for a path that is gone.
    """
    if not isinstance(file, Path):
        return await _send_remote(request, file, headers)
    loop = asyncio.get_running_loop()
    opening = loop.run_in_executor(None, _open, request, file)
    try:
        part, data = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise
    if isinstance(data, bytes):
        SENT_BYTES.inc(len(data))
        return web.Response(status=part.status, body=data, headers={**headers, **part.headers})
    response = _response(part, headers)
    try:
        writer = await response.prepare(request)
        if data is not None and writer is not None:
            await _send_by_kernel(request, data, part.start, part.end)
            writer.output_size += part.size
    finally:
        if data is not None:
            # Which frees the disk if the file was erased meanwhile; it is done though nobody may wait for it any more.
            await asyncio.shield(loop.run_in_executor(None, data.close))
    await response.write_eof()
    return response


async def _send_by_kernel(request: web.Request, file: FileIO, start: int, end: int) -> None:
    loop = asyncio.get_running_loop()
    while start < end:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        sent = await loop.sendfile(transport, file, start, min(TURN_BYTES, end - start))
        if not sent:
            raise ConnectionAbortedError("the file has become shorter")
        SENT_BYTES.inc(sent)
        start += sent
        await asyncio.sleep(0)  # the kernel may have taken all of it at once


async def _send_remote(request: web.Request, file: RemoteFile, headers: Mapping[str, str]) -> web.StreamResponse:
    part = _part(request, file)
    response = _response(part, headers)
    await response.prepare(request)
    if part.has_body and request.method == "GET":
        async with aclosing(file.read(part.start, part.end)) as pieces:
            async for piece in pieces:
                await response.write(piece)
                SENT_BYTES.inc(len(piece))
    await response.write_eof()
    return response


class _Version(Protocol):
    """A file as it is now, by which the conditions of a request are judged."""

    @property
    def size(self) -> int: ...

    @property
    def modified(self) -> datetime: ...

    @property
    def etag(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Local:
    """A file of this machine as it is now."""

    size: int
    modified: datetime
    etag: str

    @classmethod
    def of(cls, file: FileIO) -> _Local:
        stat = fstat(file.fileno())
        modified = datetime.fromtimestamp(stat.st_mtime, UTC)
        return cls(stat.st_size, modified, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")


@dataclass(frozen=True, slots=True)
class _Part:
    """The answer to a request for a file, and the bytes of the file that it holds: those from `start` to `end`."""

    status: int
    headers: Mapping[str, str]
    start: int
    end: int

    @property
    def has_body(self) -> bool:
        return self.status in (200, 206)

    @property
    def size(self) -> int:
        return self.end - self.start


def _open(request: web.Request, path: Path) -> tuple[_Part, bytes | FileIO | None]:
    """Find out the part of a file that a request asks for, in a thread; returns its bytes, or the file if it is long.

    None is returned where no bytes are asked for.
    """
    with ExitStack() as opened:
        file = opened.enter_context(FileIO(path))
        part = _part(request, _Local.of(file))
        if not part.has_body or request.method != "GET":
            return part, None
        if part.size <= SHORT_BYTES:
            return part, pread(file.fileno(), part.size, part.start)
        opened.pop_all()
        return part, file


def _close(opening: asyncio.Future[tuple[_Part, bytes | FileIO | None]]) -> None:
    """Close a file that was opened for nobody."""
    if not opening.cancelled() and opening.exception() is None:
        _, data = opening.result()
        if isinstance(data, FileIO):
            data.close()


def _response(part: _Part, headers: Mapping[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(status=part.status, headers={**headers, **part.headers})
    if part.status != 304:
        response.content_length = part.size if part.has_body else 0
    return response


def _part(request: web.Request, file: _Version) -> _Part:
    headers: dict[str, str] = {
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.ETAG: f'"{file.etag}"',
        hdrs.LAST_MODIFIED: format_datetime(file.modified, usegmt=True),
    }
    status = _conditional_status(request, file)
    start, end = 0, file.size
    if status == 200 and hdrs.RANGE in request.headers and _range_is_of(request, file):
        status, start, end = _parse_range(request, file.size)
        sent = f"{start}-{end - 1}" if status == 206 else "*"
        headers[hdrs.CONTENT_RANGE] = f"bytes {sent}/{file.size}"
    return _Part(status, headers, start, end)


def _conditional_status(request: web.Request, file: _Version) -> int:
    """Return 200, or the status that the conditions of a request lead to (RFC 9110, 13.2.2)."""
    modified = file.modified.replace(microsecond=0)
    if (if_match := request.if_match) is not None:
        if not _names(if_match, file.etag, weak=False):
            return 412
    elif request.if_unmodified_since is not None and modified > request.if_unmodified_since:
        return 412
    if (if_none_match := request.if_none_match) is not None:
        return 304 if _names(if_none_match, file.etag, weak=True) else 200
    if request.if_modified_since is not None and modified <= request.if_modified_since:
        return 304
    return 200


def _names(etags: tuple[ETag, ...], etag: str, *, weak: bool) -> bool:
    return any(one.value == "*" or (one.value == etag and (weak or not one.is_weak)) for one in etags)


def _range_is_of(request: web.Request, file: _Version) -> bool:
    """Return whether the range of a request is one of this very file, by its `If-Range`."""
    text = request.headers.get(hdrs.IF_RANGE, "")
    if text.startswith(('"', "W/")):
        return text == f'"{file.etag}"'
    date = request.if_range
    return date is None or file.modified.replace(microsecond=0) <= date


def _parse_range(request: web.Request, size: int) -> tuple[int, int, int]:
    """Return the status, and the first byte and the one after the last."""
    try:
        wanted = request.http_range
    except ValueError:
        return 416, 0, 0
    start, end, _ = wanted.indices(size)
    return (206, start, end) if start < end else (416, 0, 0)
