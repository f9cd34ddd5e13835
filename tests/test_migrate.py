"""`faceswap migrate` copies all jobs of a stopped service into another database, or none."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import postgres
import pytest
from file_places import SHARED, Place, make_place
from processes import files_in
from stored_jobs import acquire, adopt, claim, create, finish, learn_costs, new_job, opened, run_to_success, sql

from faceswap import events
from faceswap.cli import main
from faceswap.files import Files
from faceswap.jobs import ImageFile, Job, JobState
from faceswap.progress import Report
from faceswap.store import Store, join_lease, transfer

TABLES = tuple(transfer.TABLES)
VIDEO, FACE, SEGMENT, RESULT = (kind.encode() * 1000 for kind in ("video", "face", "segment", "result"))


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


def migrate(source: Path | str, target: Path | str, *options: str) -> int:
    return main(["migrate", "--from", name(source), "--to", name(target), *options])


async def fill(where: Path | str) -> None:
    """Make jobs in every state."""
    async with opened(where) as store:
        await run_to_success(store, output_name="déjà vu", owner="ann")
        failed = await create(store, segments=2, webhook_url="https://example.com/hook")
        await store.finish_segment(await claim(store), "0.mp4", 0.25, ["a warning"])
        await store.fail(failed.prompt_id, "out_of_memory", "Too large.\0")
        running = await create(store, segments=3, options={"priority": 2, "frame_rate": 12.5}, idempotency_key="k")
        await store.requeue(await claim(store), failed=True, pause_s=50)
        await claim(store, "two")
        await store.record_progress(
            {running.prompt_id: Report(12.5, 3, 30, 2.5, 9.0)}, {running.prompt_id: events.preview("x", 1)}
        )
        await create(store, options={"priority": -1})
        await learn_costs(store, "key", {"load 1": 0.001, "swap 1": 0.03})
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


def migrate_in_thread(source: Path | str, target: Path | str, *options: str) -> int:
    """Run the command beside the test's own loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(migrate, source, target, *options).result()


async def test_postgresql_plans_for_what_it_was_given_at_once(path: Path, url: str) -> None:
    await fill(path)
    assert migrate_in_thread(path, url) == 0
    known = "SELECT relname::text, reltuples::int FROM pg_class WHERE relname IN ('job', 'segment')"
    assert dict(sql(url, known)) == {"job": 4, "segment": 7}


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
    assert "has had jobs already" in capsys.readouterr().err
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


@pytest.fixture(params=SHARED)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return make_place(request.param, tmp_path, monkeypatch)


async def put_files(store: Store, data_dir: Path) -> list[Job]:
    """Make a job that has succeeded, one that has a finished segment, and one without files, and their files."""
    files = Files(data_dir)
    files.create()
    files.lock.touch()
    images = tuple(ImageFile(name, sha256(FACE).hexdigest()) for name in ("image.png", "image-1.jpg"))
    inputs = replace(new_job().inputs, video_sha256=sha256(VIDEO).hexdigest(), images=images)
    done, begun, bare = [await create(store, inputs=inputs, output_name=name) for name in ("done", "begun", "bare")]
    for job in (done, begun):
        files.inputs(job.prompt_id).mkdir()
        files.video(job.prompt_id, inputs).write_bytes(VIDEO)
        for image in files.images(job.prompt_id, inputs):
            image.write_bytes(FACE)
        await files.make_scratch(job.prompt_id)
        segment = await claim(store)
        files.segment(segment).write_bytes(SEGMENT)
        await store.finish_segment(segment, files.segment(segment).name, 1.0)
    lease = await acquire(store, join_lease(done.prompt_id))
    result: dict[str, Any] = {"size": len(RESULT), "sha256": sha256(RESULT).hexdigest(), "warnings": ()}
    assert await store.succeed(done, lease, result_file="done.mp4", **result)
    files.result("done.mp4").write_bytes(RESULT)
    return [await store.job(job.prompt_id) for job in (done, begun, bare)]


async def test_files_are_found_where_all_nodes_look_for_them(path: Path, url: str, place: Place) -> None:
    async with opened(path) as store:
        done, begun, bare = await put_files(store, path.parent)
    before = files_in(path.parent)
    for _ in range(2):  # a try that did not come to its end is repeated
        sql(url, "TRUNCATE job, audit CASCADE")
        assert migrate_in_thread(path, url, "--files", place.url) == 0
    assert files_in(path.parent) == before
    files = await place.started("a node")
    async with opened(url) as store:
        for job in (done, begun):
            assert await files.fetch_inputs(job.prompt_id, job.inputs)
            assert files.video(job.prompt_id, job.inputs).read_bytes() == VIDEO
            images = files.images(job.prompt_id, job.inputs)
            assert [image.read_bytes() for image in images] == [FACE, FACE]
        assert not await files.fetch_inputs(bare.prompt_id, bare.inputs)
        [segment] = await files.fetch_segments(await store.segments(begun.prompt_id))
        assert segment.read_bytes() == SEGMENT
        result = await files.find_result(await store.job(done.prompt_id))
        assert result is not None
        if isinstance(result, Path):
            assert result.read_bytes() == RESULT
        else:
            assert b"".join([bytes(piece) async for piece in result.read(0, len(RESULT))]) == RESULT
        assert await files.find_result(begun) is None
    await files.close()


async def test_a_file_that_is_not_the_one_of_its_job_is_told_and_no_job_is_copied(
    path: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shared").mkdir()
    async with opened(path) as store:
        _, begun, _ = await put_files(store, path.parent)
    files = Files(path.parent)
    for wrong, right in ((files.result("done.mp4"), RESULT), (files.video(begun.prompt_id, begun.inputs), VIDEO)):
        wrong.write_bytes(b"something else")
        assert migrate_in_thread(path, url, "--files", str(tmp_path / "shared")) == 1
        assert f"{wrong} is not the file that its job's record describes" in capsys.readouterr().err
        wrong.write_bytes(right)
    assert sql(url, "SELECT 1 FROM job") == []


@pytest.mark.parametrize("fault", ["changed", "unwritable"])
async def test_a_copy_that_is_not_like_the_original_is_not_kept(
    path: Path, url: str, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    await fill(path)
    body = "BEGIN NEW.step := 'other'; RETURN NEW; END" if fault == "changed" else "BEGIN RAISE 'no'; END"
    with postgres.empty_database() as other:
        async with opened(other):
            before = rows(other)
        sql(other, f"CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
        sql(other, "CREATE TRIGGER meddle BEFORE INSERT ON job FOR EACH ROW EXECUTE FUNCTION meddle()")
        assert migrate_in_thread(path, other) == 1
        told = capsys.readouterr().err
        assert ("is not like the original" in told) == (fault == "changed")
        assert rows(other) == before
