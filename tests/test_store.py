"""Promises of the store, on a real file."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import aiosqlite
import postgres
import pytest
from simulation.inline import open_inline
from stored_jobs import (
    MIGRATIONS,
    QUEUE_LIMIT,
    acquire,
    adopt,
    claim,
    create,
    finish,
    hold,
    learn_costs,
    new_job,
    opened,
    run_to_success,
    sql,
    try_claim,
)
from waiting import WAIT_S

from faceswap import events
from faceswap.errors import BadRequest, Conflict, Gone, NotFound, Unavailable, Unprocessable
from faceswap.events import Event, Payload
from faceswap.jobs import Job, JobState, SegmentPlan, SegmentState, comfy_prompt_id
from faceswap.progress import Report
from faceswap.store import (
    IDEMPOTENCY_MS,
    LeaseLost,
    Store,
    StoreError,
    backend_lease,
    database,
    join_lease,
    now_ms,
    retry_writes,
)
from faceswap.store.sqlite import BUSY_TIMEOUT_MS, SQLite, store_error

PREVIEW = events.preview("id", 1)
SCAN = r"SCAN (job|segment|event|lease|input|video|face)(?! USING INDEX segment_(waiting|submitted))"
"""A step of a plan that reads a table from end to end."""


@pytest.fixture(params=["sqlite", "postgresql"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """Yield where a database is to be, or is: each test is for both kinds."""
    if request.param == "sqlite":
        yield tmp_path / "faceswap.db"
    else:
        with postgres.database() as url:
            yield url


on_sqlite = pytest.mark.parametrize("path", ["sqlite"], indirect=True)
"""For what is said of SQLite's own ways."""


@pytest.fixture
def published() -> list[Event]:
    return []


@pytest.fixture
async def store(path: Path | str, published: list[Event]) -> AsyncIterator[Store]:
    async with opened(path, published) as store:
        yield store


def progress(percentage: float) -> Report:
    return Report(percentage, 1, 10, 2.0, 3.0)


def message(text: str) -> Payload:
    return events.status(JobState.PROCESSING, text)


def sqlite(store: Store) -> SQLite:
    assert isinstance(store._engine, SQLite)
    return store._engine


def writer(store: Store) -> aiosqlite.Connection:
    """SQLite's own connection that writes."""
    return sqlite(store).writer.raw


async def state_of(store: Store, job: Job) -> JobState:
    return (await store.job(job.prompt_id)).state


async def types_of(store: Store, job: Job, after: int = 0) -> list[str]:
    return [event.type for event in await store.events(job.prompt_id, after)]


# A job comes in.


async def test_a_created_job_reads_back_as_it_was_asked_for(store: Store) -> None:
    asked = new_job(segments=3, options={"crf": 30, "frame_rate": 12.5}, owner="ann", webhook_url="https://a.example")
    job, is_new = await store.create(asked, QUEUE_LIMIT)
    assert is_new
    assert job == await store.job(asked.prompt_id)
    assert (job.inputs, job.options, job.workflow, job.owner) == (asked.inputs, asked.options, asked.workflow, "ann")
    assert (job.state, job.total_frames, job.segments_done, job.segments_total) == (JobState.QUEUED, 30, 0, 3)
    assert job.webhook_url == "https://a.example"
    segments = await store.segments(job.prompt_id)
    assert [(one.number, one.first_frame, one.frame_count, one.state) for one in segments] == [
        (number, 10 * number, 10, SegmentState.WAITING) for number in range(3)
    ]


async def test_the_queued_event_is_stored_and_published_with_the_job(store: Store, published: list[Event]) -> None:
    job = await create(store)
    assert await store.events(job.prompt_id, 0) == published
    [event] = published
    assert (event.type, event.seq, event.data["queue_position"]) == ("queued", 1, 1)
    assert event.data["status_url"] == f"/status/{job.prompt_id}"


async def test_a_job_whose_segments_cannot_be_written_leaves_nothing(
    store: Store, path: Path | str, published: list[Event]
) -> None:
    await create(store)
    twice = SegmentPlan(0, 0, 10)
    with pytest.raises(StoreError) as raised:
        await create(store, segments=(twice, twice))
    assert not raised.value.transient
    assert sql(path, "SELECT (SELECT count(*) FROM job), (SELECT count(*) FROM segment)") == [(1, 1)]
    assert len(published) == sql(path, "SELECT count(*) FROM event")[0][0] == 1


async def test_a_name_that_is_taken_gets_the_next_free_number(store: Store) -> None:
    names = [(await create(store, output_name="clip")).output_name for _ in range(3)]
    assert names == ["clip", "clip-2", "clip-3"]
    assert (await create(store, output_name="clip-2")).output_name == "clip-2-2"
    assert (await create(store, output_name="Clip_%")).output_name == "Clip_%"


@on_sqlite
async def test_a_name_that_thousands_had_is_found_without_comparing_each_with_each(
    store: Store, path: Path | str
) -> None:
    job = await create(store, output_name="clip")
    columns = "owner, state, step, options, workflow, priority, created_at, updated_at, total_frames, segments_total"
    values = columns.replace("state", "'SUCCESS'")
    sql(
        path,
        "WITH RECURSIVE n (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
        f" INSERT INTO job (prompt_id, output_name, {columns})"
        f" SELECT 'old-' || i, 'clip-' || i, {values} FROM job, n WHERE prompt_id = ?",
        job.prompt_id,
    )
    thousands = 0

    def count() -> None:
        nonlocal thousands
        thousands += 1

    await writer(store).set_progress_handler(count, 1000)
    assert (await create(store, output_name="clip")).output_name == "clip-20001"
    # Instructions of SQLite's machine: some hundreds a name, not some for each pair of names.
    assert thousands < 20_000


async def test_the_same_key_with_the_same_request_gives_the_first_job(store: Store, published: list[Event]) -> None:
    first = await create(store, idempotency_key="k", request_digest="d")
    again, is_new = await store.create(new_job(idempotency_key="k", request_digest="d"), queue_limit=1)
    assert (again, is_new) == (first, False)
    assert len(published) == 1


async def test_the_same_key_with_another_request_is_refused_and_names_the_first(store: Store) -> None:
    first = await create(store, idempotency_key="k", request_digest="d")
    with pytest.raises(Unprocessable) as refused:
        await create(store, idempotency_key="k", request_digest="other")
    assert (refused.value.code, refused.value.prompt_id) == ("idempotency_key_reused", first.prompt_id)


async def test_the_same_key_of_another_owner_is_another_key(store: Store) -> None:
    first = await create(store, idempotency_key="k", request_digest="d", owner="ann")
    second = await create(store, idempotency_key="k", request_digest="e", owner="bob")
    assert first.prompt_id != second.prompt_id


