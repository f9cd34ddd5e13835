"""Databases with many jobs, made as copies of one."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import postgres

EVENTS = 8
"""Events that each copy has."""
AT_ONCE = 500
"""Ids in a statement."""

Sql = Callable[..., Sequence[Sequence[Any]]]
"""Runs a statement, with `?` for its parameters, on one connection; returns the rows."""


def fill(data_dir: Path, prompt_id: str, *, ended: int = 0, waiting: int = 0) -> tuple[list[str], list[str]]:
    """Copy a job in the SQLite database of a service; see `_copy`."""
    with closing(sqlite3.connect(data_dir / "faceswap.db")) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")

        def sql(statement: str, *parameters: object) -> Sequence[Sequence[Any]]:
            return connection.execute(statement, parameters).fetchall()

        columns = "SELECT name FROM pragma_table_info(?)"
        return _copy(sql, columns, data_dir / "inputs", prompt_id, ended, waiting)


def fill_postgres(
    url: str, inputs: Path, prompt_id: str, *, ended: int = 0, waiting: int = 0
) -> tuple[list[str], list[str]]:
    """Copy a job in a PostgreSQL database; see `_copy`."""
    columns = "SELECT column_name FROM information_schema.columns WHERE table_name = ? ORDER BY ordinal_position"
    copies = _copy(partial(postgres.sql, url), columns, inputs, prompt_id, ended, waiting)
    # As the server does within a minute.
    postgres.sql(url, "ANALYZE")
    return copies


def _copy(
    sql: Sql, columns: str, inputs: Path, prompt_id: str, ended: int, waiting: int
) -> tuple[list[str], list[str]]:
    """Copy a job of one segment, while no service runs; returns the ids of ended and of waiting copies.

    The files of the ended ones are erased, as after a year. The waiting ones have inputs, links to those of the job,
    and could be worked on.
    """
    ids = [str(uuid.uuid4()) for _ in range(ended + waiting)]
    sql("CREATE TEMP TABLE copy (number INTEGER PRIMARY KEY, id TEXT, is_ended INTEGER)")
    for first in range(0, len(ids), AT_ONCE):
        some = enumerate(ids[first : first + AT_ONCE], first)
        sql("INSERT INTO copy VALUES " + ", ".join(f"({n}, '{copy_id}', {int(n < ended)})" for n, copy_id in some))
    of_job: dict[str, str] = {
        "prompt_id": "copy.id",
        "output_name": "'copy ' || copy.id",
        "state": "CASE is_ended WHEN 1 THEN 'SUCCESS' ELSE 'QUEUED' END",
        "step": "CASE is_ended WHEN 1 THEN step ELSE 'queued' END",
        "created_at": "created_at - 1000 * copy.number",
        "started_at": "CASE is_ended WHEN 1 THEN coalesce(started_at, created_at) END",
        "finished_at": "CASE is_ended WHEN 1 THEN coalesce(finished_at, updated_at) END",
        "result_file": "CASE is_ended WHEN 1 THEN 'copy ' || copy.id || '.mp4' END",
        "result_bytes": "CASE is_ended WHEN 1 THEN coalesce(result_bytes, 1) END",
        "result_sha256": "CASE is_ended WHEN 1 THEN result_sha256 END",
        "percentage": "CASE is_ended WHEN 1 THEN 100 ELSE 0 END",
        "segments_done": "is_ended",
        "idempotency_key": "NULL",
        "inputs_erased": "is_ended",
        "result_erased": "is_ended",
        "last_seq": str(EVENTS),
    }
    segment = {
        **dict.fromkeys(("comfy_prompt_id", "backend", "output_file", "changed_share"), "NULL"),
        "prompt_id": "copy.id",
        "state": "CASE is_ended WHEN 1 THEN 'done' ELSE 'waiting' END",
        "created_at": "created_at - 1000 * copy.number",
        **dict.fromkeys(("not_before", "attempt", "failures", "losses", "deaths"), "0"),
    }
    for table, changes in (("job", of_job), ("input", {"prompt_id": "copy.id"}), ("segment", segment)):
        values = (changes.get(name, f"source.{name}") for (name,) in sql(columns, table))
        sql(
            f"INSERT INTO {table} SELECT {', '.join(values)} FROM copy, {table} source WHERE source.prompt_id = ?",
            prompt_id,
        )
    sql(
        "WITH RECURSIVE seq(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM seq WHERE n < ?)"
        " INSERT INTO event SELECT id, n, 'status', '{}', created_at"
        " FROM copy JOIN job ON job.prompt_id = id CROSS JOIN seq",
        EVENTS,
    )
    sql("DROP TABLE copy")
    for copy_id in ids[ended:]:
        (inputs / copy_id).mkdir(mode=0o700)
        for file in (inputs / prompt_id).iterdir():
            os.link(file, inputs / copy_id / file.name)
    return ids[:ended], ids[ended:]
