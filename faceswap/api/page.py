"""Handlers of the web page: its files, and the samples that it offers."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from .. import __version__, samples
from .openapi import DOCUMENT

WEB = Path(__file__).parent.parent / "web"
_TYPES: Mapping[str, str] = {".js": "text/javascript", ".css": "text/css"}
WEB_FILES: Mapping[str, str] = {file.name: _TYPES[file.suffix] for file in WEB.iterdir() if file.suffix in _TYPES}
"""The media types of the page's files by their names."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:;"
    " media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
SAMPLE_FACE, SAMPLE_CLIP = "sample-face.jpg", "sample-clip.mp4"


class SampleClip:
    """The sample clip: made when it is first asked for, then kept in memory, half a megabyte."""

    def __init__(self) -> None:
        self._making: asyncio.Task[bytes] | None = None

    async def read(self) -> bytes:
        """Return the file; one try serves all requests that ask meanwhile."""
        if self._making is None or (self._making.done() and self._making.exception() is not None):
            self._making = asyncio.create_task(asyncio.to_thread(_make_clip), name="sample clip")
        return await asyncio.shield(self._making)


SAMPLE: web.AppKey[SampleClip] = web.AppKey("sample", SampleClip)


def _make_clip() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, SAMPLE_CLIP)
        samples.make_clip(clip)
        return clip.read_bytes()


async def get_root(request: web.Request) -> web.StreamResponse:
    """Answer browsers with the web page and programs with the description of the API."""
    if "text/html" in request.headers.get("Accept", ""):
        return _page("index.html", "text/html")
    return web.json_response(_information(request.app[DOCUMENT]))


async def get_web_file(request: web.Request) -> web.StreamResponse:
    """Send a script or the style sheet of the page, or one of its two samples."""
    name = request.match_info["name"]
    if name == SAMPLE_FACE:
        return web.FileResponse(samples.FACE)
    if name == SAMPLE_CLIP:
        return web.Response(body=await request.app[SAMPLE].read(), content_type="video/mp4")
    if name not in WEB_FILES:
        raise web.HTTPNotFound
    return _page(name, WEB_FILES[name])


def _page(name: str, content_type: str) -> web.FileResponse:
    headers = {
        "Content-Type": f"{content_type}; charset=utf-8",
        "Content-Security-Policy": PAGE_POLICY,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
        "Vary": "Accept",
    }
    return web.FileResponse(WEB / name, headers=headers)


def _information(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of the API in short."""
    endpoints = {
        f"{method.upper()} {path}": operation["summary"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    return {"name": "faceswap", "version": __version__, "endpoints": endpoints}
