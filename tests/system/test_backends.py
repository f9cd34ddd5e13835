"""Several engines share the work: all that are healthy, two prompts each, the quick ones more of it."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clips import make_clip, read_numbers
from processes import Engine, eventually
from service_rig import QUICK, EngineRig, ServiceRig, running_service, service_and_engines

SIZE = (96, 64)


def clip_of(folder: Path, frames: int) -> Path:
    return make_clip(folder / f"{frames}.mp4", frames, size=SIZE)


async def most_at_once(engines: list[EngineRig], service: ServiceRig, *prompt_ids: str) -> list[int]:
    """The most prompts each engine held at a time until the jobs ended, well."""
    most = [0] * len(engines)
    open_jobs = list(prompt_ids)
    while open_jobs:
        most = [max(n, len(engine.pending) + bool(engine.running)) for n, engine in zip(most, engines, strict=True)]
        status = await service.status(open_jobs[0])
        if status["finished_at"]:
            assert status["status"] == "SUCCESS", status
            open_jobs.pop(0)
        await asyncio.sleep(0.01)
    return most


async def test_a_long_video_is_spread_over_all_engines_two_prompts_each(tmp_path: Path) -> None:
    settings = {"segment_frames": 4}
    async with service_and_engines(tmp_path, 3, wait_per_frame_s=0.03, settings=settings) as (service, engines):
        prompt_id = await service.post(clip_of(tmp_path, 96))
        most = await most_at_once(engines, service, prompt_id)
        assert most == [2, 2, 2]
        assert sum(engine.submissions for engine in engines) == 24
        assert min(engine.submissions for engine in engines) >= 4
        status = await service.status(prompt_id)
        result = await service.download(status, tmp_path / "result.mp4")
        assert read_numbers(result) == list(range(96))


async def test_different_jobs_run_side_by_side(tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, 2, wait_per_frame_s=0.05) as (service, engines):
        clip = clip_of(tmp_path, 10)
        jobs = [await service.post(clip) for _ in engines]
        await eventually(lambda: all_true(engine.running for engine in engines))
        await most_at_once(engines, service, *jobs)
        assert [engine.submissions for engine in engines] == [1, 1]


async def all_true(values: Any) -> bool:
    return all(values)


async def test_four_engines_are_much_quicker_than_one(tmp_path: Path) -> None:
    frames, wait_s = 80, 0.15
    settings = {"segment_frames": 5}
    async with service_and_engines(tmp_path, 4, wait_per_frame_s=wait_s, settings=settings) as (service, engines):
        started = time.monotonic()
        prompt_id = await service.post(clip_of(tmp_path, frames))
        assert (await service.ended(prompt_id))["status"] == "SUCCESS"
        assert frames * wait_s / (time.monotonic() - started) > 2.5
        assert min(engine.submissions for engine in engines) >= 3


async def test_a_slow_engine_gets_less_and_never_the_last_of_it(tmp_path: Path) -> None:
    async with (
        EngineRig(tmp_path / "quick", wait_per_frame_s=0.02) as quick,
        EngineRig(tmp_path / "slow", wait_per_frame_s=0.3) as slow,
        running_service(tmp_path / "data", quick, slow, segment_frames=4) as service,
    ):
        clip = clip_of(tmp_path, 80)
        most = await most_at_once([quick, slow], service, await service.post(clip))
        assert most == [2, 1]
        assert (quick.submissions + slow.submissions, slow.submissions <= 4) == (20, True)
        short = clip_of(tmp_path, 4)
        for _ in range(3):
            before = slow.submissions
            await most_at_once([quick, slow], service, await service.post(short))
            assert slow.submissions == before


async def test_an_engine_that_dies_gives_its_work_back_and_is_used_again_when_it_is_back(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Engine(tmp_path / str(n), wait_per_frame_s=0.05)) for n in range(2)]
        urls = [engine.url for engine in engines]
        service = await stack.enter_async_context(running_service(tmp_path / "data", *urls, segment_frames=4))
        await service.ready(2)
        prompt_id = await service.post(clip_of(tmp_path, 48))
        await eventually(lambda: has_done(service, prompt_id, 3))
        await engines[0].kill()
        status = await service.ended(prompt_id)
        assert status["status"] == "SUCCESS", status
        assert 12 < status["attempts"] <= 14
        assert read_numbers(await service.download(status, tmp_path / "result.mp4")) == list(range(48))

        await engines[0].start()
        await service.ready(2)
        both = [await service.post(clip_of(tmp_path, 8)) for _ in range(2)]
        await eventually(lambda: all_running(service))
        for prompt_id in both:
            assert (await service.ended(prompt_id))["status"] == "SUCCESS"


async def has_done(service: ServiceRig, prompt_id: str, segments: int) -> bool:
    return bool((await service.status(prompt_id))["segments"]["done"] >= segments)


async def all_running(service: ServiceRig) -> bool:
    return all(backend["running"] for backend in (await service.get("/health"))["backends"])


async def test_the_work_of_a_stuck_engine_is_done_by_another(tmp_path: Path) -> None:
    async with (
        EngineRig(tmp_path / "stuck", stuck=True) as stuck,
        EngineRig(tmp_path / "good", paint=True) as good,
        running_service(
            tmp_path / "data", stuck, good, patience=replace(QUICK, silence_s=0.3, stuck_s=0.6), segment_frames=6
        ) as service,
    ):
        status = await service.ended(await service.post(clip_of(tmp_path, 24)))
        assert status["status"] == "SUCCESS", status
        health = await service.get("/health")
        assert [backend["stuck"] for backend in health["backends"]] == [True, False]
        assert (health["status"], len(good.finished)) == ("healthy", 4)


OUT_OF_MEMORY = {"class": "ReActorFaceSwap", "exception_type": "torch.OutOfMemoryError", "message": "full"}


@pytest.mark.parametrize("fault", [{"max_upload_size": 2000}, {"prompt_500": True}, {"raise_in_node": OUT_OF_MEMORY}])
async def test_what_one_engine_cannot_do_is_done_by_another(fault: dict[str, Any], tmp_path: Path) -> None:
    async with (
        EngineRig(tmp_path / "poor", **fault) as poor,
        EngineRig(tmp_path / "good", paint=True) as good,
        running_service(tmp_path / "data", poor, good) as service,
    ):
        status = await service.ended(await service.post(clip_of(tmp_path, 12)))
        assert status["status"] == "SUCCESS", status
        assert (poor.submissions <= 1, good.submissions >= 1) == (True, True)
