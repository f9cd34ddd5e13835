"""Databases with many jobs, made as copies of one."""

from __future__ import annotations

import os
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

EVENTS = 8
"""Events that each copy has."""


def fill(data_dir: Path, prompt_id: str, *, ended: int = 0, waiting: int = 0) -> tuple[list[str], list[str]]:
    """Copy a job of one segment, while no service runs; returns the ids of ended and of waiting copies.

    The files of the ended ones are erased, as after a year. The waiting ones have inputs, links to those of the job,
    and could be worked on.
    """
    ids = [str(uuid.uuid4()) for _ in range(ended + waiting)]
    with closing(sqlite3.connect(data_dir / "faceswap.db")) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TEMP TABLE copy (number INTEGER PRIMARY KEY, id TEXT, ended INTEGER)")
        rows = ((number, copy_id, number < ended) for number, copy_id in enumerate(ids))
        connection.executemany("INSERT INTO copy VALUES (?, ?, ?)", rows)
        of_job: dict[str, str] = {
            "prompt_id": "copy.id",
            "output_name": "'copy ' || copy.id",
            "state": "CASE WHEN ended THEN 'SUCCESS' ELSE 'QUEUED' END",
            "step": "CASE WHEN ended THEN step ELSE 'queued' END",
            "created_at": "created_at - 1000 * number",
            "started_at": "CASE WHEN ended THEN started_at END",
            "finished_at": "CASE WHEN ended THEN coalesce(finished_at, updated_at) END",
            "result_file": "CASE WHEN ended THEN 'copy ' || copy.id || '.mp4' END",
            "result_bytes": "CASE WHEN ended THEN coalesce(result_bytes, 1) END",
            "result_sha256": "CASE WHEN ended THEN result_sha256 END",
            "percentage": "CASE WHEN ended THEN 100 ELSE 0 END",
            "segments_done": "ended",
            "idempotency_key": "NULL",
            "inputs_erased": "ended",
            "result_erased": "ended",
            "last_seq": str(EVENTS),
        }
        segment = {
            **dict.fromkeys(("comfy_prompt_id", "backend", "output_file", "changed_share"), "NULL"),
            "prompt_id": "copy.id",
            "state": "CASE WHEN ended THEN 'done' ELSE 'waiting' END",
            "created_at": "created_at - 1000 * copy.number",
            **dict.fromkeys(("not_before", "attempt", "failures", "losses", "deaths"), "0"),
        }
        for table, changes in (("job", of_job), ("input", {"prompt_id": "copy.id"}), ("segment", segment)):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            values = (changes.get(name, f"source.{name}") for name in columns)
            sql = f"INSERT INTO {table} SELECT {', '.join(values)} FROM copy, {table} source WHERE source.prompt_id = ?"
            connection.execute(sql, (prompt_id,))
        connection.execute(
            "WITH RECURSIVE seq(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM seq WHERE n < ?)"
            " INSERT INTO event SELECT id, n, 'status', '{}', created_at"
            " FROM copy JOIN job ON job.prompt_id = id JOIN seq",
            (EVENTS,),
        )
    inputs = data_dir / "inputs"
    for copy_id in ids[ended:]:
        (inputs / copy_id).mkdir(mode=0o700)
        for file in (inputs / prompt_id).iterdir():
            os.link(file, inputs / copy_id / file.name)
    return ids[:ended], ids[ended:]
