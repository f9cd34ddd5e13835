"""The users of several nodes: each call goes to some node, as through a load balancer without sticky sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
from system.book import server_error
from system.users import AGAIN_S, CALL, Users

from faceswap.client import FaceSwap, FaceSwapError, JobEvent

WATCHERS = (1, 3)
"""The least and the most watchers of a watched job."""
SOCKETS, LONG_POLLS = 0.5, 0.5
"""The share of watchers that come over a WebSocket, and of polls that wait for a change."""
ORDER = {"QUEUED": 0, "PROCESSING": 1}
ENDED = 2
POLL_S = 0.5
LONG_POLL_S = 5


class ClusterUsers(Users):
    """Users who post to one node, watch on another, poll a third, and download from any."""

    def _watch(self, prompt_id: str) -> None:
        for _ in range(self._rng.randint(*WATCHERS)):
            super()._watch(prompt_id)
        self._watching.add(asyncio.create_task(self._poll(prompt_id), name=f"poller of {prompt_id}"))

    async def _events(self, prompt_id: str, after: str | None) -> AsyncIterator[JobEvent]:
        """Yield events as they come, over a WebSocket at times, until the connection is cut. Raises `FaceSwapError`."""
        if self._rng.random() >= SOCKETS:
            async for event in super()._events(prompt_id, after):
                yield event
            return
        try:
            async for event in socket_events(await self._url(), prompt_id, after):
                yield event
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise FaceSwapError(0, "unreachable", str(error)) from error

    async def _hear(self, prompt_id: str) -> None:
        """Watch a job to its end, and download its result there and then."""
        await super()._hear(prompt_id)
        # There may be other watchers, whose stories end the same.
        ends = [story[-1] for story in self._book.heard[prompt_id] if story]
        if completed := next((event for event in ends if event.type == "completed"), None):
            await self._download(prompt_id, completed)

    async def _download(self, prompt_id: str, completed: JobEvent) -> None:
        """Download a result from some node, as often as it takes."""
        with TemporaryDirectory() as folder:
            while True:
                try:
                    async with FaceSwap(await self._url(), resumes=0) as client:
                        name, sha256 = completed.data["filename"], completed.data["sha256"]
                        await client.download(name, Path(folder, "result.mp4"), sha256=sha256)
                    self._book.done["download"] += 1
                    return
                except FaceSwapError as error:
                    if prompt_id in self._book.erasing and error.status in (404, 410):
                        return
                    if error.code == "damaged" or (error.status and error.status <= 500):
                        self._book.violated(
                            f"{prompt_id} is completed, and its download: {error.status} {error.detail}"
                        )
                        return
                await asyncio.sleep(AGAIN_S)

    async def _poll(self, prompt_id: str) -> None:
        """Ask node after node for a job's state and percentage, which never go back but by a retry."""
        told: list[tuple[int, float]] = [(0, 0.0)]
        query = f"?wait={LONG_POLL_S}" if self._rng.random() < LONG_POLLS else ""
        while told[-1][0] < ENDED:
            try:
                async with (
                    aiohttp.ClientSession(timeout=CALL) as session,
                    session.get(f"{await self._url()}/status/{prompt_id}{query}") as answer,
                ):
                    await server_error(self._book, f"GET /status/{prompt_id}", answer)
                    if answer.status == 404:
                        if prompt_id not in self._book.erasing:
                            self._book.violated(f"{prompt_id} was promised, and its /status is 404")
                        return
                    if answer.status == 200:
                        document = await answer.json()
                        told.append((ORDER.get(document["status"], ENDED), document["progress"]["percentage"]))
                        self._book.done["poll"] += 1
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                pass
            if told[-2:] != sorted(told[-2:]) and prompt_id not in self._book.retried:
                self._book.violated(f"{prompt_id}: /status went back: {told}")
            await asyncio.sleep(POLL_S)


async def socket_events(url: str, prompt_id: str, after: str | None) -> AsyncIterator[JobEvent]:
    """Yield the events of a job that come over a WebSocket. Raises `FaceSwapError` and what aiohttp raises."""
    async with aiohttp.ClientSession(timeout=CALL) as session, session.ws_connect(f"{url}/face-swap-ws") as socket:
        await socket.send_json({"action": "subscribe", "prompt_id": prompt_id, "last_event_id": after or "0"})
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                return
            told = json.loads(message.data)
            if told["id"] == 0:
                raise FaceSwapError(told["data"]["status"], told["data"]["code"], told["data"]["detail"])
            yield JobEvent(str(told["id"]), told["event"], told["data"])
