"""The answers of `GET /status` are kept, and never older than a commit that somebody may know of."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import postgres
import pytest
from stored_jobs import MIGRATIONS, claim, create, run_to_success
from waiting import WAIT_S, until

from faceswap.api import status
from faceswap.api.status import Answer, Answers
from faceswap.errors import NotFound
from faceswap.progress import Report
from faceswap.store import Standing, Store, StoreError, Together

ASKED = int(os.environ.get("FACESWAP_STATUS_ASKED", "20000"))
"""Answers that are compared with what was known when they were asked for."""
WRITERS, READERS, JOBS = 4, 16, 12
OWNERS = ("ann", None, "ann", "bob", None)


class Rig:
    """A store whose reads of jobs are counted, and the answers over it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.outage: str | None = None
        self.reads = 0
        self.turns_after_a_read = 0
        self.answers = Answers(store, lambda: self.outage)

    async def ask(self, prompt_id: str, owner: str | None = None) -> dict[str, Any]:
        return dict(json.loads((await self.answers.get(prompt_id, owner)).body))


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    store = await Store.open(tmp_path / "faceswap.db", MIGRATIONS, lambda event: None)
    rig = Rig(store)
    owned_job = store.owned_job

    async def counted(prompt_id: str, owner: str | None) -> object:
        rig.reads += 1
        job = await owned_job(prompt_id, owner)
        for _ in range(rig.turns_after_a_read):
            await asyncio.sleep(0)
        return job

    monkeypatch.setattr(store, "owned_job", counted)
    yield rig
    await store.close()


async def test_an_answer_is_made_once_until_its_job_changes(rig: Rig) -> None:
    job, other = await run_to_success(rig.store), await run_to_success(rig.store)
    first = await rig.answers.get(job.prompt_id, None)
    await rig.store.set_label(other.prompt_id, None, "another job")
    assert await rig.answers.get(job.prompt_id, None) is first
    assert rig.reads == 1
    await rig.store.set_label(job.prompt_id, None, "this one")
    assert (await rig.ask(job.prompt_id))["label"] == "this one"
    assert rig.reads == 2


async def test_the_place_of_a_queued_job_follows_the_queue_without_a_read(rig: Rig) -> None:
    first, second = await create(rig.store), await create(rig.store)
    assert [(await rig.ask(job.prompt_id))["queue_position"] for job in (first, second)] == [1, 2]
    await rig.store.request_cancel(first.prompt_id, None)
    assert (await rig.ask(second.prompt_id))["queue_position"] == 1
    assert rig.reads == 2


async def test_an_outage_shows_in_the_jobs_that_wait_for_an_engine_only(rig: Rig) -> None:
    done, waiting = await run_to_success(rig.store), await create(rig.store)
    for outage in ("It is away.", None):
        rig.outage = outage
        steps = [(await rig.ask(job.prompt_id))["progress"]["step"] for job in (done, waiting)]
        assert steps == ["Face swap completed successfully", outage or "Queued"]
    assert rig.reads == 2


async def test_a_kept_answer_is_its_owners_only(rig: Rig) -> None:
    job = await create(rig.store, owner="ann")
    assert (await rig.ask(job.prompt_id, "ann"))["prompt_id"] == job.prompt_id
    for other in ("bob", None):
        with pytest.raises(NotFound):
            await rig.answers.get(job.prompt_id, other)


async def test_a_job_that_is_erased_is_not_answered_any_more(rig: Rig) -> None:
    job = await run_to_success(rig.store)
    await rig.ask(job.prompt_id)
    await rig.store.erase(job.prompt_id)
    with pytest.raises(NotFound):
        await rig.answers.get(job.prompt_id, None)


async def test_few_answers_are_kept(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "MOST_KEPT", 3)
    jobs = [await run_to_success(rig.store) for _ in range(5)]
    for job in jobs:
        await rig.ask(job.prompt_id)
    assert list(rig.answers._kept) == [job.prompt_id for job in jobs[2:]]


@pytest.fixture
async def nodes() -> AsyncIterator[tuple[Store, Store]]:
    """Yield two nodes' stores over one database of PostgreSQL."""
    with postgres.database() as url:
        stores = [await Store.open(url, MIGRATIONS, lambda event: None) for _ in range(2)]
        yield stores[0], stores[1]
        for store in stores:
            await store.close()


