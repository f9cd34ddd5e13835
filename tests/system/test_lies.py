"""Ends that lie, each played by the engine: recognised by its own code, told in a sentence that says what to do."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from clips import Picture, make_clip, read_numbers
from processes import Engine, dead_url, eventually
from service_rig import QUICK, EngineRig, Handler, ServiceRig, running_service, service_and_engines
from stored_jobs import claim
from waiting import WAIT_S, until

from faceswap import runner
from faceswap.api import keys
from faceswap.config import resource_dir
from faceswap.engine.faults import EXIT_CODE, Faults
from faceswap.engine.server import ENGINE
from faceswap.media import JoinFacts

FRAMES = 12
STUCK_S = 3.0
"""Longer than an engine that works says nothing on a busy machine."""
SEED = "FaceSwap-Reactor-API"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES, sounds=["aac"])


def raising(exception_type: str, message: str, node: str = "ReActorFaceSwap", at_frame: int = 0) -> dict[str, Any]:
    failure = {"class": node, "exception_type": exception_type, "message": message, "at_frame": at_frame}
    return {"paint": True, "raise_in_node": failure}


async def left_behind(service: ServiceRig, prompt_id: str) -> list[str]:
    """Return the files in the data folder except the inputs and finished segments, which a retry needs."""
    needed = await service.finished_segments(prompt_id)
    return [name for name in service.files() if name not in needed and not name.startswith(f"inputs/{prompt_id}/")]


LIES = {
    "content_filtered": ({"black_frame": True}, 1, "use other material or turn the filter off"),
    "frames_missing": ({"paint": True, "drop_frames": 3}, 3, "9 of 12 frames"),
    "no_face_detected": ({"unswapped": True}, 1, "show a face clearly"),
    "output_missing": ({"paint": True, "no_file": True}, 3, "look into its log"),
    "model_missing": (raising("urllib.error.URLError", "<urlopen error timed out>"), 1, "into its models folder"),
    "model_broken": (
        raising("onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument", "bad model"),
        1,
        "put a good copy into place",
    ),
    "engine_error": (raising("RuntimeError", "boom"), 1, "ReActorFaceSwap failed in ComfyUI: boom"),
}


@pytest.mark.parametrize("code", LIES)
async def test_a_lie_has_its_code_its_sentence_and_as_many_attempts_as_make_sense(
    code: str, clip: Path, tmp_path: Path
) -> None:
    faults, attempts, words = LIES[code]
    async with service_and_engines(tmp_path, **faults) as (service, (engine,)):
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["code"]) == ("FAILED", code)
        assert words in status["error"]
        assert status["attempts"] == engine.submissions == attempts
        assert await left_behind(service, status["prompt_id"]) == []
        told = await service.messages(status["prompt_id"])
        assert sum("Attempt" in message for message in told) == attempts - 1
        assert told[-1] == status["error"]


async def test_too_little_memory_is_answered_with_memory_freed_and_half_the_length(clip: Path, tmp_path: Path) -> None:
    faults = raising("torch.OutOfMemoryError", "CUDA out of memory.", at_frame=7)
    async with service_and_engines(tmp_path, settings={"segment_frames": 8}, **faults) as (service, (engine,)):
        long_clip = make_clip(tmp_path / "long.mp4", 32, sounds=["aac"])
        status = await service.ended(await service.post(long_clip))
        assert status["status"] == "SUCCESS", status
        lengths = [frames for _, frames, _ in await service.segments(status["prompt_id"])]
        assert sum(lengths) == 32 and max(lengths) < 7
        assert status["segments"] == {"done": len(lengths), "total": len(lengths)}
        assert read_numbers(await service.download(status, tmp_path / "result.mp4")) == list(range(32))
        refused = engine.calls.index(("POST", "/free"))
        assert ("POST", "/prompt") in engine.calls[refused:]


async def test_memory_that_never_suffices_ends_the_job_after_three_attempts(clip: Path, tmp_path: Path) -> None:
    faults = raising("torch.OutOfMemoryError", "CUDA out of memory.")
    async with service_and_engines(tmp_path, **faults) as (service, _):
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["code"]) == ("FAILED", "out_of_memory")
        assert "a lower FACESWAP_SEGMENT_FRAMES" in status["error"]
        assert min(frames for _, frames, _ in await service.segments(status["prompt_id"])) == FRAMES // 4
        assert any("Attempt 3 of 3" in message for message in await service.messages(status["prompt_id"]))
        assert await left_behind(service, status["prompt_id"]) == []


def changing(*faults: dict[str, Any]) -> Any:
    """Return a ComfyUI whose faults are others for each prompt, the last of them for all that follow."""
    posted = 0

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal posted
        if request.path == "/prompt":
            request.app[ENGINE].faults.now = Faults.parse(faults[min(posted, len(faults) - 1)])
            posted += 1
        return await handler(request)

    return lie


async def test_a_face_in_some_frames_only_is_a_warning(clip: Path, tmp_path: Path) -> None:
    lie = changing({"unswapped": True}, {"paint": True})
    async with service_and_engines(tmp_path, lie=lie, settings={"segment_frames": 6}) as (service, _):
        status = await service.ended(await service.post(clip))
        assert status["status"] == "SUCCESS"
        assert status["warnings"] == ["A face was swapped in about 50% of the frames; no face was found in the rest."]


async def test_an_engine_that_knows_what_it_swapped_is_believed(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, unswapped=True) as (service, (engine,)):
        coarse = await service.ended(await service.post(clip, crf=45))
        assert (coarse["status"], coarse["code"]) == ("FAILED", "no_face_detected")
        engine.set_faults(paint=True)
        coarse = await service.ended(await service.post(clip, crf=45))
        assert (coarse["status"], coarse["warnings"]) == ("SUCCESS", [])


async def untold(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Return a ComfyUI that does not tell what it swapped, as ReActor does not."""
    response = await handler(request)
    if request.path.startswith("/history/") and isinstance(response, web.Response):
        document = json.loads(response.text or "{}")
        for entry in document.values():
            del entry["faceswap"]
        return web.json_response(document)
    return response


