"""What holds for every request: problems as `application/problem+json`, browsers of other sites refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from yarl import URL

from ..config import is_loopback
from ..errors import Forbidden, Problem
from .keys import SETTINGS

log = logging.getLogger(__name__)

_TITLES = {404: ("not_found", "Not found"), 405: ("method_not_allowed", "Method not allowed")}


def problem_document(problem: Problem) -> dict[str, Any]:
    """A problem as RFC 9457 wants it."""
    document = {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
    }
    return document if problem.prompt_id is None else {**document, "prompt_id": problem.prompt_id}


def _answer(problem: Problem, headers: Mapping[str, str] | None = None) -> web.Response:
    headers = dict(headers or {})
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    return web.Response(
        status=problem.status,
        text=json.dumps(problem_document(problem), ensure_ascii=False),
        content_type="application/problem+json",
        headers=headers,
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into an answer. No traceback and no path ever leaves."""
    try:
        return await handler(request)
    except Problem as problem:
        return _answer_instead(request, problem)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code, title = _TITLES.get(error.status, ("http_error", error.reason))
        unserved = Problem(f"{request.method} {request.path[:100]}: {title.lower()}.", code=code)
        unserved.status, unserved.title = error.status, title
        allowed = isinstance(error, web.HTTPMethodNotAllowed)
        return _answer(unserved, {"Allow": error.headers["Allow"]} if allowed else None)
    except ConnectionError:
        return _answer_instead(request, Problem("The client went away."))  # which nobody hears
    except Exception:  # the top of the request
        log.exception("%s %s", request.method, request.path)
        return _answer_instead(request, Problem("Something went wrong inside the service; its log says what."))


def _answer_instead(request: web.Request, problem: Problem) -> web.Response:
    """The answer, or, in the middle of another one, a connection that breaks: nothing else can tell then."""
    if request.writer.output_size and request.transport is not None:
        request.transport.abort()
    return _answer(problem)


@web.middleware
async def same_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse browsers that come from another site's page, unless it is one of `FACESWAP_CORS_ORIGINS`."""
    settings = request.app[SETTINGS]
    if is_loopback(settings.host) and not _is_known_host(request.headers.get(hdrs.HOST), settings.cors_origins):
        raise Forbidden("This host name is not ours; see FACESWAP_CORS_ORIGINS.", code="foreign_host")
    origin = request.headers.get("Origin")
    if origin is None or origin in (f"http://{request.host}", f"https://{request.host}"):
        return await handler(request)
    if origin not in settings.cors_origins:
        raise Forbidden("Calls from other sites are refused; see FACESWAP_CORS_ORIGINS.", code="foreign_origin")
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        response: web.StreamResponse = web.Response(status=204)
        response.headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE"
        response.headers["Access-Control-Allow-Headers"] = request.headers.get("Access-Control-Request-Headers", "")
    else:
        response = await handler(request)
    if not response.prepared:
        _allow(response, origin)
    return response


def _is_known_host(host: str | None, cors_origins: tuple[str, ...]) -> bool:
    """Whether a request to a loopback address names that address, or the proxy in front of it.

    A foreign page that lets its own name point to 127.0.0.1 (DNS rebinding) passes as of our origin otherwise.
    """
    if host is None or any(host == URL(origin).authority for origin in cors_origins):
        return True
    try:
        name = URL(f"http://{host}").host
    except ValueError:
        return False
    return name is not None and is_loopback(name)


async def allow_origin(request: web.Request, response: web.StreamResponse) -> None:
    """Before headers go out: those every answer has, streams too."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    origin = request.headers.get("Origin")
    if origin is not None and origin in request.app[SETTINGS].cors_origins:
        _allow(response, origin)


def _allow(response: web.StreamResponse, origin: str) -> None:
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Expose-Headers"] = "Location, ETag"
    response.headers["Vary"] = "Origin"
