"""`faceswap migrate` copies all jobs of a stopped service into another database, or none."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import postgres
import pytest
from stored_jobs import adopt, claim, create, finish, opened, run_to_success, sql

from faceswap import events
from faceswap.cli import main
from faceswap.jobs import JobState
from faceswap.progress import Report
from faceswap.store import transfer

TABLES = tuple(transfer.TABLES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "faceswap.db"


@pytest.fixture
def url() -> Iterator[str]:
    with postgres.database() as url:
        yield url


def name(where: Path | str) -> str:
    return where if isinstance(where, str) else f"sqlite:{where}"


def migrate(source: Path | str, target: Path | str) -> int:
    return main(["migrate", "--from", name(source), "--to", name(target)])


async def fill(where: Path | str) -> None:
    """Make jobs in every state."""
    async with opened(where) as store:
        await run_to_success(store, output_name="déjà vu", owner="ann")
        failed = await create(store, segments=2)
        await store.finish_segment(await claim(store), "0.mp4", 0.25, ["a warning"])
        await store.fail(failed.prompt_id, "out_of_memory", "Too large.\0")
        running = await create(store, segments=3, options={"priority": 2, "frame_rate": 12.5}, idempotency_key="k")
        await store.requeue(await claim(store), failed=True, pause_s=50)
        await claim(store, "two")
        await store.record_progress(
            {running.prompt_id: Report(12.5, 3, 30, 2.5, 9.0)}, {running.prompt_id: events.preview("x", 1)}
        )
        await create(store, options={"priority": -1})
        await store.learn_phase_costs("key", {"load 1": 0.001, "swap 1": 0.03})
        await store.abandon("one", "11111111-0000-4000-8000-000000000001")
        await store.client_id("one")


def rows(where: Path | str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all that is copied, by table, its columns in the order of their names."""
    found = {}
    for table in TABLES:
        query = f"SELECT name FROM pragma_table_info('{table}') ORDER BY name"
        if isinstance(where, str):
            query = f"SELECT column_name::text FROM information_schema.columns WHERE table_name = '{table}' ORDER BY 1"
        columns = ", ".join(row[0] for row in sql(where, query))
        found[table] = sorted(sql(where, f"SELECT {columns} FROM {table}"), key=repr)
    return found


def without_nul(contents: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table: [tuple(one.replace("\0", "\ufffd") if isinstance(one, str) else one for one in row) for row in found]
        for table, found in contents.items()
    }


async def test_all_of_it_is_there_and_goes_on_in_postgresql(
    path: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BATCH", 2)
    await fill(path)
    before = rows(path)
    assert migrate_in_thread(path, url) == 0
    assert rows(url) == without_nul(before) and rows(path) == before
    said = capsys.readouterr().err
    assert "4 jobs, 8 inputs, 7 segments" in said and f"still in {path.parent}" in said
    async with opened(url) as store:
        [submitted] = await adopt(store)
        await store.finish_segment(submitted, "1.mp4", 1.0)
        sql(url, "UPDATE segment SET not_before = 0")
        running = await store.job(submitted.prompt_id)
        while running.segments_done < running.segments_total:
            moved = await store.finish_segment(await claim(store), "x.mp4", 1.0)
            running = moved or running
        last = (await store.events(running.prompt_id, 0))[-1].seq
        assert await finish(store, running)
        assert (await store.events(running.prompt_id, 0))[-2].seq > last
        assert (await store.job(running.prompt_id)).state == JobState.SUCCESS


def migrate_in_thread(source: Path | str, target: Path | str) -> int:
    """Run the command beside the test's own loop."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(migrate, source, target).result()


async def test_the_way_back_leads_to_the_same(path: Path, url: str, tmp_path: Path) -> None:
    await fill(url)
    assert migrate_in_thread(url, path) == 0
    assert rows(path) == rows(url)
    again = tmp_path / "again.db"
    assert migrate_in_thread(path, again) == 0
    assert rows(again) == rows(path)


async def test_a_target_that_has_jobs_is_refused_and_left_alone(
    path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await fill(path)
    async with opened(url) as store:
        await create(store)
    before = rows(url)
    assert migrate_in_thread(path, url) == 1
    assert "has jobs already" in capsys.readouterr().err
    assert rows(url) == before


async def test_a_target_in_which_a_node_has_only_started_is_taken(path: Path, url: str) -> None:
    await fill(path)
    async with opened(url) as store:
        await store.client_id("one")
    assert migrate_in_thread(path, url) == 0
    assert rows(url) == without_nul(rows(path))


@pytest.mark.parametrize("end", ["from", "to"])
async def test_nodes_that_run_are_named_and_nothing_is_copied(
    path: Path, url: str, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    await fill(path)
    async with opened(url) as store:
        await store.heartbeat("node-7", "1.0", {})
    assert migrate_in_thread(*((path, url) if end == "to" else (url, path.with_name("new.db")))) == 1
    assert f"to copy {end} is in use by node-7" in capsys.readouterr().err
    assert sql(url, "SELECT 1 FROM job") == []


async def test_a_service_that_runs_is_not_copied_from(path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    await fill(path)
    with closing((path.parent / "lock").open("w")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert migrate_in_thread(path, url) == 1
    assert f"A running faceswap uses {path.parent}; stop it first." in capsys.readouterr().err
    assert migrate_in_thread(path, url) == 0


def test_wrong_use_is_told_in_a_sentence(path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for source, target, status, sentence in (
        ("/no/scheme.db", url, 2, "A database is sqlite:/path/faceswap.db, or postgresql://"),
        (url, url, 2, "The two databases are the same."),
        (f"sqlite:{path}", url, 1, f"There is no file {path}."),
        (url, url + "_missing", 1, "does not exist"),
    ):
        assert main(["migrate", "--from", source, "--to", target]) == status
        told = capsys.readouterr().err
        assert sentence in told and len(told.splitlines()) == 1


@pytest.mark.parametrize("fault", ["changed", "unwritable"])
async def test_a_copy_that_is_not_like_the_original_is_not_kept(
    path: Path, url: str, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    await fill(path)
    body = "BEGIN NEW.step := 'other'; RETURN NEW; END" if fault == "changed" else "BEGIN RAISE 'no'; END"
    with postgres.empty_database() as other:
        async with opened(other):
            pass
        sql(other, f"CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
        sql(other, "CREATE TRIGGER meddle BEFORE INSERT ON job FOR EACH ROW EXECUTE FUNCTION meddle()")
        assert migrate_in_thread(path, other) == 1
        told = capsys.readouterr().err
        assert ("is not like the original" in told) == (fault == "changed")
        assert all(not found for found in rows(other).values())
