"""Handlers of existing jobs: events, preview, list, change, cancel, retry, delete."""

from __future__ import annotations

import re

from aiohttp import web

from ..errors import BadRequest, Conflict, NotFound
from ..intake import read_object
from ..jobs import TERMINAL, Job, JobState
from ..options import Options, check_label
from .keys import PROGRESS_REPORTER, SCHEDULER, SETTINGS, STORE, owner_of
from .rate_limit import count_submission
from .status import status_of
from .stream import stream_events

DEFAULT_PAGE, LARGEST_PAGE = 50, 200
CHANGEABLE = ("priority", "label")
"""The fields of a job that can be changed."""
EVENT_ID_PATTERN = re.compile("[0-9]{1,15}")


async def get_events(request: web.Request) -> web.StreamResponse:
    """Stream a job's events from the beginning, or from `Last-Event-ID` on."""
    prompt_id = request.match_info["prompt_id"]
    await request.app[STORE].owned_job(prompt_id, owner_of(request))
    query, header = request.query.get("last_event_id"), request.headers.get("Last-Event-ID")
    after = parse_event_id(query)
    return await stream_events(request, prompt_id, after if header is None else parse_event_id(header))


def parse_event_id(value: object) -> int:
    """Parse the number of the last event a client has seen; 0 for none."""
    if value is None or value == "":
        return 0
    if isinstance(value, int | str) and EVENT_ID_PATTERN.fullmatch(str(value)):
        return int(value)
    raise BadRequest("'Last-Event-ID' must be the id of an event.", code="invalid_last_event_id")


async def get_preview(request: web.Request) -> web.Response:
    """Send the newest preview of a running job."""
    job = await request.app[STORE].owned_job(request.match_info["prompt_id"], owner_of(request))
    image = None if job.state in TERMINAL else await request.app[PROGRESS_REPORTER].preview(job.prompt_id)
    if image is None:
        raise NotFound("There is no preview of this job now.", code="no_preview", prompt_id=job.prompt_id)
    return web.Response(body=image, content_type="image/jpeg", headers={"Cache-Control": "no-store"})


async def get_jobs(request: web.Request) -> web.Response:
    """List jobs, newest first."""
    store = request.app[STORE]
    jobs, next_cursor = await store.jobs(
        state=_parse_state(request.query.get("status")),
        label=request.query.get("label"),
        limit=_parse_limit(request.query.get("limit")),
        cursor=request.query.get("cursor"),
        owner=owner_of(request),
    )
    places = await store.queue_positions(jobs)
    outage = request.app[SCHEDULER].outage
    backlog = await store.backlog() if places and not outage else None
    documents = []
    for job in jobs:
        place = places.get(job.prompt_id)
        documents.append(job.status(place, outage, backlog.wait_s(place) if backlog else None))
    return web.json_response({"jobs": documents, "next_cursor": next_cursor})


def _parse_state(text: str | None) -> JobState | None:
    if not text:
        return None
    try:
        return JobState(text.upper())
    except ValueError:
        raise BadRequest(f"'status' must be one of {', '.join(JobState)}.", code="invalid_status") from None


def _parse_limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_PAGE
    if not (text.isascii() and text.isdecimal()) or len(text) > 3 or not 1 <= int(text) <= LARGEST_PAGE:
        raise BadRequest(f"'limit' must be a whole number from 1 to {LARGEST_PAGE}.", code="invalid_limit")
    return int(text)


async def post_cancel(request: web.Request) -> web.Response:
    """Cancel a job; it ends a little later."""
    job = await cancel_job(request, request.match_info["prompt_id"])
    return web.json_response(job.status(), status=202)


async def cancel_job(request: web.Request, prompt_id: str) -> Job:
    """Store the request to cancel, then interrupt the job's prompts."""
    job = await request.app[STORE].request_cancel(prompt_id, owner_of(request))
    request.app[SCHEDULER].cancel(prompt_id)
    return job


async def post_retry(request: web.Request) -> web.Response:
    """Queue a failed or cancelled job again; its finished segments are kept."""
    await count_submission(request)
    owner = owner_of(request)
    limit = None if owner is None else request.app[SETTINGS].queue_limit_per_key
    job = await request.app[STORE].retry(request.match_info["prompt_id"], owner, limit)
    request.app[SCHEDULER].wake()
    return await status_of(request, job, status=202)


async def patch_job(request: web.Request) -> web.Response:
    """Change the priority or the label of a job."""
    prompt_id, owner, store = request.match_info["prompt_id"], owner_of(request), request.app[STORE]
    job = await store.owned_job(prompt_id, owner)
    changes = await read_object(request)
    for name in changes:
        if name not in CHANGEABLE:
            allowed = ", ".join(CHANGEABLE)
            raise BadRequest(f"Unknown field {name[:40]!r}; allowed are {allowed}.", code="unknown_field")
    if not changes:
        raise BadRequest(f"Give {' or '.join(CHANGEABLE)}.", code="nothing_to_change")
    words = changes.get("label")
    is_blank = words is None or (isinstance(words, str) and not words.strip())
    label = None if is_blank else check_label(words)
    if "priority" in changes:
        priority = Options.parse({"priority": changes["priority"]}).priority
        job = await store.set_priority(prompt_id, owner, priority)
        request.app[SCHEDULER].wake()
    if "label" in changes:
        job = await store.set_label(prompt_id, owner, label)
    return await status_of(request, job)


async def delete_job(request: web.Request) -> web.Response:
    """Cancel a job if it runs, and erase it with its files."""
    prompt_id = request.match_info["prompt_id"]
    try:
        job = await cancel_job(request, prompt_id)
    except Conflict:  # it had ended
        job = await request.app[STORE].owned_job(prompt_id, owner_of(request))
    await request.app[SCHEDULER].erase(job)
    return web.Response(status=204)
