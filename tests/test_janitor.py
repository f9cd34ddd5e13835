"""Expired files are erased, and none before its time."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from stored_jobs import MIGRATIONS, acquire, claim, create, opened, sql

from faceswap.comfy.backend import BackendPool
from faceswap.config import Settings, Timeouts
from faceswap.errors import Gone, NotFound, Unavailable
from faceswap.feed import Feed
from faceswap.files import ERASURE, Files
from faceswap.files.shared import SharedFolder
from faceswap.hub import Hub
from faceswap.janitor import BATCH, Janitor
from faceswap.jobs import Job, JobState
from faceswap.media import MediaWorker
from faceswap.node import Node
from faceswap.progress_reporter import ProgressReporter
from faceswap.scheduler import Scheduler
from faceswap.store import JANITOR_LEASE, LOCAL_HOLDER, Store, join_lease, now_ms

INPUT_TTL_S, OUTPUT_TTL_S, RECORD_TTL_S = 1000, 10_000, 100_000


@dataclass
class House:
    """A data folder with its janitor."""

    settings: Settings
    files: Files
    store: Store

    @property
    def janitor(self) -> Janitor:
        return Janitor(self.settings, self.store, self.files)

    def furnish(self, job: Job) -> None:
        """Create every file that a job has on disk."""
        for folder in (
            self.files.inputs(job.prompt_id),
            self.files.joined(job.prompt_id, 1).parent,
            self.files.engine / "input" / job.prompt_id,
            self.files.engine / "temp" / job.prompt_id,
            self.files.engine / "output" / job.prompt_id,
        ):
            folder.mkdir(parents=True)
            (folder / "file").write_bytes(b"a face")
        self.files.result(f"{job.output_name}.mp4").write_bytes(b"a video")

    async def job(self, state: JobState, age_s: float = 0) -> Job:
        """Store a job in a state, with its files, that ended some seconds ago."""
        job = await create(self.store)
        self.furnish(job)
        if state != JobState.QUEUED:
            segment = await claim(self.store)
        if state == JobState.SUCCESS:
            await self.store.finish_segment(segment, "1.mp4", None)
            name = f"{job.output_name}.mp4"
            lease = await acquire(self.store, join_lease(job.prompt_id))
            await self.store.succeed(job, lease, result_file=name, size=7, sha256="", warnings=())
        if state == JobState.FAILED:
            await self.store.fail(job.prompt_id, "code", "sentence")
        self.age(job, age_s)
        return await self.store.job(job.prompt_id)

    def age(self, job: Job, age_s: float) -> None:
        """Move the times of a job's creation and end some seconds into the past."""
        then = now_ms() - int(age_s * 1000)
        statement = "UPDATE job SET created_at = ?1, finished_at = iif(finished_at IS NULL, NULL, ?1)"
        sql(self.files.database, f"{statement} WHERE prompt_id = ?2", then, job.prompt_id)

    def has_inputs(self, job: Job) -> bool:
        """Tell whether the inputs are on disk, here and in the engine: all of them, or else nothing of the job."""
        found = [path for folders in ("*", "engine/*") for path in self.files.root.glob(f"{folders}/{job.prompt_id}")]
        there = {str(path.parent.relative_to(self.files.root)) for path in found}
        assert not there or {"inputs", "engine/input"} <= there
        return bool(there)

    def has_result(self, job: Job) -> bool:
        return self.files.result(f"{job.output_name}.mp4").exists()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    files = Files(tmp_path / "data")
    files.create()
    settings = Settings(
        data_dir=files.root, input_ttl_s=INPUT_TTL_S, output_ttl_s=OUTPUT_TTL_S, record_ttl_s=RECORD_TTL_S
    )
    async with opened(files.database) as store:
        yield House(settings, files, store)


@pytest.mark.parametrize("state", [JobState.SUCCESS, JobState.FAILED])
async def test_inputs_go_on_time_and_not_before(house: House, state: JobState) -> None:
    due, not_yet = await house.job(state, INPUT_TTL_S + 1), await house.job(state, INPUT_TTL_S / 2)
    await house.janitor.sweep()
    assert (house.has_inputs(due), house.has_inputs(not_yet)) == (False, True)
    assert house.has_result(due)


