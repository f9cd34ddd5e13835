"""Jobs that exist: listed, cancelled, retried, erased, asked for twice, and in whose order they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Engine, Service, at_rest
from talk import Api, assert_problem, on_both_databases
from waiting import WAIT_S, eventually, until

from faceswap.jobs import JobState


@pytest.fixture
async def own(folder_service: Callable[..., Service], api_of: Callable[[Service], Api]) -> AsyncIterator[Api]:
    """Yield a user of a new service whose jobs stay queued."""
    async with folder_service() as service:
        yield api_of(service)


async def pages(api: Api, query: str) -> list[list[dict[str, Any]]]:
    """Return all pages of the list, each fetched by the cursor of the one before."""
    found, cursor = [], ""
    while True:
        page = (await api.get(f"/jobs?{query}{cursor}")).json
        assert page.keys() == {"jobs", "next_cursor"}
        found.append(page["jobs"])
        if page["next_cursor"] is None:
            return found
        cursor = f"&cursor={page['next_cursor']}"


@on_both_databases
async def test_jobs_are_listed_newest_first_and_page_by_page(own: Api) -> None:
    assert (await own.get("/jobs")).json == {"jobs": [], "next_cursor": None}
    prompt_ids = [await own.submit() for _ in range(5)]

    async def are_told_of_the_outage() -> bool:
        return all(job["updated_at"] > job["created_at"] for job in (await own.get("/jobs")).json["jobs"])

    await eventually(are_told_of_the_outage)  # from then on no document changes
    whole = (await own.get("/jobs")).json["jobs"]
    assert [job["prompt_id"] for job in whole] == prompt_ids[::-1]
    assert whole == [await own.status(prompt_id) for prompt_id in reversed(prompt_ids)]
    split = await pages(own, "limit=2")
    assert [len(page) for page in split] == [2, 2, 1]
    assert [job for page in split for job in page] == whole


@on_both_databases
async def test_jobs_are_listed_by_status(own: Api) -> None:
    prompt_ids = [await own.submit() for _ in range(4)]
    for prompt_id in prompt_ids[:2]:
        assert (await own.post(f"/jobs/{prompt_id}/cancel")).status == 202

    async def listed(status: str) -> list[str]:
        return [job["prompt_id"] for page in await pages(own, f"limit=1&status={status}") for job in page]

    assert await listed("QUEUED") == await listed("queued") == prompt_ids[:1:-1]
    assert await listed("CANCELLED") == prompt_ids[1::-1]
    assert [await listed(state) for state in JobState if state not in ("QUEUED", "CANCELLED")] == [[], [], []]


async def test_a_job_that_comes_in_while_paging_shifts_nothing(own: Api) -> None:
    prompt_ids = [await own.submit() for _ in range(3)]
    first = (await own.get("/jobs?limit=2")).json
    await own.submit()
    rest = (await own.get(f"/jobs?limit=2&cursor={first['next_cursor']}")).json
    assert [job["prompt_id"] for job in first["jobs"] + rest["jobs"]] == prompt_ids[::-1]


async def test_a_queued_job_is_cancelled_at_once(own: Api) -> None:
    other, prompt_id = [await own.submit() for _ in range(2)]
    answer = await own.post(f"/jobs/{prompt_id}/cancel")
    assert (answer.status, answer.json["status"]) == (202, "CANCELLED")
    assert answer.json == await own.status(prompt_id)
    told = [
        event.type for event in await own.events(prompt_id) if event.type != "status"
    ]  # of the ComfyUI that is away
    assert told == ["queued", "cancelled"]
    assert (await own.status(other))["status"] == "QUEUED"


@on_both_databases
async def test_a_running_job_is_cancelled_and_the_others_go_on(api: Api, engine: Engine) -> None:
    await engine.hold()
    running = await api.submit()
    await progressing(api, running)
    await engine.set_faults(paint=True)
    waiting = [await api.submit() for _ in range(3)]
    assert (await api.post(f"/jobs/{running}/cancel")).status == 202
    assert (await api.until(running, "CANCELLED"))["progress"]["step"] == "Cancelled"
    end = (await api.events(running))[-1]
    assert (end.type, end.data.keys()) == ("cancelled", {"prompt_id", "message"})
    for prompt_id in waiting:
        assert (await api.done(prompt_id))["attempts"] == 1


async def progressing(api: Api, prompt_id: str) -> None:
    """Wait until the engine works on a job."""
    async with asyncio.timeout(WAIT_S), api.watching(prompt_id) as events:
        async for event in events:
            if event.type == "progress":
                return


async def test_a_job_given_to_the_engine_but_not_begun_is_cancelled(api: Api, engine: Engine) -> None:
    await engine.hold()
    first, second = await api.submit(), await api.submit()
    await api.until(second, "PROCESSING")
    await api.post(f"/jobs/{second}/cancel")
    await api.until(second, "CANCELLED")
    engine.release()
    assert (await api.done(first))["attempts"] == 1


async def test_a_job_that_has_ended_cannot_be_cancelled(api: Api) -> None:
    prompt_id = (await api.finished())["prompt_id"]
    problem = assert_problem(await api.post(f"/jobs/{prompt_id}/cancel"), 409, "job_ended")
    assert problem["prompt_id"] == prompt_id
    assert (await api.status(prompt_id))["status"] == "SUCCESS"


@on_both_databases
async def test_a_failed_job_is_retried(api: Api, engine: Engine) -> None:
    await engine.set_faults(unswapped=True)
    prompt_id = await api.submit()
    await api.until(prompt_id, "FAILED")
    await engine.set_faults(paint=True)
    before = await api.events(prompt_id)
    answer = await api.post(f"/jobs/{prompt_id}/retry")
    assert (answer.status, answer.json["status"], answer.json["error"]) == (202, "QUEUED", None)
    status = await api.done(prompt_id)
    assert (status["attempts"], status["error"], status["code"]) == (2, None, None)
    after = await api.events(prompt_id, headers={"Last-Event-ID": str(before[-1].id)})
    assert after[-1].type == "completed" and after[0].data["status"] == "QUEUED"


async def test_a_cancelled_job_is_retried(own: Api) -> None:
    prompt_id = await own.submit()
    await own.post(f"/jobs/{prompt_id}/cancel")
    assert (await own.post(f"/jobs/{prompt_id}/retry")).status == 202
    status = await own.status(prompt_id)
    assert (status["status"], status["queue_position"], status["finished_at"]) == ("QUEUED", 1, None)


async def test_a_job_that_did_not_fail_cannot_be_retried(api: Api, idle: Api) -> None:
    succeeded = (await api.finished())["prompt_id"]
    assert_problem(await api.post(f"/jobs/{succeeded}/retry"), 409, "not_retryable")
    assert_problem(await idle.post(f"/jobs/{await idle.submit()}/retry"), 409, "not_retryable")


async def test_a_job_whose_inputs_are_erased_cannot_be_retried(
    folder_service: Callable[..., Service], api_of: Callable[[Service], Api]
) -> None:
    async with folder_service(input_ttl_s=0) as service:
        prompt_id = await api_of(service).submit()
        await api_of(service).post(f"/jobs/{prompt_id}/cancel")
        await service.stop()
        await service.start()  # it sweeps when it starts
        api = api_of(service)
        await erased(service)
        assert_problem(await api.post(f"/jobs/{prompt_id}/retry"), 410, "inputs_erased")


async def erased(service: Service) -> None:
    await until(lambda: not service.files())


async def test_erasing_a_finished_job_leaves_nothing_of_it(api: Api, service: Service) -> None:
    before = await at_rest(service.files)
    job = await api.finished()
    assert service.files() != before
    answer = await api.call("DELETE", f"/jobs/{job['prompt_id']}")
    assert (answer.status, answer.body) == (204, b"")
    assert service.files() == before
    for path in ("/status/{}", "/events/{}", "/preview/{}"):
        assert_problem(await api.get(path.format(job["prompt_id"])), 404, "unknown_prompt_id")
    assert_problem(await api.call("DELETE", f"/jobs/{job['prompt_id']}"), 404, "unknown_prompt_id")
    assert job["prompt_id"] not in [other["prompt_id"] for other in (await api.get("/jobs")).json["jobs"]]


@on_both_databases
async def test_erasing_a_running_job_stops_it_first(api: Api, engine: Engine, service: Service) -> None:
    before = await at_rest(service.files)
    await engine.hold()
    prompt_id = await api.submit()
    await progressing(api, prompt_id)
    async with api.watching(prompt_id) as events:
        erasing = asyncio.create_task(api.call("DELETE", f"/jobs/{prompt_id}"))
        assert [event.type async for event in events][-1] == "cancelled"
        assert (await erasing).status == 204
    assert service.files() == before
    assert_problem(await api.get(f"/status/{prompt_id}"), 404, "unknown_prompt_id")
    await engine.set_faults(paint=True)
    await api.finished()


async def test_erasing_a_queued_job_frees_its_place(own: Api) -> None:
    first, second = [await own.submit() for _ in range(2)]
    assert (await own.call("DELETE", f"/jobs/{first}")).status == 204
    assert (await own.status(second))["queue_position"] == 1


@on_both_databases
async def test_the_same_idempotency_key_gives_the_first_job(api: Api, service: Service) -> None:
    key = {"Idempotency-Key": "once 1"}
    prompt_id = (await api.swap(headers=key, options={"crf": 19})).json["prompt_id"]
    await api.done(prompt_id)
    files = await at_rest(service.files)
    again = await api.swap(headers=key, options={"crf": 19})
    assert (again.status, again.json["prompt_id"]) == (202, prompt_id)
    async with api.session.post(f"{api.url}/face-swap", data=api.form(options={"crf": 19}), headers=key) as response:
        assert response.content_type == "text/event-stream"
        assert prompt_id in await response.text()
    assert service.files() == files
    problem = assert_problem(await api.swap(headers=key, options={"crf": 21}), 422, "idempotency_key_reused")
    assert problem["prompt_id"] == prompt_id
    assert service.files() == files


@on_both_databases
async def test_requests_with_one_key_at_the_same_time_make_one_job(own: Api) -> None:
    answers = await asyncio.gather(*(own.swap(headers={"Idempotency-Key": "together"}) for _ in range(8)))
    assert len({answer.json["prompt_id"] for answer in answers}) == 1
    assert len((await own.get("/jobs")).json["jobs"]) == 1


@on_both_databases
async def test_jobs_run_by_priority_and_then_by_age(
    tmp_path: Path, api_of: Callable[[Service], Api], own_database: dict[str, object]
) -> None:
    engine = Engine(tmp_path, paint=True)
    async with Service(tmp_path, f"http://127.0.0.1:{engine.port}", **own_database) as service:
        api = api_of(service)
        wanted = [0, -5, 10, 0, 3]
        jobs = [await api.submit(options={"priority": priority}) for priority in wanted]
        async with engine:
            done = [await api.done(prompt_id) for prompt_id in jobs]
        by_priority = sorted(done, key=lambda job: -int(job["options"]["priority"]))
        starts = [job["started_at"] for job in by_priority]
        assert starts == sorted(starts)
