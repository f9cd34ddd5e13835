"""The limits of submissions, looks for faces and uploads a minute: of each key, or each address if there are none."""

from __future__ import annotations

import ipaddress
import math
import time
from dataclasses import dataclass

from aiohttp import hdrs, web
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from ..errors import TooManyRequests
from .address import client_address
from .keys import OWNER, SETTINGS

WINDOW_S = 60
MOST_COUNTERS = 10_000
"""Counters of the last two minutes, beyond which new addresses count as one: they are gone through at each
submission."""
IPV6_PREFIX = 56
"""The bits of an address of IPv6 that count: who has one network has all addresses of it."""
PROXY_HEADERS = ("X-Forwarded-For", hdrs.FORWARDED)
"""The headers by which a proxy on this machine is told from a user of it."""
KEY = "key "
"""The beginning of what a key is counted under."""
SUBMISSIONS, LOOKS, UPLOADS = "submissions", "faces", "uploads"
"""The names of the limits in the `RateLimit` headers."""
LOOKS_PER_SUBMISSION = 10
"""Looks for faces that are allowed where one submission is: who searches a video for a frame makes many."""
UPLOADS_PER_SUBMISSION = 10
"""Uploads that may be begun where one submission is allowed: a job takes a video and up to eight pictures."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """The requests of a kind that are left to somebody, and the seconds until there are more."""

    policy: str
    limit: int
    left: int
    more_in_s: int


ALLOWANCE = web.RequestKey("allowance", Allowance)


class RateLimit:
    """The requests of one kind of the last minute at this node, kept in memory; 0 is no limit."""

    def __init__(self, per_minute: int, policy: str = SUBMISSIONS) -> None:
        self.per_minute = per_minute
        self.policy = policy
        self._counters = MemoryStorage()
        self._limiter = SlidingWindowCounterRateLimiter(self._counters)

    async def take(self, who: str) -> tuple[bool, Allowance]:
        """Count a request of somebody, unless they had all that they may; returns whether it was counted."""
        item = RateLimitItemPerMinute(self.per_minute)
        if self._is_surplus(item, who):
            who = "all others"
        counted = await self._limiter.hit(item, who)
        stats = await self._limiter.get_window_stats(item, who)
        more_in_s = max(1, math.floor(stats.reset_time - time.time()) + 1)
        return counted, Allowance(self.policy, self.per_minute, stats.remaining, more_in_s)

    def _is_surplus(self, item: RateLimitItemPerMinute, who: str) -> bool:
        """Return whether an address has no counter yet and there is room for none."""
        if who.startswith(KEY) or len(self._counters.storage) < MOST_COUNTERS:
            return False
        counters = self._counters.sliding_window_keys(item.key_for(who), WINDOW_S, time.time())
        return not any(counter in self._counters.storage for counter in counters)


RATE_LIMIT = web.AppKey("rate_limit", RateLimit)
LOOK_LIMIT = web.AppKey("look_limit", RateLimit)
UPLOAD_LIMIT = web.AppKey("upload_limit", RateLimit)


async def count_submission(request: web.Request) -> None:
    """Count a request that submits a job. Raises `TooManyRequests` when there were too many in the last minute."""
    await _count(request, request.app[RATE_LIMIT], "jobs")


async def count_look(request: web.Request) -> None:
    """Count a request that has faces looked for. Raises `TooManyRequests`, as `count_submission` does."""
    await _count(request, request.app[LOOK_LIMIT], "looks for faces")


async def count_upload(request: web.Request) -> None:
    """Count a request that begins an upload. Raises `TooManyRequests`, as `count_submission` does."""
    await _count(request, request.app[UPLOAD_LIMIT], "uploads")


async def _count(request: web.Request, limit: RateLimit, things: str) -> None:
    who = _who(request)
    if not limit.per_minute or who is None:
        return
    counted, allowance = await limit.take(who)
    request[ALLOWANCE] = allowance
    if not counted:
        raise TooManyRequests(
            f"At most {allowance.limit:,} {things} a minute are taken; try again in {allowance.more_in_s} s.",
            code="rate_limited",
            retry_after=allowance.more_in_s,
        )


def _who(request: web.Request) -> str | None:
    """Return whose requests a request counts among; None for a user of this machine where there are no keys."""
    if OWNER in request:
        return f"{KEY}{request[OWNER]}"
    address = client_address(request, request.app[SETTINGS])
    if address is None:
        return "unknown"
    if address.is_loopback and not any(name in request.headers for name in PROXY_HEADERS):
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, IPV6_PREFIX), strict=False))
    return str(address)


def add_allowance(request: web.Request, response: web.StreamResponse) -> None:
    """Add the `RateLimit` headers (draft-ietf-httpapi-ratelimit-headers-10)."""
    allowance = request.get(ALLOWANCE)
    if allowance is not None:
        response.headers["RateLimit-Policy"] = f'"{allowance.policy}";q={allowance.limit};w={WINDOW_S}'
        response.headers["RateLimit"] = f'"{allowance.policy}";r={allowance.left};t={allowance.more_in_s}'
