"""Handlers of resumable uploads: tus 1.0 with creation, expiration and termination."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate

from aiohttp import web

from ..errors import BadRequest, PreconditionFailed, UnsupportedMedia
from ..intake import Uploads, check_uncompressed
from ..uploads import Upload, check_metadata, parse_length, parse_offset
from .keys import SETTINGS, SUBMITTER, owner_of
from .rate_limit import count_upload

VERSION = "1.0.0"
EXTENSIONS = "creation,expiration,termination"
BODY_TYPE = "application/offset+octet-stream"
PATH = "/uploads"


async def options_uploads(request: web.Request) -> web.Response:
    """Tell what is understood of tus."""
    headers = {
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(request.app[SETTINGS].max_upload_bytes),
    }
    return web.Response(status=204, headers=headers)


async def post_uploads(request: web.Request) -> web.Response:
    """Create a resumable upload."""
    _check_version(request)
    await count_upload(request)
    length = parse_length(request.headers.get("Upload-Length"))
    metadata = check_metadata(request.headers.get("Upload-Metadata", ""))
    upload = await _uploads(request).create(length, metadata, owner_of(request))
    public_url = request.app[SETTINGS].public_url
    prefix = "" if public_url is None else public_url.raw_path.rstrip("/")
    headers = {**_headers(upload), "Location": f"{prefix}{PATH}/{upload.id}"}
    return web.json_response(upload.to_dict(), status=201, headers=headers)


async def get_upload(request: web.Request) -> web.Response:
    """Tell how much of an upload has arrived; tus asks by `HEAD`."""
    if request.method == "HEAD":
        _check_version(request)
    upload = await _uploads(request).find(request.match_info["upload_id"], owner_of(request))
    headers = {**_headers(upload), "Upload-Length": str(upload.length), "Cache-Control": "no-store"}
    if upload.metadata:
        headers["Upload-Metadata"] = upload.metadata
    return web.json_response(upload.to_dict(), headers=headers)


async def patch_upload(request: web.Request) -> web.Response:
    """Add bytes to an upload; those that arrive are kept, even when the request is cut off."""
    _check_version(request)
    check_uncompressed(request)
    if request.content_type != BODY_TYPE:
        raise UnsupportedMedia(f"The bytes must be sent as {BODY_TYPE}.", code="unsupported_content_type")
    offset = parse_offset(request.headers.get("Upload-Offset"))
    upload_id = request.match_info["upload_id"]
    upload = await _uploads(request).append(request, upload_id, owner_of(request), offset)
    return web.Response(status=204, headers=_headers(upload))


async def delete_upload(request: web.Request) -> web.Response:
    """Erase an upload; jobs that were made of it keep their inputs."""
    _check_version(request)
    await _uploads(request).delete(request.match_info["upload_id"], owner_of(request))
    return web.Response(status=204)


_INSTEAD: Mapping[str, Callable[[web.Request], Awaitable[web.Response]]] = {
    "PATCH": patch_upload,
    "DELETE": delete_upload,
}


async def post_upload(request: web.Request) -> web.Response:
    """Do what `X-HTTP-Method-Override` says, for who can send no such method."""
    handle = _INSTEAD.get(request.headers.get("X-HTTP-Method-Override", ""))
    if handle is None:
        detail = f"'X-HTTP-Method-Override' must be one of {', '.join(_INSTEAD)}."
        raise BadRequest(detail, code="invalid_method_override")
    return await handle(request)


def add_tus_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Tell the version of tus in every answer about uploads."""
    resource = request.match_info.route.resource
    if resource is not None and resource.canonical.startswith(PATH):
        response.headers["Tus-Resumable"] = VERSION
        if response.status == PreconditionFailed.status:
            response.headers["Tus-Version"] = VERSION


def _uploads(request: web.Request) -> Uploads:
    return request.app[SUBMITTER].uploads


def _check_version(request: web.Request) -> None:
    if request.headers.get("Tus-Resumable") != VERSION:
        raise PreconditionFailed(f"Send 'Tus-Resumable: {VERSION}'.", code="unsupported_tus_version")


def _headers(upload: Upload) -> dict[str, str]:
    return {
        "Upload-Offset": str(upload.received),
        "Upload-Expires": formatdate(upload.expires_at / 1000, usegmt=True),
    }