def noise(number: int, width: int, height: int) -> Picture:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


async def test_what_comfyui_does_not_tell_is_seen_in_the_pictures(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faceswap.runner.EXTRA_DATA", "unknown")  # ReActor draws no watermark
    async with service_and_engines(tmp_path, lie=untold, unswapped=True) as (service, (engine,)):
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["code"]) == ("FAILED", "no_face_detected")
        restless = make_clip(tmp_path / "noise.mp4", FRAMES, draw=noise)
        status = await service.ended(await service.post(restless))
        assert status["status"] == "SUCCESS"
        assert [warning.split(":")[0] for warning in status["warnings"]] == [
            "Whether a face was swapped cannot be told"
        ]
        engine.set_faults(paint=True)
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["warnings"]) == ("SUCCESS", [])


async def test_nothing_is_left_in_comfyuis_output(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, paint=True) as (service, (engine,)):
        assert (await service.ended(await service.post(clip)))["status"] == "SUCCESS"
        assert list((engine.folder / "temp").rglob("*-1_00001.mp4"))
        assert not list((engine.folder / "output").iterdir())


async def test_a_file_for_each_frame_is_refused_at_once(clip: Path, tmp_path: Path) -> None:
    lie = naming({"filename": "00000-1_00001.%03d.png"})
    async with service_and_engines(tmp_path, lie=lie, paint=True) as (service, _):
        status = await service.ended(await service.post(clip))
        assert (status["code"], status["attempts"]) == ("format_not_joinable", 1)
        assert "a file for each frame" in status["error"]
        assert await left_behind(service, status["prompt_id"]) == []


async def test_a_picture_that_mp4_cannot_hold_is_refused_at_once(clip: Path, tmp_path: Path) -> None:
    body = make_clip(tmp_path / "r.mov", FRAMES, codec="prores_ks", pix_fmt="yuv422p10le").read_bytes()
    async with service_and_engines(tmp_path, lie=answering("/view", {"body": body}), paint=True) as (service, _):
        status = await service.ended(await service.post(clip))
        assert (status["code"], status["attempts"]) == ("format_not_joinable", 1)
        assert "ComfyUI's result is prores" in status["error"]
        assert await left_behind(service, status["prompt_id"]) == []