async def test_a_key_is_kept_for_24_hours_and_not_longer(store: Store, path: Path | str) -> None:
    first = await create(store, idempotency_key="k", request_digest="d")
    sql(path, "UPDATE job SET created_at = ?", now_ms() - IDEMPOTENCY_MS + 60_000)
    assert (await create(store, idempotency_key="k", request_digest="d")).prompt_id == first.prompt_id
    sql(path, "UPDATE job SET created_at = ?", now_ms() - IDEMPOTENCY_MS - 1)
    second = await create(store, idempotency_key="k", request_digest="other")
    assert second.prompt_id != first.prompt_id
    assert (await create(store, idempotency_key="k", request_digest="other")).prompt_id == second.prompt_id


async def test_a_full_queue_refuses_the_next_job_and_says_when_to_come_back(store: Store) -> None:
    await store.create(new_job(), queue_limit=1)
    with pytest.raises(Unavailable) as refused:
        await store.create(new_job(), queue_limit=1)
    assert (refused.value.code, refused.value.status, refused.value.retry_after) == ("queue_full", 503, 60)
    await claim(store)
    await store.create(new_job(), queue_limit=1)  # what is processing does not wait


# A segment is worked on.


async def test_segments_are_claimed_by_priority_then_age_then_number(store: Store, path: Path | str) -> None:
    old = await create(store, segments=2)
    young = await create(store)
    urgent = await create(store, options={"priority": 1})
    sql(path, "UPDATE segment SET created_at = created_at - 10 WHERE prompt_id = ?", old.prompt_id)
    order = [(segment.prompt_id, segment.number) for segment in [await claim(store) for _ in range(4)]]
    assert order == [(urgent.prompt_id, 0), (old.prompt_id, 0), (old.prompt_id, 1), (young.prompt_id, 0)]
    assert await try_claim(store) is None


async def test_a_claim_commits_the_id_the_engine_will_know(store: Store, path: Path | str) -> None:
    job = await create(store)
    segment = await claim(store, "gpu")
    expected = comfy_prompt_id(job.prompt_id, 0, 1)
    assert (segment.comfy_prompt_id, segment.attempt, segment.backend) == (expected, 1, "gpu")
    assert sql(path, "SELECT comfy_prompt_id, state FROM segment") == [(expected, "submitted")]
    assert await store.submitted() == [segment]


async def test_the_first_claim_starts_the_job(store: Store) -> None:
    job = await create(store, segments=2)
    await claim(store)
    started = await store.job(job.prompt_id)
    assert (started.state, started.step, started.attempts) == (JobState.PROCESSING, "Preparing", 1)
    assert started.started_at is not None
    await store.add_event(job.prompt_id, events.executing("1", "x"), step="Executing: x")
    await claim(store)
    second = await store.job(job.prompt_id)
    assert (second.step, second.attempts, second.started_at) == ("Executing: x", 2, started.started_at)


async def test_a_segment_given_back_is_claimed_again_under_a_new_id(store: Store) -> None:
    await create(store)
    first = await claim(store)
    await store.requeue(first, failed=True)
    second = await claim(store, "two")
    assert (second.attempt, second.failures, second.losses, second.backend) == (2, 1, 0, "two")
    assert second.comfy_prompt_id != first.comfy_prompt_id
    await store.requeue(second, lost=True)
    third = await claim(store)
    assert (third.attempt, third.failures, third.losses) == (3, 1, 1)


async def test_a_pausing_segment_is_not_claimed_before_its_time(store: Store, path: Path | str) -> None:
    await create(store)
    await store.requeue(await claim(store), pause_s=50)
    assert await try_claim(store) is None
    due_s = await store.next_due_s()
    assert due_s is not None
    assert 0 < due_s <= 50
    sql(path, "UPDATE segment SET not_before = ?", now_ms())
    assert await store.next_due_s() is None
    await claim(store)
    assert await store.next_due_s() is None


async def test_a_pause_that_a_jumping_clock_made_hours_long_is_not_believed(
    store: Store, path: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(store)
    await store.requeue(await claim(store), pause_s=50)
    # As an earlier process left it, whose clock was three hours ahead.
    sql(path, "UPDATE segment SET not_before = not_before + 3 * 3600 * 1000")
    assert len(await store.waiting_frames()) == 1
    # Within a process no clock that jumps is looked at.
    await store.requeue(await claim(store), pause_s=50)
    for hours in (-3, 3):
        jumped = time.time_ns() + hours * 3600 * 10**9
        monkeypatch.setattr(time, "time_ns", lambda: jumped)  # noqa: B023 - it is asked before the next jump
        assert await try_claim(store) is None


async def test_what_engines_died_of_is_claimed_only_where_nothing_else_is_at_work(store: Store) -> None:
    await create(store)
    for _ in range(2):
        await store.requeue(await claim(store), died=True)
    assert await try_claim(store, most_deaths=1) is None
    dangerous = await try_claim(store)
    assert dangerous is not None and dangerous.deaths == 2


async def test_a_write_that_cannot_pass_is_not_repeated() -> None:
    tries = 0

    async def write() -> None:
        nonlocal tries
        assert not tries
        tries += 1
        raise StoreError("no such column", transient=False)

    with pytest.raises(StoreError, match="no such column"):
        await retry_writes(write)
    assert tries == 1


async def test_a_write_is_repeated_until_the_disk_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "RETRY_S", 0)
    full = [sqlite3.OperationalError("database or disk is full"), sqlite3.OperationalError("disk I/O error")]
    full[0].sqlite_errorcode, full[1].sqlite_errorcode = sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE

    async def write() -> str:
        if full:
            raise store_error(full.pop())
        return "written"

    assert await retry_writes(write) == "written"


async def test_a_database_that_stays_away_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "RETRY_S", 0)
    monkeypatch.setattr(database, "RETRY_LIMIT_S", 0.01)

    async def write() -> None:
        raise StoreError("unable to open database file", transient=True)

    with pytest.raises(StoreError, match="unable to open"):
        await retry_writes(write)


async def test_the_places_of_a_page_are_those_that_each_job_is_told(store: Store) -> None:
    jobs = [await create(store, options={"priority": priority}) for priority in (0, 5, 0, -1)]
    places = await store.queue_positions(jobs)
    assert places == {job.prompt_id: await store.queue_position(job) for job in jobs}
    assert [places[job.prompt_id] for job in jobs] == [2, 1, 3, 4]
    await claim(store)
    now = [await store.job(job.prompt_id) for job in jobs]
    assert await store.queue_positions(now) == {jobs[0].prompt_id: 1, jobs[2].prompt_id: 2, jobs[3].prompt_id: 3}


async def test_only_the_attempt_under_way_can_finish_or_give_back_a_segment(store: Store) -> None:
    job = await create(store)
    old = await claim(store)
    await store.requeue(old)
    current = await claim(store)
    assert await store.finish_segment(old, "old.mp4", None) is None
    await store.requeue(old)
    assert await store.segments(job.prompt_id) == [current]
    moved = await store.finish_segment(current, "new.mp4", 0.5)
    assert moved is not None
    assert moved.segments_done == moved.segments_total == 1
    assert await store.finish_segment(current, "again.mp4", None) is None
    [done] = await store.segments(job.prompt_id)
    assert (done.state, done.output_file, done.changed_share) == (SegmentState.DONE, "new.mp4", 0.5)
    assert (await store.job(job.prompt_id)).segments_done == 1


