"""Access by an API key or by a signed link."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from ..errors import Forbidden, NotFound, Unauthorized
from ..links import EXPIRES, SIGNATURE, signed_job
from .keys import KEYRING, LINK_SECRET, OWNER, STORE
from .operations import OPERATIONS
from .results import RESULTS

OPEN = frozenset(path for (_, path), operation in OPERATIONS.items() if not operation.needs_key)
"""The routes that need no key and tell nothing of any job."""
OPEN_IN_PART = frozenset(path for (_, path), operation in OPERATIONS.items() if operation.tells_strangers)
"""The routes that tell less without a key."""


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a request without a key or a signed link, once there are keys; others have their owner from here on."""
    keyring, route = request.app[KEYRING], _route(request)
    if keyring.is_required and route not in OPEN:
        key = _key(request)
        if key is not None:
            name = keyring.name_of(key)
            if name is None:
                raise Unauthorized("This API key is not one of ours, or was revoked.", code="invalid_key")
            request[OWNER] = name
        elif SIGNATURE in request.query and route in SIGNABLE and request.method in ("GET", "HEAD"):
            request[OWNER] = await _owner_by_link(request, SIGNABLE[route])
        elif route not in OPEN_IN_PART:
            raise Unauthorized("Send an API key: 'Authorization: Bearer KEY', or 'X-API-Key'.", code="missing_key")
    return await handler(request)


def is_stranger(request: web.Request) -> bool:
    """Return whether a request came without the key that others need."""
    return request.app[KEYRING].is_required and OWNER not in request


def _route(request: web.Request) -> str:
    """Return the path of a request as its route has it, the empty text for one that leads nowhere."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical


def _key(request: web.Request) -> str | None:
    """Return the key that a request came with. Raises `Unauthorized` for another kind of authorization."""
    key = request.headers.get("X-API-Key")  # first: `Authorization` may be for a proxy in between
    authorization = request.headers.get(hdrs.AUTHORIZATION)
    if key is not None or authorization is None:
        return key
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("The authorization must be 'Bearer KEY'.", code="invalid_authorization")
    return key.strip()


_Candidates = Callable[[web.Request], Awaitable[Mapping[str, str | None]]]
"""The owners, by the ids of their jobs, of the jobs that a request may be about."""


async def _job_named(request: web.Request) -> Mapping[str, str | None]:
    try:
        job = await request.app[STORE].job(request.match_info["prompt_id"])
    except NotFound:
        return {}
    return {job.prompt_id: job.owner}


async def _jobs_with_result(request: web.Request) -> Mapping[str, str | None]:
    return await request.app[RESULTS].owners(request.match_info["filename"])


SIGNABLE: Mapping[str, _Candidates] = {
    "/download/{filename}": _jobs_with_result,
    "/events/{prompt_id}": _job_named,
    "/preview/{prompt_id}": _job_named,
    "/jobs/{prompt_id}/video": _job_named,
    "/jobs/{prompt_id}/image": _job_named,
    "/jobs/{prompt_id}/thumbnail": _job_named,
}
"""The routes that a signed link may lead to."""


async def _owner_by_link(request: web.Request, candidates: _Candidates) -> str | None:
    """Return the owner of the job that a signed link is for. Raises `Forbidden`, the same for a job that is not."""
    owners = await candidates(request)
    prompt_id = signed_job(request.app[LINK_SECRET], request.path, request.query, owners)
    if prompt_id is None:
        raise Forbidden("This link was not signed here, or what it led to is gone.", code="invalid_link")
    if int(request.query[EXPIRES]) <= time.time():
        raise Forbidden("This link has expired; ask for a new one.", code="link_expired")
    return owners[prompt_id]