async def test_an_output_that_vanished_is_made_again(clip: Path, tmp_path: Path) -> None:
    lie = changing({"paint": True, "lose_output": True}, {"paint": True})
    async with service_and_engines(tmp_path, lie=lie) as (service, _):
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["attempts"]) == ("SUCCESS", 2)


async def test_each_attempt_writes_to_a_place_of_its_own(clip: Path, tmp_path: Path) -> None:
    # ComfyUI answers the same graph from its cache, with the file of the first attempt.
    prefixes: list[str] = []

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if request.path == "/prompt":
            nodes = request.app[ENGINE].prompts.pending[-1].graph.values()
            prefixes.extend(node["inputs"]["filename_prefix"] for node in nodes if "filename_prefix" in node["inputs"])
        return response

    async with service_and_engines(tmp_path, lie=lie, paint=True, no_file=True) as (service, _):
        status = await service.ended(await service.post(clip))
        assert (status["code"], len(prefixes), len(set(prefixes))) == ("output_missing", 3, 3)


async def test_the_same_job_again_is_not_answered_with_the_file_of_the_first(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, paint=True) as (service, (engine,)):
        first = await service.ended(await service.post(clip))
        for file in (engine.folder / "temp").rglob("*.mp4"):
            file.unlink()
        second = await service.ended(await service.post(clip))
        assert (first["status"], second["status"]) == ("SUCCESS", "SUCCESS")
        assert first["result"] != second["result"]
        assert second["attempts"] == 1


async def test_an_engine_that_refuses_every_prompt_is_asked_three_times(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, prompt_500=True) as (service, (engine,)):
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["code"]) == ("FAILED", "engine_error")
        assert status["error"] == "ComfyUI answered 500; its log may say why."
        assert engine.submissions == 3
        assert await left_behind(service, status["prompt_id"]) == []


async def test_a_prompt_that_was_queued_in_spite_of_its_500_runs_once(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, paint=True, prompt_500_but_queued=True) as (service, (engine,)):
        status = await service.ended(await service.post(clip))
        assert status["status"] == "SUCCESS"
        assert engine.submissions == len(engine.finished) == 1


async def test_a_prompt_whose_result_is_cut_off_on_its_way_is_looked_up_and_not_sent_again(
    clip: Path, tmp_path: Path
) -> None:
    cut = 0

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal cut
        if request.path == "/view" and not cut:
            cut += 1
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b"half")
            assert request.transport is not None
            request.transport.close()
            return response
        return await handler(request)

    async with service_and_engines(tmp_path, lie=lie, paint=True) as (service, (engine,)):
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["attempts"], cut) == ("SUCCESS", 1, 1)
        assert engine.submissions == 1


async def test_a_prompt_that_was_out_when_the_service_stopped_is_looked_up_and_not_sent_again(
    clip: Path, tmp_path: Path
) -> None:
    async with EngineRig(tmp_path / "engine") as engine:
        engine.hold()
        async with running_service(tmp_path / "data", engine) as service:
            prompt_id = await service.post(clip)
            await eventually(lambda: true(engine.running))
        async with running_service(tmp_path / "data", engine) as service:
            engine.release()
            status = await service.ended(prompt_id)
            assert (status["status"], status["attempts"]) == ("SUCCESS", 1)
        assert engine.submissions == 1


async def test_a_result_with_fewer_frames_than_the_clip_is_not_a_success(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, paint=True, settings={"segment_frames": 6}) as (service, _):
        media = service.client.app[keys.SCHEDULER]._assembly._media
        join = media.join

        async def join_some(segments: list[Path], *arguments: Any, **named: Any) -> JoinFacts:
            return await join(segments[:-1], *arguments, **named)

        media.join = join_some
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["code"], status["result"]) == ("FAILED", "frames_missing", None)
        assert "6 frames instead of 12" in status["error"]
        assert [name for name in service.files() if name.startswith("outputs/")] == []


