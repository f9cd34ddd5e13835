"""Queries of jobs and events, as they are now."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..backlog import Backlog, pace
from ..errors import Gone, NotFound
from ..events import Event
from ..jobs import Job, JobState, stored_name
from .database import Database, transaction
from .queue import Queue
from .rows import SELECT_JOB, found, job_of, parse_cursor
from .transaction import Transaction
from .turns import queue_place, queue_places

PACE_JOBS = 20
"""The jobs that ended last, by which the pace is told."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A job, and where it stands among those that have not ended."""

    job: Job
    place: int | None
    """Its place in the queue, 1 for the next to start; None when it is not queued."""
    backlog: Backlog | None
    """The work that waits; None when no job was queued that was asked for."""


class Queries(Database):
    """Questions that change nothing."""

    _pace: tuple[int | None, float | None] | None = None
    """The pace of the jobs that ended last, and the version of the queue's ends that it is of."""

    @property
    def queue(self) -> Queue | None:
        """The jobs that have not ended, in memory; None where other nodes may change them."""
        return self._engine.queue

    async def job(self, prompt_id: str) -> Job:
        """Return a job, whoever owns it. Raises `NotFound`."""
        return found(await self._read(f"{SELECT_JOB} WHERE job.prompt_id = ?", prompt_id))

    async def owned_job(self, prompt_id: str, owner: str | None) -> Job:
        """Return a job of an owner; None owns what nobody else does. Raises `NotFound`."""
        sql = f"{SELECT_JOB} WHERE job.prompt_id = ? AND coalesce(owner, '') = ?"
        return found(await self._read(sql, prompt_id, owner or ""))

    async def standings(self, prompt_ids: Sequence[str]) -> dict[str, Standing]:
        """Return jobs, whoever owns them, by id, with their places; few statements, however many jobs there are."""
        sql = f"{SELECT_JOB} WHERE job.prompt_id IN ({self._dialect.values})"
        jobs = [job_of(row) for row in await self._read(sql, json.dumps(prompt_ids))]
        queued = [job for job in jobs if job.state == JobState.QUEUED]
        backlog = await self.backlog() if queued else None
        places = dict[str, int]()
        for owner in {job.owner for job in queued}:
            places |= await self.queue_positions([job for job in queued if job.owner == owner])
        return {job.prompt_id: Standing(job, places.get(job.prompt_id), backlog) for job in jobs}

    async def versions(self, prompt_ids: Sequence[str]) -> dict[str, str]:
        """Return the versions of jobs, by id; a job has another one after each change. For where nodes share them."""
        rows = await self._read(
            f"SELECT prompt_id, {self._dialect.row_version} FROM job WHERE prompt_id IN ({self._dialect.values})",
            json.dumps(prompt_ids),
        )
        return {row[0]: row[1] for row in rows}

    async def result(self, filename: str, owner: str | None) -> Job:
        """Return the owner's job whose result is `filename`. Raises `NotFound`, or `Gone` when it has expired."""
        sql = "SELECT prompt_id, result_erased FROM job WHERE result_file = ? AND coalesce(owner, '') = ?"
        rows = await self._read(sql, stored_name(owner, filename), owner or "")
        if not rows:
            raise NotFound("There is no such file.", code="unknown_file")
        if rows[0]["result_erased"]:
            raise Gone("This result has expired and was erased.", code="result_expired")
        return await self.job(rows[0]["prompt_id"])

    async def with_result(self, filename: str) -> list[tuple[str, str | None]]:
        """Return the id and the owner of each job whose result has this name: one of each owner at most.

        Who has a job has turns.
        """
        sql = (
            "SELECT job.prompt_id, job.owner FROM turn"
            " JOIN job ON job.result_file = CASE turn.owner WHEN '' THEN '' ELSE turn.owner || '/' END || ?"
        )
        return [(row[0], row[1]) for row in await self._read(sql, filename)]

    async def queue_position(self, job: Job) -> int | None:
        """Return a job's place in the queue, 1 for the next to start; None when it is not queued."""
        if self.queue is not None:
            return self.queue.place(job.prompt_id)
        return await queue_place(self._read, job) if job.state == JobState.QUEUED else None

    async def queue_positions(self, jobs: Sequence[Job]) -> dict[str, int]:
        """Return the places of the queued ones among these jobs of one owner, by id; the queue is counted once."""
        queued = [job for job in jobs if job.state == JobState.QUEUED]
        if not queued:
            return {}
        if self.queue is not None:
            return self.queue.places(job.prompt_id for job in queued)
        owner = queued[0].owner
        rows = await self._read(
            "SELECT prompt_id, place FROM (SELECT prompt_id, row_number() OVER"
            " (ORDER BY priority DESC, created_at, prompt_id) AS place FROM job"
            " WHERE state = 'QUEUED' AND coalesce(owner, '') = ?) AS queue"
            f" WHERE prompt_id IN ({self._dialect.values})",
            owner or "",
            json.dumps([job.prompt_id for job in queued]),
        )
        return await queue_places(self._read, owner, {row[0]: row[1] for row in rows})

    async def queued_of(self, owner: str | None) -> int:
        """Return the number of an owner's queued jobs."""
        if self.queue is not None:
            return self.queue.queued_of(owner or "")
        sql = "SELECT count(*) FROM job WHERE state = 'QUEUED' AND coalesce(owner, '') = ?"
        return int((await self._read(sql, owner or ""))[0][0])

    async def backlog(self) -> Backlog:
        """Return the work that waits, of all owners, and the pace of the last jobs."""
        seconds_per_frame = await self._recent_pace()
        counts, frames = await self._unended_work()
        return Backlog(frames[JobState.PROCESSING], frames[JobState.QUEUED], counts[JobState.QUEUED], seconds_per_frame)

    async def _recent_pace(self) -> float | None:
        """Return the seconds a frame took of the jobs that ended last."""
        version = None if self.queue is None else self.queue.ended
        if self._pace is None or version is None or self._pace[0] != version:
            ended = await self._read(
                "SELECT started_at, finished_at, total_frames FROM job WHERE finished_at IS NOT NULL"
                " AND started_at IS NOT NULL AND state = 'SUCCESS' ORDER BY finished_at DESC LIMIT ?",
                PACE_JOBS,
            )
            self._pace = version, pace((row[0], row[1], row[2]) for row in ended)
        return self._pace[1]

    async def _unended_work(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return the numbers of queued and of processing jobs, and the frames that are left of them."""
        if self.queue is not None:
            return self.queue.counts, self.queue.frames_left
        rows = await self._read(
            "SELECT state, count(*), coalesce(sum(total_frames - current_frame), 0) FROM job"
            " WHERE state IN ('QUEUED', 'PROCESSING') GROUP BY state"
        )
        none: dict[str, int] = dict.fromkeys((JobState.QUEUED, JobState.PROCESSING), 0)
        return none | {row[0]: int(row[1]) for row in rows}, none | {row[0]: int(row[2]) for row in rows}

    async def jobs(
        self, *, state: JobState | None, limit: int, cursor: str | None, owner: str | None, label: str | None = None
    ) -> tuple[list[Job], str | None]:
        """Return jobs of an owner, newest first, and the cursor of the next page."""
        conditions, parameters = ["coalesce(owner, '') = ?"], list[Any]([owner or ""])
        if state is not None:
            conditions.append("state = ?")
            parameters.append(state)
        if label is not None:
            conditions.append("label = ?")
            parameters.append(label)
        if cursor is not None:
            conditions.append("(created_at, job.prompt_id) < (?, ?)")
            parameters += parse_cursor(cursor)
        rows = await self._read(
            f"{SELECT_JOB} WHERE {' AND '.join(conditions)} ORDER BY created_at DESC, job.prompt_id DESC LIMIT ?",
            *parameters,
            limit + 1,
        )
        found = [job_of(row) for row in rows]
        more = len(found) > limit
        found = found[:limit]
        return found, f"{found[-1].created_at}-{found[-1].prompt_id}" if more else None

    async def events(self, prompt_id: str, after: int) -> list[Event]:
        """Return the stored events of a job with a number above `after`, in order."""
        rows = await self._read(
            "SELECT seq, type, data FROM event WHERE prompt_id = ? AND seq > ? ORDER BY seq", prompt_id, after
        )
        return [Event(prompt_id, row["seq"], row["type"], json.loads(row["data"])) for row in rows]

    async def last_seqs(self, prompt_ids: Iterable[str]) -> dict[str, int]:
        """Return the number of the last event of each of these jobs that exists, stored or not."""
        ids = json.dumps(list(prompt_ids))
        sql = f"SELECT prompt_id, last_seq FROM job WHERE prompt_id IN ({self._dialect.values})"
        return {row[0]: row[1] for row in await self._read(sql, ids)}

    async def unended(self) -> set[str]:
        """Return the ids of all jobs that have not ended."""
        return {row[0] for row in await self._read("SELECT prompt_id FROM job WHERE state IN ('QUEUED', 'PROCESSING')")}

    async def to_be_stopped(self, prompt_ids: Iterable[str]) -> set[str]:
        """Return the ids of jobs whose end was asked for."""
        sql = f"SELECT prompt_id FROM job WHERE cancel_requested = 1 AND prompt_id IN ({self._dialect.values})"
        return {row[0] for row in await self._read(sql, json.dumps(list(prompt_ids)))}

    async def counts(self) -> Mapping[str, int]:
        """Return the numbers of queued and of processing jobs."""
        return (await self._unended_work())[0]

    async def check_readable(self) -> None:
        """Raise `StoreError` when the database cannot be read."""
        await self._read("SELECT 1 FROM job LIMIT 1")

    @transaction
    async def check_writable(self, tx: Transaction) -> None:
        """Raise `StoreError` when the database cannot be written."""
        await tx.run("UPDATE backend SET client_id = client_id WHERE 1 = 0")
