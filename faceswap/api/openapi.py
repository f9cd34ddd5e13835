"""The description of the API as OpenAPI 3.1, made of the routes, their handlers and the tables beside this module."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from aiohttp import web

from .. import __version__
from ..links import EXPIRES, SIGNATURE
from .docs import PAGE_HEADERS, page
from .operations import HEADERS, JSON, OPERATIONS, PROBLEMS, REQUIRED_HEADERS, Answer, Operation
from .schemas import SCHEMAS, TEXT, Schema, ref

TAGS: Mapping[str, str] = {
    "swap": "Submit jobs",
    "jobs": "Follow jobs and steer them",
    "files": "Fetch results",
    "uploads": "Upload in parts, to go on after a cut",
    "service": "The service itself",
}
DOCUMENT: web.AppKey[Mapping[str, Any]] = web.AppKey("openapi document")


class _Sent:
    """The two forms in which the document is sent, made when they are first asked for."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    @cached_property
    def json(self) -> bytes:
        return json.dumps(self._document, ensure_ascii=False).encode()

    @cached_property
    def page(self) -> str:
        return page(self._document)


_PROBLEM_HEADERS: Mapping[int, str] = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}
_SENT = web.AppKey("openapi document as sent", _Sent)

_DESCRIPTION = (
    "Swap faces in videos. A job is submitted, followed by its events or by asking for its status, and fetched."
    " A problem is told as `application/problem+json` with a stable `code`. Wherever a `GET` is answered with something"
    " that has an end, `HEAD` is answered with the same headers."
)


def add_description(app: web.Application) -> None:
    """Describe the routes that the application has by now."""
    app[DOCUMENT] = describe(app)
    app[_SENT] = _Sent(app[DOCUMENT])


async def get_openapi(request: web.Request) -> web.Response:
    """Send this description: OpenAPI 3.1."""
    body = request.app[_SENT].json
    etag = hashlib.blake2b(body, digest_size=12).hexdigest()
    return web.Response(body=body, content_type="application/json", headers={"ETag": f'"{etag}"'})


async def get_docs(request: web.Request) -> web.Response:
    """Send this description as a page to read."""
    return web.Response(text=request.app[_SENT].page, content_type="text/html", headers=PAGE_HEADERS)


def routes(app: web.Application) -> Iterator[tuple[str, str, web.AbstractRoute]]:
    """Yield the method and the path of each route. A `HEAD` beside a `GET` is no operation of its own."""
    for route in app.router.routes():
        if route.resource is not None and route.method != "HEAD":
            yield route.method, route.resource.canonical, route


