"""Results that are remembered: never older than a commit that somebody may know of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import postgres
import pytest
from stored_jobs import MIGRATIONS, run_to_success

from faceswap.api import results
from faceswap.api.results import Results
from faceswap.errors import Gone, NotFound
from faceswap.files import Files
from faceswap.jobs import Job
from faceswap.store import Store


class Rig:
    """The results of a store and of a folder, whose reads of the store are counted."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.files = Files(folder)
        self.results = Results(store, self.files)
        self.reads = 0
        self.meanwhile: Any = None
        """Awaited once, between a read and what is made of it."""
        self._result = store.result

    async def read(self, filename: str, owner: str | None) -> Job:
        """Read a job by its result, and count that."""
        self.reads += 1
        job = await self._result(filename, owner)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile
        return job

    async def finished(self, **changes: Any) -> Job:
        """Make a job that has ended with a result."""
        job = await run_to_success(self.store, **changes)
        path = self.files.result(job.stored_result)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"a result")
        return job

    async def find(self, job: Job, owner: str | None = None) -> str:
        """Find a result; returns the id of the job that it is of."""
        return (await self.results.find(f"{job.result_file}", owner)).job.prompt_id


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    store = await Store.open(tmp_path / "faceswap.db", MIGRATIONS, lambda event: None)
    rig = Rig(store, tmp_path / "data")
    await rig.files.start()
    monkeypatch.setattr(store, "result", rig.read)
    yield rig
    await store.close()


async def test_a_result_is_read_once_until_one_that_has_ended_is_changed(rig: Rig) -> None:
    job = await rig.finished()
    assert [await rig.find(job) for _ in range(3)] == [job.prompt_id] * 3
    assert rig.reads == 1
    await rig.store.set_label(job.prompt_id, None, "changed")
    assert (await rig.results.find(f"{job.result_file}", None)).job.label == "changed"
    assert rig.reads == 2


async def test_a_result_that_has_expired_is_gone_at_once_though_its_file_is_there(rig: Rig) -> None:
    job = await rig.finished()
    await rig.find(job)
    await rig.store.mark_result_erased(job.prompt_id)
    with pytest.raises(Gone):
        await rig.find(job)


async def test_an_erased_result_is_unknown_and_its_name_may_be_anothers(rig: Rig) -> None:
    job = await rig.finished()
    await rig.find(job)
    await rig.store.erase(job.prompt_id)
    with pytest.raises(NotFound):
        await rig.find(job)
    other = await rig.finished()
    assert other.result_file == job.result_file
    assert await rig.find(job) == other.prompt_id


async def test_what_a_commit_has_changed_while_it_was_read_is_not_remembered(rig: Rig) -> None:
    job = await rig.finished()

    async def erase_and_let_another_look() -> None:
        await rig.store.mark_result_erased(job.prompt_id)
        await rig.results.owners("another.mp4")

    rig.meanwhile = erase_and_let_another_look()
    await rig.find(job)
    with pytest.raises(Gone):
        await rig.find(job)


async def test_a_remembered_result_is_its_owners_only(rig: Rig) -> None:
    job = await rig.finished(owner="ann")
    assert await rig.find(job, "ann") == job.prompt_id
    for other in ("bob", None):
        with pytest.raises(NotFound):
            await rig.find(job, other)


async def test_the_owners_of_a_name_are_known_as_soon_as_they_have_it(rig: Rig) -> None:
    assert await rig.results.owners("clip.mp4") == {}
    owners: dict[str, str | None] = {}
    for owner in ("ann", "bob"):
        owners[(await rig.finished(owner=owner)).prompt_id] = owner
        assert await rig.results.owners("clip.mp4") == owners


async def test_few_results_are_remembered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "MOST_KEPT", 2)
    jobs = [await rig.finished(owner=owner) for owner in ("ann", "bob", "carl")]
    for job in jobs:
        await rig.find(job, job.owner)
    assert [key[1] for key in rig.results._results] == ["bob", "carl"]


async def test_where_other_nodes_may_erase_a_result_nothing_is_remembered(tmp_path: Path) -> None:
    store = await Store.open(postgres.new_database(), MIGRATIONS, lambda event: None)
    try:
        rig = Rig(store, tmp_path)
        await rig.files.start()
        job = await rig.finished()
        await rig.find(job)
        assert await rig.results.owners(f"{job.result_file}") == {job.prompt_id: None}
        assert rig.results._results == rig.results._owners == {}
    finally:
        await store.close()
