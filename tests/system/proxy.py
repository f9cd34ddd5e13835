"""A proxy between service and engine that cuts, delays, duplicates and deafens, and keeps the book of prompts."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

ASK_S = 10.0
AFTER_THAW_S = 15.0
"""For what was decided while an engine did not answer to be carried out."""
HOP_HEADERS = {"transfer-encoding", "connection", "content-length", "host", "content-encoding"}


@dataclass
class Sent:
    """A prompt that was sent to an engine, and whether that took it."""

    prompt_id: str
    proxy: Proxy
    accepted: bool = False


class Ledger:
    """Every prompt that was sent, to whichever engine, and what was run twice."""

    def __init__(self) -> None:
        self.run_twice: list[str] = []
        self._sent: defaultdict[str, list[Sent]] = defaultdict(list)

    async def enter(self, proxy: Proxy, prompt: dict[str, Any]) -> Sent:
        """Note a prompt that is about to be sent.

        It runs twice when its id was taken before, or when an engine that can be asked still knows an earlier attempt
        at its segment. That another engine does the work of one that cannot be asked is right.
        """
        prefixes = [node["inputs"].get("filename_prefix") for node in prompt["prompt"].values()]
        segment = next(prefix for prefix in prefixes if prefix).rpartition("-")[0]
        sent = Sent(prompt["prompt_id"], proxy)
        for earlier in self._sent[segment]:
            if earlier.prompt_id == sent.prompt_id:
                twice = earlier.accepted
            elif earlier.proxy is proxy:
                await proxy.thawed.wait()
                twice = await proxy.knows(earlier.prompt_id)
            else:
                twice = earlier.proxy.can_be_asked and await earlier.proxy.knows(earlier.prompt_id)
            if twice:
                self.run_twice.append(
                    f"{segment}: {earlier.prompt_id} to {earlier.proxy.target}, then {sent.prompt_id} to {proxy.target}"
                )
        self._sent[segment].append(sent)
        return sent

    def forget_engine(self, proxy: Proxy) -> None:
        """Note that an engine has forgotten everything."""
        for segment, prompts in self._sent.items():
            self._sent[segment] = [sent for sent in prompts if sent.proxy is not proxy]

    def forget_job(self, prompt_id: str) -> None:
        """Note that a job is retried: its last segment is rightly sent again, even when it is known."""
        for segment in [segment for segment in self._sent if segment.startswith(f"{prompt_id}/")]:
            del self._sent[segment]


class Proxy:
    """Relays HTTP and WebSocket. What it does wrong is drawn from `random`, with `mischief` as the chance of each."""

    def __init__(self, target: str, ledger: Ledger, rng: random.Random, mischief: float) -> None:
        self.target = target
        self.url = ""
        self.mischief = mischief
        self.counts: Counter[str] = Counter()
        self.thawed = asyncio.Event()
        """Not set while the engine is frozen."""
        self.thawed.set()
        self._thawed_at = -math.inf
        self._ledger = ledger
        self._rng = rng
        self._sockets: weakref.WeakSet[web.WebSocketResponse] = weakref.WeakSet()
        self._session: aiohttp.ClientSession | None = None

    def engine_died(self) -> None:
        """Note that the engine forgot everything: prompts sent now are rightly sent again."""
        self._ledger.forget_engine(self)

    def freeze(self) -> None:
        """Let the engine answer nothing from now on."""
        self.thawed.clear()

    def thaw(self) -> None:
        """Let the engine answer again."""
        self._thawed_at = time.monotonic()
        self.thawed.set()

    @property
    def can_be_asked(self) -> bool:
        """True once the engine has answered for so long that no reaction to its silence is pending."""
        return self.thawed.is_set() and time.monotonic() - self._thawed_at > AFTER_THAW_S

    async def cut_sockets(self) -> None:
        """Drop every WebSocket without a goodbye."""
        for socket in list(self._sockets):
            self.counts["sockets cut"] += 1
            if socket._req is not None and socket._req.transport is not None:
                socket._req.transport.abort()

    def _chance(self, name: str) -> bool:
        happens = self._rng.random() < self.mischief
        self.counts[name] += happens
        return happens

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        """Serve on a free port."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._relay)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(auto_decompress=False) as self._session:
            try:
                yield self
            finally:
                await self.cut_sockets()
                await runner.cleanup()

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        try:
            if request.path.endswith("/ws"):
                return await self._relay_socket(request)
            return await self._relay_call(request)
        except (aiohttp.ClientError, ConnectionError):
            # The engine is down: so is the connection to it.
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=502)

    async def _relay_call(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        body = await request.read()
        is_prompt = request.method == "POST" and request.path.endswith("/prompt")
        sent = await self._ledger.enter(self, json.loads(body)) if is_prompt else None
        if self._chance("answers delayed"):
            await asyncio.sleep(self._rng.uniform(0.05, 0.5))
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_HEADERS}
        async with self._session.request(
            request.method, self.target + request.path_qs, data=body or None, headers=headers
        ) as answer:
            content = await answer.read()
            if sent is not None:
                sent.accepted = answer.status == 200
            if is_prompt and answer.status == 200 and self._chance("500 though queued"):
                return web.Response(status=500, text="injected")
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in HOP_HEADERS:
                    response.headers[name] = value
            response.content_length = len(content)
            await response.prepare(request)
            if len(content) > 1000 and self._chance("bodies cut"):
                await response.write(content[: len(content) // 2])
                raise ConnectionResetError
            await response.write(content)
            return response

    async def knows(self, prompt_id: str) -> bool:
        """Tell whether the engine has a prompt: waiting, running, or ended well with its file still there."""
        try:
            async with asyncio.timeout(ASK_S):
                return await self._knows(prompt_id)
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return False

    async def _knows(self, prompt_id: str) -> bool:
        assert self._session is not None
        async with self._session.get(f"{self.target}/queue") as answer:
            queue = await answer.json()
        if any(item[1] == prompt_id for item in queue["queue_running"] + queue["queue_pending"]):
            return True
        async with self._session.get(f"{self.target}/history/{prompt_id}") as answer:
            entry = (await answer.json()).get(prompt_id)
        if entry is None or entry["status"]["status_str"] != "success":
            return False
        files = [file for output in entry["outputs"].values() for file in output.get("gifs", [])]
        for file in files:
            query = {name: file[name] for name in ("filename", "subfolder", "type")}
            async with self._session.head(f"{self.target}/view", params=query) as answer:
                if answer.status != 200:
                    return False
        return bool(files)

    async def _relay_socket(self, request: web.Request) -> web.WebSocketResponse:
        assert self._session is not None
        async with self._session.ws_connect(self.target + request.path_qs, max_msg_size=1 << 26) as engine:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            self._sockets.add(socket)
            to_engine = asyncio.create_task(self._forward_up(socket, engine))
            try:
                await self._forward_down(engine, socket)
            finally:
                to_engine.cancel()
                await asyncio.gather(to_engine, return_exceptions=True)
                await socket.close()
        return socket

    async def _forward_up(self, socket: web.WebSocketResponse, engine: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            await engine.send_str(message.data)
        await engine.close()

    async def _forward_down(self, engine: aiohttp.ClientWebSocketResponse, socket: web.WebSocketResponse) -> None:
        deaf = self._chance("sockets made deaf")
        duplicated = self._chance("sockets duplicated")
        delayed = self._chance("sockets delayed")
        async for message in engine:
            if deaf:
                continue
            if delayed:
                await asyncio.sleep(self._rng.uniform(0, 0.02))
            for _ in range(2 if duplicated else 1):
                if message.type is aiohttp.WSMsgType.TEXT:
                    await socket.send_str(message.data)
                else:
                    await socket.send_bytes(message.data)