async def test_what_another_node_changes_is_seen_and_what_has_ended_is_read_no_more(
    nodes: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = nodes
    reads = Counter[str]()
    standings = store.standings

    async def counted(prompt_ids: Sequence[str]) -> dict[str, Standing]:
        reads.update(prompt_ids)
        return await standings(prompt_ids)

    monkeypatch.setattr(store, "standings", counted)
    answers = Answers(store, lambda: None)
    ended, waiting = await run_to_success(other), await create(other)
    for label in ("one", "two"):
        for job in (waiting, ended):
            await other.set_label(job.prompt_id, None, label)
            for _ in range(4):
                assert json.loads((await answers.get(job.prompt_id, None)).body)["label"] == label
    assert reads == {waiting.prompt_id: 8, ended.prompt_id: 3}  # the first time its version was not known
    for owner in ("ann", None):
        if owner is None:
            await other.erase(ended.prompt_id)
        with pytest.raises(NotFound):
            await answers.get(ended.prompt_id, owner)
    assert not answers._kept


async def test_jobs_that_are_asked_for_at_the_same_time_are_read_together(
    nodes: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = nodes
    statements = []
    standings = store.standings

    async def counted(prompt_ids: Sequence[str]) -> dict[str, Standing]:
        statements.append(list(prompt_ids))
        return await standings(prompt_ids)

    monkeypatch.setattr(store, "standings", counted)
    answers = Answers(store, lambda: None)
    jobs = [*[await run_to_success(store) for _ in range(3)], *[await create(store, owner=owner) for owner in OWNERS]]
    asked = await asyncio.gather(*(answers.get(job.prompt_id, job.owner) for job in (*jobs, *jobs)))
    assert statements == [[job.prompt_id for job in jobs]]
    assert [answer.job.prompt_id for answer in asked] == 2 * [job.prompt_id for job in jobs]
    alone = [await answers.of(job) for job in jobs]
    assert [json.loads(answer.body) for answer in asked] == 2 * [json.loads(answer.body) for answer in alone]
    places = [json.loads(answer.body)["queue_position"] for answer in asked[: len(jobs)]]
    assert places[:3] == [None] * 3 and sorted(places[3:]) == [*range(1, len(OWNERS) + 1)]


async def test_who_asks_together_gets_the_error_and_the_next_one_an_answer() -> None:
    asked: list[list[str]] = []

    async def ask(prompt_ids: Sequence[str]) -> dict[str, int]:
        asked.append(list(prompt_ids))
        await asyncio.sleep(0)
        if len(asked) == 1:
            raise StoreError("it is away", transient=True)
        return {"a": 1}

    together = Together(ask)
    first = [asyncio.create_task(together.get(name)) for name in "ab"]
    await asyncio.sleep(0)
    first[1].cancel()
    with pytest.raises(StoreError):
        await first[0]
    assert [await together.get("a"), await together.get("b")] == [1, None]
    assert asked == [["a", "b"], ["a"], ["b"]]


async def test_a_question_is_never_answered_by_a_read_that_had_begun() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    value = 1

    async def ask(prompt_ids: Sequence[str]) -> dict[str, int]:
        seen = value
        begun.set()
        await go_on.wait()
        return dict.fromkeys(prompt_ids, seen)

    together = Together(ask)
    first = asyncio.create_task(together.get("a"))
    await begun.wait()
    value = 2
    second = asyncio.create_task(together.get("a"))
    await asyncio.sleep(0)
    go_on.set()
    assert [await first, await second] == [1, 2]


async def test_no_answer_is_older_than_a_commit_that_its_client_knew_of(rig: Rig) -> None:
    rig.turns_after_a_read = 20  # in which others may change the job
    await compare(rig.answers, rig.store, ASKED)
    assert rig.reads < ASKED


async def test_nor_is_one_where_another_node_committed(nodes: tuple[Store, Store]) -> None:
    await compare(Answers(nodes[0], lambda: None), nodes[1], ASKED // 10)


async def compare(answers: Answers, store: Store, count: int) -> None:
    """Ask while others write: labels and percentages only grow; an answer that was asked for after a commit shows it.

    Some jobs wait, some run, some have ended.
    """
    choose, asked = random.Random(1), Counter[str]()
    ended = [(await run_to_success(store)).prompt_id for _ in range(JOBS // 3)]
    jobs = [*ended, *[(await create(store)).prompt_id for _ in range(JOBS - len(ended))]]
    for _ in range(JOBS // 3):
        await claim(store)
    running = [segment.prompt_id for segment in await store.submitted()]
    known_labels, known_progress = dict.fromkeys(jobs, 0), dict.fromkeys(running, 0.0)
    done = asyncio.Event()

    async def write(number: int) -> None:
        mine = jobs[number::WRITERS]
        while not done.is_set():
            prompt_id = choose.choice(mine)
            if prompt_id in known_progress and choose.random() < 0.5:
                percentage = known_progress[prompt_id] + 1e-6
                await store.record_progress({prompt_id: Report(percentage, 1, 10, 1.0, 1.0)}, {})
                known_progress[prompt_id] = percentage
            else:
                label = known_labels[prompt_id] + 1
                await store.set_label(prompt_id, None, str(label))
                known_labels[prompt_id] = label

    async def read() -> None:
        while asked.total() < count:
            prompt_id = choose.choice(jobs)
            label, percentage = known_labels[prompt_id], known_progress.get(prompt_id, 0.0)
            answer: Answer = await answers.get(prompt_id, None)
            document = json.loads(answer.body)
            assert int(document["label"] or 0) >= label
            assert document["progress"]["percentage"] >= percentage
            asked[prompt_id] += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for number in range(WRITERS):
            tasks.create_task(write(number))
        async with asyncio.timeout(WAIT_S + count / 100), asyncio.TaskGroup() as readers:
            for _ in range(READERS):
                readers.create_task(read())
        await until(lambda: all(known_labels.values()))
        done.set()
    assert len(asked) == JOBS
