"""Health: alive, ready and the state of all parts, also while some of them do not answer."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Engine, Service, eventually, service_and_engine
from talk import Answer, Api
from waiting import WAIT_S

from faceswap import __version__

LOCK_S = 4.0
"""A second is promised. SQLite waits five for a lock: an answer that comes sooner did not wait for it."""
SLOW_S = 60.0
"""The time that the slow ComfyUI takes. The service waits for half of it."""


@pytest.fixture
async def pair(tmp_path: Path, api_of: Callable[[Service], Api]) -> AsyncIterator[tuple[Api, Engine, Service]]:
    """Yield a user of a service of the test's own, its engine, and the service."""
    async with service_and_engine(tmp_path, {"paint": True}) as (service, engine):
        yield api_of(service), engine, service


async def health(api: Api) -> dict[str, Any]:
    return dict((await api.get("/health")).json)


async def in_time(api: Api, path: str, bound_s: float) -> Answer | None:
    """Return an answer that waited for no part that takes longer; None where it did, or a busy machine: ask again."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(bound_s):
            return await api.get(path)
    return None


async def test_with_an_engine_everything_is_healthy(api: Api, engine: Engine) -> None:
    async def healthy() -> dict[str, Any] | None:  # a look that takes too long is told as what it looked at
        document = await health(api)
        is_at_rest = (document["status"], document["watchers"], document["outage"]) == ("healthy", 0, None)
        return document if is_at_rest else None

    document = await eventually(healthy)
    assert document.pop("disk_free_mb") > 0
    assert document.pop("watchers") == 0
    assert document.pop("queue").keys() == {"queued", "processing"}
    (backend,) = document.pop("backends")
    assert {"url", "listener", "running", "last_event_age_s"} <= backend.keys()
    assert (backend["url"], backend["listener"]) == (engine.url, "connected")
    assert document == {
        "status": "healthy",
        "comfyui_status": "healthy",
        "outage": None,
        "workflow_status": "valid",
        "server_address": api.url.removeprefix("http://"),
        "workflow_path": "FaceSwap-Reactor-API.json",
        "communication_method": "websocket",
        "version": __version__,
        "database": "writable",
    }


async def test_alive_and_ready(api: Api) -> None:
    answer = await api.get("/livez")
    assert (answer.status, answer.json) == (200, {"status": "alive"})

    async def ready() -> Answer | None:
        answer = await api.get("/readyz")
        return answer if answer.status == 200 else None

    assert (await eventually(ready)).json == {
        "ready": True,
        "checks": {"database": True, "disk": True, "queue": True, "engine": True},
    }


async def test_without_an_engine_it_is_degraded_and_not_ready_but_alive(idle: Api) -> None:
    document = await health(idle)
    assert (document["status"], document["comfyui_status"]) == ("degraded", "unreachable")
    answer = await idle.get("/readyz")
    assert (answer.status, answer.json["checks"]["engine"]) == (503, False)
    assert (await idle.get("/livez")).status == 200


async def test_an_engine_that_dies_is_noticed_and_its_return_too(pair: tuple[Api, Engine, Service]) -> None:
    api, engine, _ = pair

    async def is_healthy() -> bool:
        return str((await health(api))["status"]) == "healthy"

    async def is_degraded() -> bool:
        return not await is_healthy()

    await eventually(is_healthy)
    await engine.kill()
    await eventually(is_degraded)
    assert (await api.get("/readyz")).status == 503
    await engine.start()
    await eventually(is_healthy)


async def test_queue_and_running_prompts_are_counted(api: Api, engine: Engine) -> None:
    await engine.hold()
    prompt_ids = [await api.submit() for _ in range(3)]

    async def counted() -> bool:
        document = await health(api)
        running = document["backends"][0]["running"]
        return bool(document["queue"] == {"queued": 1, "processing": 2} and running == 2)

    await eventually(counted)
    for prompt_id in reversed(prompt_ids):
        assert (await api.call("DELETE", f"/jobs/{prompt_id}")).status == 204


async def test_a_slow_comfyui_slows_no_answer(pair: tuple[Api, Engine, Service]) -> None:
    api, engine, _ = pair

    async def is_ready() -> bool:
        return (await api.get("/readyz")).status == 200

    await eventually(is_ready)
    await engine.set_faults(http_delay_s=SLOW_S)
    job = asyncio.create_task(api.submit())
    for _ in range(5):
        for path in ("/health", "/readyz", "/livez"):
            answer = await eventually(lambda path=path: in_time(api, path, SLOW_S / 4))
            assert answer.status == 200 or path == "/readyz"  # after a while, a ComfyUI so slow counts as away
    prompt_id = await job
    await engine.set_faults(paint=True)
    assert (await api.post(f"/jobs/{prompt_id}/cancel")).status == 202
    await api.until(prompt_id, "CANCELLED")


async def test_a_locked_database_is_told_without_waiting_for_it_and_recovers(
    folder_service: Callable[..., Service], api_of: Callable[[Service], Api]
) -> None:
    async with folder_service() as service:
        api = api_of(service)
        path = service.data_dir / "faceswap.db"
        with contextlib.closing(sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")

            async def unwritable() -> bool:
                answer = await in_time(api, "/health", LOCK_S)
                return bool(answer and (answer.json["status"], answer.json["database"]) == ("degraded", "unwritable"))

            async def unready() -> bool:
                answer = await in_time(api, "/readyz", LOCK_S)
                return bool(answer and answer.json["checks"]["database"] is False)

            await eventually(unwritable)
            await eventually(unready)
            await eventually(lambda: in_time(api, "/livez", LOCK_S))
            database.execute("ROLLBACK")

        async def writable() -> bool:
            return str((await health(api))["database"]) == "writable"

        await eventually(writable)


async def test_programs_get_the_description_and_browsers_the_page(api: Api) -> None:
    answer = await api.get("/")
    assert answer.json["version"] == __version__
    assert "POST /face-swap" in answer.json["endpoints"]
    page = await api.get("/", headers={"Accept": "text/html,application/xhtml+xml"})
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Accept" in page.headers["Vary"]
    for name in ("app.js", "style.css"):
        assert (await api.get(f"/web/{name}")).status == 200
