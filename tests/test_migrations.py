"""The database is brought up to date whole, or not touched; older ones still open, newer ones are refused."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import pytest
from stored_jobs import MIGRATIONS, adopt, claim, finish, opened, sql

from faceswap.errors import Conflict
from faceswap.events import Event
from faceswap.jobs import ImageFile, Job, JobState
from faceswap.store import NewerDatabase, Store, StoreError
from faceswap.store.connection import scripts
from faceswap.store.sqlite import SQLite, migrate

HISTORICAL = sorted((Path(__file__).parent / "data" / "db").glob("*.sql"))
NEWEST = max(scripts(MIGRATIONS, "sqlite"))
SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name"


def restored(dump: Path, path: Path) -> Path:
    """Make a database of a dump, at `path`."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(dump.read_text(encoding="utf-8"))
    return path


def version(path: Path) -> int:
    return int(sql(path, "PRAGMA user_version")[0][0])


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    """Copy the migrations, so that a test can add to them."""
    return shutil.copytree(MIGRATIONS, tmp_path / "migrations")


def add(migrations: Path, statements: str) -> None:
    """Add one that comes after all others."""
    (migrations / f"{NEWEST + 1:04d}_next.sql").write_text(statements, encoding="utf-8")


@pytest.mark.parametrize("dump", HISTORICAL, ids=lambda dump: dump.stem)
def test_a_migrated_database_is_like_a_fresh_one(dump: Path, tmp_path: Path) -> None:
    old, fresh = restored(dump, tmp_path / "old.db"), tmp_path / "fresh.db"
    assert version(old) == int(dump.stem)
    migrate(old, MIGRATIONS)
    migrate(fresh, MIGRATIONS)
    assert sql(old, SCHEMA) == sql(fresh, SCHEMA)
    assert version(old) == version(fresh) == NEWEST


@pytest.mark.parametrize("dump", HISTORICAL, ids=lambda dump: dump.stem)
async def test_the_jobs_of_a_historical_database_are_there_and_go_on(dump: Path, tmp_path: Path) -> None:
    path = restored(dump, tmp_path / "old.db")
    async with opened(path) as store:
        jobs = await jobs_in(store)
        states = {job.state: job for job in jobs}
        assert len(jobs) == 4
        assert set(states) == {"SUCCESS", "FAILED", "PROCESSING", "QUEUED"}

        done = states[JobState.SUCCESS]
        assert (await store.result("holiday.mp4", "ann")) == done
        assert [event.type for event in await store.events(done.prompt_id, 0)] == ["queued", "progress", "completed"]
        assert states[JobState.FAILED].code == "no_face_detected"
        assert states[JobState.QUEUED].options.frame_rate == 12.5

        running = states[JobState.PROCESSING]
        assert running.percentage == 12.5
        [submitted] = await adopt(store)
        await store.finish_segment(submitted, "0.mp4", 1.0)
        await store.finish_segment(await claim(store), "1.mp4", 1.0)
        assert await finish(store, running)
        assert await store.client_id("embedded")
        assert await store.phase_costs("embedded|FaceSwap-Reactor-API") == {"load 1": 0.001, "swap 1": 0.03}


async def jobs_in(store: Store) -> list[Job]:
    """Return the jobs of every owner in the historical databases."""
    return [
        job for owner in ("ann", None) for job in (await store.jobs(state=None, limit=9, cursor=None, owner=owner))[0]
    ]


async def test_a_database_of_the_first_version_goes_on(tmp_path: Path) -> None:
    published: list[Event] = []
    path = restored(HISTORICAL[0], tmp_path / "old.db")
    told = dict(sql(path, "SELECT prompt_id, max(seq) FROM event GROUP BY prompt_id"))
    async with opened(path, published) as store:
        states = {job.state: job for job in await jobs_in(store)}
        for job in states.values():
            inputs, frames = job.inputs, job.inputs.frames
            assert (inputs.video_file, inputs.images) == ("video.mp4", (ImageFile("image.png", "b" * 64),))
            assert (inputs.video_sha256, inputs.video_bytes) == ("a" * 64, 1234)
            assert (inputs.width, inputs.height, inputs.frame_rate) == (640, 480, Fraction(30000, 1001))
            assert (inputs.duration_s, inputs.has_audio) == (pytest.approx(frames * 1001 / 30000), True)

        running, waiting = states[JobState.PROCESSING], states[JobState.QUEUED]
        [adopted] = await adopt(store)
        assert (adopted.prompt_id, adopted.number, adopted.epoch) == (running.prompt_id, 0, 1)
        await store.finish_segment(adopted, "0.mp4", 1.0)
        claimed = [await claim(store), await claim(store)]
        assert [segment.prompt_id for segment in claimed] == [running.prompt_id, waiting.prompt_id]
        for segment in claimed:
            await store.finish_segment(segment, f"{segment.number}.mp4", 1.0)
        for job in (running, waiting):
            assert await finish(store, job)
            assert (await store.job(job.prompt_id)).state == JobState.SUCCESS
            # Numbers that the first version told and did not store are not used again.
            assert min(event.seq for event in published if event.prompt_id == job.prompt_id) > told[job.prompt_id] + 999
        failed = states[JobState.FAILED]
        await store.retry(failed.prompt_id, failed.owner)
        assert published[-1].seq == told[failed.prompt_id] + 1
        done = states[JobState.SUCCESS]
        assert (await store.result("holiday.mp4", "ann")).status() == done.status()


