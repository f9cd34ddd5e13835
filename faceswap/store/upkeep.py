"""Marks of what is erased, and facts that outlive a process."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable

from .audit import add_audit_line
from .database import Database, transaction
from .leases import join_lease
from .transaction import Transaction


class Upkeep(Database):
    """The needs of the janitor, the listener and the ETA."""

    async def with_expired_inputs(self, before: int, limit: int) -> list[str]:
        """Return jobs that ended before a time and whose inputs are still there."""
        sql = "SELECT prompt_id FROM job WHERE inputs_erased = 0 AND finished_at <= ? LIMIT ?"
        return [row[0] for row in await self._read(sql, before, limit)]

    async def with_expired_results(self, before: int, limit: int) -> list[tuple[str, str]]:
        """Return jobs, each with its file, that ended before a time and whose result is still there."""
        sql = (
            "SELECT prompt_id, result_file FROM job"
            " WHERE result_erased = 0 AND result_file IS NOT NULL AND finished_at <= ? LIMIT ?"
        )
        return [(row[0], row[1]) for row in await self._read(sql, before, limit)]

    async def with_expired_records(self, before: int, limit: int) -> list[tuple[str, str | None]]:
        """Return jobs, each with its file, that ended before a time and of which nothing is left but the record.

        One of which something is still to be delivered stays.
        """
        sql = (
            "SELECT prompt_id, result_file FROM job WHERE finished_at <= ? AND inputs_erased = 1"
            " AND (result_file IS NULL OR result_erased = 1) AND NOT EXISTS"
            " (SELECT 1 FROM delivery WHERE delivery.prompt_id = job.prompt_id AND delivery.state = 'waiting') LIMIT ?"
        )
        return [(row[0], row[1]) for row in await self._read(sql, before, limit)]

    @transaction
    async def delete_record(self, tx: Transaction, prompt_id: str, limit: int) -> bool:
        """Delete the record of an ended job whose files are gone, at most `limit` rows of a kind at a time.

        Returns whether nothing of it is left; until then the next call goes on.
        """
        await tx.lock_job(prompt_id)
        ended = "SELECT 1 FROM job WHERE prompt_id = ? AND finished_at IS NOT NULL AND inputs_erased = 1"
        if not await tx.one(ended, prompt_id):
            return True
        for table, number in (("event", "seq"), ("segment", "number")):
            some = f"SELECT {number} FROM {table} WHERE prompt_id = ? ORDER BY {number} LIMIT ?"
            sql = f"DELETE FROM {table} WHERE prompt_id = ? AND {number} IN ({some}) RETURNING 1"
            if len(await tx.all(sql, prompt_id, prompt_id, limit)) == limit:
                return False
        row = await tx.one("DELETE FROM job WHERE prompt_id = ? RETURNING owner", prompt_id)
        assert row is not None
        await tx.run("DELETE FROM lease WHERE name = ?", join_lease(prompt_id))
        await add_audit_line(tx, prompt_id, row["owner"], "erased", reason="time")
        return True

    async def shrink(self) -> None:
        """Give the disk back what was deleted, a little at a time: nobody waits long for that."""
        await self._engine.shrink()

    @transaction
    async def mark_inputs_erased(self, tx: Transaction, prompt_id: str) -> bool:
        """Store that an ended job's inputs are about to go: it cannot be retried. False when it was."""
        row = await tx.one(
            "UPDATE job SET inputs_erased = 1 WHERE prompt_id = ? AND finished_at IS NOT NULL"
            " AND inputs_erased = 0 RETURNING owner",
            prompt_id,
        )
        if row is not None:
            await add_audit_line(tx, prompt_id, row["owner"], "inputs_erased", reason="time")
        return row is not None

    @transaction
    async def mark_result_erased(self, tx: Transaction, prompt_id: str) -> None:
        """Store that an ended job's result is about to go."""
        row = await tx.one(
            "UPDATE job SET result_erased = 1 WHERE prompt_id = ? AND result_erased = 0 RETURNING owner", prompt_id
        )
        if row is not None:
            await add_audit_line(tx, prompt_id, row["owner"], "result_erased", reason="time")

    async def known(self, prompt_ids: Iterable[str]) -> set[str]:
        """Return the ids that are jobs."""
        ids = json.dumps(list(prompt_ids))
        sql = f"SELECT prompt_id FROM job WHERE prompt_id IN ({self._dialect.values})"
        return {row[0] for row in await self._read(sql, ids)}

    async def succeeded(self, prompt_ids: Iterable[str]) -> set[str]:
        """Return the ids of jobs that have ended with a result."""
        ids = json.dumps(list(prompt_ids))
        sql = f"SELECT prompt_id FROM job WHERE state = 'SUCCESS' AND prompt_id IN ({self._dialect.values})"
        return {row[0] for row in await self._read(sql, ids)}

    async def known_results(self, filenames: Iterable[str]) -> dict[str, str]:
        """Return the names that are, were, or were to become the result of a job, each with the job's id."""
        names = json.dumps({filename.rpartition(".")[0]: filename for filename in filenames})
        sql = (
            f"SELECT named.value, prompt_id FROM {self._dialect.pairs} AS named JOIN job ON job.output_name = named.key"
        )
        return {row[0]: row[1] for row in await self._read(sql, names)}

    async def with_inputs(self, prompt_ids: Iterable[str]) -> set[str]:
        """Return the ids of jobs whose inputs have not expired."""
        ids = json.dumps(list(prompt_ids))
        sql = f"SELECT prompt_id FROM job WHERE inputs_erased = 0 AND prompt_id IN ({self._dialect.values})"
        return {row[0] for row in await self._read(sql, ids)}

    async def unexpired_results(self, filenames: Iterable[str]) -> set[str]:
        """Return the names of results that have not expired."""
        names = json.dumps(list(filenames))
        sql = f"SELECT result_file FROM job WHERE result_erased = 0 AND result_file IN ({self._dialect.values})"
        return {row[0] for row in await self._read(sql, names)}

    async def with_results(self, prompt_ids: Iterable[str]) -> set[str]:
        """Return the ids of jobs whose result was committed and has not expired."""
        ids = json.dumps(list(prompt_ids))
        sql = (
            "SELECT prompt_id FROM job WHERE result_erased = 0 AND result_file IS NOT NULL"
            f" AND prompt_id IN ({self._dialect.values})"
        )
        return {row[0] for row in await self._read(sql, ids)}

    @transaction
    async def client_id(self, tx: Transaction, backend: str) -> str:
        """Return the client id under which a backend's socket is opened: the same while the database lives."""
        row = await tx.one(
            "INSERT INTO backend (name, client_id) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET client_id = backend.client_id RETURNING client_id",
            backend,
            uuid.uuid4().hex,
        )
        assert row is not None
        return str(row[0])

    async def phase_costs(self, key: str) -> dict[str, float]:
        """Return the learned seconds per frame of each phase."""
        sql = "SELECT phase, seconds FROM stat WHERE key = ?"
        return {row[0]: row[1] for row in await self._read(sql, key)}
