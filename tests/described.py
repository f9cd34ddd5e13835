"""Answers held against the description of the API: each status, media type, body and code is a described one."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
from aiohttp import web

from faceswap.api.openapi import DOCUMENT

_known: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
"""The documents there have been, nearly always one, each with what validates its schemas."""


class Described:
    """The description of a service, and what did not agree with it."""

    def __init__(self, app: web.Application) -> None:
        text = json.dumps(app[DOCUMENT])
        if text not in _known:
            _known[text] = json.loads(text), {}
        self.document, self._validators = _known[text]
        self.faults: list[str] = []
        app.on_response_prepare.append(self._check)

    def hold_against(self, document: dict[str, Any]) -> None:
        """Hold answers against another document from now on."""
        self.document, self._validators = document, {}

    def schema_errors(self, pointer: str, value: object) -> list[str]:
        """Return why a value is not of the schema at a place in the document."""
        if pointer not in self._validators:
            schema = {"$ref": f"#{pointer}", "components": self.document["components"], "paths": self.document["paths"]}
            self._validators[pointer] = jsonschema_rs.Draft202012Validator(schema)
        return [
            f"/{'/'.join(map(str, error.instance_path))}: {error.message}"
            for error in self._validators[pointer].iter_errors(value)
        ]

    async def _check(self, request: web.Request, response: web.StreamResponse) -> None:
        resource = request.match_info.route.resource
        if resource is not None and request.method != "OPTIONS":
            found = self._faults(request.method, resource.canonical, response)
            self.faults += [f"{request.method} {request.path_qs} → {response.status}: {fault}" for fault in found]

    def _faults(self, method: str, path: str, response: web.StreamResponse) -> list[str]:
        method = "get" if method == "HEAD" else method.lower()
        operation = self.document["paths"].get(path, {}).get(method)
        if operation is None:
            return [] if response.status == 405 else ["the operation is not described"]
        answer = operation["responses"].get(str(response.status))
        if answer is None:
            return ["the status is not described"]
        body = getattr(response, "body", None)
        if response.status in (101, 204, 304, 307) or (body is None and response.status in (412, 416)):
            return []
        if response.content_type not in answer.get("content", {}):
            return [f"the media type {response.content_type} is not described"]
        if isinstance(body, bytes) and response.content_type.endswith("json"):
            place = (path, method, "responses", str(response.status), "content", response.content_type, "schema")
            pointer = "/".join(part.replace("~", "~0").replace("/", "~1") for part in place)
            return self.schema_errors(f"/paths/{pointer.replace('{', '%7B').replace('}', '%7D')}", json.loads(body))
        return []