async def test_results_go_on_time_and_not_before(house: House) -> None:
    due = await house.job(JobState.SUCCESS, OUTPUT_TTL_S + 1)
    not_yet = await house.job(JobState.SUCCESS, OUTPUT_TTL_S / 2)
    await house.janitor.sweep()
    assert (house.has_result(due), house.has_result(not_yet)) == (False, True)
    with pytest.raises(Gone):
        await house.store.result(f"{due.output_name}.mp4", None)
    assert await house.store.result(f"{not_yet.output_name}.mp4", None) == not_yet


@pytest.mark.parametrize("state", [JobState.SUCCESS, JobState.FAILED])
async def test_records_go_on_time_and_not_before(
    house: House, state: JobState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faceswap.janitor.ROWS", 1)
    due, not_yet = await house.job(state, RECORD_TTL_S + 1), await house.job(state, RECORD_TTL_S / 2)
    waiting = await house.job(state, RECORD_TTL_S + 1)
    waits_for_delivery(house, waiting)
    await house.janitor.sweep()
    with pytest.raises(NotFound):
        await house.store.job(due.prompt_id)
    assert not house.has_inputs(due)
    assert state != JobState.SUCCESS or not house.has_result(due)
    for table in ("event", "segment", "input", "lease", "delivery"):
        column = "name" if table == "lease" else "prompt_id"
        left = {row[0] for row in sql(house.files.database, f"SELECT {column} FROM {table}")}
        assert due.prompt_id not in " ".join(left)
    for job in (not_yet, waiting):
        assert (await house.store.job(job.prompt_id)).finished_at
    lines = [line async for line in house.store.audit_lines(prompt_id=due.prompt_id)]
    assert (lines[0].what, lines[-1].what, lines[-1].data) == ("accepted", "erased", {"reason": "time"})


def waits_for_delivery(house: House, job: Job) -> None:
    """Store something that is to be delivered of a job."""
    needed = """pragma_table_info('delivery') WHERE pk OR ("notnull" AND dflt_value IS NULL)"""
    columns = sql(house.files.database, f"SELECT name, type FROM {needed}")
    values = {name: "" if kind == "TEXT" else 0 for name, kind in columns}
    values |= {"id": "msg", "prompt_id": job.prompt_id, "kind": "webhook"}
    marks = ", ".join("?" * len(values))
    statement = f"INSERT INTO delivery ({', '.join(values)}) VALUES ({marks})"
    sql(house.files.database, statement, *values.values())


async def test_a_record_does_not_go_before_its_result(house: House) -> None:
    settings = replace(house.settings, record_ttl_s=1)
    job = await house.job(JobState.SUCCESS, OUTPUT_TTL_S / 2)
    await Janitor(settings, house.store, house.files).sweep()
    assert house.has_result(job) and await house.store.job(job.prompt_id)


async def test_one_node_at_a_time_sweeps(house: House) -> None:
    due = await house.job(JobState.FAILED, INPUT_TTL_S + 1)
    lease = await acquire(house.store, JANITOR_LEASE, "another")
    await house.janitor.run_round()
    assert house.has_inputs(due)
    await house.store.release_lease(lease)
    await house.janitor.run_round()
    assert not house.has_inputs(due)
    assert await house.store.acquire_lease(JANITOR_LEASE, "another", 60)  # it was let go of


async def test_copies_of_the_files_of_jobs_that_have_ended_anywhere_go(house: House, tmp_path: Path) -> None:
    files = SharedFolder(house.files.root, tmp_path / "shared", "node")
    ended, running = await house.job(JobState.SUCCESS), await house.job(JobState.PROCESSING)
    copies = [files.engine / "input" / job.prompt_id for job in (ended, running)]
    for copy in copies:
        copy.mkdir(parents=True, exist_ok=True)
    await Janitor(house.settings, house.store, files).delete_copies()
    assert [copy.exists() for copy in copies] == [False, True]


async def test_what_another_node_takes_in_or_is_about_to_publish_is_left_alone(house: House) -> None:
    other = Files(house.files.root, "another")
    await other.begin_upload("theirs")
    await house.files.begin_upload("ours")
    job = await house.job(JobState.PROCESSING)
    house.files.result(f"{job.output_name}.mp4").write_bytes(b"not stored yet")
    lease = await acquire(house.store, join_lease(job.prompt_id), "another")
    await house.janitor.clear_debris()
    assert other.inputs("theirs").is_dir() and not other.inputs("ours").exists()
    assert house.has_result(job)
    await house.store.release_lease(lease)
    await Janitor(house.settings, house.store, other, "another").clear_debris()
    assert not other.inputs("theirs").exists() and not house.has_result(job)


@pytest.mark.parametrize("state", [JobState.PROCESSING, JobState.CANCELLED, JobState.SUCCESS])
async def test_a_start_clears_what_a_crash_left_of_the_work_on_a_job(house: House, state: JobState) -> None:
    job = await house.job(state)
    (segment,) = await house.store.segments(job.prompt_id)
    await house.files.make_scratch(job.prompt_id)
    finished = house.files.segment(segment)
    begun = [
        finished.with_name(f".{finished.name}.part"),
        house.files.piece(segment),
        house.files.portrait(job.prompt_id),
    ]
    for path in (finished, *begun):
        path.write_bytes(b"of the work on a job")
    await house.janitor.clear_debris()
    assert finished.exists() == (state != JobState.SUCCESS)
    assert not [path for path in begun if path.exists()]


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.PROCESSING])
async def test_a_job_that_has_not_ended_keeps_everything_however_old_it_is(house: House, state: JobState) -> None:
    job = await house.job(state, 100 * OUTPUT_TTL_S)
    await house.janitor.sweep()
    await house.janitor.clear_debris()
    assert house.has_inputs(job)