async def test_a_segment_that_is_finished_again_with_the_same_output_counts_once(store: Store) -> None:
    job = await create(store, segments=2)
    segment = await claim(store)
    await learn_costs(store, "key", {"swap 1": 1.0})
    costs = "key", {"swap 1": 2.0}
    first = await store.finish_segment(segment, "0.mp4", 0.5, costs=costs)
    assert first is not None and await store.finish_segment(segment, "0.mp4", 0.5, costs=costs) == first
    assert first.segments_done == 1
    assert await store.phase_costs("key") == {"swap 1": pytest.approx(1.3)}
    await store.fail(job.prompt_id, "code", "sentence")
    assert await store.finish_segment(segment, "0.mp4", 0.5) is None


async def test_a_job_that_has_succeeded_with_a_result_succeeds_with_it_again(store: Store) -> None:
    job = await run_to_success(store)
    events_before = await store.events(job.prompt_id, 0)
    lease = await acquire(store, join_lease(job.prompt_id))
    result = {"result_file": "clip.mp4", "size": 99, "warnings": ()}
    assert await store.succeed(job, lease, sha256="c" * 64, **result)  # type: ignore[arg-type]
    assert not await store.succeed(job, lease, sha256="d" * 64, **result)  # type: ignore[arg-type]
    assert await store.events(job.prompt_id, 0) == events_before


async def test_a_segment_that_was_too_long_is_cut_and_so_is_what_waits(store: Store, path: Path | str) -> None:
    job = await create(store, segments=4)
    await store.finish_segment(await claim(store), "0.mp4", None)
    too_long, at_work = await claim(store), await claim(store)
    await store.split(too_long, 6, pause_s=50, failed=True)
    pieces = [
        (one.first_frame, one.frame_count, one.state, one.failures) for one in await store.segments(job.prompt_id)
    ]
    assert pieces == [
        (0, 10, "done", 0),
        (10, 5, "waiting", 1),
        (15, 5, "waiting", 1),
        (20, 10, "submitted", 0),
        (30, 5, "waiting", 0),
        (35, 5, "waiting", 0),
    ]
    assert (await store.job(job.prompt_id)).segments_total == 6
    assert await store.waiting_frames() == [5, 5]
    await store.split(at_work, 6, failed=True)
    assert (await store.job(job.prompt_id)).segments_total == 7
    sql(path, "UPDATE segment SET not_before = 0")
    while segment := await try_claim(store):
        moved = await store.finish_segment(segment, f"{segment.number}.mp4", None)
    assert moved is not None
    assert moved.segments_done == moved.segments_total == 7


async def test_a_segment_of_two_frames_is_not_cut(store: Store) -> None:
    job = await create(store, frames=2)
    await store.split(await claim(store), 2, failed=True)
    [segment] = await store.segments(job.prompt_id)
    assert (segment.frame_count, segment.state, segment.failures) == (2, "waiting", 1)


async def test_what_a_segment_warned_of_is_kept(store: Store) -> None:
    job = await create(store)
    await store.finish_segment(await claim(store), "0.mp4", 0.5, ["déjà vu"])
    [segment] = await store.segments(job.prompt_id)
    assert segment.warnings == ("déjà vu",)


async def test_an_id_the_engine_chose_is_kept_for_that_attempt_only(store: Store) -> None:
    job = await create(store)
    old = await claim(store)
    renamed = await store.set_prompt_id(old, "its-own")
    assert await store.segments(job.prompt_id) == [renamed]
    await store.requeue(renamed)
    current = await claim(store)
    await store.set_prompt_id(old, "too-late")
    assert await store.segments(job.prompt_id) == [current]


async def test_a_job_whose_segments_are_done_is_found_to_be_joined(store: Store) -> None:
    job = await create(store, segments=2)
    first, second = await claim(store), await claim(store)
    await store.finish_segment(second, "2.mp4", None)
    assert await store.unfinished() == []
    await store.finish_segment(first, "1.mp4", None)
    assert [one.prompt_id for one in await store.unfinished()] == [job.prompt_id]
    await finish(store, job)
    assert await store.unfinished() == []


# A job moves on.


async def test_progress_never_falls(store: Store, published: list[Event]) -> None:
    job = await create(store)
    await store.record_progress({job.prompt_id: progress(5.0)}, {})  # not yet processing
    await claim(store)
    for percentage in (10.0, 30.0, 20.0, 30.0):
        await store.record_progress({job.prompt_id: progress(percentage)}, {})
    told = [event.data["percentage"] for event in published if event.type == "progress"]
    assert told == [10.0, 30.0, 30.0]
    assert (await store.job(job.prompt_id)).percentage == 30.0


async def test_replay_holds_the_newest_progress_only(store: Store) -> None:
    job = await create(store)
    await claim(store)
    for percentage in (10.0, 20.0):
        await store.record_progress({job.prompt_id: progress(percentage)}, {})
        await store.add_event(job.prompt_id, message(str(percentage)))
    events = await store.events(job.prompt_id, 0)
    assert [event.type for event in events] == ["queued", "status", "progress", "status"]
    assert events[2].data["percentage"] == 20.0
    assert await store.events(job.prompt_id, events[1].seq) == events[2:]
    assert await store.events(job.prompt_id, events[-1].seq) == []


async def test_success_tells_the_result_and_ends_at_100(store: Store) -> None:
    job = await create(store, segments=1)
    await store.finish_segment(await claim(store), "1.mp4", 1.0)
    lease = await acquire(store, join_lease(job.prompt_id))
    ended = await store.succeed(job, lease, result_file="clip.mp4", size=7, sha256="f" * 64, warnings=("déjà vu",))
    assert ended
    done = await store.job(job.prompt_id)
    assert (done.state, done.percentage, done.current_frame, done.eta_s) == (JobState.SUCCESS, 100.0, 10, 0.0)
    assert (done.result_file, done.result_bytes, done.warnings) == ("clip.mp4", 7, ("déjà vu",))
    assert done.finished_at is not None
    events = await store.events(job.prompt_id, 0)
    assert [event.type for event in events] == ["queued", "progress", "completed"]
    assert events[1].data["percentage"] == 100.0
    assert events[2].data["download_url"] == "/download/clip.mp4"
    assert json.loads(events[2].sse().split(b"data: ")[1]) == events[2].data


async def test_an_end_is_final(store: Store) -> None:
    job = await run_to_success(store)
    [segment] = await store.segments(job.prompt_id)
    assert not await store.fail(job.prompt_id, "code", "sentence")
    assert not await store.mark_stopped(segment)
    await store.add_status(job.prompt_id, "")
    await store.record_progress({job.prompt_id: progress(100.0)}, {})
    assert await store.job(job.prompt_id) == job
    assert await types_of(store, job) == ["queued", "progress", "completed"]


async def test_a_job_that_is_only_queued_cannot_succeed(store: Store) -> None:
    job = await create(store)
    assert not await finish(store, job)
    assert await state_of(store, job) == JobState.QUEUED


