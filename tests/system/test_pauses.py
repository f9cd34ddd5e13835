"""Transient trouble is waited for and reported: full disks, no engine, too little memory, clocks that jump."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import resource
from contextlib import AsyncExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from clips import make_clip, read_numbers
from ports import free_port
from processes import Engine, Service, dead_url, eventually
from service_rig import QUICK, EngineRig, Handler, Middleware, running_service, service_and_engines
from waiting import until

from faceswap import recovery
from faceswap.client import FaceSwap
from faceswap.comfy.client import ComfyClient
from faceswap.engine.faults import Faults
from faceswap.engine.server import ENGINE
from faceswap.files import Files
from faceswap.samples import FACE
from faceswap.store import CommitUnknown, Store

FRAMES = 12
ENGINE_DISK_FULL = "ComfyUI's disk is full; the job goes on when there is room."


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES, sounds=["aac"])


def refusing(path: str, times: int, answer: dict[str, Any]) -> Middleware:
    """Return a ComfyUI that answers so many calls of a path with something else."""
    left = times

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal left
        if request.path == path and left > 0:
            left -= 1
            return web.Response(**answer)
        return await handler(request)

    return lie


async def test_an_engine_without_room_for_an_upload_is_waited_for_longer_than_a_failure_is(
    clip: Path, tmp_path: Path
) -> None:
    lie = refusing("/upload/image", 5, {"status": 507})
    async with service_and_engines(tmp_path, lie=lie, paint=True) as (service, (engine,)):
        status = await service.ended(await service.post(clip))
        assert (status["status"], engine.submissions) == ("SUCCESS", 1)
        assert (await service.messages(status["prompt_id"])).count(ENGINE_DISK_FULL) == 5


async def test_an_engine_whose_disk_fills_while_it_works_is_waited_for_too(clip: Path, tmp_path: Path) -> None:
    full = {
        "class": "VHS_VideoCombine",
        "exception_type": "OSError",
        "message": "[Errno 28] No space left on device: '/srv/x.mp4'",
    }
    posted = 0

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal posted
        if request.path == "/prompt":
            posted += 1
            faults = {"paint": True, "raise_in_node": full} if posted <= 5 else {"paint": True}
            request.app[ENGINE].faults.now = Faults.parse(faults)
        return await handler(request)

    async with service_and_engines(tmp_path, lie=lie) as (service, (engine,)):
        status = await service.ended(await service.post(clip))
        assert (status["status"], engine.submissions) == ("SUCCESS", 6)


async def test_a_service_whose_disk_is_full_while_it_works_goes_on_when_there_is_room(
    clip: Path, tmp_path: Path
) -> None:
    async with (
        EngineRig(tmp_path / "engine") as engine,
        Service(tmp_path, engine.url) as service,
        FaceSwap(service.url) as client,
    ):
        engine.hold()
        prompt_id = await client.submit(clip, FACE)
        await eventually(lambda: asked(engine, "/prompt"))
        hard = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (0, hard))
        engine.release()
        await eventually(lambda: true(engine.finished))
        assert (await client.status(prompt_id))["status"] == "PROCESSING"
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))

        async def ended() -> dict[str, Any] | None:
            status = await client.status(prompt_id)
            return status if status["finished_at"] else None

        status = await eventually(ended)
        assert (status["status"], status["attempts"], engine.submissions) == ("SUCCESS", 1, 1)


async def test_a_result_that_finds_no_room_is_fetched_again_when_there_is_some(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "DISK_PAUSE_S", 0.1)
    fetch, full = ComfyClient.download, 3

    async def download(client: ComfyClient, *arguments: Any) -> int:
        nonlocal full
        full -= 1
        if full >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return await fetch(client, *arguments)

    monkeypatch.setattr(ComfyClient, "download", download)
    async with service_and_engines(tmp_path, paint=True) as (service, (engine,)):
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["attempts"], engine.submissions) == ("SUCCESS", 1, 1)
        assert recovery.DISK_FULL_MESSAGE in await service.messages(status["prompt_id"])


async def test_a_job_that_may_be_committed_keeps_its_files_though_its_user_is_told_that_it_failed(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Store.create

    async def create_unanswered(store: Store, *arguments: Any) -> None:
        await create(store, *arguments)
        raise CommitUnknown("the connection was lost")

    monkeypatch.setattr(Store, "create", create_unanswered)
    async with service_and_engines(tmp_path, paint=True) as (service, _):
        with pytest.raises(AssertionError, match="unavailable"):
            await service.post(clip)
        (job,) = (await service.get("/jobs"))["jobs"]
        assert (await service.ended(job["prompt_id"]))["status"] == "SUCCESS"


async def true(value: object) -> bool:
    return bool(value)


async def asked(engine: EngineRig, path: str) -> bool:
    return any(called.startswith(path) for _, called in engine.calls)


async def test_jobs_are_told_that_no_engine_answers_and_again_when_one_does(clip: Path, tmp_path: Path) -> None:
    port = free_port()
    engine = Engine(tmp_path, hold_until=str(tmp_path / "released"))
    engine._command = tuple(str(port) if part == str(engine.port) else part for part in engine._command)
    async with running_service(tmp_path / "data", f"http://127.0.0.1:{port}") as service:
        prompt_id = await service.post(clip)

        async def step() -> str | None:
            text: str = (await service.status(prompt_id))["progress"]["step"]
            return text if "the job waits" in text else None

        told = await eventually(step)
        assert told.startswith(f"ComfyUI at http://127.0.0.1:{port} does not answer since 20")
        health = await service.get("/health")
        assert (health["comfyui_status"], health["outage"]) == ("unreachable", told)
        async with service.client.get("/readyz") as response:
            assert response.status == 503
        async with engine:

            async def told_again() -> bool:
                return "ComfyUI answers again; the job goes on." in await service.messages(prompt_id)

            await eventually(told_again)
            engine.release()
            status = await service.ended(prompt_id)
        assert status["status"] == "SUCCESS"
        messages = await service.messages(prompt_id)
        assert messages.count(told) == 1
        assert messages.index("ComfyUI answers again; the job goes on.") > messages.index(told)


def with_memory(free_bytes: int) -> Middleware:
    """Return a ComfyUI that holds whole segments in memory, of which it has so much."""

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/features":
            return web.json_response({"max_upload_size": 2**30})
        if request.path == "/system_stats":
            return web.json_response({"system": {"ram_free": free_bytes}, "devices": []})
        return await handler(request)

    return lie


async def test_segments_are_as_long_as_half_of_an_engines_memory_allows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "faceswap")
    pixels, rate = 96 * 64, Fraction(24)
    clip = make_clip(tmp_path / "long.mp4", 100, size=(96, 64), rate=rate)
    memory = 2 * 37 * pixels * 30
    async with service_and_engines(tmp_path, lie=with_memory(memory), paint=True) as (service, (engine,)):
        await eventually(lambda: asked(engine, "/object_info"))
        status = await service.ended(await service.post(clip))
        assert status["status"] == "SUCCESS", status
        lengths = [frames for _, frames, _ in await service.segments(status["prompt_id"])]
        assert sum(lengths) == 100 and rate <= max(lengths) <= 30
        assert any(record.getMessage().endswith("in 4 segments") for record in caplog.records)
        assert status["attempts"] == len(lengths) == engine.submissions
        assert read_numbers(await service.download(status, tmp_path / "result.mp4")) == list(range(100))
        # What stays of a segment leaves no room for the next: it is asked to let go of it.
        assert ("POST", "/free") not in engine.calls


async def test_an_engine_with_no_room_for_the_next_segment_is_asked_to_free_some(tmp_path: Path) -> None:
    pixels, rate = 96 * 64, Fraction(24)
    clip = make_clip(tmp_path / "long.mp4", 60, size=(96, 64), rate=rate)
    async with service_and_engines(tmp_path, lie=with_memory(37 * pixels * 10), paint=True) as (service, (engine,)):
        await eventually(lambda: asked(engine, "/object_info"))
        status = await service.ended(await service.post(clip))
        assert status["status"] == "SUCCESS", status
        # A second's frames are the least.
        assert {frames for _, frames, _ in await service.segments(status["prompt_id"])} == {20}
        assert engine.calls.count(("POST", "/free")) >= 3


async def test_what_an_engine_lacks_for_the_workflow_is_told_by_health(clip: Path, tmp_path: Path) -> None:
    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/object_info/ReActorFaceBoost":
            return web.json_response({})
        response = await handler(request)
        if request.path == "/object_info/ReActorFaceSwap":
            assert isinstance(response, web.Response) and isinstance(response.text, str)
            document = json.loads(response.text)
            document["ReActorFaceSwap"]["input"]["required"]["swap_model"][0] = ["other.onnx"]
            return web.json_response(document)
        return response

    async with service_and_engines(tmp_path, lie=lie) as (service, _):

        async def invalid() -> dict[str, Any] | None:
            health = await service.get("/health")
            return health if health["workflow_status"] == "invalid" else None

        health = await eventually(invalid)
        assert health["backends"][0]["problems"] == [
            "ComfyUI has no inswapper_128.onnx for swap_model of ReActorFaceSwap; add it and restart ComfyUI.",
            "ComfyUI has no node class ReActorFaceBoost; install ComfyUI-ReActor and restart ComfyUI.",
        ]
        async with service.client.get("/readyz") as response:
            assert (response.status, (await response.json())["checks"]["engine"]) == (503, False)


async def test_a_disk_that_does_not_answer_is_told_and_asked_by_one_try_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faceswap.api.service.CHECK_TIMEOUT_S", 0.05)
    async with service_and_engines(tmp_path) as (service, _):
        answered, asked = asyncio.Event(), 0

        async def hang(_files: Files) -> int:
            nonlocal asked
            asked += 1
            await answered.wait()
            return 2**40

        monkeypatch.setattr(Files, "free_bytes", hang)

        async def is_unknown() -> bool:  # what was answered before counts for a while
            health = await service.get("/health")
            return bool(asked and (health["status"], health["disk_free_mb"]) == ("degraded", None))

        await eventually(is_unknown)
        for _ in range(3):
            health = await service.get("/health")
            assert (health["status"], health["disk_free_mb"]) == ("degraded", None)
            async with service.client.get("/readyz") as response:
                assert (response.status, (await response.json())["checks"]["disk"]) == (503, False)
        assert asked == 1
        answered.set()

        async def told() -> bool:
            return bool((await service.get("/health"))["disk_free_mb"] == 2**20)

        await eventually(told)


async def test_options_that_the_embedded_engine_ignores_are_told(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, paint=True) as (service, _):
        prompt_id = await service.post(
            clip, face_boost=True, detect_gender="female", swap_model="inswapper_128.onnx", crf=22
        )
        status = await service.ended(prompt_id)
        assert status["warnings"] == [
            "The embedded engine has no use for swap_model, face_boost: it has no network for that."
        ]


async def test_the_log_has_a_line_for_each_step_in_a_jobs_life(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "faceswap")
    async with service_and_engines(tmp_path, paint=True) as (service, (engine,)):
        prompt_id = await service.post(clip)
        await service.ended(prompt_id)
        await until(lambda: f"job {prompt_id} ended" in caplog.text)
        lines = [record.getMessage() for record in caplog.records if prompt_id in record.getMessage()]
        assert lines[0] == f"job {prompt_id} accepted: 12 frames of 128×96 in 1 segments"
        assert lines[1].startswith(f"job {prompt_id} started: at {engine.url} after ")
        assert lines[2] == f"job {prompt_id}: frames 0 to 11 given to {engine.url}, attempt 1"
        assert lines[-1].startswith(f"job {prompt_id} ended: SUCCESS after ")
        assert lines[-1].endswith(f" and 1 prompts at {engine.url}")


async def test_more_than_a_hundred_engines_keep_their_sockets_and_are_given_work(clip: Path, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(EngineRig(tmp_path / f"engine-{number}", paint=True))
            for number in range(110)
        ]
        timeouts = replace(QUICK, unreachable_s=20.0)
        service = await stack.enter_async_context(running_service(tmp_path / "data", *engines, timeouts=timeouts))
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["attempts"]) == ("SUCCESS", 1)

        async def is_ready() -> bool:
            async with service.client.get("/readyz") as response:
                return response.status == 200

        await eventually(is_ready)


async def test_a_segment_that_was_planned_for_more_memory_is_cut(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "long.mp4", 100, size=(96, 64))
    inspected = asyncio.Event()
    less = with_memory(2 * 37 * 96 * 64 * 30)

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/object_info"):
            inspected.set()
        if request.path == "/ws":
            await inspected.wait()  # it is given work as soon as its socket is open
        return await less(request, handler)

    async with running_service(tmp_path / "data", dead_url()) as service:
        prompt_id = await service.post(clip)
        assert [frames for _, frames, _ in await service.segments(prompt_id)] == [100]
    async with (
        EngineRig(tmp_path / "engine", lie, paint=True) as engine,
        running_service(tmp_path / "data", engine) as service,
    ):
        status = await service.ended(prompt_id)
        assert status["status"] == "SUCCESS", status
        lengths = [frames for _, frames, _ in await service.segments(prompt_id)]
        assert sum(lengths) == 100 and max(lengths) <= 30
        assert status["attempts"] == engine.submissions == len(lengths)