class BrokenDisk(Files):
    """Folders from which nothing can be erased."""

    async def delete_inputs(self, prompt_id: str) -> None:
        raise OSError("the disk is gone")

    async def delete_result(self, prompt_id: str, filename: str) -> None:
        raise OSError("the disk is gone")


async def test_what_goes_is_marked_first(house: House) -> None:
    job = await house.job(JobState.FAILED, INPUT_TTL_S + 1)
    with pytest.raises(OSError, match="gone"):
        await Janitor(house.settings, house.store, BrokenDisk(house.files.root)).sweep()
    assert house.has_inputs(job)
    with pytest.raises(Gone):
        await house.store.retry(job.prompt_id, None)


async def test_a_result_that_goes_is_marked_first(house: House) -> None:
    job = await house.job(JobState.SUCCESS, OUTPUT_TTL_S + 1)
    await Janitor(replace(house.settings, output_ttl_s=2 * OUTPUT_TTL_S), house.store, house.files).sweep()
    with pytest.raises(OSError, match="gone"):
        await Janitor(house.settings, house.store, BrokenDisk(house.files.root)).sweep()
    assert house.has_result(job)
    with pytest.raises(Gone):
        await house.store.result(f"{job.output_name}.mp4", None)


class StickyFiles(Files):
    """Folders that cannot be deleted at the first try."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.tries = 0

    async def delete_inputs(self, prompt_id: str) -> None:
        self.tries += 1
        if self.tries == 1:
            raise OSError("the disk is away")
        await super().delete_inputs(prompt_id)

    async def delete_result(self, prompt_id: str, filename: str) -> None:
        self.tries += 1
        if self.tries == 1:
            raise OSError("the disk is away")
        await super().delete_result(prompt_id, filename)


@pytest.mark.parametrize("age_s", [INPUT_TTL_S + 1, OUTPUT_TTL_S + 1])
async def test_what_could_not_be_erased_goes_in_the_next_round(house: House, age_s: int) -> None:
    job = await house.job(JobState.SUCCESS, age_s)
    if age_s > OUTPUT_TTL_S:
        await house.store.mark_inputs_erased(job.prompt_id)
    janitor = Janitor(house.settings, house.store, StickyFiles(house.files.root))
    with pytest.raises(OSError, match="away"):
        await janitor.sweep()
    await janitor.sweep()
    assert not (house.has_inputs(job) if age_s < OUTPUT_TTL_S else house.has_result(job))


async def test_a_folder_that_cannot_be_deleted_is_told_and_does_not_keep_the_service_from_starting(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = await house.job(JobState.FAILED, INPUT_TTL_S + 1)
    await house.store.mark_inputs_erased(job.prompt_id)
    janitor = house.janitor
    with monkeypatch.context() as fault:
        fault.setattr("shutil.rmtree", refuse_to_delete)
        await janitor.clear_debris()
        with pytest.raises(PermissionError):
            await janitor.sweep()
    assert "cannot be erased yet" in caplog.text and house.has_inputs(job)
    await janitor.sweep()
    assert not house.has_inputs(job)


def refuse_to_delete(folder: Path, ignore_errors: bool = False) -> None:
    if not ignore_errors:
        raise PermissionError(f"{folder.name} is not ours")


class RacingStore(Store):
    """A store in which jobs are retried as soon as they were found to be due."""

    async def with_expired_inputs(self, before: int, limit: int) -> list[str]:
        due = await super().with_expired_inputs(before, limit)
        for prompt_id in due:
            await self.retry(prompt_id, None)
        return due


async def test_a_job_that_is_retried_in_the_last_moment_keeps_its_inputs(house: House) -> None:
    job = await house.job(JobState.FAILED, INPUT_TTL_S + 1)
    store = await RacingStore.open(house.files.database, MIGRATIONS, lambda event: None)
    try:
        await Janitor(house.settings, store, house.files).sweep()
    finally:
        await store.close()
    assert house.has_inputs(job)
    assert (await house.store.job(job.prompt_id)).state == JobState.QUEUED


async def test_more_than_a_batch_goes_in_one_sweep(house: House) -> None:
    template = await house.job(JobState.FAILED, INPUT_TTL_S + 1)
    [columns] = sql(house.files.database, "SELECT group_concat(name) FROM pragma_table_info('job')")
    copied = columns[0].replace("prompt_id", "'copy-' || i", 1).replace("output_name", "'copy-' || i")
    sql(
        house.files.database,
        f"WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {2 * BATCH})"
        f" INSERT INTO job ({columns[0]}) SELECT {copied} FROM job, n",
    )
    await house.janitor.sweep()
    assert sql(house.files.database, "SELECT count(*) FROM job WHERE inputs_erased = 0") == [(0,)]
    assert not house.has_inputs(template)


def upload_mark(files: Files, prompt_id: str) -> Path:
    """Return the file that lies beside an input folder until its job is committed."""
    return files.inputs(prompt_id).with_name(f"{prompt_id}.upload")


def everything(files: Files) -> set[str]:
    """Return all files of jobs in the data folder, relative, with their marks."""
    found = (path.relative_to(files.root) for path in files.root.rglob("*") if path.is_file())
    return {str(path) for path in found if not path.name.startswith("faceswap.db")}


async def test_what_an_older_database_does_not_know_is_set_aside_and_told_in_one_line(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    kept, newer = await house.job(JobState.SUCCESS), await house.job(JobState.SUCCESS)
    before = everything(house.files)
    sql(house.files.database, "DELETE FROM job WHERE prompt_id = ?", newer.prompt_id)
    await house.janitor.clear_debris()
    assert (house.has_inputs(kept), house.has_result(kept)) == (True, True)
    assert (house.has_inputs(newer), house.has_result(newer)) == (False, False)
    [lost] = house.files.lost.iterdir()
    aside = {str(path.relative_to(lost)) for path in lost.rglob("*") if path.is_file()}
    assert aside == {name for name in before if newer.prompt_id in name or newer.output_name + "." in name}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages[0].startswith(
        f"the database knows nothing of {len(aside)} files and folders in the data folder"
    )


async def test_an_empty_database_erases_nothing(house: House) -> None:
    await house.job(JobState.SUCCESS)
    before = everything(house.files)
    sql(house.files.database, "DELETE FROM job")
    await house.janitor.clear_debris()
    await house.janitor.clear_debris()
    await house.janitor.sweep()
    assert {name.split("/", 2)[2] for name in everything(house.files)} == before


async def test_what_was_set_aside_goes_when_it_has_lain_there_long_enough(house: House) -> None:
    now = datetime.now(UTC)
    for number, age_s in enumerate((OUTPUT_TTL_S / 2, OUTPUT_TTL_S + 1)):
        house.files.inputs(f"job {number}").mkdir()
        (house.files.inputs(f"job {number}") / "video.mp4").touch()
        assert await house.files.move_to_lost([f"job {number}"], [], now - timedelta(seconds=age_s))
    (house.files.lost / "#1234").touch()  # of a file system check
    await house.janitor.delete_lost()
    assert {path.name for path in house.files.lost.rglob("*") if not path.name.startswith("2")} == {
        "#1234",
        "inputs",
        "job 0",
        "video.mp4",
    }


async def test_empty_folders_are_not_kept(house: House) -> None:
    house.files.inputs("unknown").mkdir()
    await house.janitor.clear_debris()
    assert not house.files.inputs("unknown").exists()
    assert not house.files.lost.exists()


# Crash points of an upload, of a refusal, and of a DELETE: what is found at the next start


@pytest.mark.parametrize("files", [None, [], ["video.part"], ["video.mp4", "image.png"], ["image.png"]])
async def test_an_upload_that_became_no_job_is_erased(house: House, files: list[str] | None) -> None:
    folder = house.files.inputs("cut-off")
    upload_mark(house.files, folder.name).touch()
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).touch()
    await house.janitor.clear_debris()
    assert everything(house.files) == set()
    assert not folder.exists()
    assert not house.files.lost.exists()


async def test_a_job_that_was_committed_just_before_the_crash_keeps_its_inputs(house: House) -> None:
    job = await house.job(JobState.QUEUED)
    upload_mark(house.files, job.prompt_id).touch()
    await house.janitor.clear_debris()
    assert house.has_inputs(job)
    assert not upload_mark(house.files, job.prompt_id).exists()


class KilledError(BaseException):
    """The process ends here."""


def dying(*_: object) -> None:
    raise KilledError


def scheduler_of(store: Store, files: Files) -> Scheduler:
    """Make a scheduler that has no engine."""
    pool = BackendPool()
    node = Node(store, LOCAL_HOLDER, pool, Timeouts().node_gone_s)
    reporter = ProgressReporter(store, files)
    return Scheduler(store, files, MediaWorker(), reporter, {}, pool, Timeouts(), Feed(Hub()), node)


@pytest.mark.parametrize("state", [JobState.SUCCESS, JobState.FAILED])
@pytest.mark.parametrize(
    ("part", "step"),
    [("files", "delete_inputs"), ("files", "delete_result"), ("store", "erase"), ("files", "one of the inputs")],
)
async def test_a_delete_that_was_cut_off_is_carried_out_at_the_next_start(
    house: House, state: JobState, part: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await house.job(state)
    scheduler = scheduler_of(house.store, house.files)
    with monkeypatch.context() as crash:
        if step == "one of the inputs":
            folder = house.files.inputs(job.prompt_id)
            crash.setattr(house.files, "delete_inputs", lambda _: (shutil.rmtree(folder), dying()))
        else:
            crash.setattr(getattr(house, part), step, dying)
        with suppress(KilledError):
            await scheduler.erase(job)
    await house.janitor.clear_debris()
    assert everything(house.files) == set()
    assert not house.files.lost.exists()
    with pytest.raises(NotFound):
        await house.store.job(job.prompt_id)


async def test_a_delete_that_comes_while_the_service_stops_is_refused(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await house.job(JobState.SUCCESS)
    scheduler = scheduler_of(house.store, house.files)
    monkeypatch.setattr(Store, "is_shared", True)
    running = asyncio.create_task(scheduler.run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})
    with pytest.raises(Unavailable) as refused:
        await scheduler.erase(job)
    assert refused.value.code == "stopping"
    assert house.has_result(job)


async def test_a_delete_that_had_not_begun_takes_nothing_at_the_next_start(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await house.job(JobState.SUCCESS)
    with monkeypatch.context() as crash:
        crash.setattr(house.store, "begin_erasure", dying)
        with pytest.raises(KilledError):
            await scheduler_of(house.store, house.files).erase(job)
    await house.janitor.clear_debris()
    assert (house.has_inputs(job), house.has_result(job)) == (True, True)
    assert await house.files.list_marked(ERASURE) == set()


async def test_a_job_whose_erasure_has_begun_cannot_be_retried_or_fetched(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await house.job(JobState.FAILED)
    monkeypatch.setattr(house.files, "delete_inputs", dying)
    with pytest.raises(KilledError):
        await scheduler_of(house.store, house.files).erase(job)
    with pytest.raises(Gone):
        await house.store.retry(job.prompt_id, None)


async def test_an_erased_job_leaves_nothing_at_all(house: House) -> None:
    job = await house.job(JobState.SUCCESS)
    await scheduler_of(house.store, house.files).erase(job)
    assert everything(house.files) == set()
    with pytest.raises(NotFound):
        await house.store.job(job.prompt_id)


async def test_what_is_written_of_an_erased_job_goes_where_files_are_not_shared(house: House) -> None:
    scheduler = scheduler_of(house.store, house.files)
    await house.files.make_scratch("erased")
    scheduler._erased_elsewhere("erased")
    await scheduler._erasure.delete_erased()
    assert everything(house.files) == set()
    assert not scheduler._erasure.erased_elsewhere


async def test_a_job_that_was_erased_while_this_node_was_cut_off_goes_once_its_work_has_ended(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.store._engine, "is_shared", True)
    scheduler, known = scheduler_of(house.store, house.files), await house.job(JobState.PROCESSING)
    before = everything(house.files)
    await house.files.make_scratch("erased")
    for prompt_id in ("erased", known.prompt_id):
        scheduler._erasure.look_at(prompt_id)
    await scheduler._erasure.delete_erased()
    assert everything(house.files) == before


async def test_a_result_that_a_crash_kept_from_being_committed_is_cleared(house: House) -> None:
    job = await house.job(JobState.PROCESSING)
    await house.janitor.clear_debris()
    assert (house.has_inputs(job), house.has_result(job)) == (True, False)


async def test_an_erasure_that_a_crash_cut_off_is_carried_out_at_the_next_start(house: House) -> None:
    job = await house.job(JobState.SUCCESS, OUTPUT_TTL_S + 1)
    await house.store.mark_inputs_erased(job.prompt_id)
    await house.store.mark_result_erased(job.prompt_id)
    await house.janitor.clear_debris()
    assert (house.has_inputs(job), house.has_result(job)) == (False, False)


async def test_folders_are_their_owners_alone(tmp_path: Path) -> None:
    files = Files(tmp_path / "data")
    files.create()
    files.create()
    for folder in (files.root, files.engine, files.inputs("x").parent, files.result("x").parent):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert await files.free_bytes() > 0


async def results_in(files: Files) -> set[str]:
    return {name async for names in files.list_results() for name in names}


async def test_a_kept_result_takes_its_public_name_whole(tmp_path: Path) -> None:
    files = Files(tmp_path / "data")
    files.create()
    await files.make_scratch("job")
    for content in (b"a video", b"the same video, joined again"):
        files.joined("job", 1).write_bytes(content)
        await files.keep_result("job", 1, "clip.mp4", "digest")
        assert files.result("clip.mp4").read_bytes() == content
        assert not files.joined("job", 1).exists()
    assert await results_in(files) == {"clip.mp4"}
    await files.delete_result("job", "clip.mp4")
    await files.delete_result("job", "clip.mp4")
    assert not await results_in(files)


async def test_of_a_result_that_was_not_committed_nothing_is_left(tmp_path: Path) -> None:
    files = Files(tmp_path / "data")
    files.create()
    await files.make_scratch("job")
    files.joined("job", 1).write_text("of a former holder")
    files.joined("job", 2).write_text("of the holder")
    await files.keep_result("job", 2, "clip.mp4", "digest")
    await files.discard_result("job", 2, "clip.mp4")
    assert not await results_in(files) and not list(files.joined("job", 1).parent.iterdir())
    await files.discard_result("job", 2, "clip.mp4")


async def test_a_result_never_replaces_another_jobs(tmp_path: Path) -> None:
    files = Files(tmp_path / "data")
    files.create()
    for job in ("one", "two"):
        await files.make_scratch(job)
        files.joined(job, 1).write_text(job)
    await files.keep_result("one", 1, "clip.mp4", "digest")
    with pytest.raises(FileExistsError):
        await files.keep_result("two", 1, "clip.mp4", "digest")
    assert files.result("clip.mp4").read_text() == "one"
    assert files.joined("two", 1).exists()
