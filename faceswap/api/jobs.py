"""Handlers of existing jobs: status, events, preview, list, change, cancel, retry, delete."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from contextlib import nullcontext
from typing import Any

from aiohttp import web

from ..errors import BadRequest, Conflict, NotFound
from ..hub import Closing, Lagging
from ..intake import read_object
from ..jobs import TERMINAL, Job, JobState, Options, check_label
from .keys import FEED, PROGRESS_REPORTER, SCHEDULER, SETTINGS, STORE, owner_of
from .rate_limit import count_submission
from .stream import stream_events

MAX_WAIT_S = 60.0
LOOK_S = 1.0
"""The time between two looks at a job for `?wait=`: some changes, such as the place in the queue, raise no event."""
DEFAULT_PAGE, LARGEST_PAGE = 50, 200
NUMBER_PATTERN = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
"""A number as JSON writes it: Python reads more than that as one."""
CHANGEABLE = ("priority", "label")
"""The fields of a job that can be changed."""
EVENT_ID_PATTERN = re.compile("[0-9]{1,15}")


async def get_status(request: web.Request) -> web.Response:
    """Answer with a job's status; with `?wait=` once it has changed."""
    store, prompt_id = request.app[STORE], request.match_info["prompt_id"]
    wait_s = _parse_wait(request)
    async with request.app[FEED].watch(prompt_id) if wait_s else nullcontext() as subscription:
        job = await store.owned_job(prompt_id, owner_of(request))
        body, etag = await _status(request.app, job)
        if subscription is not None and job.state not in TERMINAL:
            known = _known_etags(request) or {etag}
            try:
                async with asyncio.timeout(wait_s):
                    while etag in known:
                        await subscription.next(LOOK_S)
                        body, etag = await _status(request.app, await store.owned_job(prompt_id, owner_of(request)))
            except (TimeoutError, Lagging, Closing):
                pass
    headers = {"ETag": f'"{etag}"', "Cache-Control": "no-cache"}
    if _known_etags(request) & {etag, "*"}:
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, content_type="application/json", charset="utf-8", headers=headers)


def _known_etags(request: web.Request) -> set[str]:
    return {etag.value for etag in request.if_none_match or ()}


async def _status(app: web.Application, job: Job) -> tuple[bytes, str]:
    """Return the status document and its entity tag."""
    body = json.dumps(await _document(app, job), ensure_ascii=False).encode()
    return body, hashlib.blake2b(body, digest_size=12).hexdigest()


async def _document(app: web.Application, job: Job) -> dict[str, Any]:
    """Return the status of a job, with its place in the queue and the time until it starts."""
    store, outage = app[STORE], app[SCHEDULER].outage
    place = await store.queue_position(job)
    wait_s = None if place is None or outage else (await store.backlog()).wait_s(place)
    return job.status(place, outage, wait_s)


def _parse_wait(request: web.Request) -> float:
    text = request.query.get("wait", "0")
    wait_s = float(text) if NUMBER_PATTERN.fullmatch(text) else -1.0
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise BadRequest(f"'wait' must be a number of seconds from 0 to {MAX_WAIT_S:.0f}.", code="invalid_wait")
    return wait_s


async def get_events(request: web.Request) -> web.StreamResponse:
    """Stream a job's events from the beginning, or from `Last-Event-ID` on."""
    job = await request.app[STORE].owned_job(request.match_info["prompt_id"], owner_of(request))
    query, header = request.query.get("last_event_id"), request.headers.get("Last-Event-ID")
    after = parse_event_id(query)
    return await stream_events(request, job, after if header is None else parse_event_id(header))


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
    return web.json_response(await _document(request.app, job), status=202)


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
    return web.json_response(await _document(request.app, job))


async def delete_job(request: web.Request) -> web.Response:
    """Cancel a job if it runs, and erase it with its files."""
    prompt_id = request.match_info["prompt_id"]
    try:
        job = await cancel_job(request, prompt_id)
    except Conflict:  # it had ended
        job = await request.app[STORE].owned_job(prompt_id, owner_of(request))
    await request.app[SCHEDULER].erase(job)
    return web.Response(status=204)