async def true(value: object) -> bool:
    return bool(value)


async def test_an_interrupt_in_comfyui_itself_costs_the_attempt_and_not_the_job(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path) as (service, (engine,)):
        engine.hold()
        prompt_id = await service.post(clip)
        await eventually(lambda: true(engine.running))
        engine.interrupt()
        engine.release()
        status = await service.ended(prompt_id)
        assert (status["status"], status["attempts"], engine.submissions) == ("SUCCESS", 2, 2)


async def test_a_job_that_is_interrupted_again_and_again_ends_and_says_so(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path) as (service, (engine,)):
        engine.hold()
        prompt_id = await service.post(clip)
        for attempt in range(1, 4):
            await eventually(lambda attempt=attempt: true(engine.submissions == attempt and engine.running))
            engine.interrupt()
        status = await service.ended(prompt_id)
        assert (status["status"], status["code"]) == ("FAILED", "interrupted")
        assert "retry the job" in status["error"]
        assert await left_behind(service, prompt_id) == []


async def test_a_stuck_engine_is_noticed_reported_and_used_again_after_its_restart(clip: Path, tmp_path: Path) -> None:
    timeouts = replace(QUICK, silence_s=0.5, stuck_s=STUCK_S)
    async with (
        Engine(tmp_path, stuck=True) as engine,
        running_service(tmp_path / "data", engine.url, timeouts=timeouts) as service,
    ):
        jobs = [await service.post(clip) for _ in range(2)]  # either may come first to the engine

        async def ended() -> dict[str, Any] | None:
            statuses = [await service.status(prompt_id) for prompt_id in jobs]
            return next((status for status in statuses if status["finished_at"]), None)

        status = await eventually(ended)
        (behind,) = set(jobs) - {status["prompt_id"]}
        assert (status["status"], status["code"]) == ("FAILED", "engine_stuck")
        assert "restart ComfyUI and retry" in status["error"]
        health = await service.get("/health")
        assert (health["status"], health["backends"][0]["stuck"]) == ("degraded", True)
        for backend in service.client.app[keys.SCHEDULER].backends:
            backend.timeouts = replace(QUICK, stuck_s=WAIT_S)  # a busy machine is no stuck engine
        await engine.set_faults(paint=True)
        await engine.kill()
        await engine.start()
        await engine.set_faults(paint=True)
        assert (await service.ended(behind))["status"] == "SUCCESS"

        async def is_healthy() -> bool:
            return bool((await service.get("/health"))["status"] == "healthy")

        await eventually(is_healthy)


async def test_jobs_end_when_no_engine_has_been_there_for_too_long(clip: Path, tmp_path: Path) -> None:
    nobody = dead_url()
    timeouts = replace(QUICK, gone_s=0.4)
    async with running_service(tmp_path / "data", nobody, timeouts=timeouts) as service:
        prompt_id = await service.post(clip)
        status = await service.ended(prompt_id)
        assert (status["status"], status["code"]) == ("FAILED", "engine_unreachable")
        assert "start it, then retry" in status["error"]


async def test_a_video_that_kills_its_engine_is_halved_from_the_second_death_on_and_ends_at_the_fifth(
    clip: Path, tmp_path: Path
) -> None:
    async with (
        Engine(tmp_path, paint=True, die_at_frame=1) as engine,
        running_service(tmp_path / "data", engine.url) as service,
    ):
        prompt_id = await service.post(clip)
        ending = asyncio.create_task(service.ended(prompt_id))
        while not ending.done():  # the second half kills one more engine where it is due before the first is again
            dying = asyncio.create_task(engine.ended())
            await asyncio.wait({ending, dying}, return_when=asyncio.FIRST_COMPLETED)
            if dying.done():
                assert dying.result() == EXIT_CODE
                await engine.start()
            dying.cancel()
        status = ending.result()
        assert (status["status"], status["code"]) == ("FAILED", "engine_crashed")
        assert status["attempts"] >= 5
        assert "died 5 times in a row while it worked on a frame of this video from frame 0 on" in status["error"]
        assert [frames for _, frames, _ in await service.segments(prompt_id)][:3] == [1, 2, 3]
        assert await left_behind(service, prompt_id) == []


