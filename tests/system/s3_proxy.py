"""A proxy in front of an S3 server that answers 503: to everything for a while, or now and then."""

from __future__ import annotations

import asyncio
import io
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
HOP_HEADERS = {"transfer-encoding", "connection", "content-length"}


class S3Proxy:
    """Relays calls, their `Host` included, because that is signed.

    It answers 503 to everything while it is not `available`; else `mischief` is the chance that a call is not passed
    on, and the chance that it is, with its answer lost: a put that was done is repeated by the client then.
    """

    def __init__(self, target: str, rng: random.Random, mischief: float = 0.0) -> None:
        self.url = ""
        self.available = True
        self.answers = asyncio.Event()
        """Not set while nothing is answered at all."""
        self.answers.set()
        self.mischief = mischief
        self.counts: Counter[str] = Counter()
        self._target = target.rstrip("/")
        self._rng = rng
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Serve on a free port."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._relay)
        runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(auto_decompress=False, connector=connector) as self._session:
            try:
                yield self
            finally:
                self.answers.set()
                await runner.cleanup()

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        body = await request.read()
        await self.answers.wait()
        if not self.available or self._chance("503 from S3"):
            return self._unavailable()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_HEADERS}
        try:
            async with self._session.request(
                request.method,
                URL(self._target + request.raw_path, encoded=True),
                data=io.BytesIO(body) if body else None,  # bytes of this length are warned of
                headers=headers,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                allow_redirects=False,
            ) as answer:
                content = await answer.read()
        except aiohttp.ClientError:
            return web.Response(status=502)
        if self.available and request.method in ("PUT", "POST", "DELETE") and self._chance("503 though S3 did it"):
            return self._unavailable()
        response = web.Response(status=answer.status, body=content)
        for name, value in answer.headers.items():
            if name.lower() not in HOP_HEADERS:
                response.headers[name] = value
        if request.method == "HEAD" and "Content-Length" in answer.headers:
            response.headers["Content-Length"] = answer.headers["Content-Length"]
        return response

    def _unavailable(self) -> web.Response:
        self.counts["S3 said 503"] += 1
        return web.Response(status=503, body=SLOW_DOWN, content_type="application/xml")

    def _chance(self, name: str) -> bool:
        happens = self._rng.random() < self.mischief
        self.counts[name] += happens
        return happens
