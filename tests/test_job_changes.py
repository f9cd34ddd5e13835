"""Jobs that are found by their label, put before others, waited for, and shown small."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import postgres
import pytest
import pytest_asyncio
from clips import make_clip
from processes import dead_url
from service_rig import EngineRig, ServiceRig, running_service, service_and_engines
from stored_jobs import claim, create, opened, run_to_success, sql

from faceswap.api import keys
from faceswap.backlog import Backlog, pace
from faceswap.errors import Conflict
from faceswap.janitor import Janitor
from faceswap.media.thumbnail import SIDE
from faceswap.thumbnails import MADE_AT_ONCE

pytestmark = pytest.mark.asyncio(loop_scope="module")

Rig = tuple[ServiceRig, EngineRig]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 12, size=(400, 200))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with service_and_engines(tmp_path_factory.mktemp("changes"), paint=True) as (service, (engine,)):
        yield service, engine


async def patch(service: ServiceRig, prompt_id: str, **changes: Any) -> tuple[int, dict[str, Any]]:
    async with service.client.patch(f"/jobs/{prompt_id}", json=changes) as response:
        return response.status, await response.json()


async def thumbnail(service: ServiceRig, prompt_id: str, **headers: str) -> tuple[int, bytes, str | None]:
    async with service.client.get(f"/jobs/{prompt_id}/thumbnail?v=1", headers=headers) as response:
        return response.status, await response.read(), response.headers.get("ETag")


async def test_what_changes_before_a_job_is_watched_is_a_change_too(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_service(tmp_path, dead_url()) as service:
        first, second = await service.post(clip), await service.post(clip)
        assert (await service.status(second))["queue_position"] == 2

        class Unwatched:
            async def next(self, timeout_s: float) -> None:
                raise AssertionError("it waited for another change")

        @asynccontextmanager
        async def late(prompt_id: str) -> AsyncIterator[Unwatched]:
            async with service.client.post(f"/jobs/{first}/cancel") as response:
                assert response.status == 202
            yield Unwatched()

        monkeypatch.setattr(service.client.app[keys.FEED], "watch", late)
        async with service.client.get(f"/status/{second}?wait=60") as response:
            assert (response.status, (await response.json())["queue_position"]) == (200, 1)


async def test_a_job_is_put_before_others_and_after_them_while_it_waits(rig: Rig, clip: Path) -> None:
    service, engine = rig
    engine.hold()
    running = await service.post(clip)
    await asyncio.gather(*[service.post(clip) for _ in range(2)])  # as many as the engine takes at a time
    first, second, third = [await service.post(clip) for _ in range(3)]
    status, document = await patch(service, third, priority=5)
    assert (status, document["options"]["priority"], document["queue_position"]) == (200, 5, 1)
    assert document == await service.status(third)
    assert (await patch(service, first, priority=-1))[0] == 200
    places = [(await service.status(prompt_id))["queue_position"] for prompt_id in (third, second, first)]
    assert places == sorted(places)
    assert (await service.messages(third))[-1] == "The priority is 5 now."
    engine.release()
    statuses = [await service.ended(prompt_id) for prompt_id in (running, third, second, first)]
    started = [status["started_at"] for status in statuses]
    assert started == sorted(started)
    status, document = await patch(service, third, priority=1)
    assert (status, document["code"]) == (409, "job_ended")


async def test_jobs_are_found_by_a_label_that_may_change(rig: Rig, clip: Path) -> None:
    service, engine = rig
    engine.hold()
    one, other = [await service.post(clip) for _ in range(2)]

    async def found(label: str) -> set[str]:
        jobs = (await service.get(f"/jobs?label={label}&limit=50"))["jobs"]
        assert all(job["label"] == label for job in jobs)
        return {job["prompt_id"] for job in jobs}

    for prompt_id in (one, other):
        assert (await patch(service, prompt_id, label="Ünser Fest"))[1]["label"] == "Ünser Fest"
    assert await found("Ünser Fest") == {one, other}
    status, document = await patch(service, one, label=" ", priority=0)
    assert (status, document["label"]) == (200, None)
    assert await found("Ünser Fest") == {other}
    assert await found("nobody's") == set()
    engine.release()
    await asyncio.gather(service.ended(one), service.ended(other))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, "nothing_to_change"),
        ({"priority": 11}, "invalid_option"),
        ({"priority": "1"}, "invalid_option"),
        ({"label": "two\nlines"}, "invalid_label"),
        ({"status": "SUCCESS"}, "unknown_field"),
    ],
)
async def test_a_wrong_change_is_refused(rig: Rig, clip: Path, changes: dict[str, Any], code: str) -> None:
    service, _ = rig
    prompt_id = await service.post(clip)
    before = await service.ended(prompt_id)
    status, document = await patch(service, prompt_id, **changes)
    assert (status, document["code"]) == (400, code)
    assert await service.status(prompt_id) == before
    assert (await patch(service, "nobody", priority=1))[1]["code"] == "unknown_prompt_id"


async def test_the_wait_is_told_once_a_pace_is_known(rig: Rig, clip: Path) -> None:
    service, engine = rig
    await service.ended(await service.post(clip))
    engine.hold()
    running = [await service.post(clip) for _ in range(3)]
    waiting = [await service.post(clip) for _ in range(2)]
    seconds = [(await service.status(prompt_id))["wait_seconds"] for prompt_id in waiting]
    assert all(isinstance(wait_s, float) for wait_s in seconds) and seconds == sorted(seconds)
    listed = {job["prompt_id"]: job["wait_seconds"] for job in (await service.get("/jobs?status=QUEUED"))["jobs"]}
    assert set(waiting) <= set(listed)
    engine.release()
    for prompt_id in running + waiting:
        assert (await service.ended(prompt_id))["wait_seconds"] is None


async def test_the_pace_is_that_of_jobs_side_by_side_counted_once() -> None:
    assert pace([(0, 10_000, 100), (5_000, 10_000, 100), (20_000, 30_000, 200)]) == 20 / 400
    assert pace([]) is None
    assert Backlog(10, 100, 2, 1.0).wait_s(2) == 60.0
    assert Backlog(0, 100, 2, 0.01).wait_s(1) == 0.0
    assert Backlog(0, 10**6, 1, 1.0).wait_s(2) == 1_000_200.0
    assert Backlog(0, 0, 0, 1.0).wait_s(None) is None
    assert Backlog(10, 100, 2, None).wait_s(2) is None


async def test_a_job_is_shown_small_until_it_is_erased(rig: Rig, clip: Path) -> None:
    service, engine = rig
    engine.hold()
    prompt_id = await service.post(clip)
    status, of_input, etag = await thumbnail(service, prompt_id)
    assert status == 200
    picture = cv2.imdecode(np.frombuffer(of_input, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None and picture.shape[:2] == (SIDE // 2, SIDE)
    assert (await thumbnail(service, prompt_id, **{"If-None-Match": str(etag)}))[0] == 304
    engine.release()
    await service.ended(prompt_id)
    status, of_result, _ = await thumbnail(service, prompt_id)
    assert status == 200 and of_result != of_input
    assert {f"thumbnails/{prompt_id}/input", f"thumbnails/{prompt_id}/result"} <= set(service.files())
    async with service.client.delete(f"/jobs/{prompt_id}") as response:
        assert response.status == 204
    assert (await thumbnail(service, prompt_id))[0] == 404
    assert not [name for name in service.files() if prompt_id in name]


async def test_few_thumbnails_are_made_at_a_time_and_each_once(
    rig: Rig, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, _ = rig
    prompt_id = await service.post(clip)
    await service.ended(prompt_id)
    media, made = service.client.app[keys.MEDIA], []
    make = media.thumbnail

    async def counted(path: Path, *, is_picture: bool) -> bytes:
        made.append(path)
        return await make(path, is_picture=is_picture)

    monkeypatch.setattr(media, "thumbnail", counted)
    shown = await asyncio.gather(*(thumbnail(service, prompt_id) for _ in range(6)))
    assert {status for status, _, _ in shown} == {200}
    assert len(made) <= MADE_AT_ONCE


async def test_what_was_erased_is_shown_no_more(rig: Rig, clip: Path) -> None:
    service, _ = rig
    prompt_id = await service.post(clip)
    await service.ended(prompt_id)
    assert (await thumbnail(service, prompt_id))[0] == 200
    app = service.client.app
    sql(service.folder / "faceswap.db", "UPDATE job SET finished_at = 1 WHERE prompt_id = ?", prompt_id)
    await Janitor(app[keys.SETTINGS], app[keys.STORE], app[keys.FILES]).sweep()
    assert not [name for name in service.files() if prompt_id in name]
    assert (await thumbnail(service, prompt_id))[0] in (404, 410)


async def test_priority_label_and_backlog_are_the_same_on_postgresql() -> None:
    with postgres.database() as url:
        async with opened(url) as store:
            await run_to_success(store)
            job, other = await create(store, segments=2), await create(store)
            assert (await store.set_priority(other.prompt_id, None, 3)).options.priority == 3
            assert await store.queue_position(job) == 2
            assert (await claim(store)).prompt_id == other.prompt_id
            assert (await store.set_label(job.prompt_id, None, "mine")).label == "mine"
            found, _ = await store.jobs(state=None, limit=5, cursor=None, owner=None, label="mine")
            assert [one.prompt_id for one in found] == [job.prompt_id]
            backlog = await store.backlog()
            assert (backlog.running_frames, backlog.queued_frames, backlog.queued_jobs) == (10, 20, 1)
            assert backlog.seconds_per_frame is not None
            await store.request_cancel(job.prompt_id, None)
            with pytest.raises(Conflict):
                await store.set_priority(job.prompt_id, None, 3)
            upload = await store.create_upload("an-upload", "ann", 3, "", 60, 1, 3)
            assert (await store.upload("an-upload", "ann")) == upload
            assert await store.expired_uploads(5) == []
            await store.expire_upload("an-upload", "ann")
            assert await store.expired_uploads(5) == ["an-upload"]
            await store.forget_upload("an-upload")
            assert await store.known_uploads(["an-upload"]) == set()
