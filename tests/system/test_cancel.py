"""A job can be cancelled at every stage: it ends, soon, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from clips import make_clip
from processes import dead_url, eventually
from service_rig import PATIENT, Handler, ServiceRig, running_service, service_and_engines
from talk import on_both_databases

from faceswap.api import keys
from faceswap.media import JoinFacts

FRAMES = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES, size=(96, 64), sounds=["aac"])


class Gate:
    """Holds every call to one path of an engine until it is opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(self.path):
            self.reached.set()
            await self.open.wait()
        return await handler(request)


def holding(gate: Gate) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await gate(request, handler)

    return lie


async def cancel(service: ServiceRig, prompt_id: str) -> None:
    async with service.client.post(f"/jobs/{prompt_id}/cancel") as response:
        assert response.status == 202, await response.text()


async def is_cancelled(service: ServiceRig, prompt_id: str) -> bool:
    """Check that the job is cancelled and keeps only the files that a retry needs."""
    status = await service.ended(prompt_id)
    needed = await service.finished_segments(prompt_id)
    await eventually(lambda: only(service, prompt_id, needed))
    return bool(status["status"] == "CANCELLED" and (await service.messages(prompt_id))[-1] == "Face swap cancelled.")


async def only(service: ServiceRig, prompt_id: str, needed: set[str]) -> bool:
    names = [name for name in service.files() if prompt_id in name and not name.startswith("inputs/")]
    return set(names) <= needed


@on_both_databases
async def test_while_it_is_queued(clip: Path, tmp_path: Path, own_database: dict[str, object]) -> None:
    async with running_service(tmp_path, dead_url(), **own_database) as service:
        prompt_id = await service.post(clip)
        await cancel(service, prompt_id)
        assert (await service.status(prompt_id))["status"] == "CANCELLED"


@pytest.mark.parametrize("stage", ["/upload", "/view"])
async def test_while_files_are_on_their_way(stage: str, clip: Path, tmp_path: Path) -> None:
    gate = Gate(stage)
    async with service_and_engines(tmp_path, lie=holding(gate), paint=True) as (service, _):
        prompt_id = await service.post(clip)
        await gate.reached.wait()
        await cancel(service, prompt_id)
        assert await is_cancelled(service, prompt_id)
        gate.open.set()
        assert (await service.ended(await service.post(clip)))["status"] == "SUCCESS"


async def test_while_it_waits_behind_another_in_comfyui(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, timeouts=PATIENT) as (service, (engine,)):
        engine.hold()
        other = await service.post(clip)
        await eventually(lambda: true(engine.running))
        waiting = await service.post(clip)
        await eventually(lambda: true(engine.running and engine.pending))
        await cancel(service, waiting)
        assert await is_cancelled(service, waiting)
        assert engine.running and not engine.pending
        engine.release()
        assert (await service.ended(other))["status"] == "SUCCESS"
        # An older ComfyUI would have stopped the other one.
        assert ("POST", "/interrupt") not in engine.calls


async def true(value: object) -> bool:
    return bool(value)


async def test_while_it_runs_though_interrupts_get_lost(clip: Path, tmp_path: Path) -> None:
    lost = 0

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal lost
        if request.path == "/interrupt" and lost < 3:
            lost += 1
            return web.Response()
        return await handler(request)

    async with service_and_engines(tmp_path, lie=lie, timeouts=PATIENT) as (service, engines):
        engine = engines[0]
        engine.hold()
        running = await service.post(clip)
        await eventually(lambda: true(engine.running))
        other = await service.post(clip)
        await eventually(lambda: true(engine.pending))
        await cancel(service, running)
        assert await is_cancelled(service, running)
        assert lost == 3
        engine.release()
        assert (await service.ended(other))["status"] == "SUCCESS"


@on_both_databases
async def test_while_its_segments_run_on_several_engines(
    clip: Path, tmp_path: Path, own_database: dict[str, object]
) -> None:
    settings = {"segment_frames": 2, **own_database}
    async with service_and_engines(tmp_path, 2, timeouts=PATIENT, settings=settings) as (service, engines):
        for engine in engines:
            engine.hold()
        prompt_id = await service.post(clip)
        await eventually(lambda: true(all(engine.running for engine in engines)))
        await cancel(service, prompt_id)
        assert await is_cancelled(service, prompt_id)
        assert not any(engine.running or engine.pending for engine in engines)


@on_both_databases
async def test_while_it_is_joined(clip: Path, tmp_path: Path, own_database: dict[str, object]) -> None:
    async with service_and_engines(tmp_path, paint=True, settings=own_database) as (service, _):
        media = service.client.app[keys.SCHEDULER]._assembly._media
        join, reached, may_join = media.join, asyncio.Event(), asyncio.Event()

        async def slow_join(*arguments: Any, **named: Any) -> JoinFacts:
            reached.set()
            await may_join.wait()
            return await join(*arguments, **named)

        media.join = slow_join
        prompt_id = await service.post(clip)
        await reached.wait()
        await cancel(service, prompt_id)
        assert (await service.status(prompt_id))["status"] == "CANCELLED"
        may_join.set()
        await eventually(lambda: true(not service.client.app[keys.SCHEDULER]._joins))
        assert await is_cancelled(service, prompt_id)


@on_both_databases
async def test_a_cancelled_job_that_is_retried_keeps_what_was_finished(
    clip: Path, tmp_path: Path, own_database: dict[str, object]
) -> None:
    settings = {"segment_frames": 4, **own_database}
    async with service_and_engines(tmp_path, paint=True, settings=settings) as (service, (engine,)):
        engine.hold(after=1)
        prompt_id = await service.post(clip)
        await eventually(lambda: one_done(service, prompt_id))
        await cancel(service, prompt_id)
        assert await is_cancelled(service, prompt_id)
        finished = await service.finished_segments(prompt_id)
        assert finished
        engine.set_faults(paint=True)
        async with service.client.post(f"/jobs/{prompt_id}/retry") as response:
            assert response.status == 202
        assert (await service.ended(prompt_id))["status"] == "SUCCESS"
        assert finished <= await service.finished_segments(prompt_id)


async def one_done(service: ServiceRig, prompt_id: str) -> bool:
    return bool((await service.status(prompt_id))["segments"]["done"])
