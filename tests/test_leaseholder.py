"""Work under a lease is one node's, and is cancelled when another may do it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import postgres
import pytest
from stored_jobs import opened, sql
from waiting import WAIT_S, until

from faceswap.leaseholder import Held, Leaseholder
from faceswap.store import LeaseLost, Store
from faceswap.store.connection import SystemClock
from faceswap.store.postgres import PostgresConnection

LEASE_S = WAIT_S
RENEWALS = int(10 * LEASE_S)
"""More than usual: a busy machine is late by less than the lease, and no test waits long."""
STEP_MS = int(20 * LEASE_S)
"""Much less than the lease, which is renewed after a few reads of the clock."""
NAME = "backend:one"


@pytest.fixture(params=["sqlite", "postgresql"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """Yield where a database is to be, or is: each test is for both kinds."""
    if request.param == "sqlite":
        yield tmp_path / "faceswap.db"
    else:
        with postgres.database() as url:
            yield url


@pytest.fixture
async def store(path: Path | str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    monkeypatch.setattr("faceswap.leaseholder.RENEWALS", RENEWALS)
    clock = StepClock()

    async def read(_connection: object) -> int:
        return clock.monotonic_ms()

    monkeypatch.setattr(PostgresConnection, "monotonic_ms", read)
    async with opened(path, clock=clock) as store:
        yield store


class StepClock(SystemClock):
    """A clock that goes on by a step whenever it is read, however slow the machine is."""

    def __init__(self) -> None:
        self._now_ms = 0

    def monotonic_ms(self) -> int:
        self._now_ms += STEP_MS
        return self._now_ms


class Worker:
    """Work under a lease, again whenever it is lost."""

    def __init__(self, store: Store, node: str, lease_s: float = LEASE_S) -> None:
        self.held: list[Held] = []
        self.done = asyncio.Event()
        self.cancelled = 0
        self.task = asyncio.create_task(self._work(Leaseholder(store, node, lease_s)))

    @property
    def works(self) -> bool:
        return len(self.held) > self.cancelled

    async def _work(self, leaseholder: Leaseholder) -> None:
        while True:
            try:
                async with leaseholder.hold(NAME) as held:
                    self.held.append(held)
                    try:
                        await self.done.wait()
                    except asyncio.CancelledError:
                        self.cancelled += 1
                        raise
                return
            except LeaseLost:
                continue


async def steal(path: Path | str) -> None:
    """Let another node have taken the lease."""
    await asyncio.to_thread(
        sql, path, "UPDATE lease SET holder = 'thief', epoch = epoch + 1, expires_at = expires_at + 3600000"
    )


async def let_go(path: Path | str) -> None:
    await asyncio.to_thread(sql, path, "UPDATE lease SET expires_at = 0")


async def test_a_lease_is_kept_for_as_long_as_the_work_takes(store: Store, path: Path | str) -> None:
    first = Worker(store, "first")
    await until(lambda: first.works)
    second = Worker(store, "second")
    expiries = set[int]()

    def renewed_often() -> bool:
        expiries.update(row[0] for row in sql(path, "SELECT expires_at FROM lease"))
        return max(expiries) - min(expiries) > LEASE_S * 1000

    await until(renewed_often)
    assert first.works and not second.works and first.cancelled == 0
    first.done.set()
    await first.task
    await until(lambda: second.works)
    second.done.set()
    await second.task
    assert second.held[0].lease.epoch == first.held[0].lease.epoch + 1


async def test_work_whose_lease_another_has_is_cancelled_and_begun_again_when_it_can_be(
    store: Store, path: Path | str
) -> None:
    worker = Worker(store, "first")
    await until(lambda: worker.works)
    await steal(path)
    await until(lambda: worker.cancelled == 1)
    assert worker.held[0].lost
    await let_go(path)
    await until(lambda: worker.works)
    assert worker.held[1].lease.epoch > worker.held[0].lease.epoch
    worker.done.set()
    await worker.task


async def test_a_lease_that_ran_out_is_not_renewed_though_nobody_else_has_it(store: Store, path: Path | str) -> None:
    worker = Worker(store, "first")
    await until(lambda: worker.works)
    await let_go(path)
    await until(lambda: worker.cancelled == 1 and worker.works)
    assert [held.lease.epoch for held in worker.held] == [1, 2]
    worker.done.set()
    await worker.task


async def test_who_finds_out_first_that_a_lease_is_lost_has_the_work_cancelled_at_once(store: Store) -> None:
    worker = Worker(store, "first", lease_s=3600.0)
    await until(lambda: worker.works)
    worker.held[0].lose()
    worker.held[0].lose()
    await until(lambda: len(worker.held) == 2)
    assert worker.cancelled == 1
    worker.done.set()
    await worker.task


async def test_a_lease_is_sure_until_it_would_have_run_out_whatever_the_database_says(store: Store) -> None:
    worker = Worker(store, "first", lease_s=3600.0)
    await until(lambda: worker.works)
    [held] = worker.held
    assert held.is_sure
    held.until -= 3600.0
    assert not held.is_sure
    held.until += 3600.0
    held.lose()
    assert not held.is_sure
    worker.done.set()
    await worker.task


async def test_others_need_not_wait_for_a_lease_whose_work_is_done(store: Store) -> None:
    async with Leaseholder(store, "first", 3600.0).hold(NAME):
        assert await store.acquire_lease(NAME, "second", LEASE_S) is None
    assert await store.acquire_lease(NAME, "second", LEASE_S) is not None


async def test_work_that_fails_or_is_cancelled_does_so_under_a_lease_too(store: Store) -> None:
    leaseholder = Leaseholder(store, "first", LEASE_S)
    with pytest.raises(ZeroDivisionError):
        async with leaseholder.hold(NAME):
            raise ZeroDivisionError
    with pytest.raises(TimeoutError):
        async with leaseholder.hold(NAME):
            raise TimeoutError
    worker = Worker(store, "first")
    await until(lambda: worker.works)
    worker.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await worker.task
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("renewal")]
