"""A proxy between service and engine that cuts, delays, duplicates and deafens, and keeps the book of prompts."""

from __future__ import annotations

import asyncio
import json
import random
import weakref
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

HOP_HEADERS = {"transfer-encoding", "connection", "content-length", "host", "content-encoding"}


class Proxy:
    """Relays HTTP and WebSocket. What it does wrong is drawn from `random`, with `mischief` as the chance of each."""

    def __init__(self, target: str, rng: random.Random, mischief: float) -> None:
        self.target = target
        self.url = ""
        self.mischief = mischief
        self.counts: Counter[str] = Counter()
        self.run_twice: list[str] = []
        self._rng = rng
        self._sockets: weakref.WeakSet[web.WebSocketResponse] = weakref.WeakSet()
        self._sent: defaultdict[str, list[str]] = defaultdict(list)
        self._session: aiohttp.ClientSession | None = None

    def engine_died(self) -> None:
        """The engine forgot everything: whatever is sent now is rightly sent again."""
        self._sent.clear()

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
        if is_prompt:
            await self._enter(json.loads(body))
        if self._chance("answers delayed"):
            await asyncio.sleep(self._rng.uniform(0.05, 0.5))
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_HEADERS}
        async with self._session.request(
            request.method, self.target + request.path_qs, data=body or None, headers=headers
        ) as answer:
            content = await answer.read()
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

    async def _enter(self, prompt: dict[str, Any]) -> None:
        """Note a prompt that is sent; one whose segment the engine still knows, alive or well, is run twice."""
        prefixes = [node["inputs"].get("filename_prefix") for node in prompt["prompt"].values()]
        segment = next(prefix for prefix in prefixes if prefix).rpartition("-")[0]
        prompt_id = prompt["prompt_id"]
        for earlier in self._sent[segment]:
            if await self._known(earlier):
                self.run_twice.append(f"{segment}: {earlier}, then {prompt_id}")
        self._sent[segment].append(prompt_id)

    async def _known(self, prompt_id: str) -> bool:
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
