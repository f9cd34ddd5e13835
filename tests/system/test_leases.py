"""A node does only what it holds the lease for; what it lost is taken up again and never done twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clips import make_clip, read_numbers
from service_rig import QUICK, EngineRig, running_service, service_and_engines
from stored_jobs import sql
from waiting import eventually, until

from faceswap.api import keys
from faceswap.media import JoinFacts, MediaWorker

FRAMES = 12
TIMEOUTS = replace(QUICK, lease_s=0.6)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES, size=(96, 64))


async def steal(database: Path, name: str) -> None:
    """Let another node have taken a lease, for an hour."""
    statement = "UPDATE lease SET holder = 'another', epoch = epoch + 1, expires_at = expires_at + 3600000"
    await asyncio.to_thread(sql, database, f"{statement} WHERE name LIKE ?", name)


async def let_go(database: Path) -> None:
    await asyncio.to_thread(sql, database, "UPDATE lease SET expires_at = 0 WHERE holder = 'another'")


async def test_a_prompt_whose_lease_was_lost_is_looked_up_by_who_has_it_next(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, timeouts=TIMEOUTS) as (service, (engine,)):
        database = service.client.app[keys.FILES].database
        backend = service.client.app[keys.SCHEDULER].backends[0]
        engine.hold()
        prompt_id = await service.post(clip)
        await until(lambda: engine.running and backend.in_flight)
        await steal(database, "backend:%")
        await until(lambda: not backend.in_flight)  # cancelled, and not failed
        assert (await service.status(prompt_id))["status"] == "PROCESSING"
        await until(lambda: backend.listener.state == "disconnected")
        assert engine.running
        await let_go(database)
        await until(lambda: backend.in_flight)
        engine.release()
        status = await service.ended(prompt_id)
        assert (status["status"], status["attempts"], engine.submissions) == ("SUCCESS", 1, 1)
        assert read_numbers(await service.download(status, tmp_path / "result.mp4")) == list(range(FRAMES))


async def test_nothing_is_claimed_under_a_lease_that_was_lost(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, paint=True) as (service, (engine,)):  # with a lease of an hour
        database = service.client.app[keys.FILES].database
        await steal(database, "backend:%")
        prompt_id = await service.post(clip)
        backend = service.client.app[keys.SCHEDULER].backends[0]
        await until(lambda: backend.listener.state == "disconnected")
        assert (await service.status(prompt_id))["status"] == "QUEUED"
        assert engine.submissions == 0


async def test_a_join_whose_lease_was_lost_is_begun_again(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join, joins, stolen = MediaWorker.join, 0, False

    async with service_and_engines(tmp_path, paint=True) as (service, _):
        database = service.client.app[keys.FILES].database

        async def join_and_lose(*arguments: Any, **named: Any) -> JoinFacts:
            nonlocal joins, stolen
            joins += 1
            facts: JoinFacts = await join(*arguments, **named)
            if not stolen:
                stolen = True
                await steal(database, "join:%")
            return facts

        monkeypatch.setattr(MediaWorker, "join", join_and_lose)
        prompt_id = await service.post(clip)
        await until(lambda: stolen)

        async def given_back() -> bool:
            await let_go(database)
            return (await service.status(prompt_id))["status"] == "SUCCESS"

        await eventually(given_back)
        assert joins == 2


async def test_what_was_given_to_an_engine_that_is_no_longer_named_is_done_by_another(
    clip: Path, tmp_path: Path
) -> None:
    async with EngineRig(tmp_path / "a") as former, EngineRig(tmp_path / "b", paint=True) as engine:
        former.hold()
        async with running_service(tmp_path / "data", former) as service:
            prompt_id = await service.post(clip)
            await until(lambda: former.running)
        async with running_service(tmp_path / "data", engine) as service:
            status = await service.ended(prompt_id)
            assert (status["status"], engine.submissions) == ("SUCCESS", 1)
