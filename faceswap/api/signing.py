"""The handler that signs links to what belongs to a job."""

from __future__ import annotations

import time

from aiohttp import web

from ..errors import BadRequest
from ..jobs import Job, download_path, iso
from ..links import signed
from .keys import LINK_SECRET, SETTINGS, STORE, owner_of

LIFETIME_S, LONGEST_LIFETIME_S = 3600, 7 * 24 * 3600
"""The time for which a link is good where none is asked for, and the longest."""


async def post_links(request: web.Request) -> web.Response:
    """Sign links to a job's result, inputs, events and pictures: good for a time, and without a key."""
    job = await request.app[STORE].owned_job(request.match_info["prompt_id"], owner_of(request))
    expires = int(time.time()) + _parse_lifetime(request.query.get("expires_in"))
    secret, public_url = request.app[LINK_SECRET], request.app[SETTINGS].public_url
    base = "" if public_url is None else str(public_url).rstrip("/")
    links = {name: base + signed(secret, path, job.prompt_id, expires) for name, path in _paths(job).items()}
    return web.json_response({"expires_at": iso(expires * 1000), "links": links}, headers={"Cache-Control": "no-store"})


def _paths(job: Job) -> dict[str, str]:
    """Return the paths of what a job has, as they stand in a URL."""
    paths = {
        "events": f"/events/{job.prompt_id}",
        "preview": f"/preview/{job.prompt_id}",
        "video": f"/jobs/{job.prompt_id}/video",
        "image": f"/jobs/{job.prompt_id}/image",
        "thumbnail": f"/jobs/{job.prompt_id}/thumbnail",
    }
    return {**paths, "result": download_path(job.result_file)} if job.result_file else paths


def _parse_lifetime(text: str | None) -> int:
    if text is None:
        return LIFETIME_S
    if not text.isdecimal() or len(text) > 6 or not 1 <= int(text) <= LONGEST_LIFETIME_S:
        raise BadRequest(
            f"'expires_in' must be a whole number of seconds from 1 to {LONGEST_LIFETIME_S}.", code="invalid_expires_in"
        )
    return int(text)
