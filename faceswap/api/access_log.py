"""The access log: one line for each request, with neither names of files nor query strings."""

from __future__ import annotations

import logging
import re

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from .address import client_address
from .keys import SETTINGS, owner_of

log = logging.getLogger("faceswap.access")

_PROMPT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class AccessLog(AbstractAccessLogger):
    """Writes a line when a request was answered, or a stream has ended.

    It names the route, not the path: names of files may be those of people, and query strings hold signatures.
    """

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log a request and its response, which took `time` seconds."""
        # None where the request was not well-formed; the public property does not allow to ask.
        match = getattr(request, "_match_info", None)
        resource = match.route.resource if match is not None else None
        route = resource.canonical if resource is not None else "-"
        prompt_id = "" if match is None else match.get("prompt_id", "")
        fields = {
            "event": "request",
            "method": request.method[:20],
            "route": route,
            "status": response.status,
            "bytes": response.body_length,
            "duration_s": round(time, 3),
            "prompt_id": prompt_id if _PROMPT_ID.fullmatch(prompt_id) else None,
            "key": None,
            "address": request.remote,
        }
        if isinstance(request, web.Request) and match is not None:
            fields["key"] = owner_of(request)
            fields["address"] = str(client_address(request, request.app[SETTINGS]))
        text = f"{fields['method']} {route} {response.status}, {response.body_length} bytes in {time:.3f} s"
        names = (("job", "prompt_id"), ("key", "key"), ("from", "address"))
        text += "".join(f", {word} {fields[name]}" for word, name in names if fields[name])
        self.logger.info("%s", text, extra={"fields": {k: v for k, v in fields.items() if v is not None}})
