"""Nodes as real processes: killed, frozen, started before what they need."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import postgres
import pytest
from clips import make_clip
from processes import Child, Engine, Service, eventually

from faceswap import samples

FRAMES = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES, size=(96, 64))


@pytest.fixture
def database() -> Iterator[str]:
    with postgres.empty_database() as url:
        yield url


@asynccontextmanager
async def nodes(folder: Path, database: str, *urls: str, count: int = 2) -> AsyncIterator[list[Service]]:
    """Run nodes in front of these engines, or each with an embedded one."""
    shared = folder / "shared"
    shared.mkdir()
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            settings: dict[str, object] = {"node": f"node-{number}", "database_url": database, "files_url": shared}
            service = Service(folder / f"node-{number}", *urls, **settings)
            found.append(await stack.enter_async_context(service))
        yield found


async def get(service: Service, path: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{service.url}{path}") as response:
        answer: dict[str, Any] = await response.json()
        return answer


async def post(service: Service, clip: Path) -> str:
    form = aiohttp.FormData()
    form.add_field("video", clip.read_bytes(), filename=clip.name)
    form.add_field("image", samples.FACE.read_bytes(), filename="face.png")
    form.add_field("return_prompt_id_only", "true")
    async with aiohttp.ClientSession() as session, session.post(f"{service.url}/face-swap", data=form) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["prompt_id"])


async def ended(service: Service, prompt_id: str) -> dict[str, Any]:
    async def end() -> dict[str, Any] | None:
        status = await get(service, f"/status/{prompt_id}")
        return status if status["finished_at"] else None

    status: dict[str, Any] = await eventually(end)
    return status


async def working(services: list[Service]) -> tuple[Service, Service]:
    """Return the node that has a prompt with the engine, and the other one."""

    async def found() -> tuple[Service, Service] | None:
        for service, other in (services, services[::-1]):
            health = await get(service, "/health")
            if any(backend["running"] for backend in health["backends"]):
                return service, other
        return None

    pair: tuple[Service, Service] = await eventually(found)
    return pair


async def history(engine: Engine) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{engine.url}/history") as response:
        return len(await response.json())


async def running(engine: Engine) -> bool:
    async with aiohttp.ClientSession() as session, session.get(f"{engine.url}/queue") as response:
        return bool((await response.json())["queue_running"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_when_a_holder_dies_or_hangs_another_goes_on_with_its_prompt(
    number: signal.Signals, database: str, clip: Path, tmp_path: Path
) -> None:
    async with Engine(tmp_path, paint=True) as engine, nodes(tmp_path, database, engine.url) as both:
        await engine.hold()
        prompt_id = await post(both[0], clip)
        await eventually(lambda: running(engine))
        holder, other = await working(both)
        os.kill(holder.pid, number)
        try:
            await working([other, other])
            engine.release()
            status = await ended(other, prompt_id)
            assert (status["status"], status["attempts"], await history(engine)) == ("SUCCESS", 1, 1)
        finally:
            with suppress(ProcessLookupError):
                os.kill(holder.pid, signal.SIGCONT)
        if number == signal.SIGSTOP:
            await eventually(lambda: follows(holder))
            again = await post(holder, clip)
            assert (await ended(holder, again))["status"] == "SUCCESS"


async def follows(service: Service) -> bool:
    """Return whether a node is ready, and none of its engines is connected with it."""
    health = await get(service, "/health")
    ready = await get(service, "/readyz")
    return bool(ready["ready"]) and not any(backend["listener"] == "connected" for backend in health["backends"])


async def test_nodes_without_engines_named_have_one_each_and_do_each_others_work(
    database: str, clip: Path, tmp_path: Path
) -> None:
    async with nodes(tmp_path, database) as (one, two):

        async def both_ready() -> bool:
            backends = [(await get(service, "/health"))["backends"][0] for service in (one, two)]
            names = [backend["url"] for backend in backends]
            return names == ["embedded:node-0", "embedded:node-1"] and all(
                backend["listener"] == "connected" for backend in backends
            )

        await eventually(both_ready)
        jobs = [await post(one, clip) for _ in range(4)]
        await one.kill()
        for prompt_id in jobs:  # these engines really look for a face
            assert (await ended(two, prompt_id))["code"] == "no_face_detected"


def command(folder: Path, database: str) -> Child:
    return Service(folder, "http://127.0.0.1:1", database_url=database)


async def test_a_database_that_starts_later_is_waited_for_and_a_stop_ends_the_wait(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    service = command(tmp_path / "service", f"postgresql://nobody@127.0.0.1:{port}/none")
    starting = await service.begin()
    await eventually(lambda: told(service, "the database cannot be used, trying again until it can"))
    assert await service.stop() == 0
    assert b"listening" not in await starting


async def told(service: Child, text: str) -> bool:
    return text in service.log()


@pytest.mark.parametrize(
    ("user", "sentence"), [("nobody-we-know", "FACESWAP_DATABASE_URL cannot be used"), ("postgres", "cannot be used")]
)
async def test_a_database_that_refuses_is_not_waited_for(user: str, sentence: str, tmp_path: Path) -> None:
    where = postgres.at("there-is-no-such-database").replace("postgres@", f"{user}:hidden@")
    service = command(tmp_path / "service", where)
    starting = await service.begin()
    assert await service.ended() == 1
    await starting
    assert sentence in service.log()
    assert "hidden" not in service.log()
