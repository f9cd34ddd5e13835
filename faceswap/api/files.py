"""Downloads of results, and of the inputs while they are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePath

from aiohttp import web

from ..errors import Gone, NotFound
from ..files import RemoteFile
from ..jobs import RESULT_TYPES, Job
from .keys import FILES, SETTINGS, STORE, THUMBNAILS, owner_of
from .results import RESULTS, removed
from .sending import send_file

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
    result = await request.app[RESULTS].find(request.match_info["filename"], owner_of(request))
    job, file = result.job, result.file
    is_inline = _is_inline(request)
    # A signed address is good for GET only, and names the result an attachment.
    may_redirect = request.app[SETTINGS].download_redirect and request.method == "GET" and not is_inline
    if may_redirect and not isinstance(file, Path):
        location = await file.sign(SIGNED_S)
        return web.Response(status=307, headers={"Location": location, "Cache-Control": "no-store"})
    try:
        return await _send(request, file, f"{job.result_file}")
    except FileNotFoundError:
        raise removed(job) from None


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
    erased = Gone("The inputs of this job were erased already.", code="inputs_erased", prompt_id=job.prompt_id)
    if found is None:
        raise erased
    try:
        return await _send(request, found, file)
    except FileNotFoundError:
        raise erased from None


def _is_inline(request: web.Request) -> bool:
    return request.query.get("inline") == "1"


async def _send(request: web.Request, file: Path | RemoteFile, name: str) -> web.StreamResponse:
    """Send a file, named as `name` to who saves it: whole, in ranges, or its headers only."""
    headers = {
        "Content-Type": MEDIA_TYPES.get(PurePath(name).suffix, "application/octet-stream"),
        "Content-Disposition": f'{"inline" if _is_inline(request) else "attachment"}; filename="{name}"',
        "Cache-Control": "private, no-cache",
    }
    return await send_file(request, file, headers)
