"""The proxies of deploy/ in front of a node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSMsgType
from processes import Engine, Service, dead_url, eventually
from system.reverse_proxies import CADDY, KINDS, NAME, Behind, answers, caddy, make_certificate, proxied
from system.talk import Api, Media, assert_problem, half_an_upload
from waiting import WAIT_S, until

MANY_BYTES = 256 * 1024
"""More than the proxies gather before they write."""


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder)
    return folder


@pytest.fixture(params=KINDS)
async def behind(
    request: pytest.FixtureRequest, tmp_path: Path, api: Api, certificate: Path, media: Media
) -> AsyncIterator[Behind]:
    """Yield a user of the service behind a proxy of each kind."""
    async with proxied(request.param, api.url, tmp_path, certificate, media) as behind:
        yield behind


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


@pytest.mark.parametrize("kind", KINDS)
async def test_the_public_address_is_ours_behind_a_proxy(
    kind: str, folder_service: Callable[..., Service], tmp_path: Path, certificate: Path, media: Media
) -> None:
    async with (
        folder_service(public_url=f"https://{NAME}", allow_anonymous=1) as service,
        proxied(kind, service.url, tmp_path, certificate, media) as behind,
    ):
        ours = {"Host": NAME}
        for origin in ({}, {"Origin": f"https://{NAME}"}):
            assert (await behind.get("/jobs", headers={**ours, **origin})).status == 200
        for origin in ("https://evil.example", f"https://{NAME}.evil.example", f"http://{NAME}"):
            assert_problem(await behind.get("/jobs", headers={**ours, "Origin": origin}), 403, "foreign_origin")


@pytest.mark.parametrize("kind", KINDS)
async def test_clients_behind_a_proxy_are_told_apart_by_their_addresses_and_not_by_what_they_say(
    kind: str, folder_service: Callable[..., Service], tmp_path: Path, certificate: Path, media: Media
) -> None:
    settings = {"rate_limit": 1, "trusted_proxies": "127.0.0.1/32"}
    async with (
        folder_service(**settings) as service,
        proxied(kind, service.url, tmp_path, certificate, media) as behind,
    ):
        assert (await behind.swap(headers={"X-Forwarded-For": "198.51.100.1"})).status == 202
        # Where a minute of the clock ends in between, one of the two is taken.
        answers = []
        for last in (2, 3):  # each on a connection of its own: a proxy ends that of an upload which was refused
            async with behind.from_address("127.0.0.1") as same:
                answers.append(await same.swap(headers={"X-Forwarded-For": f"198.51.100.{last}"}))
        assert_problem(next(answer for answer in answers if answer.status != 202), 429, "rate_limited")
        async with behind.from_address("127.0.0.2") as another:
            assert (await another.swap()).status == 202


async def test_it_is_the_service_that_says_what_is_too_large(behind: Api) -> None:
    answer = await behind.swap(video=bytes(2**20 + 1))
    assert_problem(answer, 413, "too_large")


async def test_a_node_that_is_gone_is_left_out(
    tmp_path: Path, api_of: Callable[[Service], Api], session: aiohttp.ClientSession, media: Media
) -> None:
    async with Service(tmp_path, dead_url()) as service, caddy(tmp_path, CADDY, dead_url(), service.url) as url:
        behind = Api(url, session, media)
        await eventually(lambda: answers(behind))
        prompt_ids = [await behind.submit() for _ in range(6)]
        listed = (await behind.get("/jobs")).json["jobs"]
        assert {job["prompt_id"] for job in listed} == set(prompt_ids)