async def test_a_failure_ends_all_segments_and_is_told(store: Store) -> None:
    job = await create(store, segments=3)
    await store.finish_segment(await claim(store), "1.mp4", None)
    running = await claim(store)
    await store.record_progress({job.prompt_id: progress(40.0)}, {})
    assert await store.fail(job.prompt_id, "out_of_memory", "Too large.")
    failed = await store.job(job.prompt_id)
    assert (failed.state, failed.code, failed.error, failed.eta_s) == (
        JobState.FAILED,
        "out_of_memory",
        "Too large.",
        None,
    )
    assert [segment.state for segment in await store.segments(job.prompt_id)] == ["done", "failed", "failed"]
    assert await try_claim(store) is None
    assert await store.finish_segment(running, "2.mp4", None) is None
    [*_, last] = await store.events(job.prompt_id, 0)
    assert (last.type, last.data["code"], last.terminal) == ("error", "out_of_memory", True)


# Cancelling.


async def test_a_queued_job_is_cancelled_at_once(store: Store) -> None:
    job = await create(store)
    assert (await store.request_cancel(job.prompt_id, None)).state == JobState.CANCELLED
    assert await try_claim(store) is None
    assert await types_of(store, job) == ["queued", "cancelled"]


async def test_a_running_job_is_cancelled_when_the_engine_has_stopped(store: Store) -> None:
    job = await create(store, segments=2)
    segment = await claim(store)
    asked = await store.request_cancel(job.prompt_id, None)
    assert (asked.state, asked.step, asked.cancel_requested) == (JobState.PROCESSING, "Cancelling", True)
    assert await try_claim(store) is None
    assert await store.mark_stopped(segment)
    assert await state_of(store, job) == JobState.CANCELLED
    assert not await store.mark_stopped(segment)


async def test_a_cancelled_job_ends_when_the_last_of_its_engines_has_stopped(store: Store) -> None:
    job = await create(store, segments=2)
    first, second = await claim(store, "one"), await claim(store, "two")
    await store.request_cancel(job.prompt_id, None)
    assert not await store.mark_stopped(first)
    assert await state_of(store, job) == JobState.PROCESSING
    assert await store.mark_stopped(second)
    assert await state_of(store, job) == JobState.CANCELLED


async def test_a_job_between_two_attempts_is_cancelled_at_once(store: Store) -> None:
    job = await create(store)
    await store.requeue(await claim(store), pause_s=50)
    assert (await store.request_cancel(job.prompt_id, None)).state == JobState.CANCELLED


@pytest.mark.parametrize("end", ["finished", "given back"])
async def test_a_cancelled_job_ends_with_its_last_segment_even_if_nobody_is_left_to_say_so(
    path: Path | str, end: str
) -> None:
    async with opened(path) as store:
        job = await create(store, segments=3)
        first, second = await claim(store), await claim(store)
        await store.request_cancel(job.prompt_id, None)
        await store.requeue(first)
        assert await state_of(store, job) == JobState.PROCESSING
        assert await try_claim(store) is None
        if end == "finished":
            assert await store.finish_segment(second, "2.mp4", None) is None
        else:
            await store.requeue(second, lost=True)
    async with opened(path) as store:
        assert await state_of(store, job) == JobState.CANCELLED
        assert await types_of(store, job) == ["queued", "cancelled"]


async def test_nobody_asked_nothing_is_cancelled(store: Store) -> None:
    job = await create(store)
    segment = await claim(store)
    assert not await store.mark_stopped(segment)
    assert await state_of(store, job) == JobState.PROCESSING
    assert await store.submitted() == [segment]


@pytest.mark.parametrize("end", [JobState.SUCCESS, JobState.FAILED, JobState.CANCELLED])
async def test_a_job_that_has_ended_cannot_be_cancelled(store: Store, end: JobState) -> None:
    job = await ended_job(store, end)
    with pytest.raises(Conflict) as refused:
        await store.request_cancel(job.prompt_id, None)
    assert (refused.value.code, refused.value.prompt_id) == ("job_ended", job.prompt_id)
    assert await store.job(job.prompt_id) == job


async def ended_job(store: Store, end: JobState) -> Job:
    """Store a job of one segment in the given end state."""
    if end == JobState.SUCCESS:
        return await run_to_success(store)
    job = await create(store)
    segment = await claim(store)
    if end == JobState.FAILED:
        await store.fail(job.prompt_id, "code", "sentence")
    else:
        await store.request_cancel(job.prompt_id, None)
        await store.mark_stopped(segment)
    return await store.job(job.prompt_id)


# Trying again.


@pytest.mark.parametrize("end", [JobState.FAILED, JobState.CANCELLED])
async def test_a_retry_queues_the_job_again_with_no_trace_of_its_end(store: Store, end: JobState) -> None:
    job = await ended_job(store, end)
    queued = await store.retry(job.prompt_id, None)
    assert queued.state == JobState.QUEUED
    assert (queued.error, queued.code, queued.finished_at, queued.cancel_requested) == (None, None, None, False)
    again = await claim(store)
    assert (again.attempt, again.failures) == (2, 0)
    await store.finish_segment(again, "1.mp4", None)
    assert await finish(store, queued)


async def test_a_retry_keeps_finished_segments(store: Store) -> None:
    job = await create(store, segments=3)
    await store.finish_segment(await claim(store), "1.mp4", None)
    await store.requeue(await claim(store), failed=True, pause_s=50)
    await store.fail(job.prompt_id, "code", "sentence")
    queued = await store.retry(job.prompt_id, None)
    assert queued.segments_done == 1
    states = [(segment.state, segment.failures) for segment in await store.segments(job.prompt_id)]
    assert states == [("done", 0), ("waiting", 0), ("waiting", 0)]
    assert (await claim(store)).number == 1


async def test_a_job_that_failed_at_joining_can_reach_its_joining_again(store: Store) -> None:
    job = await create(store, segments=2)
    for _ in range(2):
        await store.finish_segment(await claim(store), "x.mp4", None)
    await store.fail(job.prompt_id, "frames_missing", "sentence")
    assert (await store.retry(job.prompt_id, None)).segments_done == 1
    last = await claim(store)
    assert last.number == 1
    moved = await store.finish_segment(last, "y.mp4", None)
    assert moved is not None
    assert moved.segments_done == 2


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.PROCESSING, JobState.SUCCESS])
async def test_a_job_that_did_not_fail_cannot_be_retried(store: Store, state: JobState) -> None:
    job = await run_to_success(store) if state == JobState.SUCCESS else await create(store)
    if state == JobState.PROCESSING:
        await claim(store)
    with pytest.raises(Conflict) as refused:
        await store.retry(job.prompt_id, None)
    assert refused.value.code == "not_retryable"
    assert await state_of(store, job) == state


async def test_a_job_without_its_inputs_cannot_be_retried(store: Store) -> None:
    job = await ended_job(store, JobState.FAILED)
    assert await store.mark_inputs_erased(job.prompt_id)
    with pytest.raises(Gone) as refused:
        await store.retry(job.prompt_id, None)
    assert refused.value.code == "inputs_erased"
    assert await state_of(store, job) == JobState.FAILED


