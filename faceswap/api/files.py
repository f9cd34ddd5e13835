"""Results, out again."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter

from ..errors import Gone
from .keys import FILES, STORE, owner


async def download(request: web.Request) -> web.StreamResponse:
    """A result: whole, in ranges, or its headers only."""
    job = await request.app[STORE].result(request.match_info["filename"], owner(request))
    path = request.app[FILES].result(job.result_file or "")
    if not path.is_file():
        raise Gone("This result was removed from the server's disk.", code="result_expired", prompt_id=job.prompt_id)
    disposition = "inline" if request.query.get("inline") == "1" else "attachment"
    return _Result(
        path,
        headers={
            "Content-Type": "video/mp4",
            "Content-Disposition": f'{disposition}; filename="{job.result_file}"',
            "Cache-Control": "private, no-cache",
        },
    )


class _Result(web.FileResponse):
    """A file whose `If-Range` may be its entity tag; aiohttp itself knows only the date."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if_range = request.headers.get(hdrs.IF_RANGE, "")
        if if_range.startswith(('"', "W/")):
            stat = self._path.stat()
            if if_range != f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"':
                headers = request.headers.copy()
                headers.popall(hdrs.RANGE, None)
                request = request.clone(headers=headers)
        return await super().prepare(request)
