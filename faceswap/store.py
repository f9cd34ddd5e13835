"""The only SQL: jobs, segments and events in SQLite. One transaction a method, one method a move.

What a method changed is committed before its events are published, so that nobody is told what a crash could undo.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiosqlite

from .errors import BadRequest, Conflict, Gone, NotFound, Unavailable, Unprocessable
from .jobs import (
    MOVES,
    TERMINAL,
    Event,
    Inputs,
    Job,
    JobState,
    NewJob,
    Options,
    Segment,
    SegmentState,
    comfy_prompt_id,
    download_path,
)

SEQ_GAP = 1000
"""How far event numbers jump when a job is taken up again: more than the unstored events a crash can swallow."""
IDEMPOTENCY_MS = 24 * 3600 * 1000
BUSY_TIMEOUT_MS = 5000
LOOK_AHEAD = 64
"""Waiting segments that are looked at to tell how much waits."""
QUEUED_MESSAGE = "Face swap workflow queued successfully!"

_JOB_COLUMNS = (
    "prompt_id, owner, state, step, options, workflow, output_name, video_file, image_file, video_sha256, image_sha256,"
    " video_bytes, width, height, frames, frame_rate, duration_s, has_audio, created_at, updated_at, started_at,"
    " finished_at, error, code, warnings, result_file, result_bytes, result_sha256, cancel_requested, percentage,"
    " current_frame, total_frames, fps, eta_s, segments_done, segments_total, attempts, request_digest, webhook_url"
)
_SEGMENT_COLUMNS = (
    "prompt_id, number, first_frame, frame_count, state, attempt, failures, losses, comfy_prompt_id, backend,"
    " output_file, changed_share, warnings"
)


class NewerDatabase(Exception):
    """The database was written by a newer version of the program."""


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def _job(row: aiosqlite.Row) -> Job:
    values = dict(row)
    inputs = {name: values.pop(name) for name in Inputs.__dataclass_fields__}
    inputs["frame_rate"] = Fraction(inputs["frame_rate"])
    inputs["has_audio"] = bool(inputs["has_audio"])
    values["state"] = JobState(values["state"])
    values["options"] = Options(**json.loads(values["options"]))
    values["warnings"] = tuple(json.loads(values["warnings"]))
    values["cancel_requested"] = bool(values["cancel_requested"])
    return Job(inputs=Inputs(**inputs), **values)


def _segment(row: aiosqlite.Row) -> Segment:
    values = dict(row)
    values["state"] = SegmentState(values["state"])
    values["warnings"] = tuple(json.loads(values["warnings"]))
    return Segment(**values)


class Store:
    """The job records. Writes go one after another through one connection; reads see committed data only."""

    def __init__(self, writer: aiosqlite.Connection, reader: aiosqlite.Connection, publish: Callable[[Event], None]):
        self._writer = writer
        self._reader = reader
        self._publish = publish
        self._lock = asyncio.Lock()
        self._seq: dict[str, int] = {}

    @classmethod
    async def open(cls, path: Path, migrations: Path, publish: Callable[[Event], None]) -> Store:
        """Open the database, brought up to date by the `migrations` folder. Raises `NewerDatabase`."""
        await asyncio.to_thread(migrate, path, migrations)
        writer = await _connect(path)
        try:
            reader = await _connect(path)
            await reader.execute("PRAGMA query_only = ON")
        except BaseException:
            await writer.close()
            raise
        return cls(writer, reader, publish)

    async def close(self) -> None:
        """Close the connections. Without it the process would hang at its exit."""
        async with self._lock:
            await self._reader.close()
            await self._writer.close()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[list[Event]]:
        """One transaction; the events put into the list it gives are stored with it and published after the commit.

        Its end runs to its end, and only then lets the next one in, even when who waits for it is cancelled.
        """
        events: list[Event] = []
        await self._lock.acquire()
        try:
            await self._writer.execute("BEGIN IMMEDIATE")
            yield events
        except BaseException:
            await asyncio.shield(self._roll_back())
            raise
        await asyncio.shield(self._commit(events))

    async def _roll_back(self) -> None:
        try:
            await self._writer.rollback()
        finally:
            self._lock.release()

    async def _commit(self, events: Iterable[Event]) -> None:
        try:
            await self._writer.commit()
            for event in events:
                self._publish(event)
                if event.terminal:
                    self._seq.pop(event.prompt_id, None)
        except sqlite3.Error:
            await self._writer.rollback()
            raise
        finally:
            self._lock.release()

    async def _one(self, sql: str, *parameters: Any) -> aiosqlite.Row | None:
        async with self._writer.execute(sql, parameters) as cursor:
            return await cursor.fetchone()

    async def _add_event(self, events: list[Event], prompt_id: str, type: str, data: Mapping[str, Any]) -> None:
        event = Event(prompt_id, await self._next_seq(prompt_id), type, data)
        encoded = json.dumps(event.data, ensure_ascii=False)
        await self._writer.execute(
            "INSERT INTO event (prompt_id, seq, type, data, at) VALUES (?, ?, ?, ?, ?)",
            (prompt_id, event.seq, type, encoded, now_ms()),
        )
        events.append(event)

    async def _next_seq(self, prompt_id: str) -> int:
        """The next event number of a job. It never repeats, not even over a crash."""
        if prompt_id not in self._seq:
            async with self._writer.execute("SELECT max(seq) FROM event WHERE prompt_id = ?", (prompt_id,)) as cursor:
                row = await cursor.fetchone()
            last = row[0] if row and row[0] is not None else 0
            self._seq.setdefault(prompt_id, last + SEQ_GAP if last else 0)
        self._seq[prompt_id] += 1
        return self._seq[prompt_id]

    # A job comes in.

    async def create(self, new: NewJob, queue_limit: int) -> tuple[Job, bool]:
        """Accept a job: record, segments and `queued` event in one commit. Returns it and whether it is new.

        The same idempotency key with the same request gives the first job; with another one `Unprocessable`.
        A name that is taken gets `-2`, `-3`, … Raises `Unavailable` when the queue is full.
        """
        async with self._transaction() as events:
            if new.idempotency_key is not None:
                first = await self._first_with_key(new)
                if first is not None:
                    return first, False
            row = await self._one("SELECT count(*) FROM job WHERE state = 'QUEUED'")
            position = (row[0] if row else 0) + 1
            if position > queue_limit:
                raise Unavailable("The queue is full; try again later.", code="queue_full", retry_after=60)
            job = await self._insert_job(new, await self._free_name(new.output_name))
            await self._add_event(
                events,
                job.prompt_id,
                "queued",
                {
                    "prompt_id": job.prompt_id,
                    "message": QUEUED_MESSAGE,
                    "status_url": f"/status/{job.prompt_id}",
                    "events_url": f"/events/{job.prompt_id}",
                    "queue_position": position,
                },
            )
        return job, True

    async def _first_with_key(self, new: NewJob) -> Job | None:
        row = await self._one(
            f"SELECT {_JOB_COLUMNS} FROM job WHERE coalesce(owner, '') = ? AND idempotency_key = ?",
            new.owner or "",
            new.idempotency_key,
        )
        if row is None:
            return None
        first = _job(row)
        if now_ms() - first.created_at > IDEMPOTENCY_MS:
            await self._writer.execute("UPDATE job SET idempotency_key = NULL WHERE prompt_id = ?", (first.prompt_id,))
            return None
        if first.request_digest != new.request_digest:
            raise Unprocessable(
                "This Idempotency-Key was used with another request.",
                code="idempotency_key_reused",
                prompt_id=first.prompt_id,
            )
        return first

    async def _free_name(self, wanted: str) -> str:
        row = await self._one(
            "WITH RECURSIVE candidate (number, name) AS (SELECT 1, ?1 UNION ALL"
            " SELECT number + 1, ?1 || '-' || (number + 1) FROM candidate"
            " WHERE EXISTS (SELECT 1 FROM job WHERE output_name = candidate.name))"
            " SELECT name FROM candidate ORDER BY number DESC LIMIT 1",
            wanted,
        )
        assert row is not None
        return str(row[0])

    async def _insert_job(self, new: NewJob, output_name: str) -> Job:
        now = now_ms()
        values: dict[str, Any] = {
            **asdict(new.inputs),
            "frame_rate": str(new.inputs.frame_rate),
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
        }
        names = ", ".join(values)
        marks = ", ".join("?" * len(values))
        row = await self._one(f"INSERT INTO job ({names}) VALUES ({marks}) RETURNING {_JOB_COLUMNS}", *values.values())
        assert row is not None
        await self._writer.executemany(
            "INSERT INTO segment (prompt_id, number, first_frame, frame_count, priority, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [
                (new.prompt_id, plan.number, plan.first_frame, plan.frame_count, new.options.priority, now)
                for plan in new.segments
            ],
        )
        self._seq[new.prompt_id] = 0
        return _job(row)

    # A segment is worked on.

    async def claim(self, backend: str, *, again: bool = True) -> Segment | None:
        """Give the next waiting segment to a backend: its prompt id is committed before it is sent.

        Not `again`: none whose last attempt failed there.
        """
        async with self._transaction():
            row = await self._one(
                "SELECT prompt_id, number, attempt FROM segment WHERE state = 'waiting' AND not_before <= ?"
                " AND (? OR failures + losses = 0 OR backend IS NOT ?)"
                " ORDER BY priority DESC, created_at, prompt_id, number LIMIT 1",
                now_ms(),
                again,
                backend,
            )
            if row is None:
                return None
            prompt_id, number, attempt = row["prompt_id"], row["number"], row["attempt"] + 1
            claimed = await self._one(
                "UPDATE segment SET state = 'submitted', attempt = ?, comfy_prompt_id = ?, backend = ?"
                f" WHERE prompt_id = ? AND number = ? AND state = 'waiting' RETURNING {_SEGMENT_COLUMNS}",
                attempt,
                comfy_prompt_id(prompt_id, number, attempt),
                backend,
                prompt_id,
                number,
            )
            now = now_ms()
            await self._writer.execute(
                "UPDATE job SET attempts = attempts + 1, updated_at = ?, state = 'PROCESSING',"
                " step = iif(state = 'QUEUED', 'Preparing', step), started_at = coalesce(started_at, ?)"
                " WHERE prompt_id = ? AND state IN ('QUEUED', 'PROCESSING')",
                (now, now, prompt_id),
            )
        return _segment(claimed) if claimed else None

    async def known_as(self, segment: Segment, comfy_prompt_id: str) -> Segment:
        """An older ComfyUI gave the prompt an id of its own."""
        async with self._transaction():
            await self._writer.execute(
                "UPDATE segment SET comfy_prompt_id = ? WHERE prompt_id = ? AND number = ? AND attempt = ?",
                (comfy_prompt_id, segment.prompt_id, segment.number, segment.attempt),
            )
        return replace(segment, comfy_prompt_id=comfy_prompt_id)

    async def give_back(
        self, segment: Segment, *, pause_s: float = 0, failed: bool = False, lost: bool = False
    ) -> None:
        """A submitted segment waits again, not before `pause_s` from now; the failure or loss is counted.

        That of a job whose end was asked for does not: the job ends with the last of them.
        """
        async with self._transaction() as events:
            await self._give_back(segment, pause_s, failed, lost)
            await self._settle_cancel(events, segment.prompt_id)

    async def _give_back(self, segment: Segment, pause_s: float, failed: bool, lost: bool) -> None:
        await self._writer.execute(
            "UPDATE segment SET state = 'waiting', not_before = ?, failures = failures + ?, losses = losses + ?"
            " WHERE prompt_id = ? AND number = ? AND attempt = ? AND state = 'submitted'",
            (now_ms() + int(pause_s * 1000), failed, lost, segment.prompt_id, segment.number, segment.attempt),
        )

    async def shorten(self, segment: Segment, *, pause_s: float) -> None:
        """A submitted segment failed for its length: it waits again, not before `pause_s` from now, cut in two.

        What else of its job waits is cut to that length as well; what is cut off are segments of their own.
        """
        limit = segment.frame_count // 2 + 1
        async with self._transaction() as events:
            await self._give_back(segment, pause_s, failed=True, lost=False)
            rows = await self._writer.execute_fetchall(
                "SELECT * FROM segment WHERE prompt_id = ? AND state = 'waiting' AND frame_count > ?",
                (segment.prompt_id, limit),
            )
            for row in rows:
                await self._cut(dict(row), limit)
            await self._settle_cancel(events, segment.prompt_id)

    async def _cut(self, segment: dict[str, Any], limit: int) -> None:
        """Cut a waiting segment into parts of about the same length, at most `limit` frames."""
        prompt_id, first, frames = segment["prompt_id"], segment["first_frame"], segment["frame_count"]
        count = -(-frames // limit)
        bounds = [first + frames * part // count for part in range(count + 1)]
        await self._writer.execute(
            "UPDATE segment SET frame_count = ? WHERE prompt_id = ? AND number = ?",
            (bounds[1] - first, prompt_id, segment["number"]),
        )
        for start, end in pairwise(bounds[1:]):
            await self._writer.execute(
                "INSERT INTO segment"
                " (prompt_id, number, first_frame, frame_count, priority, created_at, not_before, failures, backend)"
                " SELECT prompt_id, (SELECT max(number) + 1 FROM segment WHERE prompt_id = ?1), ?3, ?4,"
                " priority, created_at, not_before, failures, backend FROM segment"
                " WHERE prompt_id = ?1 AND number = ?2",
                (prompt_id, segment["number"], start, end - start),
            )
        await self._writer.execute(
            "UPDATE job SET segments_total = segments_total + ? WHERE prompt_id = ?", (count - 1, prompt_id)
        )

    async def finish_segment(
        self, segment: Segment, output_file: str, changed_share: float | None, warnings: Iterable[str] = ()
    ) -> Job | None:
        """A segment's checked output is in the work folder. Returns the job, or None when it has ended meanwhile."""
        async with self._transaction() as events:
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
                f" WHERE prompt_id = ? AND state = 'PROCESSING' RETURNING {_JOB_COLUMNS}",
                now_ms(),
                segment.prompt_id,
            )
            if await self._settle_cancel(events, segment.prompt_id):
                return None
        return _job(row) if row else None

    async def submitted(self) -> list[Segment]:
        """The segments that a backend may know: to be looked up after a start."""
        sql = f"SELECT {_SEGMENT_COLUMNS} FROM segment WHERE state = 'submitted'"
        return [_segment(row) for row in await self._reader.execute_fetchall(sql)]

    async def segments(self, prompt_id: str) -> list[Segment]:
        """A job's segments in the order of their frames."""
        sql = f"SELECT {_SEGMENT_COLUMNS} FROM segment WHERE prompt_id = ? ORDER BY first_frame"
        return [_segment(row) for row in await self._reader.execute_fetchall(sql, (prompt_id,))]

    async def waiting_frames(self) -> list[int]:
        """How long the segments are that would be claimed next, as far ahead as matters."""
        rows = await self._reader.execute_fetchall(
            "SELECT frame_count FROM segment WHERE state = 'waiting' AND not_before <= ?"
            " ORDER BY priority DESC, created_at, prompt_id, number LIMIT ?",
            (now_ms(), LOOK_AHEAD),
        )
        return [row[0] for row in rows]

    async def next_due_s(self) -> float | None:
        """Seconds until the next pausing segment may be claimed; None when none waits."""
        rows = list(await self._reader.execute_fetchall("SELECT min(not_before) FROM segment WHERE state = 'waiting'"))
        return None if rows[0][0] is None else max(0.0, (rows[0][0] - now_ms()) / 1000)

    async def unfinished(self) -> list[Job]:
        """Jobs whose segments are all done but which have not ended: to be joined."""
        sql = f"SELECT {_JOB_COLUMNS} FROM job WHERE state = 'PROCESSING' AND segments_done = segments_total"
        return [_job(row) for row in await self._reader.execute_fetchall(sql)]

    # A job moves on.

    async def tell(self, prompt_id: str, type: str, data: Mapping[str, Any], step: str | None = None) -> None:
        """Store and publish an event of a job that has not ended, and the step `/status` shows."""
        async with self._transaction() as events:
            open_job = await self._one(
                "UPDATE job SET step = coalesce(?, step), updated_at = ?"
                " WHERE prompt_id = ? AND state IN ('QUEUED', 'PROCESSING') RETURNING 1",
                step,
                now_ms(),
                prompt_id,
            )
            if open_job:
                await self._add_event(events, prompt_id, type, data)

    async def announce(self, prompt_id: str, type: str, data: Mapping[str, Any]) -> None:
        """Publish an event that the next of its kind supersedes: numbered in order with the others, not stored.

        The first after a start is stored: the numbers that the next start leaves out are counted from it.
        """
        async with self._lock:
            if prompt_id in self._seq:
                self._publish(Event(prompt_id, await self._next_seq(prompt_id), type, data))
                return
        async with self._transaction() as events:
            if await self._one(
                "SELECT 1 FROM job WHERE prompt_id = ? AND state IN ('QUEUED', 'PROCESSING')", prompt_id
            ):
                await self._replace(events, prompt_id, type, data)

    async def progress(self, prompt_id: str, data: Mapping[str, Any]) -> None:
        """Publish a job's progress and keep it, in place of the older one, for `/status` and for who comes later."""
        async with self._transaction() as events:
            moved = await self._one(
                "UPDATE job SET percentage = ?, current_frame = ?, fps = ?, eta_s = ?, updated_at = ?"
                " WHERE prompt_id = ? AND state = 'PROCESSING' AND percentage <= ? RETURNING 1",
                data["percentage"],
                data["current"],
                data["fps"],
                data["eta_seconds"],
                now_ms(),
                prompt_id,
                data["percentage"],
            )
            if moved:
                await self._replace(events, prompt_id, "progress", data)

    async def _replace(self, events: list[Event], prompt_id: str, type: str, data: Mapping[str, Any]) -> None:
        """Store an event in place of the older ones of its kind."""
        # These go last: the number of one may be the highest there is, and numbers never repeat.
        await self._add_event(events, prompt_id, type, data)
        await self._writer.execute(
            "DELETE FROM event WHERE prompt_id = ? AND type = ? AND seq < ?", (prompt_id, type, events[-1].seq)
        )

    async def succeed(
        self, job: Job, *, result_file: str, size: int, sha256: str, warnings: tuple[str, ...], message: str
    ) -> bool:
        """PROCESSING → SUCCESS with the checked result; False when the job had ended otherwise."""
        async with self._transaction() as events:
            ended = await self._end(
                job.prompt_id,
                JobState.SUCCESS,
                step="Face swap completed successfully",
                result_file=result_file,
                result_bytes=size,
                result_sha256=sha256,
                warnings=json.dumps(warnings, ensure_ascii=False),
                percentage=100.0,
                current_frame=job.total_frames,
                eta_s=0.0,
            )
            if ended:
                data = {
                    "percentage": 100.0,
                    "current": job.total_frames,
                    "total": job.total_frames,
                    "message": "Face swap progress: 100.00%",
                    "eta_seconds": 0,
                    "fps": job.fps,
                }
                await self._replace(events, job.prompt_id, "progress", data)
                await self._add_event(
                    events,
                    job.prompt_id,
                    "completed",
                    {
                        "message": message,
                        "filename": result_file,
                        "download_url": download_path(result_file),
                        "prompt_id": job.prompt_id,
                        "output_prefix": job.output_name,
                        "bytes": size,
                        "sha256": sha256,
                        "warnings": list(warnings),
                    },
                )
        return ended

    async def fail(self, prompt_id: str, code: str, sentence: str) -> bool:
        """→ FAILED; False when the job had ended otherwise."""
        async with self._transaction() as events:
            ended = await self._end(prompt_id, JobState.FAILED, step="Failed", error=sentence, code=code)
            if ended:
                data = {"detail": sentence, "code": code, "prompt_id": prompt_id}
                await self._add_event(events, prompt_id, "error", data)
        return ended

    async def cancelled(self, prompt_id: str) -> bool:
        """→ CANCELLED, once no engine works on the job any more; False when nobody asked, or it had ended otherwise."""
        async with self._transaction() as events:
            if not await self._one("SELECT 1 FROM job WHERE prompt_id = ? AND cancel_requested", prompt_id):
                return False
            return await self._cancelled(events, prompt_id)

    async def _cancelled(self, events: list[Event], prompt_id: str) -> bool:
        ended = await self._end(prompt_id, JobState.CANCELLED, step="Cancelled")
        if ended:
            data = {"prompt_id": prompt_id, "message": "Face swap cancelled."}
            await self._add_event(events, prompt_id, "cancelled", data)
        return ended

    async def _end(self, prompt_id: str, state: JobState, **columns: Any) -> bool:
        sources = [source for source, targets in MOVES.items() if state in targets]
        now = now_ms()
        values = {"state": state, "finished_at": now, "updated_at": now, "eta_s": None, **columns}
        assignments = ", ".join(f"{name} = ?" for name in values)
        marks = ", ".join("?" * len(sources))
        row = await self._one(
            f"UPDATE job SET {assignments} WHERE prompt_id = ? AND state IN ({marks}) RETURNING 1",
            *values.values(),
            prompt_id,
            *sources,
        )
        if row is None:
            return False
        await self._writer.execute(
            "UPDATE segment SET state = 'failed' WHERE prompt_id = ? AND state IN ('waiting', 'submitted')",
            (prompt_id,),
        )
        return True

    async def request_cancel(self, prompt_id: str, owner: str | None) -> Job:
        """Ask for a job's end. Ends it here and now unless a backend may be working on it. Raises `Conflict`."""
        async with self._transaction() as events:
            job = await self._owned(prompt_id, owner)
            if job.state in TERMINAL:
                raise Conflict(f"The job has ended already ({job.state}).", code="job_ended", prompt_id=prompt_id)
            await self._writer.execute(
                "UPDATE job SET cancel_requested = 1, step = 'Cancelling', updated_at = ? WHERE prompt_id = ?",
                (now_ms(), prompt_id),
            )
            await self._settle_cancel(events, prompt_id)
            return await self._owned(prompt_id, owner)

    async def _settle_cancel(self, events: list[Event], prompt_id: str) -> bool:
        """End a job that was asked to, once no segment is with a backend; until then nothing of it may be claimed."""
        if not await self._one("SELECT 1 FROM job WHERE prompt_id = ? AND cancel_requested", prompt_id):
            return False
        await self._writer.execute(
            "UPDATE segment SET state = 'failed' WHERE prompt_id = ? AND state = 'waiting'", (prompt_id,)
        )
        if await self._one("SELECT 1 FROM segment WHERE prompt_id = ? AND state = 'submitted'", prompt_id):
            return False
        return await self._cancelled(events, prompt_id)

    async def retry(self, prompt_id: str, owner: str | None) -> Job:
        """FAILED or CANCELLED → QUEUED, finished segments kept. Raises `Conflict`, or `Gone` when inputs are erased.

        When all were finished, the last is done again: its end leads to the joining at which the job had ended.
        """
        async with self._transaction() as events:
            job = await self._owned(prompt_id, owner)
            if JobState.QUEUED not in MOVES[job.state]:
                raise Conflict(
                    f"Only a failed or cancelled job can be retried; this one is {job.state}.",
                    code="not_retryable",
                    prompt_id=prompt_id,
                )
            row = await self._one("SELECT inputs_erased FROM job WHERE prompt_id = ?", prompt_id)
            if row is None or row[0]:
                raise Gone(
                    "The video and the face of this job were erased already; post them again.",
                    code="inputs_erased",
                    prompt_id=prompt_id,
                )
            all_done = job.segments_done == job.segments_total
            await self._writer.execute(
                "UPDATE job SET state = 'QUEUED', step = 'Queued', finished_at = NULL, error = NULL, code = NULL,"
                " cancel_requested = 0, segments_done = segments_done - ?, updated_at = ? WHERE prompt_id = ?",
                (all_done, now_ms(), prompt_id),
            )
            await self._writer.execute(
                "UPDATE segment SET state = 'waiting', failures = 0, losses = 0, not_before = 0, backend = NULL"
                " WHERE prompt_id = ? AND (state = 'failed' OR (number = ? AND ?))",
                (prompt_id, job.segments_total - 1, all_done),
            )
            await self._add_event(
                events, prompt_id, "status", {"status": "QUEUED", "message": "Queued again by a retry."}
            )
            return await self._owned(prompt_id, owner)

    async def erase(self, prompt_id: str) -> None:
        """Delete a job's record, segments and events for good."""
        async with self._transaction():
            await self._writer.execute("DELETE FROM job WHERE prompt_id = ?", (prompt_id,))
        self._seq.pop(prompt_id, None)

    async def _owned(self, prompt_id: str, owner: str | None) -> Job:
        row = await self._one(f"SELECT {_JOB_COLUMNS} FROM job WHERE prompt_id = ?", prompt_id)
        return _checked(row, prompt_id, owner)

    # Reading.

    async def job(self, prompt_id: str, owner: str | None = None) -> Job:
        """A job by its id; `NotFound` when there is none, or it is another owner's."""
        rows = list(
            await self._reader.execute_fetchall(f"SELECT {_JOB_COLUMNS} FROM job WHERE prompt_id = ?", (prompt_id,))
        )
        return _checked(rows[0] if rows else None, prompt_id, owner)

    async def result(self, filename: str, owner: str | None = None) -> Job:
        """The job whose result is `filename`; `NotFound`, or `Gone` when it has expired."""
        sql = f"SELECT {_JOB_COLUMNS}, result_erased AS erased FROM job WHERE result_file = ?"
        rows = [dict(row) for row in await self._reader.execute_fetchall(sql, (filename,))]
        if not rows or (owner is not None and rows[0]["owner"] != owner):
            raise NotFound("There is no such file.", code="unknown_file")
        if rows[0].pop("erased"):
            raise Gone("This result has expired and was erased.", code="result_expired")
        return _job(rows[0])  # type: ignore[arg-type]  # a dict serves as the row

    async def queue_position(self, job: Job) -> int | None:
        """1 for the next job to start; None when the job is not queued."""
        if job.state != JobState.QUEUED:
            return None
        priority = job.options.priority
        rows = list(
            await self._reader.execute_fetchall(
                "SELECT count(*) FROM job WHERE state = 'QUEUED' AND (priority > ? OR (priority = ? AND"
                " (created_at, prompt_id) <= (?, ?)))",
                (priority, priority, job.created_at, job.prompt_id),
            )
        )
        return int(rows[0][0])

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
            parameters += _parse_cursor(cursor)
        rows = await self._reader.execute_fetchall(
            f"SELECT {_JOB_COLUMNS} FROM job WHERE {' AND '.join(conditions)}"
            " ORDER BY created_at DESC, prompt_id DESC LIMIT ?",
            (*parameters, limit + 1),
        )
        found = [_job(row) for row in rows]
        more = len(found) > limit
        found = found[:limit]
        return found, f"{found[-1].created_at}-{found[-1].prompt_id}" if more else None

    async def events(self, prompt_id: str, after: int) -> list[Event]:
        """The stored events of a job with a number above `after`, in order."""
        rows = await self._reader.execute_fetchall(
            "SELECT seq, type, data FROM event WHERE prompt_id = ? AND seq > ? ORDER BY seq", (prompt_id, after)
        )
        return [Event(prompt_id, row["seq"], row["type"], json.loads(row["data"])) for row in rows]

    async def counts(self) -> dict[str, int]:
        """How many jobs are queued and processing."""
        sql = "SELECT state, count(*) FROM job WHERE state IN ('QUEUED', 'PROCESSING') GROUP BY state"
        found = {row[0]: row[1] for row in await self._reader.execute_fetchall(sql)}
        return {state: found.get(state, 0) for state in (JobState.QUEUED, JobState.PROCESSING)}

    async def check_writable(self) -> None:
        """Raises `sqlite3.Error` when the database cannot be written."""
        async with self._transaction():
            await self._writer.execute("UPDATE backend SET client_id = client_id WHERE 0")

    # What goes with time.

    async def with_expired_inputs(self, before: int, limit: int) -> list[str]:
        """Ended jobs whose inputs are still there and which ended before a time."""
        sql = "SELECT prompt_id FROM job WHERE inputs_erased = 0 AND finished_at <= ? LIMIT ?"
        return [row[0] for row in await self._reader.execute_fetchall(sql, (before, limit))]

    async def with_expired_results(self, before: int, limit: int) -> list[tuple[str, str]]:
        """Ended jobs, with their file, whose result is still there and which ended before a time."""
        sql = (
            "SELECT prompt_id, result_file FROM job"
            " WHERE result_erased = 0 AND result_file IS NOT NULL AND finished_at <= ? LIMIT ?"
        )
        return [(row[0], row[1]) for row in await self._reader.execute_fetchall(sql, (before, limit))]

    async def inputs_erased(self, prompt_id: str) -> bool:
        """The inputs of an ended job are about to go: it cannot be retried any more. False when it was retried."""
        async with self._transaction():
            row = await self._one(
                "UPDATE job SET inputs_erased = 1 WHERE prompt_id = ? AND finished_at IS NOT NULL RETURNING 1",
                prompt_id,
            )
        return row is not None

    async def result_erased(self, prompt_id: str) -> None:
        """The result of an ended job is about to go."""
        async with self._transaction():
            await self._writer.execute("UPDATE job SET result_erased = 1 WHERE prompt_id = ?", (prompt_id,))

    async def with_inputs(self, prompt_ids: Iterable[str]) -> set[str]:
        """Those of the ids that are jobs whose inputs have not expired."""
        ids = json.dumps(list(prompt_ids))
        sql = "SELECT prompt_id FROM job WHERE inputs_erased = 0 AND prompt_id IN (SELECT value FROM json_each(?))"
        return {row[0] for row in await self._reader.execute_fetchall(sql, (ids,))}

    async def unexpired_results(self, filenames: Iterable[str]) -> set[str]:
        """Those of the names that are results which have not expired."""
        names = json.dumps(list(filenames))
        sql = "SELECT result_file FROM job WHERE result_erased = 0 AND result_file IN (SELECT value FROM json_each(?))"
        return {row[0] for row in await self._reader.execute_fetchall(sql, (names,))}

    # What outlives a process.

    async def client_id(self, backend: str) -> str:
        """The client id under which a backend's socket is opened: the same as long as the database lives."""
        async with self._transaction():
            row = await self._one(
                "INSERT INTO backend (name, client_id) VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET client_id = client_id RETURNING client_id",
                backend,
                uuid.uuid4().hex,
            )
        assert row is not None
        return str(row[0])

    async def phase_costs(self, key: str) -> dict[str, float]:
        """Learned seconds per frame of each phase."""
        sql = "SELECT phase, seconds FROM stat WHERE key = ?"
        return {row[0]: row[1] for row in await self._reader.execute_fetchall(sql, (key,))}

    async def learn_phase_costs(self, key: str, costs: Mapping[str, float], weight: float = 0.3) -> None:
        """Fold measured seconds per frame into what was learned, and forget phases that no longer occur."""
        async with self._transaction():
            await self._writer.executemany(
                "INSERT INTO stat (key, phase, seconds) VALUES (?, ?, ?)"
                " ON CONFLICT (key, phase) DO UPDATE SET seconds = seconds + (excluded.seconds - seconds) * ?",
                [(key, phase, seconds, weight) for phase, seconds in costs.items()],
            )
            await self._writer.execute(
                "DELETE FROM stat WHERE key = ? AND phase NOT IN (SELECT value FROM json_each(?))",
                (key, json.dumps(list(costs))),
            )