def test_there_is_a_historical_database_of_every_version() -> None:
    assert [int(dump.stem) for dump in HISTORICAL] == list(range(1, NEWEST + 1))


def test_a_database_is_made_so_that_a_power_cut_does_not_hurt_it(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    migrate(path, MIGRATIONS)
    assert sql(path, "PRAGMA journal_mode") == [("wal",)]
    assert sql(path, "PRAGMA auto_vacuum") == [(2,)]
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


async def test_what_a_client_was_promised_is_synced_to_the_disk(tmp_path: Path) -> None:
    async with opened(tmp_path / "new.db") as store:
        for pragma, value in (("synchronous", 2), ("foreign_keys", 1)):
            assert isinstance(store._engine, SQLite)
            [row] = await store._engine.writer.fetch(f"PRAGMA {pragma}")
            assert row[0] == value


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    path = restored(HISTORICAL[-1], tmp_path / "old.db")
    migrate(path, MIGRATIONS)
    before = dump_of(path)
    migrate(path, MIGRATIONS)
    assert dump_of(path) == before


async def test_a_newer_database_is_refused_with_a_sentence_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    migrate(path, MIGRATIONS)
    sql(path, f"PRAGMA user_version = {NEWEST + 1}")
    before = dump_of(path)
    with pytest.raises(NewerDatabase, match=rf"version {NEWEST + 1}, newer than this program's {NEWEST}; upgrade"):
        await Store.open(path, MIGRATIONS, lambda event: None)
    assert (dump_of(path), version(path)) == (before, NEWEST + 1)


def test_a_further_migration_is_carried_out(tmp_path: Path, migrations: Path) -> None:
    path = restored(HISTORICAL[-1], tmp_path / "old.db")
    add(migrations, "CREATE TABLE more (a TEXT) STRICT; INSERT INTO more VALUES ('; COMMIT; --');")
    migrate(path, migrations)
    assert sql(path, "SELECT a FROM more") == [("; COMMIT; --",)]
    assert version(path) == NEWEST + 1


@pytest.mark.parametrize(
    "failing",
    ["SELECT no_such_column;", "CREATE TABLE job (a);", "INSERT INTO segment (prompt_id) VALUES (1);", "nonsense"],
)
def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path: Path, migrations: Path, failing: str) -> None:
    path = restored(HISTORICAL[-1], tmp_path / "old.db")
    migrate(path, MIGRATIONS)
    before = dump_of(path)
    add(migrations, f"CREATE TABLE more (a TEXT); DELETE FROM event; UPDATE job SET step = 'x';\n{failing}")
    with pytest.raises(StoreError):
        migrate(path, migrations)
    assert (dump_of(path), version(path)) == (before, NEWEST)
    migrate(path, MIGRATIONS)


def test_a_first_migration_that_fails_leaves_an_empty_database(tmp_path: Path, migrations: Path) -> None:
    path = tmp_path / "new.db"
    add(migrations, "nonsense")
    with pytest.raises(StoreError):
        migrate(path, migrations)
    assert (dump_of(path), version(path)) == (dump_of(tmp_path / "none.db"), 0)


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("This is not a database, however long it may be.\n" * 99)
    with pytest.raises(StoreError, match="not a database"):
        await Store.open(path, MIGRATIONS, lambda event: None)


@pytest.mark.parametrize("state", ["SUCCESS", "PROCESSING"])
async def test_rules_hold_for_historical_jobs_too(tmp_path: Path, state: str) -> None:
    async with opened(restored(HISTORICAL[0], tmp_path / "old.db")) as store:
        [job] = [job for job in await jobs_in(store) if job.state == state]
        with pytest.raises(Conflict):
            await store.retry(job.prompt_id, job.owner)


def dump_of(path: Path) -> list[str]:
    """Dump a database as SQL."""
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())
