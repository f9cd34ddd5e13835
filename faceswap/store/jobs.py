"""Moves of jobs: accepted, processing, ended, queued again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from .. import events as payloads
from ..errors import Conflict, Gone, Unavailable, Unprocessable
from ..events import Event, Payload
from ..jobs import TERMINAL, TRANSITIONS, Job, JobState, NewJob, Segment, stored_name
from ..progress import Report
from .audit import Audit, add_audit_line, record_accepted, record_ended, record_retried
from .connection import CommitUnknown, StoreError
from .database import retry_writes, transaction
from .deliveries import Deliveries
from .leases import Lease, Leases, join_lease
from .rows import SELECT_JOB, found, input_rows, job_of
from .transaction import QUEUE_LOCK, Transaction
from .turns import ADD_OWNER, check_queue_of_key, queue_place

IDEMPOTENCY_MS = 24 * 3600 * 1000
SETTLE_S = 15.0
"""The time for a database to tell whether it has committed a job, after the answer to that was lost."""


class Jobs(Leases, Audit, Deliveries):
    """The moves of a job, one method each."""

    async def create(self, new: NewJob, queue_limit: int, owner_limit: int | None = None) -> tuple[Job, bool]:
        """Accept a job: record, segments and `queued` event in one commit. Returns it and whether it is new.

        The same idempotency key with the same request gives the first job; with another one `Unprocessable`.
        A name that is taken gets `-2`, `-3`, … Raises `Unavailable` when the queue is full, `TooManyRequests` when
        `owner_limit` jobs of its owner wait, `CommitUnknown` when the database does not tell within `SETTLE_S` whether
        the job was accepted.
        """
        try:
            return await self._create(new, queue_limit, owner_limit)
        except CommitUnknown as unknown:
            try:
                async with asyncio.timeout(SETTLE_S):
                    job = await retry_writes(partial(self._created, new.prompt_id))
            except (TimeoutError, StoreError):
                raise unknown from None
            if job is None:
                raise StoreError(str(unknown), transient=True) from unknown
            return job, True

    @transaction
    async def _created(self, tx: Transaction, prompt_id: str) -> Job | None:
        """Return a job whose commit was not answered, None when there is none and will be none."""
        await tx.lock(QUEUE_LOCK)  # which that transaction holds while it is not over
        rows = await tx.all(f"{SELECT_JOB} WHERE job.prompt_id = ?", prompt_id)
        return job_of(rows[0]) if rows else None

    @transaction
    async def _create(
        self, tx: Transaction, new: NewJob, queue_limit: int, owner_limit: int | None
    ) -> tuple[Job, bool]:
        await tx.lock(QUEUE_LOCK)
        if new.idempotency_key is not None:
            first = await self._first_with_key(tx, new)
            if first is not None:
                return first, False
        row = await tx.one("SELECT count(*) FROM job WHERE state = 'QUEUED'")
        if row is not None and row[0] >= queue_limit:
            raise Unavailable("The queue is full; try again later.", code="queue_full", retry_after=60)
        await self._check_owners_queue(tx, new.owner, owner_limit)
        job = await self._insert_job(tx, new, await self._free_name(tx, stored_name(new.owner, new.output_name)))
        place = await queue_place(tx.all, job)
        assert place is not None
        await tx.add_event(job.prompt_id, payloads.queued(job.prompt_id, place, job.warnings))
        await record_accepted(tx, job)
        return job, True

    async def _check_owners_queue(self, tx: Transaction, owner: str | None, limit: int | None) -> None:
        if limit is not None:
            sql = "SELECT count(*) FROM job WHERE state = 'QUEUED' AND coalesce(owner, '') = ?"
            row = await tx.one(sql, owner or "")
            check_queue_of_key(row[0] if row else 0, limit)

    async def _first_with_key(self, tx: Transaction, new: NewJob) -> Job | None:
        row = await tx.one(
            f"{SELECT_JOB} WHERE coalesce(owner, '') = ? AND idempotency_key = ?",
            new.owner or "",
            new.idempotency_key,
        )
        if row is None:
            return None
        first = job_of(row)
        if await tx.now_ms() - first.created_at > IDEMPOTENCY_MS:
            await tx.run("UPDATE job SET idempotency_key = NULL WHERE prompt_id = ?", first.prompt_id)
            return None
        if first.request_digest != new.request_digest:
            raise Unprocessable(
                "This Idempotency-Key was used with another request.",
                code="idempotency_key_reused",
                prompt_id=first.prompt_id,
            )
        return first

    async def _free_name(self, tx: Transaction, wanted: str) -> str:
        row = await tx.one(
            "WITH RECURSIVE candidate (number, wanted, name) AS (SELECT 1, CAST(? AS TEXT), CAST(? AS TEXT) UNION ALL"
            " SELECT number + 1, wanted, wanted || '-' || (number + 1) FROM candidate"
            " WHERE EXISTS (SELECT 1 FROM job WHERE output_name = candidate.name))"
            " SELECT name FROM candidate ORDER BY number DESC LIMIT 1",
            wanted,
            wanted,
        )
        assert row is not None
        return str(row[0])

    async def _insert_job(self, tx: Transaction, new: NewJob, output_name: str) -> Job:
        now = await tx.now_ms()
        values: dict[str, Any] = {
            "prompt_id": new.prompt_id,
            "owner": new.owner,
            "state": JobState.QUEUED,
            "step": "Queued",
            "options": json.dumps(new.options.to_dict()),
            "workflow": new.workflow,
            "priority": new.options.priority,
            "output_name": output_name,
            "created_at": now,
            "updated_at": now,
            "total_frames": sum(plan.frame_count for plan in new.segments),
            "segments_total": len(new.segments),
            "idempotency_key": new.idempotency_key,
            "request_digest": new.request_digest,
            "webhook_url": new.webhook_url,
            "result_put_url": new.result_put_url,
            "traceparent": new.traceparent,
            "consent": new.consent,
            "label": new.label,
            "warnings": json.dumps(new.warnings, ensure_ascii=False),
        }
        await tx.run(ADD_OWNER, new.owner or "")
        names = ", ".join(values)
        marks = ", ".join("?" * len(values))
        await tx.run(f"INSERT INTO job ({names}) VALUES ({marks})", *values.values())
        await tx.execute_many(
            "INSERT INTO input (prompt_id, role, number, file, bytes, sha256, facts) VALUES (?, ?, ?, ?, ?, ?, ?)",
            input_rows(new.prompt_id, new.inputs),
        )
        await tx.execute_many(
            "INSERT INTO segment (prompt_id, owner, number, first_frame, frame_count, priority, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    new.prompt_id,
                    new.owner or "",
                    plan.number,
                    plan.first_frame,
                    plan.frame_count,
                    new.options.priority,
                    now,
                )
                for plan in new.segments
            ],
        )
        return await self._job(tx, new.prompt_id)

    @transaction
    async def add_event(self, tx: Transaction, prompt_id: str, payload: Payload, step: str | None = None) -> None:
        """Store and publish an event of a job that has not ended, and the step `/status` shows."""
        if taken := await self._take_step(tx, prompt_id, step):
            await tx.add_event(prompt_id, payload, taken[1])

    @transaction
    async def add_status(self, tx: Transaction, prompt_id: str, message: str, step: str | None = None) -> None:
        """Store and publish a `status` event of a job that has not ended, with the state it is in."""
        if taken := await self._take_step(tx, prompt_id, step):
            state, seq = taken
            await tx.add_event(prompt_id, payloads.status(state, message), seq)

    async def _take_step(self, tx: Transaction, prompt_id: str, step: str | None) -> tuple[JobState, int] | None:
        """Note what a job does now, unless that is None, and raise its last event number.

        Returns its state and that number, None when it has ended.
        """
        row = await tx.one(
            "UPDATE job SET step = coalesce(?, step), updated_at = ?, last_seq = last_seq + 1"
            " WHERE prompt_id = ? AND state IN ('QUEUED', 'PROCESSING') RETURNING state, last_seq",
            step,
            await tx.now_ms(),
            prompt_id,
        )
        return None if row is None else (JobState(row["state"]), row["last_seq"])

    @transaction
    async def record_progress(
        self, tx: Transaction, reports: Mapping[str, Report], transient: Mapping[str, Payload]
    ) -> None:
        """Publish the progress of jobs, by id, and keep it, in place of the older one, for who asks or comes later.

        `transient` events, by the id of their job, are numbered in order with the others, but not stored: the next of
        their kind supersedes them.
        """
        await tx.lock_jobs(self._dialect.values, json.dumps([*reports, *transient]))
        for prompt_id, report in reports.items():
            moved = await tx.one(
                "UPDATE job SET percentage = ?, current_frame = ?, fps = ?, eta_s = ?, updated_at = ?,"
                " last_seq = last_seq + 1"
                " WHERE prompt_id = ? AND state = 'PROCESSING' AND percentage <= ? RETURNING last_seq",
                report.percentage,
                report.current,
                report.fps,
                report.eta_s,
                await tx.now_ms(),
                prompt_id,
                report.percentage,
            )
            if moved:
                await self._replace(tx, prompt_id, payloads.progress(report), moved["last_seq"])
        for prompt_id, payload in transient.items():
            row = await tx.one(
                "UPDATE job SET last_seq = last_seq + 1 WHERE prompt_id = ? AND state IN ('QUEUED', 'PROCESSING')"
                " RETURNING last_seq",
                prompt_id,
            )
            if row is not None:
                tx.events.append(Event(prompt_id, row["last_seq"], payload.type, payload.data))

    async def _replace(self, tx: Transaction, prompt_id: str, payload: Payload, seq: int | None = None) -> None:
        """Store an event in place of the older ones of its kind; for `seq` see `add_event`."""
        await tx.add_event(prompt_id, payload, seq)
        await tx.run(
            "DELETE FROM event WHERE prompt_id = ? AND type = ? AND seq < ?", prompt_id, payload.type, tx.events[-1].seq
        )

    @transaction
    async def succeed(
        self,
        tx: Transaction,
        job: Job,
        lease: Lease,
        *,
        result_file: str,
        size: int,
        sha256: str,
        warnings: tuple[str, ...],
    ) -> bool:
        """Move a job from PROCESSING to SUCCESS with the checked result; False when it had ended otherwise.

        It is True as well for a job that had ended with this very result: the answer to a commit may have been lost.
        Raises `LeaseLost` when another has the lease on the job's joining.
        """
        assert lease.name == join_lease(job.prompt_id)
        await tx.lock_job(job.prompt_id)
        await self._check_lease(tx, lease)
        ended = await self._is_done(tx, job.prompt_id) and await self._end(
            tx,
            job.prompt_id,
            JobState.SUCCESS,
            step="Face swap completed successfully",
            result_file=stored_name(job.owner, result_file),
            result_bytes=size,
            result_sha256=sha256,
            warnings=json.dumps(warnings, ensure_ascii=False),
            percentage=100.0,
            current_frame=job.total_frames,
            eta_s=0.0,
        )
        if ended:
            whole = Report(100.0, job.total_frames, job.total_frames, job.fps, 0)
            await self._replace(tx, job.prompt_id, payloads.progress(whole))
            completed = payloads.completed(job, result_file=result_file, size=size, sha256=sha256, warnings=warnings)
            await tx.add_event(job.prompt_id, completed)
        same = "SELECT 1 FROM job WHERE prompt_id = ? AND state = 'SUCCESS' AND result_sha256 = ?"
        return ended or await tx.one(same, job.prompt_id, sha256) is not None

    @transaction
    async def fail(
        self, tx: Transaction, prompt_id: str, code: str, message: str, cause: Segment | Lease | None = None
    ) -> bool:
        """Move a job to FAILED; False when it had ended otherwise.

        `cause` is the submitted segment that failed, or the lease under which the joining did. Raises `LeaseLost` when
        another works on that by now.
        """
        await tx.lock_job(prompt_id)
        if cause is not None:
            await self._check_lease(tx, cause)
        if isinstance(cause, Lease) and not await self._is_done(tx, prompt_id):
            return False
        ended = await self._end(tx, prompt_id, JobState.FAILED, step="Failed", error=message, code=code)
        if ended:
            await tx.add_event(prompt_id, payloads.error(prompt_id, code, message))
        return ended

    async def _is_done(self, tx: Transaction, prompt_id: str) -> bool:
        """Return whether all segments are done: a job that was retried while it was joined is not."""
        sql = "SELECT 1 FROM job WHERE prompt_id = ? AND segments_done = segments_total"
        return await tx.one(sql, prompt_id) is not None

    async def _cancelled(self, tx: Transaction, prompt_id: str) -> bool:
        ended = await self._end(tx, prompt_id, JobState.CANCELLED, step="Cancelled")
        if ended:
            await tx.add_event(prompt_id, payloads.cancelled(prompt_id))
        return ended

    async def _end(self, tx: Transaction, prompt_id: str, state: JobState, **columns: Any) -> bool:
        sources = [source for source, targets in TRANSITIONS.items() if state in targets]
        now = await tx.now_ms()
        values = {"state": state, "finished_at": now, "updated_at": now, "eta_s": None, **columns}
        assignments = ", ".join(f"{name} = ?" for name in values)
        marks = ", ".join("?" * len(sources))
        row = await tx.one(
            f"UPDATE job SET {assignments} WHERE prompt_id = ? AND state IN ({marks}) RETURNING 1",
            *values.values(),
            prompt_id,
            *sources,
        )
        if row is None:
            return False
        job = await self._job(tx, prompt_id)
        await record_ended(tx, job)
        await self._add_deliveries(tx, job)
        await tx.run(
            "UPDATE segment SET state = 'failed' WHERE prompt_id = ? AND state IN ('waiting', 'submitted')", prompt_id
        )
        return True

    @transaction
    async def request_cancel(self, tx: Transaction, prompt_id: str, owner: str | None) -> Job:
        """Ask for a job's end, which comes at once unless a backend works on it. Raises `Conflict`, `NotFound`."""
        await tx.lock_job(prompt_id)
        job = await self._owned(tx, prompt_id, owner)
        if job.state in TERMINAL:
            raise Conflict(f"The job has ended already ({job.state}).", code="job_ended", prompt_id=prompt_id)
        await tx.run(
            "UPDATE job SET cancel_requested = 1, step = 'Cancelling', updated_at = ? WHERE prompt_id = ?",
            await tx.now_ms(),
            prompt_id,
        )
        await self._settle_cancel(tx, prompt_id)
        return await self._job(tx, prompt_id)

    async def _settle_cancel(self, tx: Transaction, prompt_id: str) -> bool:
        """End a job that was asked to, once no segment is with a backend; until then nothing of it may be claimed."""
        if not await tx.one("SELECT 1 FROM job WHERE prompt_id = ? AND cancel_requested = 1", prompt_id):
            return False
        await tx.run("UPDATE segment SET state = 'failed' WHERE prompt_id = ? AND state = 'waiting'", prompt_id)
        if await tx.one("SELECT 1 FROM segment WHERE prompt_id = ? AND state = 'submitted'", prompt_id):
            return False
        return await self._cancelled(tx, prompt_id)

    @transaction
    async def retry(self, tx: Transaction, prompt_id: str, owner: str | None, owner_limit: int | None = None) -> Job:
        """Queue a failed or cancelled job again, finished segments kept. Raises `Conflict`, `Gone`, `NotFound`.

        So too `TooManyRequests` when `owner_limit` jobs of its owner wait.
        When all were finished, the last is done again: its end leads to the joining at which the job had ended.
        """
        await tx.lock_job(prompt_id)
        job = await self._owned(tx, prompt_id, owner)
        if JobState.QUEUED not in TRANSITIONS[job.state]:
            raise Conflict(
                f"Only a failed or cancelled job can be retried; this one is {job.state}.",
                code="not_retryable",
                prompt_id=prompt_id,
            )
        row = await tx.one("SELECT inputs_erased FROM job WHERE prompt_id = ?", prompt_id)
        if row is None or row[0]:
            raise Gone(
                "The video and the face of this job were erased already; post them again.",
                code="inputs_erased",
                prompt_id=prompt_id,
            )
        await self._check_owners_queue(tx, owner, owner_limit)
        all_done = int(job.segments_done == job.segments_total)
        await tx.run(
            "UPDATE job SET state = 'QUEUED', step = 'Queued', finished_at = NULL, error = NULL, code = NULL,"
            " cancel_requested = 0, segments_done = segments_done - ?, updated_at = ? WHERE prompt_id = ?",
            all_done,
            await tx.now_ms(),
            prompt_id,
        )
        await tx.run(
            "UPDATE segment SET state = 'waiting', failures = 0, losses = 0, deaths = 0, not_before = 0,"
            " backend = NULL"
            " WHERE prompt_id = ? AND (state = 'failed' OR (number = ? AND ? = 1))",
            prompt_id,
            job.segments_total - 1,
            all_done,
        )
        again = payloads.status(JobState.QUEUED, "Queued again by a retry.")
        await tx.add_event(prompt_id, again)
        queued = await self._job(tx, prompt_id)
        await record_retried(tx, queued)
        return queued

    @transaction
    async def set_priority(self, tx: Transaction, prompt_id: str, owner: str | None, priority: int) -> Job:
        """Change the place of what waits of a job. Raises `Conflict` when it has ended, `NotFound`."""
        await tx.lock_job(prompt_id)
        job = await self._owned(tx, prompt_id, owner)
        if job.state in TERMINAL:
            raise Conflict(f"The job has ended already ({job.state}).", code="job_ended", prompt_id=prompt_id)
        options = json.dumps({**job.options.to_dict(), "priority": priority})
        sql = "UPDATE job SET priority = ?, options = ?, updated_at = ? WHERE prompt_id = ?"
        await tx.run(sql, priority, options, await tx.now_ms(), prompt_id)
        await tx.run("UPDATE segment SET priority = ? WHERE prompt_id = ?", priority, prompt_id)
        await tx.add_event(prompt_id, payloads.status(job.state, f"The priority is {priority} now."))
        await add_audit_line(tx, prompt_id, job.owner, "priority", priority=priority)
        return await self._job(tx, prompt_id)

    @transaction
    async def set_label(self, tx: Transaction, prompt_id: str, owner: str | None, label: str | None) -> Job:
        """Change the words by which a user finds a job. Raises `NotFound`."""
        await tx.lock_job(prompt_id)
        await self._owned(tx, prompt_id, owner)
        sql = "UPDATE job SET label = ?, updated_at = ? WHERE prompt_id = ?"
        await tx.run(sql, label, await tx.now_ms(), prompt_id)
        return await self._job(tx, prompt_id)

    @transaction
    async def begin_erasure(self, tx: Transaction, prompt_id: str) -> None:
        """Store that a job's inputs and result are about to go for good, and its record after them.

        Nothing of it can be retried or claimed from now on.
        """
        await tx.run(
            "UPDATE job SET inputs_erased = 1, result_erased = 1, cancel_requested = 1 WHERE prompt_id = ?",
            prompt_id,
        )
        await self._settle_cancel(tx, prompt_id)

    @transaction
    async def erase(self, tx: Transaction, prompt_id: str) -> None:
        """Delete a job's record, segments and events for good; its watchers are told that it is cancelled."""
        await self._cancelled(tx, prompt_id)
        row = await tx.one("DELETE FROM job WHERE prompt_id = ? RETURNING owner", prompt_id)
        if row is not None:
            await add_audit_line(tx, prompt_id, row["owner"], "erased", reason="request")
        await tx.run("DELETE FROM lease WHERE name = ?", join_lease(prompt_id))

    async def _job(self, tx: Transaction, prompt_id: str) -> Job:
        return found(await tx.all(f"{SELECT_JOB} WHERE job.prompt_id = ?", prompt_id))

    async def _owned(self, tx: Transaction, prompt_id: str, owner: str | None) -> Job:
        sql = f"{SELECT_JOB} WHERE job.prompt_id = ? AND coalesce(owner, '') = ?"
        return found(await tx.all(sql, prompt_id, owner or ""))