async def test_the_inputs_of_a_job_that_was_retried_are_not_given_up(store: Store) -> None:
    job = await ended_job(store, JobState.FAILED)
    assert await store.with_expired_inputs(now_ms(), 9) == [job.prompt_id]
    await store.retry(job.prompt_id, None)
    assert not await store.mark_inputs_erased(job.prompt_id)
    assert await store.with_expired_inputs(now_ms(), 9) == []


# Erasing and reading.


async def test_an_erased_job_leaves_no_row(store: Store, path: Path | str) -> None:
    job = await run_to_success(store)
    other = await create(store)
    await store.erase(job.prompt_id)
    with pytest.raises(NotFound):
        await store.job(job.prompt_id)
    with pytest.raises(NotFound):
        await store.result("clip.mp4", None)
    for table in ("job", "segment", "event", "input"):
        assert sql(path, f"SELECT DISTINCT prompt_id FROM {table}") == [(other.prompt_id,)]


async def test_the_watchers_of_a_job_that_is_erased_while_it_runs_are_told_its_end(
    store: Store, published: list[Event]
) -> None:
    job = await create(store)
    await claim(store)
    await store.begin_erasure(job.prompt_id)
    assert not published[-1].terminal
    await store.erase(job.prompt_id)
    assert published[-1].type == "cancelled"


async def test_a_result_is_found_by_its_name_until_it_expires(store: Store) -> None:
    job = await run_to_success(store, owner="ann")
    assert await store.result("clip.mp4", "ann") == job
    for filename, owner in (("clip.mp4", "bob"), ("other.mp4", "ann")):
        with pytest.raises(NotFound):
            await store.result(filename, owner)
    assert await store.with_expired_results(now_ms(), 9) == [(job.prompt_id, "ann/clip.mp4")]
    await store.mark_result_erased(job.prompt_id)
    assert await store.with_expired_results(now_ms(), 9) == []
    with pytest.raises(Gone) as gone:
        await store.result("clip.mp4", "ann")
    assert gone.value.code == "result_expired"


async def test_the_queue_position_is_the_place_in_the_order_of_claims(store: Store) -> None:
    jobs = [await create(store, options={"priority": priority}) for priority in (0, 0, 5, -5, 0)]
    positions = {job.prompt_id: await store.queue_position(job) for job in jobs}
    claimed = [(await claim(store)).prompt_id for _ in jobs]
    assert [positions[prompt_id] for prompt_id in claimed] == [1, 2, 3, 4, 5]
    assert await store.queue_position(await store.job(claimed[0])) is None


async def test_pages_of_jobs_hold_each_job_once_newest_first(store: Store, path: Path | str) -> None:
    jobs = [await create(store) for _ in range(7)]
    for number, job in enumerate(jobs):  # three of them within one millisecond
        sql(path, "UPDATE job SET created_at = ? WHERE prompt_id = ?", max(1000, 998 + number), job.prompt_id)
    found, cursor = await store.jobs(state=None, limit=2, cursor=None, owner=None)
    while cursor is not None:
        await create(store)  # what comes meanwhile moves nothing
        page, cursor = await store.jobs(state=None, limit=2, cursor=cursor, owner=None)
        found += page
    assert sorted(job.prompt_id for job in found) == sorted(job.prompt_id for job in jobs)
    assert [job.created_at for job in found] == [1004, 1003, 1002, 1001, 1000, 1000, 1000]


async def test_a_page_that_is_just_full_is_the_last(store: Store) -> None:
    await create(store)
    assert (await store.jobs(state=None, limit=1, cursor=None, owner=None))[1] is None


async def test_jobs_are_listed_by_state(store: Store) -> None:
    first, second = await run_to_success(store), await create(store)
    for state, job in ((JobState.SUCCESS, first), (JobState.QUEUED, second)):
        found, _ = await store.jobs(state=state, limit=9, cursor=None, owner=None)
        assert [one.prompt_id for one in found] == [job.prompt_id]
    assert await store.counts() == {"QUEUED": 1, "PROCESSING": 0}


@pytest.mark.parametrize("cursor", ["", "x", "-", "12", "12-", "-id", "1" * 40 + "-id", "9" * 5000 + "-id"])
async def test_a_cursor_that_is_not_ours_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(BadRequest) as refused:
        await store.jobs(state=None, limit=1, cursor=cursor, owner=None)
    assert refused.value.code == "invalid_cursor"


async def test_an_owner_sees_and_touches_their_own_jobs_only(store: Store) -> None:
    hers, nobodys = await create(store, owner="ann"), await create(store)
    for touch in (store.owned_job, store.request_cancel, store.retry):
        for job, owner in ((hers, "bob"), (nobodys, "bob"), (nobodys, "ann"), (hers, None), (hers, "")):
            with pytest.raises(NotFound):
                await touch(job.prompt_id, owner)
    assert [await state_of(store, job) for job in (hers, nobodys)] == ["QUEUED", "QUEUED"]
    for job, owner in ((hers, "ann"), (nobodys, None)):
        found, _ = await store.jobs(state=None, limit=9, cursor=None, owner=owner)
        assert [one.prompt_id for one in found] == [job.prompt_id]
        assert (await store.owned_job(job.prompt_id, owner)).prompt_id == job.prompt_id


# Event numbers.


async def test_event_numbers_never_repeat_over_a_crash(path: Path | str) -> None:
    published: list[Event] = []
    async with opened(path, published) as store:
        job = await create(store)
        for _ in range(5):  # told, and not stored
            await store.record_progress({}, {job.prompt_id: PREVIEW})
    async with opened(path, published) as store:
        await store.add_event(job.prompt_id, message("after"))
    assert [event.seq for event in published] == [1, 2, 3, 4, 5, 6, 7]
    assert await store_events(path, job) == [1, 7]


async def store_events(path: Path | str, job: Job) -> list[int]:
    """Return the numbers of a job's stored events."""
    async with opened(path) as store:
        return [event.seq for event in await store.events(job.prompt_id, 0)]


async def test_event_numbers_never_repeat_over_crashes_between_which_nothing_was_stored(path: Path | str) -> None:
    published: list[Event] = []
    async with opened(path, published) as store:
        job = await create(store)
    for _ in range(3):
        async with opened(path, published) as store:
            for _ in range(5):
                await store.record_progress({}, {job.prompt_id: PREVIEW})
    numbers = [event.seq for event in published]
    assert numbers == sorted(set(numbers))
    assert numbers == list(range(1, 17))


async def test_nothing_is_announced_after_the_end(store: Store, published: list[Event]) -> None:
    job = await run_to_success(store)
    await store.record_progress({}, {job.prompt_id: PREVIEW, "unknown": PREVIEW})
    assert published[-1].terminal
    assert await store.events(job.prompt_id, 0) == [published[0], *published[-2:]]


