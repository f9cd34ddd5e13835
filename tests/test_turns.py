"""Owners take turns, on both kinds of database: one key's many jobs do not keep another's one waiting."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import postgres
import pytest
from stored_jobs import QUEUE_LIMIT, claim, create, hold, new_job, opened, sql, try_claim

from faceswap.errors import TooManyRequests
from faceswap.jobs import JobState
from faceswap.store import Store


@pytest.fixture(params=["sqlite", "postgresql"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """Yield where a database is to be, or is: each test is for both kinds."""
    if request.param == "sqlite":
        yield tmp_path / "faceswap.db"
    else:
        with postgres.database() as url:
            yield url


@pytest.fixture
async def store(path: Path | str) -> AsyncIterator[Store]:
    async with opened(path) as store:
        yield store


async def owners_of_claims(store: Store, count: int) -> list[str | None]:
    """Claim segments; returns the owner of each, in order."""
    return [(await store.job((await claim(store)).prompt_id)).owner for _ in range(count)]


async def test_a_newcomer_is_next_after_the_one_at_work_however_many_wait(store: Store) -> None:
    for _ in range(20):
        await create(store, owner="ann", segments=2)
    await owners_of_claims(store, 3)
    await create(store, owner="bob")
    assert "bob" in await owners_of_claims(store, 2)


async def test_owners_alternate_and_nobody_waits_for_more_than_one_turn_of_each(store: Store) -> None:
    for owner in ("ann", "bob", None):
        await create(store, owner=owner, segments=4)
    claimed = await owners_of_claims(store, 12)
    for turn in range(0, 12, 3):
        assert set(claimed[turn : turn + 3]) == {"ann", "bob", None}


async def test_a_job_that_has_left_the_queue_since_it_was_read_has_no_place(store: Store) -> None:
    job = await create(store, owner="ann")
    await create(store, owner="bob")
    await owners_of_claims(store, 1)
    assert job.state is JobState.QUEUED
    assert await store.queue_position(job) is None


async def test_a_priority_counts_within_an_owners_jobs_only(store: Store) -> None:
    late = await create(store, owner="ann", options={"priority": -10})
    first = await create(store, owner="ann")
    bobs = [await create(store, owner="bob", options={"priority": 10}) for _ in range(3)]
    claimed = [(await claim(store)).prompt_id for _ in range(5)]
    assert claimed.index(first.prompt_id) < 2
    assert claimed.index(first.prompt_id) < claimed.index(late.prompt_id) < 4
    assert claimed[-1] == bobs[-1].prompt_id


async def test_an_owner_whose_segments_pause_does_not_hold_up_the_others(store: Store) -> None:
    await create(store, owner="ann")
    await store.requeue(await claim(store), pause_s=50)
    await create(store, owner="bob", segments=2)
    assert await owners_of_claims(store, 2) == ["bob", "bob"]
    assert await try_claim(store) is None


async def test_the_parts_of_a_segment_that_was_split_are_their_owners(store: Store) -> None:
    await create(store, owner="ann", segments=1, frames=10)
    await store.split(await claim(store), 5)
    await create(store, owner="bob", segments=2)
    assert sorted(await owners_of_claims(store, 3)) == ["ann", "bob", "bob"]


async def test_what_waits_is_told_next_ones_first_and_of_all_owners(store: Store) -> None:
    await create(store, owner="ann", segments=2, frames=7)
    await create(store, owner="bob", frames=9)
    assert await store.waiting_frames() == [7, 7, 9]
    await claim(store)
    assert await store.waiting_frames() == [9, 7]


async def test_where_one_owner_is_alone_no_turn_is_written_after_the_first(store: Store, path: Path | str) -> None:
    await create(store, segments=3)
    await owners_of_claims(store, 3)
    assert sql(path, "SELECT owner, number FROM turn") == [("", 1)]


async def test_owners_alternate_also_from_the_same_place(store: Store, path: Path | str) -> None:
    for owner in ("ann", "bob"):
        await create(store, owner=owner, segments=4)
    sql(path, "UPDATE turn SET number = 5")  # as two nodes leave them that claim at the same time
    claimed = await owners_of_claims(store, 8)
    assert claimed == ["ann", "bob"] * 4


@pytest.mark.parametrize("path", ["postgresql"], indirect=True)
async def test_a_claim_does_not_wait_for_a_node_that_holds_the_owners_turn(store: Store) -> None:
    await create(store, owner="ann")
    await create(store, owner="bob")
    await hold(store)
    async with store._transaction() as frozen:
        await frozen.run("SELECT 1 FROM turn FOR UPDATE")
        assert await try_claim(store) is not None


async def test_places_in_the_queue_are_those_of_the_turns(store: Store) -> None:
    choose = random.Random(7)
    owners = ("ann", "bob", None)
    for _ in range(12):
        await create(store, owner=choose.choice(owners), options={"priority": choose.randint(-1, 1)})
    await owners_of_claims(store, 3)
    jobs = [job for owner in owners for job in (await store.jobs(state=None, limit=99, cursor=None, owner=owner))[0]]
    queued = [job for job in jobs if job.state == JobState.QUEUED]
    places = {job.prompt_id: await store.queue_position(job) for job in queued}
    for owner in owners:
        own = [job for job in queued if job.owner == owner]
        assert await store.queue_positions(own) == {job.prompt_id: places[job.prompt_id] for job in own}
    assert sorted(map(int, filter(None, places.values()))) == [*range(1, len(queued) + 1)]
    assert [places[(await claim(store)).prompt_id] for _ in queued] == [*range(1, len(queued) + 1)]


async def test_a_key_has_so_many_jobs_in_the_queue_and_others_are_not_kept_out(store: Store) -> None:
    jobs = [(await store.create(new_job(owner="ann"), QUEUE_LIMIT, 2))[0] for _ in range(2)]
    with pytest.raises(TooManyRequests) as refused:
        await store.create(new_job(owner="ann"), QUEUE_LIMIT, 2)
    assert (refused.value.code, refused.value.retry_after) == ("key_queue_full", 60)
    assert (await store.create(new_job(owner="bob"), QUEUE_LIMIT, 2))[1]
    await store.request_cancel(jobs[0].prompt_id, "ann")
    await store.create(new_job(owner="ann"), QUEUE_LIMIT, 2)
    with pytest.raises(TooManyRequests):  # a retry is no way around it
        await store.retry(jobs[0].prompt_id, "ann", 2)
    assert await store.queued_of("ann") == 2


async def test_two_owners_may_use_the_same_name(store: Store) -> None:
    names = [(await create(store, owner=owner)).output_name for owner in ("ann", "bob", None, "ann", None)]
    assert names == ["clip", "clip", "clip", "clip-2", "clip-2"]