async def test_what_only_a_long_prompt_kills_is_done_in_halves_and_costs_others_two_attempts_at_most(
    clip: Path, tmp_path: Path
) -> None:
    async with (
        Engine(tmp_path, paint=True, die_at_frame=FRAMES - 1) as engine,
        running_service(tmp_path / "data", engine.url) as service,
    ):
        killer = await service.post(clip)
        other = await service.post(make_clip(tmp_path / "short.mp4", 4, sounds=["aac"]))
        for _ in range(2):
            assert await engine.ended() == EXIT_CODE
            await engine.start()
        status = await service.ended(killer)
        assert (status["status"], status["attempts"]) == ("SUCCESS", 4)
        assert [frames for _, frames, _ in await service.segments(killer)] == [6, 6]
        assert read_numbers(await service.download(status, tmp_path / "result.mp4")) == list(range(FRAMES))
        status = await service.ended(other)
        assert status["status"] == "SUCCESS" and status["attempts"] <= 3


async def test_what_engines_died_of_waits_until_one_is_free(clip: Path, tmp_path: Path) -> None:
    data, nobody = tmp_path / "data", dead_url()
    async with running_service(data, nobody) as service:
        killer = await service.post(clip)
        store = service.client.app[keys.STORE]
        for _ in range(2):
            await store.requeue(await claim(store, "engine"), died=True)
        first, last = await service.post(clip, priority=1), await service.post(clip, priority=-1)
    async with EngineRig(tmp_path / "engine") as engine:
        engine.hold()
        async with running_service(data, engine) as service:
            # With another at work it would have its turn before the last.
            await until(lambda: engine.running and engine.pending)
            assert (await service.segments(killer))[0][2] == 2
            engine.release()
            for prompt_id in (first, last, killer):
                assert (await service.ended(prompt_id))["status"] == "SUCCESS"


def workflow_with(folder: Path, node_class: str, **changes: Any) -> Path:
    """Return a workflow folder whose workflow has another class or other inputs in the one node of a class."""
    graph = json.loads((resource_dir("workflows") / f"{SEED}.json").read_text())
    node = next(node for node in graph.values() if node["class_type"] == node_class)
    node["class_type"] = changes.pop("class_type", node_class)
    node["inputs"] |= changes
    folder.mkdir()
    (folder / f"{SEED}.json").write_text(json.dumps(graph))
    return folder


async def test_a_node_class_that_is_not_installed_is_named(clip: Path, tmp_path: Path) -> None:
    folder = workflow_with(tmp_path / "workflows", "ReActorFaceBoost", class_type="ReActorFaceBooster")
    async with service_and_engines(tmp_path, settings={"workflow_dir": folder}) as (service, (engine,)):
        status = await service.ended(await service.post(clip))
        assert (status["code"], engine.submissions) == ("node_missing", 1)
        assert status["error"] == (
            "ComfyUI has no node class ReActorFaceBooster; install ComfyUI-ReActor and restart ComfyUI."
        )


async def test_a_model_that_is_not_installed_is_named(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, paint=True) as (service, (engine,)):
        status = await service.ended(await service.post(clip, swap_model="missing.onnx"))
        assert (status["code"], engine.submissions) == ("model_missing", 1)
        assert "missing.onnx" in status["error"] and "inswapper_128.onnx" in status["error"]


async def test_a_result_of_another_size_is_a_warning(clip: Path, tmp_path: Path) -> None:
    folder = workflow_with(tmp_path / "workflows", "VHS_LoadVideo", custom_width=64)
    async with service_and_engines(tmp_path, paint=True, settings={"workflow_dir": folder}) as (service, _):
        status = await service.ended(await service.post(clip))
        assert status["status"] == "SUCCESS"
        assert status["warnings"] == ["The result is 64×48, the video 128×96."]


