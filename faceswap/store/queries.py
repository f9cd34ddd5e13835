"""Jobs and events, as they are now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..errors import Gone, NotFound
from ..jobs import (
    Event,
    Job,
    JobState,
)
from .database import Database
from .rows import JOB_COLUMNS, checked, job_of, parse_cursor


class Queries(Database):
    """Questions that change nothing."""

    async def job(self, prompt_id: str, owner: str | None = None) -> Job:
        """A job by its id; `NotFound` when there is none, or it is another owner's."""
        rows = await self._read(f"SELECT {JOB_COLUMNS} FROM job WHERE prompt_id = ?", prompt_id)
        return checked(rows[0] if rows else None, prompt_id, owner)

    async def result(self, filename: str, owner: str | None = None) -> Job:
        """The job whose result is `filename`; `NotFound`, or `Gone` when it has expired."""
        sql = f"SELECT {JOB_COLUMNS}, result_erased AS erased FROM job WHERE result_file = ?"
        rows = [dict(row) for row in await self._read(sql, filename)]
        if not rows or (owner is not None and rows[0]["owner"] != owner):
            raise NotFound("There is no such file.", code="unknown_file")
        if rows[0].pop("erased"):
            raise Gone("This result has expired and was erased.", code="result_expired")
        return job_of(rows[0])

    async def queue_position(self, job: Job) -> int | None:
        """1 for the next job to start; None when the job is not queued."""
        if job.state != JobState.QUEUED:
            return None
        priority = job.options.priority
        rows = await self._read(
            "SELECT count(*) FROM job WHERE state = 'QUEUED' AND (priority > ? OR (priority = ? AND"
            " (created_at, prompt_id) <= (?, ?)))",
            priority,
            priority,
            job.created_at,
            job.prompt_id,
        )
        return int(rows[0][0])

    async def queue_positions(self, jobs: Sequence[Job]) -> dict[str, int]:
        """The places of the queued ones among these jobs, by id: the queue is counted once, however many they are."""
        queued = [job.prompt_id for job in jobs if job.state == JobState.QUEUED]
        if not queued:
            return {}
        rows = await self._read(
            "SELECT prompt_id, place FROM (SELECT prompt_id, row_number() OVER"
            " (ORDER BY priority DESC, created_at, prompt_id) AS place FROM job WHERE state = 'QUEUED')"
            " WHERE prompt_id IN (SELECT value FROM json_each(?))",
            json.dumps(queued),
        )
        return {row[0]: row[1] for row in rows}

    async def jobs(
        self, *, state: JobState | None, limit: int, cursor: str | None, owner: str | None
    ) -> tuple[list[Job], str | None]:
        """Jobs, newest first, and the cursor of the next page."""
        conditions, parameters = ["1"], list[Any]()
        if state is not None:
            conditions.append("state = ?")
            parameters.append(state)
        if owner is not None:
            conditions.append("owner = ?")
            parameters.append(owner)
        if cursor is not None:
            conditions.append("(created_at, prompt_id) < (?, ?)")
            parameters += parse_cursor(cursor)
        rows = await self._read(
            f"SELECT {JOB_COLUMNS} FROM job WHERE {' AND '.join(conditions)}"
            " ORDER BY created_at DESC, prompt_id DESC LIMIT ?",
            *parameters,
            limit + 1,
        )
        found = [job_of(row) for row in rows]
        more = len(found) > limit
        found = found[:limit]
        return found, f"{found[-1].created_at}-{found[-1].prompt_id}" if more else None

    async def events(self, prompt_id: str, after: int) -> list[Event]:
        """The stored events of a job with a number above `after`, in order."""
        rows = await self._read(
            "SELECT seq, type, data FROM event WHERE prompt_id = ? AND seq > ? ORDER BY seq", prompt_id, after
        )
        return [Event(prompt_id, row["seq"], row["type"], json.loads(row["data"])) for row in rows]

    async def counts(self) -> dict[str, int]:
        """How many jobs are queued and processing."""
        sql = "SELECT state, count(*) FROM job WHERE state IN ('QUEUED', 'PROCESSING') GROUP BY state"
        found = {row[0]: row[1] for row in await self._read(sql)}
        return {state: found.get(state, 0) for state in (JobState.QUEUED, JobState.PROCESSING)}

    async def check_writable(self) -> None:
        """Raise `StoreError` when the database cannot be written."""
        async with self._transaction():
            await self._run("UPDATE backend SET client_id = client_id WHERE 0")
