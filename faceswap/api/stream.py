"""Event streams: one subscription, written as Server-Sent Events or to a WebSocket."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

from aiohttp import web

from ..feed import Feed
from ..hub import Closing, Lagging
from ..jobs import TERMINAL, Event, Job
from ..store import Store
from .keys import FEED, STORE

KEEPALIVE_S = 15.0
"""The longest silence before a comment line keeps proxies from closing the connection."""
KEEPALIVE_SPREAD = 0.5
"""The share of `KEEPALIVE_S` by which some are earlier: a thousand watchers of one job are not all woken at once."""
WRITE_TIMEOUT_S = 60.0
"""The time after which a watcher that reads nothing is dropped; it resumes by `Last-Event-ID`."""


async def follow(store: Store, feed: Feed, prompt_id: str, after: int) -> AsyncIterator[Event | None]:
    """Yield the events of a job after number `after`: the stored ones, then the live ones, until it has ended.

    None stands for at most `KEEPALIVE_S` of silence. Raises `Lagging` and `Closing` as the subscription does.
    """
    async with feed.watch(prompt_id) as subscription:
        stored = await store.events(prompt_id, after)
        for event in stored:
            yield event
            after = event.seq
        # A retried job has ended before: only the last event can be the end.
        if stored[-1].terminal if stored else (await store.job(prompt_id)).state in TERMINAL:
            return
        while True:
            live = await subscription.next(KEEPALIVE_S * (1 - random.uniform(0, KEEPALIVE_SPREAD)))
            if live is None:
                yield None
            elif live.seq > after:
                yield live
                after = live.seq
                if live.terminal:
                    return


async def stream_events(request: web.Request, job: Job, after: int) -> web.StreamResponse:
    """Answer with a job's events as `text/event-stream`."""
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "Location": f"/status/{job.prompt_id}",
        }
    )
    await response.prepare(request)
    try:
        try:
            async for event in follow(request.app[STORE], request.app[FEED], job.prompt_id, after):
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await response.write(b": still here\n\n" if event is None else event.sse())
        except Closing:
            await response.write(b": the service is stopping; come back with Last-Event-ID\n\n")
        await response.write_eof()
    except (Lagging, TimeoutError, ConnectionError):
        # The watcher is gone or too slow; the job continues.
        response.force_close()
        if request.transport is not None:
            request.transport.abort()
    return response


async def send_events(request: web.Request, socket: web.WebSocketResponse, prompt_id: str, after: int) -> None:
    """Send a job's events as text frames."""
    async for event in follow(request.app[STORE], request.app[FEED], prompt_id, after):
        if event is not None:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await socket.send_str(event.text())
