"""What is past its time goes, and nothing before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from stored_jobs import MIGRATIONS, claim, create, opened, sql

from faceswap.config import Settings
from faceswap.errors import Gone
from faceswap.folders import Folders
from faceswap.janitor import BATCH, Janitor
from faceswap.jobs import Job, JobState
from faceswap.store import Store, now_ms

INPUT_TTL_S, OUTPUT_TTL_S = 100, 1000


@dataclass
class House:
    """A data folder with its janitor."""

    settings: Settings
    folders: Folders
    store: Store

    @property
    def janitor(self) -> Janitor:
        return Janitor(self.settings, self.store, self.folders)

    def furnish(self, job: Job) -> None:
        """Everything that a job has on disk."""
        for folder in (
            self.folders.inputs(job.prompt_id),
            self.folders.joined(job.prompt_id).parent,
            self.folders.engine / "input" / job.prompt_id,
            self.folders.engine / "output" / job.prompt_id,
        ):
            folder.mkdir(parents=True)
            (folder / "file").write_bytes(b"a face")
        self.folders.result(f"{job.output_name}.mp4").write_bytes(b"a video")

    async def job(self, state: JobState, age_s: float = 0) -> Job:
        """A furnished job in a state, ended so many seconds ago."""
        job = await create(self.store)
        self.furnish(job)
        if state != JobState.QUEUED:
            segment = await claim(self.store)
        if state == JobState.SUCCESS:
            await self.store.finish_segment(segment, "1.mp4", None)
            name = f"{job.output_name}.mp4"
            await self.store.succeed(job, result_file=name, size=7, sha256="", warnings=(), message="")
        if state == JobState.FAILED:
            await self.store.fail(job.prompt_id, "code", "sentence")
        self.age(job, age_s)
        return await self.store.job(job.prompt_id)

    def age(self, job: Job, age_s: float) -> None:
        """As if it had been made, and had ended if it has, so many seconds ago."""
        then = now_ms() - int(age_s * 1000)
        statement = "UPDATE job SET created_at = ?1, finished_at = iif(finished_at IS NULL, NULL, ?1)"
        sql(self.folders.database, f"{statement} WHERE prompt_id = ?2", then, job.prompt_id)

    def has_inputs(self, job: Job) -> bool:
        """Whether anything of the inputs is left, here or in the engine; all of it must be, then."""
        there = [folder for folder in self.folders.job_folders() if folder == job.prompt_id]
        assert len(there) in (0, 4)
        return bool(there)

    def has_result(self, job: Job) -> bool:
        return self.folders.result(f"{job.output_name}.mp4").exists()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    folders = Folders(tmp_path / "data")
    folders.create()
    settings = Settings(data_dir=folders.root, input_ttl_s=INPUT_TTL_S, output_ttl_s=OUTPUT_TTL_S)
    async with opened(folders.database) as store:
        yield House(settings, folders, store)


@pytest.mark.parametrize("state", [JobState.SUCCESS, JobState.FAILED])
async def test_inputs_go_on_time_and_not_before(house: House, state: JobState) -> None:
    due, not_yet = await house.job(state, INPUT_TTL_S + 1), await house.job(state, INPUT_TTL_S - 30)
    await house.janitor.sweep()
    assert (house.has_inputs(due), house.has_inputs(not_yet)) == (False, True)
    assert house.has_result(due)


async def test_results_go_on_time_and_not_before(house: House) -> None:
    due = await house.job(JobState.SUCCESS, OUTPUT_TTL_S + 1)
    not_yet = await house.job(JobState.SUCCESS, OUTPUT_TTL_S - 30)
    await house.janitor.sweep()
    assert (house.has_result(due), house.has_result(not_yet)) == (False, True)
    with pytest.raises(Gone):
        await house.store.result(f"{due.output_name}.mp4")
    assert await house.store.result(f"{not_yet.output_name}.mp4") == not_yet


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.PROCESSING])
async def test_a_job_that_has_not_ended_keeps_everything_however_old_it_is(house: House, state: JobState) -> None:
    job = await house.job(state, 100 * OUTPUT_TTL_S)
    await house.janitor.sweep()
    await house.janitor.clear_debris()
    assert house.has_inputs(job)


class BrokenDisk(Folders):
    """Folders from which nothing can be erased."""

    def erase_inputs(self, prompt_id: str) -> None:
        raise OSError("the disk is gone")

    def erase_result(self, filename: str) -> None:
        raise OSError("the disk is gone")


async def test_what_goes_is_marked_first(house: House) -> None:
    job = await house.job(JobState.FAILED, INPUT_TTL_S + 1)
    with pytest.raises(OSError, match="gone"):
        await Janitor(house.settings, house.store, BrokenDisk(house.folders.root)).sweep()
    assert house.has_inputs(job)
    with pytest.raises(Gone):
        await house.store.retry(job.prompt_id, None)


async def test_a_result_that_goes_is_marked_first(house: House) -> None:
    job = await house.job(JobState.SUCCESS, OUTPUT_TTL_S + 1)
    await Janitor(replace(house.settings, output_ttl_s=2 * OUTPUT_TTL_S), house.store, house.folders).sweep()
    with pytest.raises(OSError, match="gone"):
        await Janitor(house.settings, house.store, BrokenDisk(house.folders.root)).sweep()
    assert house.has_result(job)
    with pytest.raises(Gone):
        await house.store.result(f"{job.output_name}.mp4", None)


class RacingStore(Store):
    """A store in which jobs are retried as soon as they were found to be due."""

    async def with_expired_inputs(self, before: int, limit: int) -> list[str]:
        due = await super().with_expired_inputs(before, limit)
        for prompt_id in due:
            await self.retry(prompt_id, None)
        return due


async def test_a_job_that_is_retried_in_the_last_moment_keeps_its_inputs(house: House) -> None:
    job = await house.job(JobState.FAILED, INPUT_TTL_S + 1)
    store = await RacingStore.open(house.folders.database, MIGRATIONS, lambda event: None)
    try:
        await Janitor(house.settings, store, house.folders).sweep()
    finally:
        await store.close()
    assert house.has_inputs(job)
    assert (await house.store.job(job.prompt_id)).state == JobState.QUEUED


async def test_more_than_a_batch_goes_in_one_sweep(house: House) -> None:
    template = await house.job(JobState.FAILED, INPUT_TTL_S + 1)
    [columns] = sql(house.folders.database, "SELECT group_concat(name) FROM pragma_table_info('job')")
    copied = columns[0].replace("prompt_id", "'copy-' || i", 1).replace("output_name", "'copy-' || i")
    sql(
        house.folders.database,
        f"WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {2 * BATCH})"
        f" INSERT INTO job ({columns[0]}) SELECT {copied} FROM job, n",
    )
    await house.janitor.sweep()
    assert sql(house.folders.database, "SELECT count(*) FROM job WHERE inputs_erased = 0") == [(0,)]
    assert not house.has_inputs(template)


async def test_what_belongs_to_no_job_is_cleared_at_the_start(house: House) -> None:
    kept = await house.job(JobState.SUCCESS)
    gone = await house.job(JobState.SUCCESS)
    await house.store.erase(gone.prompt_id)
    upload = house.folders.inputs("cut-off-upload")
    upload.mkdir()
    (upload / "video.mp4.part").touch()
    await house.janitor.clear_debris()
    assert (house.has_inputs(kept), house.has_result(kept)) == (True, True)
    assert (house.has_inputs(gone), house.has_result(gone)) == (False, False)
    assert not upload.exists()


async def test_a_result_that_a_crash_kept_from_being_committed_is_cleared(house: House) -> None:
    job = await house.job(JobState.PROCESSING)
    await house.janitor.clear_debris()
    assert (house.has_inputs(job), house.has_result(job)) == (True, False)


async def test_an_erasure_that_a_crash_cut_off_is_carried_out_at_the_next_start(house: House) -> None:
    job = await house.job(JobState.SUCCESS, OUTPUT_TTL_S + 1)
    await house.store.inputs_erased(job.prompt_id)
    await house.store.result_erased(job.prompt_id)
    await house.janitor.clear_debris()
    assert (house.has_inputs(job), house.has_result(job)) == (False, False)


def test_folders_are_their_owners_alone(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "data")
    folders.create()
    folders.create()
    for folder in (folders.root, folders.engine, folders.inputs("x").parent, folders.result("x").parent):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert folders.free_bytes() > 0


def test_a_published_result_takes_its_public_name_whole(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "data")
    folders.create()
    folders.joined("job").parent.mkdir()
    folders.joined("job").write_bytes(b"a video")
    folders.publish(folders.joined("job"), "clip.mp4")
    assert folders.result("clip.mp4").read_bytes() == b"a video"
    assert not folders.joined("job").exists()
    assert list(folders.results()) == ["clip.mp4"]
    folders.erase_result("clip.mp4")
    folders.erase_result("clip.mp4")
    assert not list(folders.results())
