"""Several engines share the work: all that are healthy, two prompts each, the quick ones more of it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clips import make_clip, read_numbers
from processes import Engine, eventually
from service_rig import PATIENT, QUICK, EngineRig, ServiceRig, running_service, service_and_engines
from waiting import until

from faceswap.api import keys
from faceswap.comfy.backend import MAX_PROMPTS
from faceswap.config import Timeouts

SIZE = (96, 64)


def clip_of(folder: Path, frames: int) -> Path:
    return make_clip(folder / f"{frames}.mp4", frames, size=SIZE)


async def succeeds(service: ServiceRig, prompt_id: str) -> dict[str, Any]:
    """Return the status of a job that has ended well."""
    status = await service.ended(prompt_id)
    assert status["status"] == "SUCCESS", status
    return status


async def test_a_long_video_is_spread_over_all_engines_two_prompts_each(tmp_path: Path) -> None:
    settings = {"segment_frames": 4}
    async with service_and_engines(tmp_path, 3, paint=True, timeouts=PATIENT, settings=settings) as (service, engines):
        for engine in engines:
            engine.hold(after=1)  # what has shown its pace is given a second prompt
        prompt_id = await service.post(clip_of(tmp_path, 48))
        await until(lambda: all(engine.running and engine.pending for engine in engines))
        for engine in engines:
            engine.release()
        status = await succeeds(service, prompt_id)
        assert [engine.most for engine in engines] == [2, 2, 2]
        assert sum(engine.submissions for engine in engines) == status["attempts"] == 12
        result = await service.download(status, tmp_path / "result.mp4")
        assert read_numbers(result) == list(range(48))


async def test_different_jobs_run_side_by_side(tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, 2, timeouts=PATIENT) as (service, engines):
        for engine in engines:
            engine.hold()
        clip = clip_of(tmp_path, 10)
        jobs = [await service.post(clip) for _ in engines]
        await until(lambda: all(engine.running for engine in engines))
        for engine in engines:
            engine.release()
        for job in jobs:
            await succeeds(service, job)
        assert [engine.submissions for engine in engines] == [1, 1]


async def test_a_slow_engine_gets_less_and_never_the_last_of_it(tmp_path: Path) -> None:
    async with (
        EngineRig(tmp_path / "quick", paint=True) as quick,
        EngineRig(tmp_path / "slow", paint=True) as slow,
        running_service(tmp_path / "data", quick, slow, timeouts=Timeouts(), segment_frames=4) as service,
    ):
        slow.hold()
        prompt_id = await service.post(clip_of(tmp_path, 48))
        await until(lambda: slow.running and len(quick.finished) == 11)
        slow.release()
        await succeeds(service, prompt_id)
        assert (slow.most, slow.submissions, quick.submissions) == (1, 1, 11)
        await succeeds(service, await service.post(clip_of(tmp_path, 4)))
        assert (slow.submissions, quick.submissions) == (1, 12)


async def test_an_engine_that_dies_gives_its_work_back_and_is_used_again_when_it_is_back(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Engine(tmp_path / str(n), paint=True)) for n in range(2)]
        urls = [engine.url for engine in engines]
        service = await stack.enter_async_context(running_service(tmp_path / "data", *urls, segment_frames=4))
        await service.ready(2)
        for engine in engines:
            await engine.hold()
        prompt_id = await service.post(clip_of(tmp_path, 48))
        await eventually(lambda: all_running(service))
        await engines[0].kill()
        engines[1].release()
        status = await succeeds(service, prompt_id)
        assert 12 < status["attempts"] <= 12 + MAX_PROMPTS
        assert read_numbers(await service.download(status, tmp_path / "result.mp4")) == list(range(48))

        await engines[0].start()
        await service.ready(2)
        for engine in engines:
            await engine.hold()
        both = [await service.post(clip_of(tmp_path, 8)) for _ in range(2)]
        await eventually(lambda: all_running(service))
        for engine in engines:
            engine.release()
        for prompt_id in both:
            await succeeds(service, prompt_id)


async def all_running(service: ServiceRig) -> bool:
    return all(backend["running"] for backend in (await service.get("/health"))["backends"])


async def test_the_work_of_a_stuck_engine_is_done_by_another(tmp_path: Path) -> None:
    async with (
        EngineRig(tmp_path / "stuck", stuck=True) as stuck,
        EngineRig(tmp_path / "good", paint=True) as good,
        running_service(tmp_path / "data", stuck, good, timeouts=PATIENT, segment_frames=6) as service,
    ):
        service.client.app[keys.SCHEDULER].backends[0].timeouts = replace(QUICK, silence_s=0.5, stuck_s=3.0)
        status = await service.ended(await service.post(clip_of(tmp_path, 24)))
        assert status["status"] == "SUCCESS", status

        async def healthy() -> dict[str, Any] | None:
            health = await service.get("/health")
            return health if health["status"] == "healthy" else None

        health = await eventually(healthy)
        assert [backend["stuck"] for backend in health["backends"]] == [True, False]
        assert len(good.finished) == 4


OUT_OF_MEMORY = {"class": "ReActorFaceSwap", "exception_type": "torch.OutOfMemoryError", "message": "full"}


@pytest.mark.parametrize("fault", [{"max_upload_size": 2000}, {"prompt_500": True}, {"raise_in_node": OUT_OF_MEMORY}])
async def test_what_one_engine_cannot_do_is_done_by_another(fault: dict[str, Any], tmp_path: Path) -> None:
    async with (
        EngineRig(tmp_path / "poor", **fault) as poor,
        EngineRig(tmp_path / "good", paint=True) as good,
        running_service(tmp_path / "data", poor, good, timeouts=PATIENT) as service,
    ):
        status = await service.ended(await service.post(clip_of(tmp_path, 12)))
        assert status["status"] == "SUCCESS", status
        assert (poor.submissions <= 1, good.submissions >= 1) == (True, True)
