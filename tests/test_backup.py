"""`faceswap backup` copies the database while others write; `faceswap audit` prints what happened to jobs."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import postgres
import pytest
from stored_jobs import claim, create, opened, run_to_success, sql

from faceswap.cli import main
from faceswap.store import StoreError, copy_database

POSTGRESQL = "postgresql://faceswap:secret@nowhere/faceswap"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FACESWAP_DATABASE_URL", raising=False)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def run(*arguments: object) -> int:
    """Run a command beside the test's own loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(main, [str(argument) for argument in arguments]).result()


async def test_a_copy_is_whole_and_good_for_a_service_though_others_write(data_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "copies" / "faceswap.db"
    target.parent.mkdir()
    target.write_text("an older copy")
    async with opened(data_dir / "faceswap.db") as store:
        done = await run_to_success(store)
        async with store._transaction() as transaction:  # which is not committed yet
            await transaction.run("UPDATE job SET step = 'half' WHERE prompt_id = ?", done.prompt_id)
            assert run("backup", target, "--data-dir", data_dir) == 0
    assert [path.name for path in target.parent.iterdir()] == ["faceswap.db"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sql(target, "PRAGMA integrity_check") == [("ok",)]
    assert sql(target, "PRAGMA auto_vacuum") == [(2,)]
    async with opened(target) as copy:
        assert await copy.job(done.prompt_id) == done
        await create(copy)
        await claim(copy)
        assert [line.number async for line in copy.audit_lines()] == [1, 2, 3]


def test_without_a_database_nothing_is_written(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("backup", tmp_path / "copy.db", "--data-dir", data_dir) == 1
    assert "There is no database" in capsys.readouterr().err
    assert not (tmp_path / "copy.db").exists() and not list(data_dir.iterdir())


async def test_a_copy_that_fails_leaves_the_older_one(data_dir: Path, tmp_path: Path) -> None:
    async with opened(data_dir / "faceswap.db") as store:
        await create(store)
    older = tmp_path / "copy.db"
    older.write_text("an older copy")
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"not a database " * 100)
    with pytest.raises(StoreError):
        copy_database(broken, older)
    assert older.read_text() == "an older copy"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert run("backup", tmp_path / "no" / "folder" / "copy.db", "--data-dir", data_dir) == 1


@pytest.mark.parametrize("name", ["faceswap.db", "link.db", "other.db"])
async def test_a_database_that_is_in_use_is_never_replaced(
    data_dir: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    database = data_dir / "faceswap.db"
    (data_dir / "link.db").symlink_to(database)
    (data_dir / "other.db-wal").write_bytes(b"of another service")
    async with opened(database) as store:
        job = await create(store)
        before = database.stat().st_ino
        assert run("backup", data_dir / name, "--data-dir", data_dir) == 1
        assert "Nothing was written." in capsys.readouterr().err
        assert database.stat().st_ino == before and await store.job(job.prompt_id)


async def test_the_record_of_an_older_database_is_not_read_and_nothing_is_brought_up_to_date(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with opened(data_dir / "faceswap.db"):
        pass
    sql(data_dir / "faceswap.db", "PRAGMA user_version = 4")
    assert run("audit", "--data-dir", data_dir) == 1
    assert "start the service once" in capsys.readouterr().err
    assert sql(data_dir / "faceswap.db", "PRAGMA user_version") == [(4,)]


def test_postgresql_has_its_own_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FACESWAP_DATABASE_URL", POSTGRESQL)
    assert run("backup", tmp_path / "copy.db") == 2
    said = capsys.readouterr().err
    assert "pg_dump" in said and "secret" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_the_record_is_printed_as_lines_of_json(
    kind: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with postgres.database() as url:
        where: Path | str = data_dir / "faceswap.db" if kind == "sqlite" else url
        if kind == "postgresql":
            monkeypatch.setenv("FACESWAP_DATABASE_URL", url)
        async with opened(where) as store:
            one, other = await create(store, owner="ann", consent="Zoë signed"), await create(store)
            await store.request_cancel(one.prompt_id, "ann")
            assert run("audit", "--data-dir", data_dir) == 0
            lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            assert [(line["prompt_id"], line["what"]) for line in lines] == [
                (one.prompt_id, "accepted"),
                (other.prompt_id, "accepted"),
                (one.prompt_id, "ended"),
            ]
            assert (lines[0]["owner"], lines[0]["consent"], lines[2]["state"]) == ("ann", "Zoë signed", "CANCELLED")
            assert run("audit", "--data-dir", data_dir, "--job", other.prompt_id, "--since", lines[0]["at"]) == 0
            assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [lines[1]]
            assert run("audit", "--data-dir", data_dir, "--since", "2999-01-01") == 0
            assert capsys.readouterr().out == ""


def test_a_wrong_time_and_a_missing_database_are_told(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("audit", "--data-dir", data_dir, "--since", "yesterday") == 2
    assert "allowed is a date" in capsys.readouterr().err
    assert run("audit", "--data-dir", data_dir) == 1
    assert "There is no database" in capsys.readouterr().err
    assert not list(data_dir.iterdir())
