"""The record of moves: an audit line written with each, and a line in the log after its commit."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ..jobs import Job
from .database import Database
from .transaction import Transaction

BATCH = 500
"""Lines that are read at a time."""


@dataclass(frozen=True, slots=True)
class AuditLine:
    """A line of the record. `at` is Unix time in milliseconds; `data` depends on `what` happened."""

    number: int
    at: int
    prompt_id: str
    owner: str | None
    what: str
    data: dict[str, Any]


class Audit(Database):
    """Questions to the record."""

    async def audit_lines(self, since_ms: int = 0, prompt_id: str | None = None) -> AsyncIterator[AuditLine]:
        """Yield the lines from a time on, of all jobs or of one, in the order in which they were written."""
        after = 0
        of_job = "" if prompt_id is None else " AND prompt_id = ?"
        sql = f"SELECT * FROM audit WHERE number > ? AND at >= ?{of_job} ORDER BY number LIMIT {BATCH}"
        while rows := await self._read(sql, after, since_ms, *([] if prompt_id is None else [prompt_id])):
            for row in rows:
                yield AuditLine(**{**dict(row), "data": json.loads(row["data"])})
            after = rows[-1]["number"]


async def add_audit_line(tx: Transaction, prompt_id: str, owner: str | None, what: str, **data: Any) -> None:
    """Write down that something happened to a job, in the transaction in which it does."""
    await tx.run(
        "INSERT INTO audit (at, prompt_id, owner, what, data) VALUES (?, ?, ?, ?, ?)",
        await tx.now_ms(),
        prompt_id,
        owner,
        what,
        json.dumps(data, ensure_ascii=False),
    )


async def record_accepted(tx: Transaction, job: Job) -> None:
    """Record a job that is accepted, with the digests of its inputs, its options and the consent."""
    await add_audit_line(
        tx,
        job.prompt_id,
        job.owner,
        "accepted",
        video_sha256=job.inputs.video_sha256,
        image_sha256=[image.sha256 for image in job.inputs.images],
        options=job.options.to_dict(),
        workflow=job.workflow,
        consent=job.consent,
    )
    size = f"{job.inputs.width}×{job.inputs.height}"
    text = f"{job.total_frames} frames of {size} in {job.segments_total} segments"
    _log(tx, job, "accepted", text, frames=job.total_frames, segments=job.segments_total)


async def record_started(tx: Transaction, job: Job, engine: str) -> None:
    """Record in the log that a queued job is given to an engine."""
    duration_s = await _age_s(tx, job)
    _log(tx, job, "started", f"at {engine} after {duration_s:.1f} s", duration_s=duration_s, engine=engine)


async def record_retried(tx: Transaction, job: Job) -> None:
    """Record a job that is queued again."""
    await add_audit_line(tx, job.prompt_id, job.owner, "retried")
    _log(tx, job, "retried", "queued again", duration_s=await _age_s(tx, job))


async def record_ended(tx: Transaction, job: Job) -> None:
    """Record the end of a job: its state, the code of a failure, the digest of its result."""
    ended = {"state": job.state.value, "code": job.code, "attempts": job.attempts}
    await add_audit_line(tx, job.prompt_id, job.owner, "ended", **ended, result_sha256=job.result_sha256)
    sql = "SELECT DISTINCT backend FROM segment WHERE prompt_id = ? AND backend IS NOT NULL ORDER BY backend"
    engine = ", ".join([row[0] for row in await tx.all(sql, job.prompt_id)]) or None
    duration_s = await _age_s(tx, job)
    state = f"{job.state}, {job.code}" if job.code else job.state
    text = f"{state} after {duration_s:.1f} s and {job.attempts} prompts{f' at {engine}' if engine else ''}"
    _log(tx, job, "ended", text, **ended, duration_s=duration_s, engine=engine)


async def _age_s(tx: Transaction, job: Job) -> float:
    """Return the seconds since a job was accepted."""
    return max(0, await tx.now_ms() - job.created_at) / 1000


def _log(tx: Transaction, job: Job, event: str, text: str, **values: Any) -> None:
    """Have a line of a job logged after the commit: a sentence, and its values for a log of JSON."""
    text = f"job {job.prompt_id} {event}: {text}"
    text += "".join(f", {name} {value}" for name, value in (("key", job.owner), ("trace", job.trace_id)) if value)
    fields = {"event": event, "prompt_id": job.prompt_id, "key": job.owner, "trace_id": job.trace_id, **values}
    tx.log_lines.append((text, {name: value for name, value in fields.items() if value is not None}))
