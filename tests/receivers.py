"""Receivers of webhooks and results: a server that notes what it is sent and answers as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook
from waiting import eventually

SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
OLD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The id of the delivery."""
        return self.headers["webhook-id"]

    def verified(self, secret: str = SECRET) -> Any:
        """Return the body of a webhook whose signature is right. Raises `WebhookVerificationError`."""
        return Webhook(secret).verify(self.body, self.headers)


class Receiver:
    """A server on 127.0.0.1. By default it answers each request with 204 once it has read it."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.begun = 0
        """The requests of which the headers came."""
        self.sent_bytes = 0
        """The bytes of answers that were taken off its hands."""
        self.answers: dict[str, Answer] = {}
        """The ways to answer by the first part of the path."""
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.begun += 1
        answer = self.answers.get(request.match_info["name"])
        if answer is not None and answer in (self.hang, self.never_read):
            return await answer(request)
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.method, request.raw_path, headers, body))
        return web.Response(status=204) if answer is None else await answer(request)

    def to(self, name: str) -> list[Received]:
        """Return what came to a path."""
        return [received for received in self.received if received.path.partition("?")[0] == f"/{name}"]

    async def came(self, name: str, count: int = 1) -> list[Received]:
        """Wait until so much has come to a path."""

        async def enough() -> list[Received] | None:
            return self.to(name) if len(self.to(name)) >= count else None

        found: list[Received] = await eventually(enough)
        return found

    @staticmethod
    def status(*statuses: int, **headers: str) -> Answer:
        """Answer with these statuses in turn, with the last one from then on."""
        left = list(statuses)

        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(status=left.pop(0) if len(left) > 1 else left[0], headers=headers)

        return answer

    @staticmethod
    async def hang(request: web.Request) -> web.StreamResponse:
        """Read the request and never answer."""
        await request.read()
        await asyncio.Event().wait()
        raise AssertionError

    @staticmethod
    async def never_read(request: web.Request) -> web.StreamResponse:
        """Neither read the request nor answer."""
        assert request.transport is not None
        request.transport.pause_reading()  # type: ignore[attr-defined]  # it is a stream's
        await asyncio.Event().wait()
        raise AssertionError

    async def flood(self, request: web.Request) -> web.StreamResponse:
        """Answer with 200 and ten megabytes."""
        response = web.StreamResponse(headers={"Content-Length": str(10_000_000)})
        await response.prepare(request)
        for _ in range(100):
            await response.write(bytes(100_000))
            self.sent_bytes += 100_000
        return response

    @staticmethod
    async def drip(request: web.Request) -> web.StreamResponse:
        """Answer with the headers of an answer, one line every now and then, and never with the last."""
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\n")  # type: ignore[attr-defined]  # it is a stream's
        while not request.transport.is_closing():
            request.transport.write(b"X-More: yes\r\n")  # type: ignore[attr-defined]  # it is a stream's
            await asyncio.sleep(0.05)
        raise ConnectionResetError


@asynccontextmanager
async def receiving(host: str = "127.0.0.1") -> AsyncIterator[Receiver]:
    """Yield a receiver that listens."""
    receiver = Receiver()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{name}", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.05, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    receiver.url = f"http://{host}:{runner.addresses[0][1]}"
    try:
        yield receiver
    finally:
        await runner.cleanup()
