"""The answers of `GET /status` are kept, and never older than a commit that somebody may know of."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import postgres
import pytest
from stored_jobs import MIGRATIONS, claim, create, run_to_success
from waiting import WAIT_S

from faceswap.api import status
from faceswap.api.status import Answer, Answers
from faceswap.errors import NotFound
from faceswap.progress import Report
from faceswap.store import Store

ASKED = int(os.environ.get("FACESWAP_STATUS_ASKED", "20000"))
"""Answers that are compared with what was known when they were asked for."""
WRITERS, READERS, JOBS = 4, 16, 12


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


async def test_where_other_nodes_may_change_a_job_nothing_is_kept() -> None:
    store = await Store.open(postgres.new_database(), MIGRATIONS, lambda event: None)
    try:
        answers = Answers(store, lambda: None)
        job = await create(store)
        for label in ("one", "two"):
            await store.set_label(job.prompt_id, None, label)
            assert json.loads((await answers.get(job.prompt_id, None)).body)["label"] == label
        assert answers._kept == {}
    finally:
        await store.close()


async def test_no_answer_is_older_than_a_commit_that_its_client_knew_of(rig: Rig) -> None:
    """Labels and percentages only grow; an answer that was asked for after a commit must show it, or a later one."""
    store, choose, asked = rig.store, random.Random(1), Counter[str]()
    rig.turns_after_a_read = 20  # in which others may change the job
    jobs = [(await create(store)).prompt_id for _ in range(JOBS)]
    for _ in range(JOBS // 2):
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
        while asked.total() < ASKED:
            prompt_id = choose.choice(jobs)
            label, percentage = known_labels[prompt_id], known_progress.get(prompt_id, 0.0)
            answer: Answer = await rig.answers.get(prompt_id, None)
            document = json.loads(answer.body)
            assert int(document["label"] or 0) >= label
            assert document["progress"]["percentage"] >= percentage
            asked[prompt_id] += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for number in range(WRITERS):
            tasks.create_task(write(number))
        async with asyncio.timeout(WAIT_S + ASKED / 100), asyncio.TaskGroup() as readers:
            for _ in range(READERS):
                readers.create_task(read())
        done.set()
    assert sum(known_labels.values()) > 0 and rig.reads < asked.total()