@pytest.mark.parametrize("first", ["progress", "success"])
async def test_event_numbers_grow_when_progress_comes_first_after_a_crash(path: Path | str, first: str) -> None:
    async with opened(path) as store:
        job = await create(store)
        segment = await claim(store)
        for _ in range(9):
            await store.record_progress({}, {job.prompt_id: PREVIEW})
        await store.record_progress({job.prompt_id: progress(50.0)}, {})
        seen = (await store.events(job.prompt_id, 0))[-1].seq
        await store.finish_segment(segment, "1.mp4", None)
    published: list[Event] = []
    async with opened(path, published) as store:
        await (
            store.record_progress({job.prompt_id: progress(60.0)}, {}) if first == "progress" else finish(store, job)
        )
        assert published[0].seq > seen
        assert await store.events(job.prompt_id, seen) == published


async def test_events_are_published_after_their_commit_and_in_the_order_of_their_numbers(path: Path | str) -> None:
    seen: defaultdict[str, list[int]] = defaultdict(list)

    def publish(event: Event) -> None:
        seen[event.prompt_id].append(event.seq)
        if event.type != "preview":
            rows = sql(path, "SELECT 1 FROM event WHERE prompt_id = ? AND seq = ?", event.prompt_id, event.seq)
            assert rows, f"{event} was told before it was committed"

    store = await Store.open(path, MIGRATIONS, publish)
    try:
        jobs = [await create(store, segments=2) for _ in range(4)]
        for _ in range(8):
            await claim(store)

        async def watch_over(job: Job, worker: int) -> None:
            for step in range(8):
                await store.add_event(job.prompt_id, message(f"{worker} {step}"))
                await store.record_progress({}, {job.prompt_id: PREVIEW})

        async def interrupted(job: Job, delay: int) -> None:
            """Give up in the middle, at ever another place."""
            task = asyncio.create_task(store.add_event(job.prompt_id, message("cut off")))
            for _ in range(delay):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        async with asyncio.TaskGroup() as tasks:
            for job in jobs:
                for worker in range(4):
                    tasks.create_task(watch_over(job, worker))
                for delay in range(12):
                    tasks.create_task(interrupted(job, delay))
        for job in jobs:
            numbers = seen[job.prompt_id]
            assert len(numbers) >= 1 + 4 * 16
            # Over several connections a later commit may be answered first; the feed puts the events in order.
            assert (sorted(numbers) if store.is_shared else numbers) == sorted(set(numbers))
            stored = [event.seq for event in await store.events(job.prompt_id, 0)]
            assert set(stored) <= set(numbers)
    finally:
        await store.close()


@on_sqlite
async def test_a_method_that_is_cancelled_while_it_commits_lets_nobody_in_before_it_has_told(
    store: Store, published: list[Event]
) -> None:
    job = await create(store)
    committing, go_on = threading.Event(), threading.Event()

    def hold_commit(statement: str) -> None:
        if statement == "COMMIT":
            committing.set()
            go_on.wait(WAIT_S)

    await writer(store).set_trace_callback(hold_commit)
    first = asyncio.create_task(store.add_event(job.prompt_id, message("first")))
    assert await asyncio.to_thread(committing.wait, WAIT_S)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(store.record_progress({}, {job.prompt_id: PREVIEW}))
    await asyncio.sleep(0)
    go_on.set()
    await second
    assert [(event.seq, event.type) for event in published] == [(1, "queued"), (2, "status"), (3, "preview")]
    assert await types_of(store, job) == ["queued", "status"]


# What goes wrong underneath.


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_a_cancelled_method_is_done_or_undone_and_leaves_the_store_usable(path: Path | str, turns: int) -> None:
    """Cancelled after ever more turns of the loop, so in every part of the transaction."""
    published: list[Event] = []
    async with opened(path, published) as store:
        task = asyncio.create_task(store.create(new_job(segments=3), QUEUE_LIMIT))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        other = await create(store)
        done = len(published) == 2
        assert sql(path, "SELECT count(*) FROM segment") == [(4 if done else 1,)]
        assert sql(path, "SELECT count(*) FROM job") == [(2 if done else 1,)]
        assert await state_of(store, other) == JobState.QUEUED


