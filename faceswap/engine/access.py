"""Access to the engine: a bearer token, and protection from pages of other sites and from rebound host names."""

from __future__ import annotations

import hmac
import ipaddress

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from yarl import URL

TOKEN_VARIABLE = "FACESWAP_ENGINE_TOKEN"
"""The environment variable with the engine's token: others on the machine can read a command line."""


def is_loopback(host: str) -> bool:
    """Return true for a host, as an address or a name, that is this machine and no other."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def guard(token: str | None) -> Middleware:
    """Return the middleware that stands in front of every route, `/ws` and unknown paths included.

    It answers 403 to a browser that comes from another site, and 401 to whoever does not send
    `Authorization: Bearer TOKEN`; without a token anybody who reaches the port may call.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_rebound(request) or _is_foreign(request):
            raise web.HTTPForbidden
        if token is not None and not _has_token(request, token):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    return check


def _is_rebound(request: web.Request) -> bool:
    """Return true if a call on loopback names another host, as a page does whose domain was pointed at 127.0.0.1."""
    own = request.transport.get_extra_info("sockname") if request.transport else None
    return own is None or (is_loopback(own[0]) and not is_loopback(_host(request).host or ""))


def _is_foreign(request: web.Request) -> bool:
    """Return true if a page of another site calls an engine on loopback."""
    origin, host = request.headers.get("Origin"), _host(request)
    try:
        return origin is not None and is_loopback(host.host or "") and URL(origin).authority != host.authority
    except ValueError:
        return True


def _host(request: web.Request) -> URL:
    """Return the host that a call names, an empty URL for nonsense. `request.host` would ask the DNS for a default."""
    try:
        return URL(f"http://{request.headers.get('Host', '')}")
    except ValueError:
        return URL()


def _has_token(request: web.Request, token: str) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
