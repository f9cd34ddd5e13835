"""Moves of segments: claimed, taken over, requeued, split, finished."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

from ..jobs import (
    Job,
    Segment,
    comfy_prompt_id,
)
from .jobs import Jobs
from .leases import Lease
from .rows import SEGMENT_COLUMNS, SELECT_JOB, job_of, segment_of

LOOK_AHEAD = 64
"""Waiting segments that are looked at to tell how much waits."""
LONGEST_PAUSE_MS = 60_000
"""A segment that is due later than that was put down by a clock that has jumped: it is due now."""

_DUE = "state = 'waiting' AND (not_before <= ? OR not_before > ?)"


class Segments(Jobs):
    """The moves of a segment, one method each."""

    def _due_now(self) -> tuple[int, int]:
        """Return the parameters of `_DUE`."""
        now = self._clock.monotonic_ms()
        return now, now + LONGEST_PAUSE_MS

    async def claim(self, lease: Lease, *, again: bool = True, most_deaths: int | None = None) -> Segment | None:
        """Give the next waiting segment to the backend of a lease: its prompt id is committed before it is sent.

        Not `again`: none whose last attempt failed there. `most_deaths`: none at which an engine has died more often.
        Raises `LeaseLost`.
        """
        async with self._transaction():
            await self._check_lease(lease)
            row = await self._one(
                f"SELECT prompt_id, number, attempt FROM segment WHERE {_DUE}"
                " AND (? OR failures + losses = 0 OR backend IS NOT ?) AND (? IS NULL OR deaths <= ?)"
                " ORDER BY priority DESC, created_at, prompt_id, number LIMIT 1",
                *self._due_now(),
                again,
                lease.backend,
                most_deaths,
                most_deaths,
            )
            if row is None:
                return None
            prompt_id, number, attempt = row["prompt_id"], row["number"], row["attempt"] + 1
            claimed = await self._one(
                "UPDATE segment SET state = 'submitted', attempt = ?, comfy_prompt_id = ?, backend = ?, epoch = ?"
                f" WHERE prompt_id = ? AND number = ? AND state = 'waiting' RETURNING {SEGMENT_COLUMNS}",
                attempt,
                comfy_prompt_id(prompt_id, number, attempt),
                lease.backend,
                lease.epoch,
                prompt_id,
                number,
            )
            now = self._clock.now_ms()
            await self._run(
                "UPDATE job SET attempts = attempts + 1, updated_at = ?, state = 'PROCESSING',"
                " step = iif(state = 'QUEUED', 'Preparing', step), started_at = coalesce(started_at, ?)"
                " WHERE prompt_id = ? AND state IN ('QUEUED', 'PROCESSING')",
                now,
                now,
                prompt_id,
            )
        return segment_of(claimed) if claimed else None

    async def adopt(self, lease: Lease) -> list[Segment]:
        """Take over the segments that the backend of a lease may know; they are to be looked up there.

        Who submitted them can change nothing of them any more. Raises `LeaseLost`.
        """
        async with self._transaction():
            await self._check_lease(lease)
            rows = await self._all(
                f"UPDATE segment SET epoch = ? WHERE state = 'submitted' AND backend = ? RETURNING {SEGMENT_COLUMNS}",
                lease.epoch,
                lease.backend,
            )
        return [segment_of(row) for row in rows]

    async def set_prompt_id(self, segment: Segment, comfy_prompt_id: str) -> Segment:
        """Store the id that an older ComfyUI gave a submitted segment's prompt. Raises `LeaseLost`."""
        async with self._transaction():
            await self._check_lease(segment)
            await self._run(
                "UPDATE segment SET comfy_prompt_id = ? WHERE prompt_id = ? AND number = ? AND attempt = ?",
                comfy_prompt_id,
                segment.prompt_id,
                segment.number,
                segment.attempt,
            )
        return replace(segment, comfy_prompt_id=comfy_prompt_id)

    async def requeue(
        self, segment: Segment, *, pause_s: float = 0, failed: bool = False, lost: bool = False, died: bool = False
    ) -> None:
        """Let a submitted segment wait again, `pause_s` at least; the failure, loss or death is counted.

        That of a job whose end was asked for does not wait: the job ends with the last of them. Raises `LeaseLost`.
        """
        async with self._transaction() as events:
            await self._requeue(segment, pause_s, failed, lost, died)
            await self._settle_cancel(events, segment.prompt_id)

    async def _requeue(self, segment: Segment, pause_s: float, failed: bool, lost: bool, died: bool) -> None:
        await self._check_lease(segment)
        await self._run(
            "UPDATE segment SET state = 'waiting', not_before = ?, failures = failures + ?, losses = losses + ?,"
            " deaths = deaths + ? WHERE prompt_id = ? AND number = ? AND attempt = ? AND state = 'submitted'",
            self._clock.monotonic_ms() + min(int(pause_s * 1000), LONGEST_PAUSE_MS),
            failed,
            lost,
            died,
            segment.prompt_id,
            segment.number,
            segment.attempt,
        )

    async def split(
        self,
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
        async with self._transaction() as events:
            await self._requeue(segment, pause_s, failed, lost=died, died=died)
            if unsent:
                await self._run("UPDATE job SET attempts = attempts - 1 WHERE prompt_id = ?", segment.prompt_id)
            rows = await self._all(
                "SELECT * FROM segment WHERE prompt_id = ? AND state = 'waiting' AND frame_count > ?"
                " AND (number = ? OR NOT ?)",
                segment.prompt_id,
                limit,
                segment.number,
                alone,
            )
            for row in rows:
                await self._cut(dict(row), limit)
            await self._settle_cancel(events, segment.prompt_id)

    async def mark_stopped(self, segment: Segment) -> bool:
        """Store that no engine works on a submitted segment of a job whose end was asked for.

        Returns whether the job has ended with it, as CANCELLED. Raises `LeaseLost`.
        """
        async with self._transaction() as events:
            await self._check_lease(segment)
            await self._run(
                "UPDATE segment SET state = 'failed' WHERE prompt_id = ? AND number = ? AND attempt = ?"
                " AND state = 'submitted' AND EXISTS"
                " (SELECT 1 FROM job WHERE job.prompt_id = segment.prompt_id AND cancel_requested)",
                segment.prompt_id,
                segment.number,
                segment.attempt,
            )
            return await self._settle_cancel(events, segment.prompt_id)

    async def abandon(self, backend: str, comfy_prompt_id: str) -> None:
        """Remember a prompt that was given up and that its ComfyUI may still know."""
        async with self._transaction():
            await self._run(
                "INSERT INTO abandoned_prompt (comfy_prompt_id, backend) VALUES (?, ?) ON CONFLICT DO NOTHING",
                comfy_prompt_id,
                backend,
            )

    async def forget_abandoned(self, comfy_prompt_ids: Iterable[str]) -> None:
        """Forget given-up prompts that their ComfyUI knows no more."""
        async with self._transaction():
            await self._writer.execute_many(
                "DELETE FROM abandoned_prompt WHERE comfy_prompt_id = ?", [(id_,) for id_ in comfy_prompt_ids]
            )

    async def abandoned(self, backend: str) -> set[str]:
        """Return the prompts that were given up at a backend and that it may still know."""
        sql = "SELECT comfy_prompt_id FROM abandoned_prompt WHERE backend = ?"
        return {row[0] for row in await self._read(sql, backend)}

    async def _cut(self, segment: dict[str, Any], limit: int) -> None:
        """Cut a waiting segment into parts of about the same length, at most `limit` frames."""
        prompt_id, first, frames = segment["prompt_id"], segment["first_frame"], segment["frame_count"]
        count = -(-frames // limit)
        bounds = [first + frames * part // count for part in range(count + 1)]
        await self._run(
            "UPDATE segment SET frame_count = ? WHERE prompt_id = ? AND number = ?",
            bounds[1] - first,
            prompt_id,
            segment["number"],
        )
        for start, end in pairwise(bounds[1:]):
            await self._run(
                "INSERT INTO segment"
                " (prompt_id, number, first_frame, frame_count, priority, created_at, not_before, failures, losses,"
                " deaths, backend)"
                " SELECT prompt_id, (SELECT max(number) + 1 FROM segment WHERE prompt_id = ?1), ?3, ?4,"
                " priority, created_at, not_before, failures, losses, deaths, backend FROM segment"
                " WHERE prompt_id = ?1 AND number = ?2",
                prompt_id,
                segment["number"],
                start,
                end - start,
            )
        await self._run("UPDATE job SET segments_total = segments_total + ? WHERE prompt_id = ?", count - 1, prompt_id)

    async def finish_segment(
        self, segment: Segment, output_file: str, changed_share: float | None, warnings: Iterable[str] = ()
    ) -> Job | None:
        """Store that a submitted segment's checked output is in the work folder.

        Returns the job, or None when it has ended meanwhile. Raises `LeaseLost`.
        """
        async with self._transaction() as events:
            await self._check_lease(segment)
            done = await self._one(
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
                return None
            row = await self._one(
                "UPDATE job SET segments_done = segments_done + 1, updated_at = ?"
                " WHERE prompt_id = ? AND state = 'PROCESSING' RETURNING 1",
                self._clock.now_ms(),
                segment.prompt_id,
            )
            if row is None or await self._settle_cancel(events, segment.prompt_id):
                return None
            return await self._job(segment.prompt_id)

    async def submitted(self) -> list[Segment]:
        """Return the segments that a backend may know."""
        sql = f"SELECT {SEGMENT_COLUMNS} FROM segment WHERE state = 'submitted'"
        return [segment_of(row) for row in await self._read(sql)]

    async def segments(self, prompt_id: str) -> list[Segment]:
        """Return a job's segments in the order of their frames."""
        sql = f"SELECT {SEGMENT_COLUMNS} FROM segment WHERE prompt_id = ? ORDER BY first_frame"
        return [segment_of(row) for row in await self._read(sql, prompt_id)]

    async def waiting_frames(self) -> list[int]:
        """Return the frame counts of the segments that would be claimed next, as far ahead as matters."""
        rows = await self._read(
            f"SELECT frame_count FROM segment WHERE {_DUE}"
            " ORDER BY priority DESC, created_at, prompt_id, number LIMIT ?",
            *self._due_now(),
            LOOK_AHEAD,
        )
        return [row[0] for row in rows]

    async def next_due_s(self) -> float | None:
        """Return the seconds until the next pausing segment may be claimed; None when none pauses."""
        now = self._clock.monotonic_ms()
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
