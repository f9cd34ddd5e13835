"""Jobs posted without watching them, and `/status`: fields, entity tags, waiting, restarts."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from processes import Engine, Service, eventually
from talk import FRAMES, Answer, Api, on_both_databases
from waiting import WAIT_S

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
DEFAULT_NAME = re.compile(r"faceswap_\d{8}_\d{6}(-\d+)?")
AT_ONCE_S = 45.0
"""Sooner than the minute that was asked to be waited."""


@pytest.mark.parametrize("flag", ["true", "1", "yes", "on", "TRUE"])
async def test_the_id_alone_is_answered_with_200(api: Api, flag: str) -> None:
    check_accepted(await api.post("/face-swap", data=api.form(return_prompt_id_only=flag)), 200)


async def test_respond_async_is_answered_with_202(api: Api) -> None:
    check_accepted(await api.swap(return_prompt_id_only="no"), 202)


def check_accepted(answer: Answer, status: int) -> None:
    document = answer.json
    prompt_id = document["prompt_id"]
    assert (answer.status, answer.headers["Location"]) == (status, f"/status/{prompt_id}")
    assert DEFAULT_NAME.fullmatch(document.pop("output_prefix"))
    assert document == {
        "prompt_id": prompt_id,
        "status": "QUEUED",
        "message": f"Face swap workflow queued successfully. Use /status/{prompt_id} to check progress.",
        "status_url": f"/status/{prompt_id}",
        "warnings": [],
    }


@pytest.mark.parametrize("flag", ["false", "0", "no", "off", ""])
async def test_without_the_flag_the_answer_is_a_stream(api: Api, flag: str) -> None:
    async with api.session.post(f"{api.url}/face-swap", data=api.form(return_prompt_id_only=flag)) as response:
        assert response.content_type == "text/event-stream"


async def test_the_parts_may_come_in_any_order(api: Api) -> None:
    form = aiohttp.FormData()
    form.add_field("output_name", "any order")
    form.add_field("image", api.media.image, filename="x")
    form.add_field("options", '{"crf": 30}')
    form.add_field("video", api.media.video, filename="y")
    answer = await api.post("/face-swap", data=form, headers={"Prefer": "respond-async"})
    status = await api.done(answer.json["prompt_id"])
    assert (status["output_prefix"], status["options"]["crf"]) == ("any order", 30)


async def test_urls_may_be_posted_as_json(api: Api, media_url: str) -> None:
    request = {"video_url": f"{media_url}/video", "image_url": f"{media_url}/image", "options": {"crf": 25}}
    answer = await api.post("/face-swap", json={**request, "return_prompt_id_only": True})
    assert (await api.done(answer.json["prompt_id"]))["options"]["crf"] == 25


async def test_a_url_and_a_file_may_be_mixed(api: Api, media_url: str) -> None:
    assert (await api.finished(video=None, video_url=f"{media_url}/video"))["progress"]["total"] == FRAMES


@on_both_databases
async def test_the_status_of_a_finished_job_tells_everything(api: Api) -> None:
    before = datetime.now(UTC)
    status = await api.finished(output_name="told whole", options={"crf": 18, "face_index": "0"})
    times = [status.pop(name) for name in ("created_at", "started_at", "finished_at", "updated_at")]
    assert all(TIME.fullmatch(time) for time in times)
    moments = [datetime.fromisoformat(time) for time in times]
    assert moments == sorted(moments)
    assert abs((moments[0] - before).total_seconds()) < WAIT_S
    answer = await api.get(status["result"])
    fps = status["progress"].pop("fps")
    assert fps is None or fps > 0
    assert isinstance(status.pop("prompt_id"), str)
    assert re.fullmatch(r"[0-9a-f]{64}", status.pop("sha256"))
    assert status == {
        "status": "SUCCESS",
        "progress": {
            "percentage": 100.0,
            "step": "Face swap completed successfully",
            "current": FRAMES,
            "total": FRAMES,
        },
        "result": "/download/told%20whole.mp4",
        "error": None,
        "code": None,
        "queue_position": None,
        "eta_seconds": 0.0,
        "output_prefix": "told whole",
        "options": {"crf": 18, "face_index": "0", "priority": 0},
        "segments": {"done": 1, "total": 1},
        "attempts": 1,
        "warnings": [],
        "bytes": len(answer.body),
        "consent": None,
        "label": None,
        "media": "video",
        "wait_seconds": None,
        "trace_id": None,
    }


async def test_the_status_of_a_running_job_moves(api: Api, engine: Engine) -> None:
    await engine.hold()
    status = await api.until(await api.submit(), "PROCESSING")
    prompt_id = status["prompt_id"]
    assert (status["result"], status["error"], status["finished_at"]) == (None, None, None)

    async def in_the_middle() -> bool:
        progress = (await api.status(prompt_id))["progress"]
        return 0 < progress["percentage"] < 100 and "ReActor 🌌 Fast Face Swap" in progress["step"]

    await eventually(in_the_middle)
    engine.release()
    await api.done(prompt_id)


@on_both_databases
async def test_queue_positions_count_from_the_next_to_start(idle: Api) -> None:
    async def positions(*prompt_ids: str) -> list[int]:
        return [(await idle.status(prompt_id))["queue_position"] for prompt_id in prompt_ids]

    first, second = [await idle.submit() for _ in range(2)]
    start = (await positions(first))[0]
    assert await positions(first, second) == [start, start + 1]
    urgent = await idle.submit(options={"priority": 10})
    assert await positions(urgent, first, second) == [1, start + 1, start + 2]
    await idle.post(f"/jobs/{urgent}/cancel")
    assert await positions(first, second) == [start, start + 1]


async def test_an_unchanged_status_is_not_sent_again(api: Api) -> None:
    path = f"/status/{(await api.finished())['prompt_id']}"
    etag = (await api.get(path)).headers["ETag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = await api.get(path, headers={"If-None-Match": known})
        assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", etag)
    assert (await api.get(path, headers={"If-None-Match": '"other"'})).status == 200


async def test_waiting_for_a_job_that_ended_answers_at_once(api: Api) -> None:
    prompt_id = (await api.finished())["prompt_id"]
    async with asyncio.timeout(AT_ONCE_S):
        assert (await api.get(f"/status/{prompt_id}?wait=60")).status == 200


@on_both_databases
async def test_waiting_answers_when_something_changes(idle: Api) -> None:
    prompt_id = await idle.submit()
    await unchanging(idle, prompt_id)
    waiting = asyncio.create_task(idle.get(f"/status/{prompt_id}?wait=60"))
    await watched(idle)
    assert not waiting.done()
    await idle.post(f"/jobs/{prompt_id}/cancel")
    async with asyncio.timeout(AT_ONCE_S):
        assert (await waiting).json["status"] == "CANCELLED"


async def unchanging(idle: Api, prompt_id: str) -> None:
    """Wait until a job changes no more by itself: it has been told that no engine is there."""

    async def told() -> bool:
        status = await idle.status(prompt_id)
        return "the job waits" in status["progress"]["step"] and bool(status["updated_at"] > status["created_at"])

    await eventually(told)


async def watched(api: Api) -> None:
    """Wait until somebody waits for a job."""

    async def watcher() -> bool:
        return bool((await api.get("/health")).json["watchers"])

    await eventually(watcher)


@on_both_databases
async def test_waiting_answers_when_the_place_in_the_queue_changes(idle: Api) -> None:
    first, second = [await idle.submit() for _ in range(2)]
    await unchanging(idle, second)
    place = (await idle.status(second))["queue_position"]
    waiting = asyncio.create_task(idle.get(f"/status/{second}?wait=60"))
    await watched(idle)
    await idle.post(f"/jobs/{first}/cancel")
    async with asyncio.timeout(AT_ONCE_S):
        assert (await waiting).json["queue_position"] == place - 1


async def test_waiting_with_an_older_entity_tag_answers_at_once(idle: Api) -> None:
    prompt_id = await idle.submit()
    old = {"If-None-Match": '"older"'}
    async with asyncio.timeout(AT_ONCE_S):
        assert (await idle.get(f"/status/{prompt_id}?wait=60", headers=old)).status == 200


async def test_waiting_ends_after_its_time(idle: Api) -> None:
    prompt_id = await idle.submit()
    await unchanging(idle, prompt_id)
    etag = (await idle.get(f"/status/{prompt_id}")).headers["ETag"]
    started = time.monotonic()
    assert (await idle.get(f"/status/{prompt_id}?wait=0.3")).status == 200
    answer = await idle.get(f"/status/{prompt_id}?wait=0.3", headers={"If-None-Match": etag})
    assert answer.status == 304
    assert time.monotonic() - started >= 0.6


@on_both_databases
async def test_every_status_is_the_same_after_a_restart(
    folder_service: Callable[..., Service],
    api_of: Callable[[Service], Api],
    tmp_path: Path,
    own_database: dict[str, object],
) -> None:
    tmp_path.joinpath("own").mkdir()
    async with Engine(tmp_path, paint=True) as engine, Service(tmp_path / "own", engine.url, **own_database) as service:
        api = api_of(service)
        prompt_id = (await api.finished())["prompt_id"]
        await engine.set_faults(unswapped=True)
        failed = await api.submit()
        await api.until(failed, "FAILED")
        await engine.kill()
        assert await service.stop() == 0
    async with folder_service() as service:
        api = api_of(service)
        queued = await api.submit()
        cancelled = await api.submit()
        await api.post(f"/jobs/{cancelled}/cancel")
        paths = [f"/status/{name}" for name in (prompt_id, failed, cancelled)]
        before = [(answer.body, answer.headers["ETag"]) for answer in [await api.get(path) for path in paths]]
        events = [await api.events(name) for name in (prompt_id, failed, cancelled)]
        waiting = await api.status(queued)
        await service.kill()
        api = api_of(await service.start())
        assert [(a.body, a.headers["ETag"]) for a in [await api.get(path) for path in paths]] == before
        assert [await api.events(name) for name in (prompt_id, failed, cancelled)] == events
        for document in (waiting, still_waiting := await api.status(queued)):
            document["progress"].pop("step")  # since when no ComfyUI answers: told some time after the start
            for name in ("updated_at", "wait_seconds"):
                document.pop(name)
        assert still_waiting == waiting
        assert [(await api.status(name))["status"] for name in (prompt_id, failed, queued, cancelled)] == [
            *("SUCCESS", "FAILED", "QUEUED", "CANCELLED")
        ]