async def test_a_result_without_end_is_given_up(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "OUTPUT_LIMIT_BYTES", 1000)
    async with service_and_engines(tmp_path, paint=True) as (service, _):
        status = await service.ended(await service.post(clip))
        assert (status["code"], status["attempts"]) == ("output_too_large", 1)
        assert await left_behind(service, status["prompt_id"]) == []


def answering(path: str, response: dict[str, Any]) -> Any:
    """Return a ComfyUI that answers one path with something else."""

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response(**response) if request.path.startswith(path) else await handler(request)

    return lie


HOSTILE = {
    "a proxy that wants a token": ("/prompt", {"status": 401}, "check FACESWAP_COMFYUI_HEADERS"),
    "a proxy that forbids": ("/upload", {"status": 403}, "check FACESWAP_COMFYUI_HEADERS"),
    "a web page": ("/prompt", {"text": "<html>", "content_type": "text/html"}, "check the address"),
    "a page for the queue": ("/history", {"text": "<html>", "content_type": "text/html"}, "check the address"),
    "endless JSON": ("/history", {"text": "[" + "1," * 2**23 + "1]"}, "too long"),
    "JSON of another shape": ("/history", {"text": "[]"}, "not understood"),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_what_is_no_comfyui_is_not_taken_for_one(what: str, clip: Path, tmp_path: Path) -> None:
    path, response, words = HOSTILE[what]
    async with service_and_engines(tmp_path, lie=answering(path, response), paint=True) as (service, _):
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["code"]) == ("FAILED", "engine_error")
        assert words in status["error"]
        assert await left_behind(service, status["prompt_id"]) == []


async def test_an_engine_without_features_is_used(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, lie=answering("/features", {"status": 404}), paint=True) as (service, _):
        assert (await service.ended(await service.post(clip)))["status"] == "SUCCESS"


def naming(place: dict[str, str]) -> Any:
    """Return a ComfyUI that says its results are somewhere else."""

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if request.path.startswith("/history/") and isinstance(response, web.Response):
            document = json.loads(response.text or "{}")
            for entry in document.values():
                for output in entry["outputs"].values():
                    output["gifs"][0] |= place
            return web.json_response(document)
        return response

    return lie


@pytest.mark.parametrize(
    "place", [{"filename": "../x.mp4"}, {"subfolder": "../.."}, {"filename": "..\\x.mp4"}, {"filename": "/etc/passwd"}]
)
async def test_a_result_outside_of_the_output_folder_is_not_asked_for(
    place: dict[str, str], clip: Path, tmp_path: Path
) -> None:
    async with service_and_engines(tmp_path, lie=naming(place), paint=True) as (service, (engine,)):
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["code"]) == ("FAILED", "output_missing")
        assert ("GET", "/view") not in engine.calls
        assert await left_behind(service, status["prompt_id"]) == []


async def test_an_older_comfyui_that_chooses_ids_itself_is_followed_under_them(clip: Path, tmp_path: Path) -> None:
    chosen: list[str] = []

    async def lie(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if request.path == "/prompt":
            chosen.append(f"chosen-{len(chosen)}")
            request.app[ENGINE].prompts.pending[-1].id = chosen[-1]
            return web.json_response({"prompt_id": chosen[-1], "number": 1, "node_errors": {}})
        return response

    async with service_and_engines(tmp_path, lie=lie, paint=True, settings={"segment_frames": 5}) as (service, engines):
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["attempts"]) == ("SUCCESS", 3)
        assert engines[0].finished == chosen


async def test_a_face_above_the_engines_limit_is_refused_with_the_flag_to_raise(clip: Path, tmp_path: Path) -> None:
    async with service_and_engines(tmp_path, max_upload_size=2000) as (service, (engine,)):
        status = await service.ended(await service.post(clip))
        assert (status["status"], status["code"]) == ("FAILED", "image_too_large")
        assert "--max-upload-size" in status["error"]
        assert ("POST", "/upload/image") not in engine.calls