@on_sqlite
async def test_a_full_disk_is_told_and_leaves_nothing_half(
    store: Store, path: Path | str, published: list[Event]
) -> None:
    job = await create(store)
    segment = await claim(store)
    [(pages,)] = await sqlite(store).writer.fetch("PRAGMA page_count")
    await sqlite(store).writer.fetch(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        for _ in range(100):
            await create(store, segments=200)
    accepted = sql(path, "SELECT count(*) FROM job")[0][0]
    assert accepted == len(published)
    assert sql(path, "SELECT count(*) FROM segment") == [(1 + 200 * (accepted - 1),)]
    with pytest.raises(StoreError, match="full"):
        await store.add_event(job.prompt_id, message("x" * 100_000))
    assert len(published) == accepted

    await sqlite(store).writer.fetch("PRAGMA max_page_count = 1000000")
    await store.finish_segment(segment, "1.mp4", None)
    assert await finish(store, job)
    numbers = [event.seq for event in published if event.prompt_id == job.prompt_id]
    assert numbers == sorted(set(numbers))


async def test_reads_see_committed_data_only(store: Store) -> None:
    job = await create(store)
    async with store._transaction() as tx:
        await tx.run("UPDATE job SET step = 'half done'")
        assert (await store.job(job.prompt_id)).step == "Queued"
    assert (await store.job(job.prompt_id)).step == "half done"


@on_sqlite
async def test_the_database_is_writable_or_says_that_it_is_not(store: Store) -> None:
    await store.check_writable()
    await sqlite(store).writer.fetch("PRAGMA query_only = ON")
    with pytest.raises(StoreError):
        await store.check_writable()


@on_sqlite
async def test_no_method_reads_a_table_from_end_to_end(store: Store, path: Path | str) -> None:
    """With 100,000 old jobs as fast as with none: every statement finds its rows by an index."""
    statements: set[str] = set()
    for connection in (sqlite(store).writer, sqlite(store).reader):
        await connection.raw.set_trace_callback(statements.add)
    job = await create(store, segments=3, idempotency_key="k", request_digest="d", owner="ann")
    await create(store, idempotency_key="k", request_digest="d", owner="ann")
    await store.split(await claim(store), 1)
    await store.jobs_needing_engine(1)
    await adopt(store)
    await store.record_progress({}, {job.prompt_id: PREVIEW})
    await store.abandon("one", "lost")
    assert await store.abandoned("one") == {"lost"}
    await store.forget_abandoned(["lost"])
    await store.waiting_frames()
    await store.next_due_s()
    while segment := await try_claim(store):
        await store.record_progress({job.prompt_id: progress(1.0)}, {})
        await store.submitted()
        await store.mark_stopped(segment)
        await store.finish_segment(segment, "x.mp4", None)
    await store.unfinished()
    await store.counts()
    await finish(store, job)
    for method in (store.request_cancel, store.retry):
        with pytest.raises(Conflict):
            await method(job.prompt_id, "ann")
    for state in (None, JobState.SUCCESS):
        await store.jobs(state=state, limit=1, cursor=f"{now_ms()}-x", owner=None)
    queued = await create(store)
    await store.queue_position(queued)
    await store.queue_positions([queued])
    await store.result("clip.mp4", "ann")
    await store.with_expired_inputs(now_ms(), 1)
    await store.with_expired_results(now_ms(), 1)
    await store.with_inputs([job.prompt_id])
    await store.unexpired_results(["clip.mp4"])
    await store.erase(job.prompt_id)

    explained = 0
    for statement in statements:
        if statement.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"):
            plan = [row[3] for row in sql(path, f"EXPLAIN QUERY PLAN {statement}")]
            explained += bool(plan)
            for step in plan:
                assert not re.match(SCAN, step), step
    assert explained > 30


# Leases.


async def test_a_lease_has_one_holder_at_a_time(store: Store, path: Path | str) -> None:
    first = await store.acquire_lease("janitor", "one", 60)
    assert first is not None and first.epoch == 1
    assert await store.acquire_lease("janitor", "two", 60) is None
    sql(path, "UPDATE lease SET expires_at = 1")
    second = await store.acquire_lease("janitor", "two", 60)
    assert second is not None and second.epoch == 2
    assert await store.acquire_lease("janitor", "one", 60) is None


async def test_a_holder_that_was_started_anew_takes_its_lease_again_under_the_next_epoch(store: Store) -> None:
    assert [(await acquire(store, "janitor")).epoch for _ in range(3)] == [1, 2, 3]


async def test_a_lease_is_renewed_by_its_holder_while_it_lasts_and_never_after(store: Store, path: Path | str) -> None:
    lease = await acquire(store, "janitor")
    sql(path, "UPDATE lease SET expires_at = expires_at - 3000 * 1000")
    assert await store.renew_lease(lease, 3600)
    assert await store.acquire_lease("janitor", "two", 60) is None
    [(expires_at,)] = sql(path, "SELECT expires_at FROM lease")
    assert expires_at > now_ms() + 3500 * 1000
    sql(path, "UPDATE lease SET expires_at = ?", now_ms() - 1000)
    assert not await store.renew_lease(lease, 3600)
    await acquire(store, "janitor", "two")
    assert not await store.renew_lease(lease, 3600)


async def test_a_lease_that_was_released_is_free_and_one_that_another_has_is_not_released(store: Store) -> None:
    lease = await acquire(store, "janitor", "one")
    await store.release_lease(lease)
    assert not await store.renew_lease(lease, 60)
    other = await acquire(store, "janitor", "two")
    await store.release_lease(lease)
    assert await store.renew_lease(other, 60)
    assert other.epoch == 2


async def test_no_move_of_a_segment_is_made_by_a_holder_whose_epoch_is_past(store: Store, path: Path | str) -> None:
    job = await create(store, segments=3)
    lease, frozen = await hold(store), await claim(store)
    await claim(store, "two")
    sql(path, "UPDATE lease SET expires_at = 1")
    await store.finish_segment(frozen, "in time.mp4", None)  # nobody else has it yet
    frozen = await claim(store)
    taken = await acquire(store, backend_lease("one"), "another")
    before = await store.segments(job.prompt_id)
    for move in (
        store.finish_segment(frozen, "late.mp4", None),
        store.requeue(frozen, failed=True),
        store.split(frozen, 1),
        store.set_prompt_id(frozen, "its-own"),
        store.mark_stopped(frozen),
        store.fail(job.prompt_id, "code", "sentence", frozen),
        store.adopt(lease),
        store.claim(lease),
    ):
        with pytest.raises(LeaseLost):
            await move
    assert await store.segments(job.prompt_id) == before
    assert await state_of(store, job) == JobState.PROCESSING
    [adopted] = await store.adopt(taken)
    assert (adopted.number, adopted.epoch, adopted.comfy_prompt_id) == (frozen.number, 2, frozen.comfy_prompt_id)
    assert await store.finish_segment(adopted, "new.mp4", None) is not None


async def test_a_take_over_leaves_the_segments_of_other_backends_alone(store: Store) -> None:
    await create(store, segments=2)
    first, second = await claim(store, "one"), await claim(store, "two")
    [adopted] = await store.adopt(await acquire(store, backend_lease("one")))
    assert adopted.number == first.number
    await store.finish_segment(second, "x.mp4", None)


async def test_a_job_is_ended_by_who_has_its_joining_only(store: Store) -> None:
    job = await create(store)
    await store.finish_segment(await claim(store), "1.mp4", 1.0)
    frozen = await acquire(store, join_lease(job.prompt_id))
    assert await store.acquire_lease(frozen.name, "another", 60) is None
    await acquire(store, frozen.name)
    with pytest.raises(LeaseLost):
        await store.succeed(job, frozen, result_file="clip.mp4", size=7, sha256="f" * 64, warnings=())
    with pytest.raises(LeaseLost):
        await store.fail(job.prompt_id, "code", "sentence", frozen)
    assert await state_of(store, job) == JobState.PROCESSING
    assert await finish(store, job)


# SQLite inline, as the simulation has it.


@on_sqlite
async def test_two_nodes_on_one_file_wait_for_each_others_locks_and_share_what_is_committed(path: Path | str) -> None:
    seen: list[Event] = []
    one, two = [Store(await open_inline(path, MIGRATIONS), seen.append) for _ in range(2)]
    try:
        job = await create(one, segments=2)
        first = await claim(one, "a")
        async with one._transaction():
            with pytest.raises(StoreError, match="locked") as locked:
                await two.add_status(job.prompt_id, "busy")
            assert locked.value.transient
        await two.add_status(job.prompt_id, "free")
        second = await claim(two, "b")
        assert (first.number, second.number) == (0, 1)
        assert await one.submitted() == [first, second]
        with pytest.raises(StoreError, match="readonly"):
            await one._read("DELETE FROM job")
        await one.record_progress({}, {job.prompt_id: PREVIEW})
        await two.add_status(job.prompt_id, "in order")
        assert [event.seq for event in seen] == [1, 2, 3, 4]
    finally:
        await one.close()
        await two.close()


@on_sqlite
async def test_the_clock_is_the_one_that_was_given(path: Path | str) -> None:
    class Clock:
        milliseconds = 5_000

        def now_ms(self) -> int:
            return self.milliseconds

        def monotonic_ms(self) -> int:
            return self.milliseconds

    clock = Clock()
    store = Store(await open_inline(path, MIGRATIONS, clock), lambda event: None)
    try:
        assert (await create(store)).created_at == 5_000
        lease = await store.acquire_lease("janitor", "one", 1)
        assert lease is not None
        clock.milliseconds = 5_999
        assert await store.acquire_lease("janitor", "two", 1) is None
        clock.milliseconds = 6_000
        assert not await store.renew_lease(lease, 1)
        assert await store.acquire_lease("janitor", "two", 1) is not None
    finally:
        await store.close()


# Nodes.


async def test_a_node_is_known_while_it_tells_that_it_is_alive(store: Store, path: Path | str) -> None:
    await store.heartbeat("a", "1.0", {"engines": 2}, starting=True)
    await store.heartbeat("b", "1.0", {})
    sql(path, "UPDATE node SET started_at = started_at - 600000, seen_at = seen_at - 200000")
    assert await store.nodes(100) == []
    await store.heartbeat("a", "1.1", {"engines": 3})
    [node] = await store.nodes(100)
    assert (node.name, node.version, node.report) == ("a", "1.1", {"engines": 3})
    assert node.seen_s < 200 < 600 <= node.started_s
    await store.heartbeat("a", "1.1", {}, starting=True)
    assert (await store.nodes(100))[0].started_s < 600
    assert [node.name for node in await store.nodes(3600)] == ["a", "b"]
    await store.forget_node("a")
    assert [node.name for node in await store.nodes(3600)] == ["b"]
    sql(path, "UPDATE node SET seen_at = seen_at - 24 * 3600 * 1000")
    await store.heartbeat("c", "1.1", {})
    assert [node.name for node in await store.nodes(1e6)] == ["b", "c"]
    await store.heartbeat("c", "1.1", {}, starting=True)
    assert [node.name for node in await store.nodes(1e6)] == ["c"]


async def test_leases_are_listed_with_their_holders_and_the_time_they_last(store: Store) -> None:
    kept = await store.acquire_lease("backend:one", "a", 60)
    gone = await store.acquire_lease("janitor", "b", 60)
    assert kept is not None and gone is not None
    assert [lease.name for lease in await store.leases()] == ["backend:one", "janitor"]
    await store.release_lease(gone)
    [lasting] = await store.leases()
    assert (lasting.name, lasting.holder, lasting.epoch) == ("backend:one", "a", 1)
    assert 0 < lasting.left_s <= 60


# What outlives a process.


async def test_a_backend_is_listened_to_under_the_same_id_for_ever(path: Path | str) -> None:
    async with opened(path) as store:
        first, other = await store.client_id("one"), await store.client_id("two")
    async with opened(path) as store:
        assert await store.client_id("one") == first != other
    assert uuid.UUID(first)


async def test_learned_costs_follow_what_is_measured_and_forget_what_is_gone(store: Store) -> None:
    assert await store.phase_costs("key") == {}
    await learn_costs(store, "key", {"load 1": 1.0, "swap 1": 2.0})
    await learn_costs(store, "other", {"load 1": 9.0})
    await learn_costs(store, "key", {"swap 1": 4.0, "combine 1": 1.0})
    assert await store.phase_costs("key") == {"swap 1": pytest.approx(2.6), "combine 1": 1.0}
    assert await store.phase_costs("other") == {"load 1": 9.0}


async def test_a_join_that_goes_on_after_a_retry_ends_nothing(store: Store) -> None:
    job = await create(store)
    await store.finish_segment(await claim(store), "00000-1.mp4", 1.0)
    lease = await acquire(store, join_lease(job.prompt_id))
    await store.request_cancel(job.prompt_id, None)
    await store.retry(job.prompt_id, None)
    again = await claim(store)
    assert not await store.succeed(job, lease, result_file="clip.mp4", size=1, sha256="c" * 64, warnings=())
    assert not await store.fail(job.prompt_id, "code", "message", lease)
    assert (await store.job(job.prompt_id)).state == JobState.PROCESSING
    assert await store.finish_segment(again, "00000-2.mp4", 1.0)
    assert await finish(store, job)


@pytest.mark.parametrize("retried", [False, True])
async def test_of_a_job_that_is_being_erased_nothing_is_claimed_or_retried(store: Store, retried: bool) -> None:
    job = await create(store)
    await store.request_cancel(job.prompt_id, None)
    if retried:
        await store.retry(job.prompt_id, None)
    await store.begin_erasure(job.prompt_id)
    assert await try_claim(store) is None
    assert (await store.job(job.prompt_id)).state == JobState.CANCELLED
    with pytest.raises(Gone):
        await store.retry(job.prompt_id, None)


async def test_of_a_job_that_was_erased_while_it_was_joined_no_lease_is_left(store: Store, path: Path | str) -> None:
    job = await create(store)
    await store.erase(job.prompt_id)
    await store.release_lease(await acquire(store, join_lease(job.prompt_id)))
    assert not sql(path, "SELECT name FROM lease WHERE name = ?", join_lease(job.prompt_id))


# What was deleted is gone


@on_sqlite
async def test_the_file_shrinks_and_holds_nothing_of_what_was_deleted(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faceswap.store.sqlite.SPARE_PAGES", 10)
    secret = "a consent that nobody is to find"
    jobs = [await create(store, output_name=f"clip {number}", consent=secret) for number in range(20)]
    for job in jobs:
        for _ in range(20):
            await store.add_status(job.prompt_id, f"{secret} {'x' * 4000}")
    sql(path, "DROP TRIGGER audit_is_never_deleted")
    assert secret.encode() in content(path)
    whole = path.stat().st_size
    for job in jobs:
        await store.erase(job.prompt_id)
    sql(path, "DELETE FROM audit")
    await store.shrink()
    assert path.stat().st_size < whole / 2
    assert secret.encode() not in content(path)
    assert (path.parent / f"{path.name}-wal").stat().st_size == 0
    assert await create(store)


def content(path: Path) -> bytes:
    """Return the bytes of a database and of what belongs to it."""
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


@on_sqlite
async def test_the_file_is_shortened_a_little_at_a_time_and_a_reader_is_not_waited_for(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faceswap.store.sqlite.SPARE_PAGES", 0)
    monkeypatch.setattr("faceswap.store.sqlite.SHRINK_PAGES", 3)
    job = await create(store)
    for _ in range(10):
        await store.add_status(job.prompt_id, "x" * 4000)
    await store.erase(job.prompt_id)
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM job").fetchall()
        await store.shrink()
        assert (await sqlite(store).reader.fetch("PRAGMA freelist_count"))[0][0] == 0
        assert (await sqlite(store).writer.fetch("PRAGMA busy_timeout"))[0][0] == BUSY_TIMEOUT_MS
    await store.shrink()
    assert (path.parent / f"{path.name}-wal").stat().st_size == 0


@on_sqlite
async def test_a_file_that_cannot_be_shortened_is_left_as_it_is(tmp_path: Path, path: Path) -> None:
    old = tmp_path / "old.db"
    sql(old, "PRAGMA auto_vacuum = NONE")
    sql(old, "CREATE TABLE other (x)")
    sql(old, "DROP TABLE other")
    async with opened(old) as store:
        assert (await sqlite(store).reader.fetch("PRAGMA auto_vacuum"))[0][0] == 0
        job = await create(store)
        for _ in range(300):
            await store.add_status(job.prompt_id, "x" * 5000)
        await store.erase(job.prompt_id)
        await store.shrink()


async def test_shrinking_changes_nothing_else(store: Store) -> None:
    job = await create(store)
    await store.shrink()
    assert await store.job(job.prompt_id) == job
