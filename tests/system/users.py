"""The users of a chaos run: they submit in every way, watch, cancel, retry and erase, and never give up."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from clips import make_clip
from system.book import Book, name_of, server_error
from system.proxy import Ledger

from faceswap.client import FaceSwap, FaceSwapError, JobEvent
from faceswap.samples import FACE

CLIP_FRAMES = (4, 9, 16)
AT_ONCE = 6
AGAIN_S = 0.2
CALL = aiohttp.ClientTimeout(total=60)
CANCELS, RETRIES, ERASES, WATCHES = 0.15, 0.5, 0.05, 0.3
"""Shares of the jobs; that of retries is of the cancelled ones."""


class Users:
    """Everybody who uses the service of a run. `url` waits until there is one."""

    def __init__(
        self, folder: Path, book: Book, ledger: Ledger, rng: random.Random, url: Callable[[], Awaitable[str]]
    ) -> None:
        self._book = book
        self._ledger = ledger
        self._rng = rng
        self._url = url
        self._clips = [make_clip(folder / f"{frames}.mp4", frames, sounds=["aac"]) for frames in CLIP_FRAMES]
        self._face = folder / FACE.name
        shutil.copyfile(FACE, self._face)
        self._media_url = ""
        self._watching: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def web_server(self) -> AsyncIterator[None]:
        """Serve the clips and the face to who is given their addresses."""

        async def serve(request: web.Request) -> web.StreamResponse:
            return web.FileResponse(self._face.parent / request.match_info["name"])

        app = web.Application()
        app.router.add_get("/{name}", serve)
        async with TestServer(app) as server:
            self._media_url = str(server.make_url("")).rstrip("/")
            yield

    async def submit_all(self, jobs: int) -> None:
        """Submit so many jobs, a few users at a time."""
        numbers = iter(range(jobs))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(self._submit_some(numbers))

    async def heard_all(self) -> None:
        """Wait until every watcher has seen the end."""
        await asyncio.gather(*self._watching)

    async def _submit_some(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            clip, dice = self._rng.choice(self._clips), random.Random(self._rng.random())
            how = dice.choice((self._send_form, self._send_urls, self._send_over_a_socket))
            prompt_id = await self._insist(how, number, clip)
            if prompt_id is None:
                continue
            self._book.done[how.__name__.strip("_").replace("_", " ")] += 1
            self._book.promised.add(prompt_id)
            if number == 0 or dice.random() < WATCHES:
                self._watch(prompt_id)
            if dice.random() < CANCELS:
                await asyncio.sleep(dice.uniform(0, 2))
                await self._cancel(prompt_id)
                if dice.random() < RETRIES:
                    await self._retry(prompt_id)
            if dice.random() < ERASES:
                await asyncio.sleep(dice.uniform(0, 2))
                await self._erase(prompt_id)

    async def _insist(self, how: Callable[[int, Path], Awaitable[str]], number: int, clip: Path) -> str | None:
        """Repeat a call, as a careful program does, until there is an answer; None when it was a refusal."""
        while True:
            try:
                return await how(number, clip)
            except FaceSwapError as error:
                if error.status and error.status <= 500:
                    self._book.violated(f"job {number} was answered with {error.status} {error.code}: {error.detail}")
                    if error.status < 500:
                        return None
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                pass
            await asyncio.sleep(AGAIN_S)

    # Three ways in.

    async def _send_form(self, number: int, clip: Path) -> str:
        return await self._send(number, clip, clip, self._face)

    async def _send_urls(self, number: int, clip: Path) -> str:
        return await self._send(number, clip, f"{self._media_url}/{clip.name}", f"{self._media_url}/{self._face.name}")

    async def _send(self, number: int, clip: Path, video: Path | str, image: Path | str) -> str:
        async with FaceSwap(await self._url(), resumes=0) as client:
            name = name_of(number, int(clip.stem))
            return await client.submit(video, image, output_name=name, idempotency_key=name)

    async def _send_over_a_socket(self, number: int, clip: Path) -> str:
        """Submit without an idempotency key: when the answer is cut off there may be a job that no user knows of."""
        files = {"video": clip.read_bytes(), "image": self._face.read_bytes()}
        first: dict[str, Any] = {kind: {"filename": kind, "size": len(body)} for kind, body in files.items()}
        async with (
            aiohttp.ClientSession(timeout=CALL) as session,
            session.ws_connect(f"{await self._url()}/face-swap-ws") as socket,
        ):
            await socket.send_json({**first, "output_name": name_of(number, int(clip.stem))})
            for body in files.values():
                await socket.send_bytes(body)
            answer = await socket.receive(timeout=CALL.total)
            if answer.type is not aiohttp.WSMsgType.TEXT:
                raise ConnectionResetError
            event = json.loads(answer.data)
            if event["event"] == "error":
                raise FaceSwapError(event["data"]["status"], event["data"]["code"], event["data"]["detail"])
            return str(event["data"]["prompt_id"])

    # What becomes of a job.

    def _watch(self, prompt_id: str) -> None:
        task = asyncio.create_task(self._hear(prompt_id), name=f"watcher of {prompt_id}")
        self._watching.add(task)

    async def _hear(self, prompt_id: str) -> None:
        """Watch a job to its end over all cuts, resuming where they came."""
        heard: list[JobEvent] = []
        self._book.heard[prompt_id].append(heard)
        while not heard or not heard[-1].terminal:
            try:
                async for event in self._events(prompt_id, heard[-1].id if heard else None):
                    heard.append(event)
                    if event.terminal:
                        break
            except FaceSwapError as error:
                if error.status == 404:
                    return
            await asyncio.sleep(AGAIN_S)

    async def _events(self, prompt_id: str, after: str | None) -> AsyncIterator[JobEvent]:
        """Yield the events of a job as they come, until it ends or the connection is cut. Raises `FaceSwapError`."""
        async with FaceSwap(await self._url(), resumes=0) as client:
            async for event in client.events(prompt_id, after):
                yield event

    async def _call(self, method: str, path: str) -> int:
        """Return the status of an answer that is not "come again"."""
        while True:
            try:
                async with (
                    aiohttp.ClientSession(timeout=CALL) as session,
                    session.request(method, await self._url() + path) as answer,
                ):
                    await server_error(self._book, f"{method} {path}", answer)
                    if answer.status < 500:
                        return answer.status
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                pass
            await asyncio.sleep(AGAIN_S)

    async def _cancel(self, prompt_id: str) -> None:
        self._book.cancelled.add(prompt_id)  # before it is asked: the answer may be cut off
        await self._call("POST", f"/jobs/{prompt_id}/cancel")
        self._book.done["cancel"] += 1

    async def _retry(self, prompt_id: str) -> None:
        self._book.retried.add(prompt_id)
        self._ledger.forget_job(prompt_id)
        status = await self._call("POST", f"/jobs/{prompt_id}/retry")
        if status == 202:
            self._ledger.forget_job(prompt_id)
            self._book.cancelled.discard(prompt_id)
            self._book.done["retry"] += 1

    async def _erase(self, prompt_id: str) -> None:
        self._book.erasing.add(prompt_id)
        if await self._call("DELETE", f"/jobs/{prompt_id}") in (204, 404):
            self._book.erased.add(prompt_id)
            self._book.done["erase"] += 1
