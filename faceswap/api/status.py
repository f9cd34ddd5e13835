"""`GET /status/{prompt_id}`: the answers are ready before they are asked for, and never older than the database."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import hdrs, web
from multidict import CIMultiDict

from ..errors import BadRequest, NotFound
from ..hub import Closing, Lagging
from ..jobs import TERMINAL, Job, JobState
from ..store import UNKNOWN_JOB, Standing, Store, Together
from .keys import FEED, owner_of

MAX_WAIT_S = 60.0
LOOK_S = 1.0
"""The time between two looks at a job for `?wait=`: some changes, such as the place in the queue, raise no event."""
NUMBER_PATTERN = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
"""A number as JSON writes it: Python reads more than that as one."""
CONTENT_TYPE = "application/json; charset=utf-8"
MOST_KEPT = 4096
"""Answers that are kept; the one that was kept for the longest time goes first."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The status of a job as it is sent, and what it depends on beside the job."""

    job: Job
    body: bytes
    etag: str
    headers: CIMultiDict[str]
    outage: str | None
    """The outage that a job was told to wait for."""
    version: int | str | None
    """The version of the queue that its place is from, None for a job that is not queued. Where other nodes may change
    the job, the version of the job, or one before; None when that is not known."""


class Answers:
    """The answers to who asks for the status of a job.

    An answer is kept until a commit changes its job: it is dropped before anybody is told of that commit. Where other
    nodes may commit, it is given only while the database has the same version of its job.
    """

    def __init__(self, store: Store, outage: Callable[[], str | None]) -> None:
        self._store = store
        self._outage = outage
        self._queue = store.queue
        self._kept: dict[str, Answer] = {}
        self._reading: dict[str, object] = {}
        """A token for each job that is being read, gone when a commit has changed the job meanwhile."""
        self._versions, self._standings = Together(store.versions), Together(store.standings)
        if self._queue is not None:
            self._queue.on_change.append(self._drop)

    def _drop(self, prompt_id: str) -> None:
        self._kept.pop(prompt_id, None)
        self._reading.pop(prompt_id, None)

    async def get(self, prompt_id: str, owner: str | None) -> Answer:
        """Return the answer of an owner's job, as all that is committed now has it. Raises `NotFound`."""
        kept = self._kept.get(prompt_id)
        if kept is not None and kept.job.owner != owner:
            kept = None
        if self._queue is None:
            return await self._get_shared(prompt_id, owner, kept)
        if kept is not None and self._holds(kept):
            return kept
        return await self._make(prompt_id, owner)

    async def _get_shared(self, prompt_id: str, owner: str | None, kept: Answer | None) -> Answer:
        """Return the answer of a job that other nodes may change; those of ended jobs, which seldom do, are kept."""
        version = None
        if kept is not None:
            version = await self._versions.get(prompt_id)
            if version is not None and version == kept.version:
                return kept
        standing = await self._standings.get(prompt_id)
        if standing is None:
            self._drop(prompt_id)
        if standing is None or standing.job.owner != owner:
            raise NotFound(UNKNOWN_JOB, code="unknown_prompt_id")
        answer = self._write(standing, version)
        if standing.job.state in TERMINAL:
            self._keep(answer)
        return answer

    def _keep(self, answer: Answer) -> None:
        self._kept.pop(answer.job.prompt_id, None)
        if len(self._kept) >= MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[answer.job.prompt_id] = answer

    def _holds(self, answer: Answer) -> bool:
        return answer.outage == self._outage_of(answer.job) and (
            answer.version is None or self._queue is None or answer.version == self._queue.version
        )

    def _outage_of(self, job: Job) -> str | None:
        return self._outage() if job.needs_engine else None

    async def _make(self, prompt_id: str, owner: str | None) -> Answer:
        reading = self._reading.setdefault(prompt_id, object())
        try:
            kept = self._kept.get(prompt_id)
            job = None if kept is None or kept.job.owner != owner else kept.job
            answer = await self.of(job or await self._store.owned_job(prompt_id, owner))
            if self._reading.get(prompt_id) is reading:
                self._keep(answer)
        finally:
            if self._reading.get(prompt_id) is reading:
                del self._reading[prompt_id]
        return answer

    async def of(self, job: Job) -> Answer:
        """Make the answer of a job that was read."""
        place, backlog, version = None, None, None
        if job.state == JobState.QUEUED:
            backlog = await self._store.backlog()
            version = None if self._queue is None else self._queue.version
            place = await self._store.queue_position(job)
        return self._write(Standing(job, place, backlog), version)

    def _write(self, standing: Standing, version: int | str | None) -> Answer:
        job, outage = standing.job, self._outage_of(standing.job)
        wait_s = standing.backlog.wait_s(standing.place) if standing.backlog and not outage else None
        body = json.dumps(job.status(standing.place, outage, wait_s), ensure_ascii=False).encode()
        etag = hashlib.blake2b(body, digest_size=12).hexdigest()
        headers = CIMultiDict({hdrs.CONTENT_TYPE: CONTENT_TYPE, hdrs.ETAG: f'"{etag}"', hdrs.CACHE_CONTROL: "no-cache"})
        return Answer(job, body, etag, headers, outage, version)


ANSWERS = web.AppKey("answers", Answers)


async def get_status(request: web.Request) -> web.Response:
    """Answer with a job's status; with `?wait=` once it has changed."""
    prompt_id, owner = request.match_info["prompt_id"], owner_of(request)
    wait_s = _parse_wait(request.query.get("wait", "0")) if request.rel_url.raw_query_string else 0
    answer = await request.app[ANSWERS].get(prompt_id, owner)
    if wait_s and answer.job.state not in TERMINAL:
        answer = await _wait_for_change(request, prompt_id, answer, wait_s)
    if hdrs.IF_NONE_MATCH in request.headers and _known_etags(request) & {answer.etag, "*"}:
        headers = {name: answer.headers[name] for name in (hdrs.ETAG, hdrs.CACHE_CONTROL)}
        return web.Response(status=304, headers=headers)
    return web.Response(body=answer.body, headers=answer.headers)


async def status_of(request: web.Request, job: Job, status: int = 200) -> web.Response:
    """Answer with the status of a job as a change has left it."""
    answer = await request.app[ANSWERS].of(job)
    return web.Response(status=status, body=answer.body, headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})


async def _wait_for_change(request: web.Request, prompt_id: str, answer: Answer, wait_s: float) -> Answer:
    """Return the answer of a job once it is another than the client knows, or `wait_s` seconds are over.

    `answer` is the one when the request came, which a client that names none is taken to know: what changes until the
    job is watched is a change too.
    """
    answers, owner = request.app[ANSWERS], owner_of(request)
    known = _known_etags(request) or {answer.etag}
    async with request.app[FEED].watch(prompt_id) as subscription:
        answer = await answers.get(prompt_id, owner)
        try:
            async with asyncio.timeout(wait_s):
                while answer.etag in known and answer.job.state not in TERMINAL:
                    await subscription.next(LOOK_S)
                    answer = await answers.get(prompt_id, owner)
        except (TimeoutError, Lagging, Closing):
            pass
    return answer


def _known_etags(request: web.Request) -> set[str]:
    return {etag.value for etag in request.if_none_match or ()}


def _parse_wait(text: str) -> float:
    wait_s = float(text) if NUMBER_PATTERN.fullmatch(text) else -1.0
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise BadRequest(f"'wait' must be a number of seconds from 0 to {MAX_WAIT_S:.0f}.", code="invalid_wait")
    return wait_s
