"""Middleware of every request: problems as `application/problem+json`, browsers of other sites refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from ..durable import DISK_FULL
from ..errors import Forbidden, Problem, Unauthorized, Unavailable
from ..files import FilesUnavailable
from ..store import StoreError
from .keys import SETTINGS
from .origins import Origins

log = logging.getLogger(__name__)

SERVER_NAME = "faceswap"
ORIGINS = web.AppKey("origins", Origins)
CHALLENGE: Mapping[str, str] = {hdrs.WWW_AUTHENTICATE: 'Bearer realm="faceswap"'}
"""The header of an answer to a request without a key that is let in."""
RETRY_AFTER_S = 10
"""The time after which a client may try again when the disk was full or the database locked."""


EXPOSED_HEADERS = (
    "Location, ETag, RateLimit, RateLimit-Policy, Retry-After, Tus-Resumable, Tus-Version, Tus-Extension, Tus-Max-Size,"
    " Upload-Offset, Upload-Length, Upload-Metadata, Upload-Expires"
)
"""The headers of answers that pages of other sites may read."""

_TITLES = {404: ("not_found", "Not found"), 405: ("method_not_allowed", "Method not allowed")}


def problem_document(problem: Problem) -> dict[str, Any]:
    """Return the problem details document of RFC 9457."""
    document = {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
    }
    return document if problem.prompt_id is None else {**document, "prompt_id": problem.prompt_id}


@contextmanager
def known_failures() -> Iterator[None]:
    """Raise `Unavailable` in place of the errors of a full disk, and of a database or files that are away now."""
    try:
        yield
    except (StoreError, OSError) as error:
        problem = _known_failure(error)
        if problem is None:
            raise
        raise problem from error


def _known_failure(error: StoreError | OSError) -> Unavailable | None:
    """Return the problem to answer with, which is logged; None for an error that is a fault of the program."""
    problem = _unavailable(error)
    if problem is not None:
        # Not the whole text of an `OSError`, which names the file.
        log.error("%s (%s)", problem.detail, (isinstance(error, OSError) and error.strerror) or error)
    return problem


def _unavailable(error: StoreError | OSError) -> Unavailable | None:
    if isinstance(error, FilesUnavailable):
        detail = "The server's store of files cannot be reached now; try again later."
        return Unavailable(detail, code="files_unavailable", retry_after=RETRY_AFTER_S)
    if isinstance(error, OSError):
        is_full, is_database = error.errno in DISK_FULL, False
    else:
        is_full, is_database = error.disk_full, error.transient
    if is_full:
        return Unavailable("The server's disk is full; try again later.", code="disk_full", retry_after=RETRY_AFTER_S)
    if is_database:
        detail = "The server's database cannot be used now; try again later."
        return Unavailable(detail, code="database_unavailable", retry_after=RETRY_AFTER_S)
    return None


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> web.Response:
    """Build the answer to a request with a problem."""
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
    """Turn a handler's exception into an answer, which never holds a traceback or a path."""
    try:
        return await handler(request)
    except Unauthorized as problem:
        return problem_response(problem, CHALLENGE)
    except Problem as problem:
        return _answer_instead(request, problem)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code, title = _TITLES.get(error.status, ("http_error", error.reason))
        unserved = Problem(f"{request.method} {request.path[:100]}: {title.lower()}.", code=code)
        unserved.status, unserved.title = error.status, title
        allowed = isinstance(error, web.HTTPMethodNotAllowed)
        return problem_response(unserved, {"Allow": error.headers["Allow"]} if allowed else None)
    except ConnectionError:
        return _answer_instead(request, Problem("The client went away."))  # nobody reads it
    except Exception as error:  # the top of the request
        failure = _known_failure(error) if isinstance(error, StoreError | OSError) else None
        if failure is not None:
            return _answer_instead(request, failure)
        resource = request.match_info.route.resource  # not the path: names of files are people's
        log.exception("%s %s", request.method, "-" if resource is None else resource.canonical)
        return _answer_instead(request, Problem("Something went wrong inside the service; its log says what."))


def _answer_instead(request: web.Request, problem: Problem) -> web.Response:
    """Answer with a problem; in the middle of another answer break the connection, the only sign left then."""
    if request.writer.output_size and request.transport is not None:
        request.transport.abort()
    return problem_response(problem)


@web.middleware
async def same_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse browsers on another site's page, unless the site is one of `FACESWAP_CORS_ORIGINS`."""
    origins, host = request.app[ORIGINS], request.headers.get(hdrs.HOST)
    if not origins.is_our_host(host):
        raise Forbidden("This host name is not ours; see FACESWAP_PUBLIC_URL.", code="foreign_host")
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or origins.is_our_page(origin, host):
        return await handler(request)
    if origin not in request.app[SETTINGS].cors_origins:
        raise Forbidden("Calls from other sites are refused; see FACESWAP_CORS_ORIGINS.", code="foreign_origin")
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        response: web.StreamResponse = web.Response(status=204)
        response.headers["Access-Control-Allow-Methods"] = "GET, HEAD, POST, PATCH, DELETE"
        response.headers["Access-Control-Allow-Headers"] = request.headers.get("Access-Control-Request-Headers", "")
    else:
        response = await handler(request)
    if not response.prepared:
        _allow_origin(response, origin)
    return response


def add_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers of every answer, streams included."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers[hdrs.SERVER] = SERVER_NAME
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and origin in request.app[SETTINGS].cors_origins:
        _allow_origin(response, origin)


def _allow_origin(response: web.StreamResponse, origin: str) -> None:
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
    response.headers["Vary"] = "Origin"