def _checked(row: aiosqlite.Row | None, prompt_id: str, owner: str | None) -> Job:
    if row is None or (owner is not None and row["owner"] != owner):
        raise NotFound("There is no job with this prompt_id.", code="unknown_prompt_id")
    return _job(row)


def _parse_cursor(cursor: str) -> tuple[int, str]:
    created_at, _, prompt_id = cursor.partition("-")
    if not created_at.isdecimal() or len(created_at) > 15 or not prompt_id:
        raise BadRequest("'cursor' is not one that this service gave.", code="invalid_cursor")
    return int(created_at), prompt_id


async def _connect(path: Path) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(path, isolation_level=None)
    connection.row_factory = aiosqlite.Row
    for pragma in ("synchronous = FULL", "foreign_keys = ON", f"busy_timeout = {BUSY_TIMEOUT_MS}"):
        await connection.execute(f"PRAGMA {pragma}")
    return connection


def migrate(path: Path, migrations: Path) -> None:
    """Bring a database up to date: all migrations succeed, or it is not touched. Raises `NewerDatabase`."""
    scripts = sorted(migrations.glob("[0-9]*.sql"))
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(scripts):
            raise NewerDatabase(
                f"The database is of version {version}, newer than this program's {len(scripts)}; upgrade faceswap."
            )
        if version == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        if version < len(scripts):
            pending = "\n".join(script.read_text(encoding="utf-8") for script in scripts[version:])
            try:
                connection.executescript(f"BEGIN EXCLUSIVE;\n{pending}\nPRAGMA user_version = {len(scripts)};\nCOMMIT;")
            except sqlite3.Error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
    finally:
        connection.close()
