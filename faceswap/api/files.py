"""Downloads of results, and of the inputs while they are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path, PurePath

import aiofiles.os
from aiohttp import ETag, hdrs, web
from aiohttp.abc import AbstractStreamWriter

from ..errors import Gone, NotFound
from ..files import RemoteFile
from ..jobs import RESULT_TYPES, Job
from ..metrics import SENT_BYTES
from .keys import FILES, SETTINGS, STORE, THUMBNAILS, owner_of

MEDIA_TYPES: Mapping[str, str] = {
    **RESULT_TYPES,
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
    ".heic": "image/heic",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
}
"""The media types by the extensions of results and inputs."""
SIGNED_S = 300.0
"""The time for which the address of a redirect can be used; a download that has begun goes on."""


async def download(request: web.Request) -> web.StreamResponse:
    """Send a result: whole, in ranges, or its headers only."""
    job = await request.app[STORE].result(request.match_info["filename"], owner_of(request))
    result = await request.app[FILES].find_result(job)
    if result is None:
        raise Gone("This result was removed from the server's disk.", code="result_expired", prompt_id=job.prompt_id)
    is_inline = _is_inline(request)
    # A signed address is good for GET only, and names the result an attachment.
    may_redirect = request.app[SETTINGS].download_redirect and request.method == "GET" and not is_inline
    if may_redirect and not isinstance(result, Path):
        location = await result.sign(SIGNED_S)
        return web.Response(status=307, headers={"Location": location, "Cache-Control": "no-store"})
    return await _send(request, result, f"{job.result_file}")


async def get_video(request: web.Request) -> web.StreamResponse:
    """Send the video of a job, as it was received, until it is erased."""
    job = await _job(request)
    return await _send_input(request, job, job.inputs.video_file, job.inputs.video_sha256)


async def get_image(request: web.Request) -> web.StreamResponse:
    """Send a picture of a face of a job, the first or the one of a `number`, until it is erased."""
    job = await _job(request)
    text = request.query.get("number", "0")
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 3 else len(job.inputs.images)
    if number >= len(job.inputs.images):
        message = f"'number' must be a whole number below {len(job.inputs.images)}."
        raise NotFound(message, code="no_such_image", prompt_id=job.prompt_id)
    image = job.inputs.images[number]
    return await _send_input(request, job, image.file, image.sha256)


async def get_thumbnail(request: web.Request) -> web.Response:
    """Send a small picture of a job: of its result where there is one, else of its video."""
    job = await _job(request)
    image = await request.app[THUMBNAILS].of(job)
    etag = hashlib.blake2b(image, digest_size=12).hexdigest()
    headers = {"ETag": f'"{etag}"', "Cache-Control": "private, no-cache"}
    if any(known.value in (etag, "*") for known in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.Response(body=image, content_type="image/jpeg", headers=headers)


async def _job(request: web.Request) -> Job:
    return await request.app[STORE].owned_job(request.match_info["prompt_id"], owner_of(request))


async def _send_input(request: web.Request, job: Job, file: str, sha256: str) -> web.StreamResponse:
    is_kept = await request.app[STORE].with_inputs([job.prompt_id])
    found = await request.app[FILES].find_input(job.prompt_id, file, sha256) if is_kept else None
    if found is None:
        raise Gone("The inputs of this job were erased already.", code="inputs_erased", prompt_id=job.prompt_id)
    return await _send(request, found, file)


def _is_inline(request: web.Request) -> bool:
    return request.query.get("inline") == "1"


async def _send(request: web.Request, file: Path | RemoteFile, name: str) -> web.StreamResponse:
    """Send a file, named as `name` to who saves it: whole, in ranges, or its headers only."""
    headers = {
        "Content-Type": MEDIA_TYPES.get(PurePath(name).suffix, "application/octet-stream"),
        "Content-Disposition": f'{"inline" if _is_inline(request) else "attachment"}; filename="{name}"',
        "Cache-Control": "private, no-cache",
    }
    if isinstance(file, Path):
        return _RangeFileResponse(file, headers=headers)
    return await _send_remote(request, file, headers)


async def _send_remote(request: web.Request, result: RemoteFile, headers: Mapping[str, str]) -> web.StreamResponse:
    """Send a file that is read from elsewhere, no faster than the client takes it."""
    response = web.StreamResponse(headers=headers)
    response.headers[hdrs.ACCEPT_RANGES] = "bytes"
    response.etag, response.last_modified = result.etag, result.modified
    status = _conditional_status(request, result)
    start, end = 0, result.size
    if status == 200 and hdrs.RANGE in request.headers and _range_is_of(request, result):
        status, start, end = _parse_range(request, result.size)
        sent = f"{start}-{end - 1}" if status == 206 else "*"
        response.headers[hdrs.CONTENT_RANGE] = f"bytes {sent}/{result.size}"
    response.set_status(status)
    if status != 304:
        response.content_length = end - start if status in (200, 206) else 0
    await response.prepare(request)
    if status in (200, 206) and request.method == "GET":
        async with aclosing(result.read(start, end)) as pieces:
            async for piece in pieces:
                await response.write(piece)
                SENT_BYTES.inc(len(piece))
    await response.write_eof()
    return response


def _conditional_status(request: web.Request, result: RemoteFile) -> int:
    """Return 200, or the status that the conditions of a request lead to (RFC 9110, 13.2.2)."""
    modified = result.modified.replace(microsecond=0)
    if (if_match := request.if_match) is not None:
        if not _names(if_match, result.etag, weak=False):
            return 412
    elif request.if_unmodified_since is not None and modified > request.if_unmodified_since:
        return 412
    if (if_none_match := request.if_none_match) is not None:
        return 304 if _names(if_none_match, result.etag, weak=True) else 200
    if request.if_modified_since is not None and modified <= request.if_modified_since:
        return 304
    return 200


def _names(etags: tuple[ETag, ...], etag: str, *, weak: bool) -> bool:
    return any(one.value == "*" or (one.value == etag and (weak or not one.is_weak)) for one in etags)


def _range_is_of(request: web.Request, result: RemoteFile) -> bool:
    """Return whether the range of a request is one of this very result, by its `If-Range`."""
    text = request.headers.get(hdrs.IF_RANGE, "")
    if text.startswith(('"', "W/")):
        return text == f'"{result.etag}"'
    date = request.if_range
    return date is None or result.modified.replace(microsecond=0) <= date


def _parse_range(request: web.Request, size: int) -> tuple[int, int, int]:
    """Return the status, and the first byte and the one after the last."""
    try:
        wanted = request.http_range
    except ValueError:
        return 416, 0, 0
    start, end, _ = wanted.indices(size)
    return (206, start, end) if start < end else (416, 0, 0)


class _RangeFileResponse(web.FileResponse):
    """A file response that accepts an entity tag in `If-Range`; aiohttp's own accepts only a date."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if_range = request.headers.get(hdrs.IF_RANGE, "")
        if if_range.startswith(('"', "W/")):
            stat = await aiofiles.os.stat(self._path)
            if if_range != f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"':
                headers = request.headers.copy()
                headers.popall(hdrs.RANGE, None)
                request = request.clone(headers=headers)
        writer = await super().prepare(request)
        if request.method == "GET":
            SENT_BYTES.inc(self.content_length or 0)
        return writer
