"""The queue in memory says what the database holds, whatever moves the jobs."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from stored_jobs import create, finish, opened, try_claim

from faceswap.deliveries import DeliveryKind, DeliveryState
from faceswap.errors import Conflict, NotFound, Unavailable
from faceswap.jobs import Job, JobState
from faceswap.progress import Report
from faceswap.store import LOCAL_HOLDER, Store
from faceswap.store.changes import JobChange, TurnChange, WaitingChange
from faceswap.store.queue import Queue
from faceswap.store.transaction import Transaction
from faceswap.store.turns import queue_place

MOVES = 120


async def check(store: Store, jobs: list[str]) -> None:
    """Compare what the queue in memory says with what the database does."""
    queue = store._engine.queue
    assert queue is not None
    rows = await store._read("SELECT state, count(*), sum(total_frames - current_frame) FROM job GROUP BY state")
    found = {row[0]: (row[1], row[2]) for row in rows}
    for state in (JobState.QUEUED, JobState.PROCESSING):
        assert (queue.counts[state], queue.frames_left[state]) == found.get(state, (0, 0))
    rows = await store._read(
        "SELECT count(*), count(*) FILTER (WHERE not_before > 0),"
        " (SELECT count(*) FROM delivery WHERE state = 'waiting') FROM segment WHERE state = 'waiting'"
    )
    assert queue.waiting == tuple(rows[0])
    for prompt_id in jobs:
        try:
            job = await store.job(prompt_id)
        except NotFound:
            assert queue.place(prompt_id) is None
            continue
        expected = await queue_place(store._read, job) if job.state == JobState.QUEUED else None
        assert queue.place(prompt_id) == expected
    for owner in ("", "ann", "bob"):
        sql = "SELECT count(*) FROM job WHERE state = 'QUEUED' AND coalesce(owner, '') = ?"
        assert queue.queued_of(owner) == (await store._read(sql, owner))[0][0]


@pytest.mark.parametrize("seed", range(4))
async def test_after_any_moves_it_is_as_the_database_is_and_so_after_a_restart(tmp_path: Path, seed: int) -> None:
    choose, jobs = random.Random(seed), list[str]()
    async with opened(tmp_path / "db") as store:

        async def new() -> None:
            options = {"priority": choose.randint(-1, 1)}
            owed = {"webhook_url": choose.choice((None, "https://example.com/"))}
            job = await create(store, owner=choose.choice((None, "ann", "bob")), options=options, segments=2, **owed)
            jobs.append(job.prompt_id)

        async def work() -> None:
            segment = await try_claim(store)
            if segment is None:
                return
            if choose.random() < 0.2:
                await store.requeue(segment, pause_s=choose.choice((0, 1)), failed=True)
                return
            report = Report(choose.random() * 100, choose.randint(0, 20), 20, 1.0, 1.0)
            await store.record_progress({segment.prompt_id: report}, {})
            moved = await store.finish_segment(segment, "x.mp4", 1.0)
            if moved is not None and moved.segments_done == moved.segments_total:
                assert await finish(store, moved)

        async def send() -> None:
            delivery = await store.claim_delivery(DeliveryKind.WEBHOOK, LOCAL_HOLDER, 30.0)
            if delivery is not None:
                await store.end_delivery(delivery, DeliveryState.DELIVERED, 200)

        async def of_any(move: Callable[[Job], Awaitable[object]]) -> None:
            if jobs:
                await move(await store.job(choose.choice(jobs)))

        moves: list[Callable[[], Awaitable[object]]] = [
            new,
            new,
            work,
            send,
            lambda: of_any(lambda job: store.request_cancel(job.prompt_id, job.owner)),
            lambda: of_any(lambda job: store.retry(job.prompt_id, job.owner)),
            lambda: of_any(lambda job: store.set_priority(job.prompt_id, job.owner, choose.randint(-2, 2))),
            lambda: of_any(lambda job: store.fail(job.prompt_id, "code", "sentence")),
            lambda: of_any(lambda job: store.erase(job.prompt_id)),
        ]
        for _ in range(MOVES):
            with suppress(Conflict, NotFound, Unavailable):
                await choose.choices(moves, (4, 4, 6, 2, 2, 2, 2, 1, 1))[0]()
            await check(store, jobs)
    async with opened(tmp_path / "db") as store:
        await check(store, jobs)


async def test_a_move_that_is_undone_does_not_show(tmp_path: Path) -> None:
    async with opened(tmp_path / "db") as store:
        job = await create(store)
        changed: list[str] = []
        queue = store._engine.queue
        assert queue is not None
        queue.on_change.append(changed.append)
        version = queue.version

        async def undone(tx: Transaction) -> None:
            await tx.run("UPDATE job SET state = 'FAILED'")
            raise ValueError("undone")

        with pytest.raises(ValueError, match="undone"):
            async with store._transaction() as tx:
                await undone(tx)
        with pytest.raises(ValueError, match="undone"):
            await store._run(undone)
        await store.set_label(job.prompt_id, None, "a label")
        assert (changed, queue.place(job.prompt_id)) == ([job.prompt_id], 1)
        assert queue.version == version + 1


def test_a_job_of_many_leaves_its_line_at_its_place() -> None:
    jobs = [JobChange(f"{number:03}", "QUEUED", "ann", number % 3, number, 10) for number in range(200)]
    queue = Queue(jobs, [TurnChange("ann", 1)], WaitingChange(0, 0, 0))
    order = sorted(jobs, key=lambda job: (-job.priority, job.created_at))
    for job in random.Random(1).sample(jobs, 150):
        queue.apply([job._replace(state="PROCESSING")])
        order.remove(job)
        assert [queue.place(one.prompt_id) for one in order] == list(range(1, len(order) + 1))
    assert queue.counts == {"QUEUED": 50, "PROCESSING": 150}
