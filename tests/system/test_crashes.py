"""Crashes: any process may be killed at any time; an accepted job ends in SUCCESS, once, with one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from clips import make_clip, read_numbers
from processes import Engine, Service, at_rest, eventually
from talk import on_both_databases

from faceswap.client import FaceSwap
from faceswap.samples import FACE

FRAMES = 30
Settings = dict[str, object]

pytestmark = on_both_databases


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", FRAMES, sounds=["aac"])


async def prompts_run(engine: Engine) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{engine.url}/history") as answer:
        return len(await answer.json())


async def ends_well(service: Service, prompt_id: str, folder: Path) -> dict[str, Any]:
    """Check that the job reaches SUCCESS, and its one file holds every frame once."""
    async with FaceSwap(service.url) as client:

        async def ended() -> dict[str, Any] | None:
            status = await client.status(prompt_id)
            return status if status["status"] in ("SUCCESS", "FAILED", "CANCELLED") else None

        status: dict[str, Any] = await eventually(ended)
        assert status["status"] == "SUCCESS", status
        result = folder / "fetched.mp4"
        filename = status["result"].removeprefix("/download/")
        await client.download(filename, result, sha256=status["sha256"])
    assert read_numbers(result) == list(range(FRAMES))
    assert [name for name in await at_rest(service.files) if not name.startswith("inputs/")] == [f"outputs/{filename}"]
    return status


async def see(client: FaceSwap, prompt_id: str, event_type: str, text: str = "") -> None:
    """Watch a job until it tells of something."""
    async for event in client.events(prompt_id):
        if event.type == event_type and text in str(event.data):
            return
    pytest.fail(f"the job ended without {event_type} {text}")


async def test_a_service_killed_right_after_its_answer_does_the_job_after_its_restart(
    tmp_path: Path, clip: Path, own_database: Settings
) -> None:
    async with Engine(tmp_path, paint=True) as engine, Service(tmp_path, engine.url, **own_database) as service:
        async with FaceSwap(service.url) as client:
            prompt_id = await client.submit(clip, FACE)
        await service.kill()
        await service.start()
        await ends_well(service, prompt_id, tmp_path)
        assert await prompts_run(engine) == 1


async def test_a_service_killed_in_the_middle_takes_the_prompt_up_again_without_running_it_twice(
    tmp_path: Path, clip: Path, own_database: Settings
) -> None:
    async with Engine(tmp_path) as engine, Service(tmp_path, engine.url, **own_database) as service:
        await engine.hold()
        async with FaceSwap(service.url) as client:
            prompt_id = await client.submit(clip, FACE)
            await see(client, prompt_id, "progress")
        await service.kill()
        await service.start()
        engine.release()
        status = await ends_well(service, prompt_id, tmp_path)
        assert status["attempts"] == 1
        assert await prompts_run(engine) == 1


async def test_a_service_killed_while_it_fetches_the_result_fetches_it_again(
    tmp_path: Path, clip: Path, own_database: Settings
) -> None:
    async with (
        Engine(tmp_path, paint=True, http_delay_s=0.3) as engine,
        Service(tmp_path, engine.url, **own_database) as service,
    ):
        async with FaceSwap(service.url) as client:
            prompt_id = await client.submit(clip, FACE)
            await see(client, prompt_id, "status", "Retrieving")
        await service.kill()
        await service.start()
        status = await ends_well(service, prompt_id, tmp_path)
        assert status["attempts"] == 1
        assert await prompts_run(engine) == 1


async def test_an_engine_killed_in_the_middle_costs_the_attempt_and_not_the_job(
    tmp_path: Path, clip: Path, own_database: Settings
) -> None:
    async with (
        Engine(tmp_path, paint=True) as engine,
        Service(tmp_path, engine.url, **own_database) as service,
        FaceSwap(service.url) as client,
    ):
        await engine.hold()
        prompt_id = await client.submit(clip, FACE)
        await see(client, prompt_id, "progress")
        await engine.kill()
        await engine.start()
        status = await ends_well(service, prompt_id, tmp_path)
        assert status["attempts"] == 2
        await see(client, prompt_id, "status", "resuming at frame 0")


async def test_finished_segments_are_kept_when_both_are_killed(
    tmp_path: Path, clip: Path, own_database: Settings
) -> None:
    async with (
        Engine(tmp_path, wait_per_frame_s=0.05) as engine,
        Service(tmp_path, engine.url, **own_database, segment_frames=10) as service,
    ):
        async with FaceSwap(service.url) as client:
            prompt_id = await client.submit(clip, FACE)

            async def one_is_done() -> bool:
                return bool((await client.status(prompt_id))["segments"]["done"])

            await eventually(one_is_done)
        await service.kill()
        await engine.kill()
        await engine.start()
        await service.start()
        await ends_well(service, prompt_id, tmp_path)
        # The first segment was finished before, and this engine has never seen it.
        assert await prompts_run(engine) <= 2


async def test_a_killed_service_takes_its_embedded_engine_with_it_and_both_come_back(
    tmp_path: Path, clip: Path, own_database: Settings
) -> None:
    async with Service(tmp_path, **own_database) as service:
        async with FaceSwap(service.url) as client:
            # No face is in this clip: the job fails, but it ends, and it is the embedded engine that says so.
            prompt_id = await client.submit(clip, FACE)
            await service.kill()
            await service.start()
        async with FaceSwap(service.url) as client:
            await see(client, prompt_id, "error", "no_face_detected")


async def test_status_answers_for_ended_jobs_after_a_restart_as_before(
    tmp_path: Path, clip: Path, own_database: Settings
) -> None:
    async with Engine(tmp_path, paint=True) as engine, Service(tmp_path, engine.url, **own_database) as service:
        async with FaceSwap(service.url) as client:
            prompt_id = await client.submit(clip, FACE)
            await see(client, prompt_id, "completed")
            before = await client.status(prompt_id)
        await service.kill()
        await service.start()
        async with FaceSwap(service.url) as client:
            assert await client.status(prompt_id) == before
