"""Moves of segments: claimed, taken over, requeued, split, finished."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from ..jobs import (
    Job,
    JobState,
    Segment,
    comfy_prompt_id,
)
from .audit import record_started
from .connection import CommitUnknown, Row
from .database import retry_writes, transaction
from .jobs import Jobs
from .leases import Lease
from .rows import SEGMENT_COLUMNS, SELECT_JOB, job_of, segment_of
from .transaction import Transaction
from .turns import NEXT_OWNER, TAKE_TURN

LOOK_AHEAD = 64
"""Waiting segments that are looked at to tell how much waits."""
LONGEST_PAUSE_MS = 60_000
"""A segment that is due later than that was put down by a clock that has jumped: it is due now."""

ANY_DEATHS = 2**31 - 1
"""More deaths than there can be."""

_DUE = "segment.state = 'waiting' AND (not_before <= ? OR not_before > ?)"
_ORDER = "segment.priority DESC, segment.created_at, segment.prompt_id, segment.number"
_CLAIMABLE = f"{_DUE} AND (1 = ? OR failures + losses = 0 OR coalesce(backend, '') <> ?) AND deaths <= ?"


class Segments(Jobs):
    """The moves of a segment, one method each."""

    async def claim(self, lease: Lease, *, again: bool = True, most_deaths: int | None = None) -> Segment | None:
        """Give the next waiting segment to the backend of a lease: its prompt id is committed before it is sent.

        Owners take turns; within an owner's, the priority counts, then the age.
        Not `again`: none whose last attempt failed there. `most_deaths`: none at which an engine has died more often.
        Of jobs that other nodes are moving none is taken while others wait. Raises `LeaseLost`.
        """
        conditions = int(again), lease.backend, ANY_DEATHS if most_deaths is None else most_deaths
        for lock in self._dialect.claim_locks:
            waits = True
            while waits:
                waits, segment = await self._try_claim(lease, conditions, lock)
                if segment is not None:
                    return segment
        return None

    async def _try_claim(
        self, lease: Lease, conditions: tuple[int, str, int], lock: str
    ) -> tuple[bool, Segment | None]:
        """Return whether a segment waits, and it, unless another node took it between the look and the lock."""
        taken: list[Segment] = []
        try:
            waits = await self._take_next(lease, conditions, lock, taken)
        except CommitUnknown:
            # Nobody else would ever look for it while this node holds the lease.
            if not taken or not await retry_writes(partial(self._is_taken, taken[0])):
                raise
            waits = True
        return waits, taken[0] if taken else None

    @transaction
    async def _take_next(
        self, tx: Transaction, lease: Lease, conditions: tuple[int, str, int], lock: str, taken: list[Segment]
    ) -> bool:
        """Take the next segment, if one waits; it is added to those `taken` even if it cannot be told of the commit."""
        now = await tx.monotonic_ms()
        claimable = now, now + LONGEST_PAUSE_MS, *conditions
        row = await tx.one(
            "SELECT segment.prompt_id, number, attempt, segment.owner FROM segment JOIN job USING (prompt_id)"
            f" WHERE segment.owner = {NEXT_OWNER.format(condition=_CLAIMABLE)} AND {_CLAIMABLE}"
            f" ORDER BY {_ORDER} LIMIT 1{lock}",
            *claimable,
            *claimable,
        )
        await self._check_lease(tx, lease)
        if row is not None:
            segment = await self._take(tx, lease, row)
            if segment is not None:
                taken.append(segment)
        return row is not None

    @transaction
    async def _is_taken(self, tx: Transaction, segment: Segment) -> bool:
        """Return whether a claim whose commit was not answered was committed, and holds."""
        await tx.lock_job(segment.prompt_id)  # which that transaction holds while it is not over
        row = await tx.one(
            "SELECT 1 FROM segment WHERE comfy_prompt_id = ? AND state = 'submitted' AND backend = ? AND epoch = ?",
            segment.comfy_prompt_id,
            segment.backend,
            segment.epoch,
        )
        return row is not None

    async def _take(self, tx: Transaction, lease: Lease, waiting: Row) -> Segment | None:
        """Give a segment to the backend of a lease, unless it does not wait any more; its job is locked."""
        prompt_id, number, attempt = waiting["prompt_id"], waiting["number"], waiting["attempt"] + 1
        claimed = await tx.one(
            "UPDATE segment SET state = 'submitted', attempt = ?, comfy_prompt_id = ?, backend = ?, epoch = ?"
            " WHERE prompt_id = ? AND number = ? AND attempt = ? AND state = 'waiting'"
            f" RETURNING {SEGMENT_COLUMNS}",
            attempt,
            comfy_prompt_id(prompt_id, number, attempt),
            lease.backend,
            lease.epoch,
            prompt_id,
            number,
            waiting["attempt"],
        )
        if claimed is None:
            return None
        job = await self._job(tx, prompt_id)
        if job.state == JobState.QUEUED:
            await record_started(tx, job, lease.backend)
        owner = waiting["owner"]
        await tx.run(TAKE_TURN.format(lock=self._dialect.skip_locked), owner, owner)
        now = await tx.now_ms()
        await tx.run(
            "UPDATE job SET attempts = attempts + 1, updated_at = ?, state = 'PROCESSING',"
            " step = CASE state WHEN 'QUEUED' THEN 'Preparing' ELSE step END, started_at = coalesce(started_at, ?)"
            " WHERE prompt_id = ? AND state IN ('QUEUED', 'PROCESSING')",
            now,
            now,
            prompt_id,
        )
        return segment_of(claimed)

    @transaction
    async def adopt(self, tx: Transaction, lease: Lease) -> list[Segment]:
        """Take over the segments that the backend of a lease may know; they are to be looked up there.

        Who submitted them can change nothing of them any more. Raises `LeaseLost`.
        """
        await tx.lock_jobs("SELECT prompt_id FROM segment WHERE state = 'submitted' AND backend = ?", lease.backend)
        await self._check_lease(tx, lease)
        rows = await tx.all(
            f"UPDATE segment SET epoch = ? WHERE state = 'submitted' AND backend = ? RETURNING {SEGMENT_COLUMNS}",
            lease.epoch,
            lease.backend,
        )
        return [segment_of(row) for row in rows]

    @transaction
    async def set_prompt_id(self, tx: Transaction, segment: Segment, comfy_prompt_id: str) -> Segment:
        """Store the id that an older ComfyUI gave a submitted segment's prompt. Raises `LeaseLost`."""
        await tx.lock_job(segment.prompt_id)
        await self._check_lease(tx, segment)
        await tx.run(
            "UPDATE segment SET comfy_prompt_id = ? WHERE prompt_id = ? AND number = ? AND attempt = ?",
            comfy_prompt_id,
            segment.prompt_id,
            segment.number,
            segment.attempt,
        )
        return replace(segment, comfy_prompt_id=comfy_prompt_id)

    @transaction
    async def requeue(
        self,
        tx: Transaction,
        segment: Segment,
        *,
        pause_s: float = 0,
        failed: bool = False,
        lost: bool = False,
        died: bool = False,
    ) -> None:
        """Let a submitted segment wait again, `pause_s` at least; the failure, loss or death is counted.

        That of a job whose end was asked for does not wait: the job ends with the last of them. Raises `LeaseLost`.
        """
        await self._requeue(tx, segment, pause_s, failed, lost, died)
        await self._settle_cancel(tx, segment.prompt_id)

    async def _requeue(
        self, tx: Transaction, segment: Segment, pause_s: float, failed: bool, lost: bool, died: bool
    ) -> bool:
        """Let a segment wait again, unless that was done already; returns whether it was submitted."""
        await tx.lock_job(segment.prompt_id)
        await self._check_lease(tx, segment)
        moved = await tx.one(
            "UPDATE segment SET state = 'waiting', not_before = ?, failures = failures + ?, losses = losses + ?,"
            " deaths = deaths + ? WHERE prompt_id = ? AND number = ? AND attempt = ? AND state = 'submitted'"
            " RETURNING 1",
            await tx.monotonic_ms() + min(int(pause_s * 1000), LONGEST_PAUSE_MS),
            int(failed),
            int(lost),
            int(died),
            segment.prompt_id,
            segment.number,
            segment.attempt,
        )
        return moved is not None

    @transaction
    async def split(
        self,
        tx: Transaction,
        segment: Segment,
        limit: int,
        *,
        pause_s: float = 0,
        failed: bool = False,
        died: bool = False,
        unsent: bool = False,
        alone: bool = False,
    ) -> None:
        """Let a submitted segment that is too long wait again, cut into parts of at most `limit` frames.

        What else of its job waits is cut to that length as well, unless it `alone` is to be; what is cut off are
        segments of their own. An attempt that was `unsent` does not count. Raises `LeaseLost`.
        """
        requeued = await self._requeue(tx, segment, pause_s, failed, lost=died, died=died)
        if unsent and requeued:
            await tx.run("UPDATE job SET attempts = attempts - 1 WHERE prompt_id = ?", segment.prompt_id)
        rows = await tx.all(
            "SELECT * FROM segment WHERE prompt_id = ? AND state = 'waiting' AND frame_count > ?"
            " AND (number = ? OR 0 = ?)",
            segment.prompt_id,
            limit,
            segment.number,
            int(alone),
        )
        for row in rows:
            await self._cut(tx, dict(row), limit)
        await self._settle_cancel(tx, segment.prompt_id)

    @transaction
    async def mark_stopped(self, tx: Transaction, segment: Segment) -> bool:
        """Store that no engine works on a submitted segment of a job whose end was asked for.

        Returns whether the job has ended with it, as CANCELLED. Raises `LeaseLost`.
        """
        await tx.lock_job(segment.prompt_id)
        await self._check_lease(tx, segment)
        await tx.run(
            "UPDATE segment SET state = 'failed' WHERE prompt_id = ? AND number = ? AND attempt = ?"
            " AND state = 'submitted' AND EXISTS"
            " (SELECT 1 FROM job WHERE job.prompt_id = segment.prompt_id AND cancel_requested = 1)",
            segment.prompt_id,
            segment.number,
            segment.attempt,
        )
        return await self._settle_cancel(tx, segment.prompt_id)

    @transaction
    async def abandon(self, tx: Transaction, backend: str, comfy_prompt_id: str) -> None:
        """Remember a prompt that was given up and that its ComfyUI may still know."""
        await tx.run(
            "INSERT INTO abandoned_prompt (comfy_prompt_id, backend) VALUES (?, ?) ON CONFLICT DO NOTHING",
            comfy_prompt_id,
            backend,
        )

    @transaction
    async def forget_abandoned(self, tx: Transaction, comfy_prompt_ids: Iterable[str]) -> None:
        """Forget given-up prompts that their ComfyUI knows no more."""
        await tx.execute_many(
            "DELETE FROM abandoned_prompt WHERE comfy_prompt_id = ?", [(id_,) for id_ in sorted(comfy_prompt_ids)]
        )

    async def abandoned(self, backend: str) -> set[str]:
        """Return the prompts that were given up at a backend and that it may still know."""
        sql = "SELECT comfy_prompt_id FROM abandoned_prompt WHERE backend = ?"
        return {row[0] for row in await self._read(sql, backend)}

    async def _cut(self, tx: Transaction, segment: dict[str, Any], limit: int) -> None:
        """Cut a waiting segment into parts of about the same length, at most `limit` frames."""
        prompt_id, first, frames = segment["prompt_id"], segment["first_frame"], segment["frame_count"]
        count = -(-frames // limit)
        bounds = [first + frames * part // count for part in range(count + 1)]
        await tx.run(
            "UPDATE segment SET frame_count = ? WHERE prompt_id = ? AND number = ?",
            bounds[1] - first,
            prompt_id,
            segment["number"],
        )
        for start, end in pairwise(bounds[1:]):
            await tx.run(
                "INSERT INTO segment"
                " (prompt_id, number, first_frame, frame_count, owner, priority, created_at, not_before, failures,"
                " losses, deaths, backend)"
                " SELECT prompt_id, (SELECT max(number) + 1 FROM segment WHERE prompt_id = ?), CAST(? AS INTEGER),"
                " CAST(? AS INTEGER), owner, priority, created_at, not_before, failures, losses, deaths, backend"
                " FROM segment WHERE prompt_id = ? AND number = ?",
                prompt_id,
                start,
                end - start,
                prompt_id,
                segment["number"],
            )
        await tx.run("UPDATE job SET segments_total = segments_total + ? WHERE prompt_id = ?", count - 1, prompt_id)

    @transaction
    async def finish_segment(
        self,
        tx: Transaction,
        segment: Segment,
        output_file: str,
        changed_share: float | None,
        warnings: Iterable[str] = (),
        costs: tuple[str, Mapping[str, float]] | None = None,
    ) -> Job | None:
        """Store that a submitted segment's checked output is in the work folder, and what is learned from its `costs`.

        Returns the job, or None when it has ended meanwhile; so too when it is told again. Raises `LeaseLost`.
        """
        await tx.lock_job(segment.prompt_id)
        await self._check_lease(tx, segment)
        done = await tx.one(
            "UPDATE segment SET state = 'done', output_file = ?, changed_share = ?, warnings = ?"
            " WHERE prompt_id = ? AND number = ? AND attempt = ? AND state = 'submitted' RETURNING number",
            output_file,
            changed_share,
            json.dumps(tuple(warnings), ensure_ascii=False),
            segment.prompt_id,
            segment.number,
            segment.attempt,
        )
        if done is None:
            return await self._finished(tx, segment, output_file)
        row = await tx.one(
            "UPDATE job SET segments_done = segments_done + 1, updated_at = ?"
            " WHERE prompt_id = ? AND state = 'PROCESSING' RETURNING cancel_requested",
            await tx.now_ms(),
            segment.prompt_id,
        )
        if row is None or (row["cancel_requested"] and await self._settle_cancel(tx, segment.prompt_id)):
            return None
        job = await self._job(tx, segment.prompt_id)
        if costs is not None:
            await tx.learn_costs(*costs)
        return job

    async def _finished(self, tx: Transaction, segment: Segment, output_file: str) -> Job | None:
        """Return the job, if it goes on, of a segment that was finished with this output before."""
        rows = await tx.all(
            f"{SELECT_JOB} JOIN segment ON segment.prompt_id = job.prompt_id"
            " WHERE job.prompt_id = ? AND segment.number = ? AND attempt = ? AND output_file = ?"
            " AND segment.state = 'done' AND job.state = 'PROCESSING' AND cancel_requested = 0",
            segment.prompt_id,
            segment.number,
            segment.attempt,
            output_file,
        )
        return job_of(rows[0]) if rows else None

    async def submitted(self) -> list[Segment]:
        """Return the segments that a backend may know."""
        sql = f"SELECT {SEGMENT_COLUMNS} FROM segment WHERE state = 'submitted'"
        return [segment_of(row) for row in await self._read(sql)]

    async def done_frames(self, prompt_id: str, but_for: Iterable[int]) -> int:
        """Return the frames of a job's finished segments but for those with some numbers."""
        rows = await self._read(
            "SELECT coalesce(sum(frame_count), 0) FROM segment WHERE prompt_id = ? AND state = 'done'"
            f" AND CAST(number AS TEXT) NOT IN ({self._dialect.values})",
            prompt_id,
            json.dumps([str(number) for number in but_for]),
        )
        return int(rows[0][0])

    async def is_submitted(self, prompt_id: str) -> bool:
        """Return whether any backend may know a segment of a job."""
        sql = "SELECT 1 FROM segment WHERE prompt_id = ? AND state = 'submitted' LIMIT 1"
        return bool(await self._read(sql, prompt_id))

    async def segments(self, prompt_id: str) -> list[Segment]:
        """Return a job's segments in the order of their frames."""
        sql = f"SELECT {SEGMENT_COLUMNS} FROM segment WHERE prompt_id = ? ORDER BY first_frame"
        return [segment_of(row) for row in await self._read(sql, prompt_id)]

    async def waiting_frames(self) -> list[int]:
        """Return the frame counts of the segments that wait, as far ahead as matters: the next ones first.

        Those are of the owner whose turn it is, the others of all others.
        """
        queue = self._engine.queue
        if queue is not None and not queue.waiting.segments:
            return []
        now = await self._engine.monotonic_ms()
        due = now, now + LONGEST_PAUSE_MS
        rows = await self._read(
            f"SELECT frame_count, owner FROM segment WHERE owner = {NEXT_OWNER.format(condition=_DUE)} AND {_DUE}"
            f" ORDER BY {_ORDER} LIMIT ?",
            *due,
            *due,
            LOOK_AHEAD,
        )
        frames = [row[0] for row in rows]
        if rows and len(rows) < LOOK_AHEAD:
            sql = f"SELECT frame_count FROM segment WHERE owner <> ? AND {_DUE} ORDER BY owner LIMIT ?"
            frames += [row[0] for row in await self._read(sql, rows[0][1], *due, LOOK_AHEAD - len(rows))]
        return frames

    async def next_due_s(self) -> float | None:
        """Return the seconds until the next pausing segment may be claimed; None when none pauses."""
        queue = self._engine.queue
        if queue is not None and not queue.waiting.pausing:
            return None
        now = await self._engine.monotonic_ms()
        sql = "SELECT min(not_before) FROM segment WHERE state = 'waiting' AND not_before > ?"
        rows = await self._read(sql, now)
        return None if rows[0][0] is None else (rows[0][0] - now) / 1000

    async def jobs_needing_engine(self, limit: int) -> list[str]:
        """Return the ids of jobs that still need an engine, the next ones first, at most `limit`."""
        begun = "SELECT prompt_id FROM job WHERE state = 'PROCESSING' AND segments_done < segments_total LIMIT ?"
        queued = (
            "SELECT prompt_id FROM job WHERE state = 'QUEUED' ORDER BY priority DESC, created_at, prompt_id LIMIT ?"
        )
        found = [row[0] for sql in (begun, queued) for row in await self._read(sql, limit)]
        return found[:limit]

    async def unfinished(self) -> list[Job]:
        """Return the jobs to be joined: their segments are all done, and they have not ended."""
        sql = f"{SELECT_JOB} WHERE state = 'PROCESSING' AND segments_done = segments_total"
        return [job_of(row) for row in await self._read(sql)]
