"""Handlers of what was sent, or is to be sent, because a job has ended."""

from __future__ import annotations

from aiohttp import web

from ..errors import Conflict
from .keys import STORE, owner_of


async def get_deliveries(request: web.Request) -> web.Response:
    """List a job's deliveries, the newest first."""
    store = request.app[STORE]
    job = await store.owned_job(request.match_info["prompt_id"], owner_of(request))
    return await _listed(request, job.prompt_id, 200)


async def post_redeliver(request: web.Request) -> web.Response:
    """Have all of a job's deliveries sent again, those that arrived too."""
    store = request.app[STORE]
    job = await store.owned_job(request.match_info["prompt_id"], owner_of(request))
    if not await store.redeliver(job.prompt_id):
        detail = "This job has nothing to deliver that was not sent within the last minute."
        raise Conflict(detail, code="nothing_to_deliver", prompt_id=job.prompt_id)
    return await _listed(request, job.prompt_id, 202)


async def _listed(request: web.Request, prompt_id: str, status: int) -> web.Response:
    deliveries = await request.app[STORE].deliveries(prompt_id)
    return web.json_response({"deliveries": [delivery.describe() for delivery in deliveries]}, status=status)
