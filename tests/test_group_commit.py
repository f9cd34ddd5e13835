"""Transactions that come at the same time have one commit, and stand for themselves in all other respects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from stored_jobs import MIGRATIONS, create, new_job
from waiting import WAIT_S

from faceswap.errors import NotFound, Unavailable
from faceswap.events import Event, Payload
from faceswap.store import Store, StoreError
from faceswap.store.database import Database, transaction
from faceswap.store.sqlite import SQLite
from faceswap.store.transaction import Transaction


@pytest.fixture
def published() -> list[Event]:
    """Return the list of the events that are published."""
    return []


@pytest.fixture
async def store(tmp_path: Path, published: list[Event]) -> AsyncIterator[Store]:
    store = await Store.open(tmp_path / "faceswap.db", MIGRATIONS, published.append)
    yield store
    await store.close()


class Commits:
    """The commits of a store that wrote something, counted by its thread."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, statement: str) -> None:
        self.count += statement == "COMMIT"


async def counted(store: Store) -> Commits:
    """Count the commits from now on."""
    commits = Commits()
    assert isinstance(store._engine, SQLite)
    await store._engine.writer.raw.set_trace_callback(commits)
    return commits


async def test_transactions_that_come_together_have_one_commit(store: Store, published: list[Event]) -> None:
    job = await create(store)
    commits = await counted(store)
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(store.add_status(job.prompt_id, f"{number}") for number in range(50)))
    assert commits.count == 1
    told = [event.data["message"] for event in published if event.type == "status"]
    assert told == [f"{number}" for number in range(50)]
    assert [event.seq for event in published] == list(range(1, 52))
    assert [event.seq for event in await store.events(job.prompt_id, 0)] == list(range(1, 52))


async def test_one_that_fails_takes_no_other_with_it(store: Store, published: list[Event]) -> None:
    async with asyncio.timeout(WAIT_S):
        results = await asyncio.gather(
            store.create(new_job(output_name="first"), 2),
            store.request_cancel("nobody", None),
            store.create(new_job(output_name="second"), 2),
            store.create(new_job(output_name="one too many"), 2),
            return_exceptions=True,
        )
    assert [type(result) for result in results] == [tuple, NotFound, tuple, Unavailable]
    jobs, _ = await store.jobs(state=None, limit=9, cursor=None, owner=None)
    assert {job.output_name for job in jobs} == {"first", "second"}
    assert [event.type for event in published] == ["queued", "queued"]


class Halves(Database):
    """Transactions that end in the middle."""

    @transaction
    async def write_and_raise(self, tx: Transaction) -> None:
        await tx.run("INSERT INTO secret (name, value) VALUES ('half', 'done')")
        raise ValueError("in the middle")

    @transaction
    async def write_and_wait(self, tx: Transaction) -> None:
        await tx.run("INSERT INTO secret (name, value) VALUES ('half', 'done')")
        await asyncio.sleep(0)

    @transaction
    async def write(self, tx: Transaction) -> None:
        await tx.run("INSERT INTO secret (name, value) VALUES ('whole', 'done')")


async def test_nothing_is_kept_of_a_body_that_ends_in_the_middle(store: Store) -> None:
    halves = Halves(store._engine, lambda event: None)
    results = await asyncio.gather(
        halves.write_and_raise(), halves.write(), halves.write_and_wait(), return_exceptions=True
    )
    assert [type(result) for result in results] == [ValueError, type(None), RuntimeError]
    assert [row[0] for row in await store._read("SELECT name FROM secret")] == ["whole"]


async def test_a_commit_that_fails_because_of_one_is_made_for_each_of_the_others(
    store: Store, published: list[Event]
) -> None:
    job = await create(store)
    commits, broken = await counted(store), Broken(store._engine, published.append)
    results = await asyncio.gather(
        store.add_status(job.prompt_id, "one"),
        broken.refer_to_nobody(job.prompt_id),
        store.add_status(job.prompt_id, "two"),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), StoreError, type(None)]
    assert commits.count == 4  # one for all, then one for each
    assert [(event.seq, event.type) for event in published] == [(1, "queued"), (2, "status"), (3, "status")]
    assert [event.seq for event in await store.events(job.prompt_id, 0)] == [1, 2, 3]


class Broken(Database):
    """A transaction that cannot be committed."""

    @transaction
    async def refer_to_nobody(self, tx: Transaction, prompt_id: str) -> None:
        await tx.add_event(prompt_id, Payload("status", {}))
        await tx.run("PRAGMA defer_foreign_keys = ON")
        await tx.run("INSERT INTO event (prompt_id, seq, type, data, at) VALUES ('nobody', 1, 'x', '{}', 0)")


async def test_one_that_was_cancelled_before_it_began_is_left_out(store: Store, published: list[Event]) -> None:
    job = await create(store)
    cancelled = asyncio.create_task(store.add_status(job.prompt_id, "cancelled"))
    kept = asyncio.create_task(store.add_status(job.prompt_id, "kept"))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, kept, return_exceptions=True)
    assert [event.data.get("message") for event in published[1:]] == ["kept"]


async def test_one_that_has_begun_is_told_of_though_nobody_waits_any_more(store: Store, published: list[Event]) -> None:
    job = await create(store)
    waiter = asyncio.create_task(store.add_status(job.prompt_id, "told"))
    assert store._engine.group is not None
    while store._engine.group._pending or not store._engine.group._task:
        await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    await store._engine.group.close()
    assert waiter.cancelled()
    assert published[-1].data["message"] == "told"
    assert [event.seq for event in await store.events(job.prompt_id, 0)] == [1, 2]


async def test_nobody_waits_for_a_connection_that_is_closed(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "closed.db", MIGRATIONS, lambda event: None)
    await store.close()
    async with asyncio.timeout(WAIT_S):
        results = await asyncio.gather(store.check_writable(), store.check_writable(), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]


async def test_nobody_waits_for_what_was_committed_and_cannot_be_told(tmp_path: Path) -> None:
    def broken(_event: Event) -> None:
        raise ValueError("it cannot be told")

    store = await Store.open(tmp_path / "untold.db", MIGRATIONS, broken)
    try:
        async with asyncio.timeout(WAIT_S):
            results = await asyncio.gather(create(store), create(store), return_exceptions=True)
            await store.check_writable()
        assert [type(result) for result in results] == [ValueError, ValueError]
    finally:
        await store.close()
