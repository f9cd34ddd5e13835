"""A transaction under way, as the methods of the store see it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..events import Event, Payload
from .connection import Dialect, Row, Statements

QUEUE_LOCK = 0x_FACE_0001
"""The number of the lock under which jobs are accepted."""
COSTS_LOCK = 0x_FACE_0002
"""The number of the lock under which phase costs are learned."""
COSTS_WEIGHT = 0.3
"""The weight of the newest costs in what is learned."""
UPLOADS_LOCK = 0x_FACE_0003
"""The number of the lock under which uploads are created."""


class Transaction:
    """A transaction: its statements, and the events and log lines that go out after its commit.

    Where several are under way at a time, each locks the rows of its jobs first, in the order of their ids, then that
    of a lease: none waits for another that waits for it, and what is read after the lock is what will be changed.
    """

    def __init__(self, statements: Statements, dialect: Dialect) -> None:
        self._statements = statements
        self._dialect = dialect
        self._locked_at_ms: int | None = None
        self.events: list[Event] = []
        self.log_lines: list[tuple[str, dict[str, Any]]] = []
        """Sentences and their values, to be logged after the commit."""

    async def run(self, sql: str, *parameters: Any) -> None:
        """Execute a statement."""
        await self._statements.fetch(sql, parameters)

    async def all(self, sql: str, *parameters: Any) -> Sequence[Row]:
        """Execute a statement; returns its rows."""
        return await self._statements.fetch(sql, parameters)

    async def one(self, sql: str, *parameters: Any) -> Row | None:
        """Execute a statement; returns its first row, None when there is none."""
        rows = await self._statements.fetch(sql, parameters)
        return rows[0] if rows else None

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement once for each row of parameters."""
        await self._statements.execute_many(sql, rows)

    async def now_ms(self) -> int:
        """Return the Unix time in milliseconds, for times that are told. It may jump."""
        return self._locked_at_ms or await self._statements.now_ms()

    async def monotonic_ms(self) -> int:
        """Return the time in milliseconds by which leases and pauses end."""
        return self._locked_at_ms or await self._statements.monotonic_ms()

    async def lock_job(self, prompt_id: str) -> None:
        """Let no other transaction move a job before this one has ended: every move of a job begins with it.

        The time of the transaction is that at which it got the lock: no move of a job is dated before the last.
        """
        if self._dialect.locks_rows:
            lock = "SELECT 1 FROM job WHERE prompt_id = ? FOR UPDATE"
            row = await self.one(f"SELECT {self._dialect.now_ms} FROM ({lock}) AS locked", prompt_id)
            self._locked_at_ms = None if row is None else int(row[0])

    async def lock_jobs(self, query: str, *parameters: Any) -> None:
        """Lock the jobs whose ids a query gives, as `lock_job` does."""
        if self._dialect.locks_rows:
            await self.run(f"SELECT 1 FROM job WHERE prompt_id IN ({query}) ORDER BY prompt_id FOR UPDATE", *parameters)

    async def lock(self, number: int) -> None:
        """Let no other transaction take the lock of this number before this one has ended."""
        if self._dialect.locks_rows:
            await self.run("SELECT pg_advisory_xact_lock(?)", number)

    async def add_event(self, prompt_id: str, payload: Payload, seq: int | None = None) -> None:
        """Store an event under its job's next number; it is published after the commit.

        `seq` is that number where a statement of this transaction has raised `last_seq` to it.
        """
        if seq is None:
            seq = await self._next_seq(prompt_id)
        await self.run(
            "INSERT INTO event (prompt_id, seq, type, data, at) VALUES (?, ?, ?, ?, ?)",
            prompt_id,
            seq,
            payload.type,
            json.dumps(payload.data, ensure_ascii=False),
            await self.now_ms(),
        )
        self.events.append(Event(prompt_id, seq, payload.type, payload.data))

    async def learn_costs(self, key: str, costs: Mapping[str, float]) -> None:
        """Fold measured seconds per frame into what was learned, and forget phases that no longer occur.

        Nothing else is to be locked after it.
        """
        await self.lock(COSTS_LOCK)
        await self.execute_many(
            "INSERT INTO stat (key, phase, seconds) VALUES (?, ?, ?)"
            " ON CONFLICT (key, phase) DO UPDATE SET"
            " seconds = stat.seconds + (excluded.seconds - stat.seconds) * ?",
            [(key, phase, seconds, COSTS_WEIGHT) for phase, seconds in costs.items()],
        )
        await self.run(
            f"DELETE FROM stat WHERE key = ? AND phase NOT IN ({self._dialect.values})", key, json.dumps(list(costs))
        )

    async def _next_seq(self, prompt_id: str) -> int:
        """Raise a job's last event number and return it. It never repeats, not even over a crash."""
        row = await self.one("UPDATE job SET last_seq = last_seq + 1 WHERE prompt_id = ? RETURNING last_seq", prompt_id)
        assert row is not None
        return int(row["last_seq"])