def describe(app: web.Application) -> dict[str, Any]:
    """Return the document. A route that the table does not have is left out, which a test notices."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, route in routes(app):
        operation = OPERATIONS.get((method, path))
        if operation is not None:
            summary = (route.handler.__doc__ or "").partition("\n")[0].removesuffix(".")
            paths.setdefault(path, {})[method.lower()] = _operation(method, path, summary, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "faceswap", "version": __version__, "description": _DESCRIPTION},
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "webhooks": {"job": {"post": _webhook()}},
        "components": {
            "schemas": dict(SCHEMAS),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "expires": {"type": "apiKey", "in": "query", "name": EXPIRES},
                "signature": {"type": "apiKey", "in": "query", "name": SIGNATURE},
            },
        },
    }


def _operation(method: str, path: str, summary: str, operation: Operation) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": _operation_id(method, path),
        "tags": [operation.tag],
        "summary": summary,
    }
    if operation.text:
        document["description"] = operation.text
    places = (
        ("path", dict.fromkeys(re.findall(r"\{(\w+)", path), TEXT)),
        ("query", operation.query),
        ("header", operation.headers),
    )
    parameters = [_parameter(place, *item) for place, schemas in places for item in schemas.items()]
    if parameters:
        document["parameters"] = parameters
    if operation.body:
        content = {media_type: {"schema": schema} for media_type, schema in operation.body.items()}
        document["requestBody"] = {"required": True, "content": content}
    document["responses"] = _responses(operation)
    document["security"] = [{"bearer": []}, {"header": []}] if operation.needs_key else []
    if operation.takes_link:
        document["security"].append({"expires": [], "signature": []})
    if operation.tells_strangers:
        document["security"].append({})
    return document


def _webhook() -> dict[str, Any]:
    """Return the request that the service sends to the `webhook_url` of a job."""
    names = ("webhook-id", "webhook-timestamp", "webhook-signature", "traceparent")
    return {
        "operationId": "webhook",
        "tags": ["jobs"],
        "summary": "Tell that a job has ended, as Standard Webhooks says",
        "description": "It is sent at least once, and again over 24 hours until it is answered with 2xx, or with 410.",
        "parameters": [{"name": name, "in": "header", "schema": dict(TEXT)} for name in names],
        "requestBody": {"required": True, "content": {JSON: {"schema": ref("Webhook")}}},
        "responses": {"2XX": {"description": "It was received."}, "410": {"description": "No more is to be sent."}},
        "security": [],
    }


def _parameter(place: str, name: str, schema: Schema) -> dict[str, Any]:
    schema = dict(schema)
    text = schema.pop("description", None)
    required = place == "path" or name in REQUIRED_HEADERS
    parameter = {"name": name, "in": place, "required": required, "schema": schema}
    return parameter if text is None else {**parameter, "description": text}


def _responses(operation: Operation) -> dict[str, Any]:
    responses = {status: _answer(answer) for status, answer in operation.answers.items()}
    codes: dict[int, list[str]] = {}
    for code in operation.codes:
        codes.setdefault(PROBLEMS[code], []).append(code)
    for status, names in codes.items():
        problem = _problem(names)
        if status in responses:
            responses[status].setdefault("content", {}).update(problem["content"])
        else:
            responses[status] = problem
    return {str(status): responses[status] for status in sorted(responses)}


_JOB_AT: Mapping[str, str] = {"Accepted": "/prompt_id", "Status": "/prompt_id"}
"""The place of a job's id in the answers that have one, by the name of their schema."""


def _links(answer: Answer) -> dict[str, Any]:
    """Return the links of an answer to what can be done with the job that it names."""
    schema = answer.content.get(JSON, {})
    pointer = _JOB_AT.get(str(schema.get("$ref", "")).rpartition("/")[2])
    if pointer is None:
        return {}
    names = [_operation_id(method, path) for method, path in OPERATIONS if "{prompt_id}" in path]
    return {name: {"operationId": name, "parameters": {"prompt_id": f"$response.body#{pointer}"}} for name in names}


def _operation_id(method: str, path: str) -> str:
    return re.sub(r"[^a-z]+", "_", f"{method} {path}".lower()).strip("_")


def _answer(answer: Answer) -> dict[str, Any]:
    content = {media_type: {"schema": schema} for media_type, schema in answer.content.items()}
    links = _links(answer)
    return {
        "description": answer.text,
        **({"content": content} if content else {}),
        **({"links": links} if links else {}),
        **({"headers": {name: _header(name) for name in answer.headers}} if answer.headers else {}),
    }


def _header(name: str) -> dict[str, Any]:
    schema = dict(HEADERS[name])
    text = schema.pop("description", None)
    return {"schema": schema} if text is None else {"schema": schema, "description": text}


def _problem(codes: Iterable[str]) -> dict[str, Any]:
    """Return the answer with a problem of one of these codes, all of one status."""
    names = sorted(codes)
    header = _PROBLEM_HEADERS.get(PROBLEMS[names[0]])
    schema = {"allOf": [ref("Problem"), {"properties": {"code": {"enum": names}}}]}
    return {
        "description": "A problem: " + ", ".join(f"`{name}`" for name in names) + ".",
        "content": {"application/problem+json": {"schema": schema}},
        **({"headers": {header: _header(header)}} if header else {}),
    }
