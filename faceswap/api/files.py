"""Downloads of results."""

from __future__ import annotations

import aiofiles.os
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from ..errors import Gone
from .keys import FILES, STORE, owner_of


async def download(request: web.Request) -> web.StreamResponse:
    """Send a result: whole, in ranges, or its headers only."""
    job = await request.app[STORE].result(request.match_info["filename"], owner_of(request))
    path = await request.app[FILES].find_result(job)
    if path is None:
        raise Gone("This result was removed from the server's disk.", code="result_expired", prompt_id=job.prompt_id)
    disposition = "inline" if request.query.get("inline") == "1" else "attachment"
    return _RangeFileResponse(
        path,
        headers={
            "Content-Type": "video/mp4",
            "Content-Disposition": f'{disposition}; filename="{job.result_file}"',
            "Cache-Control": "private, no-cache",
        },
    )


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
        return await super().prepare(request)
