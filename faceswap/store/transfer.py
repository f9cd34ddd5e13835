"""The copy of a whole database into another, of whatever kinds: all of it, compared row by row, or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..jobs import Job
from .connection import Row, storable
from .nodes import Nodes
from .rows import SELECT_JOB, job_of
from .transaction import QUEUE_LOCK

TABLES: dict[str, tuple[str, ...]] = {
    "job": ("prompt_id",),
    "input": ("prompt_id", "role", "number"),
    "segment": ("prompt_id", "number"),
    "event": ("prompt_id", "seq"),
    "delivery": ("id",),
    "backend": ("name",),
    "stat": ("key", "phase"),
    "abandoned_prompt": ("comfy_prompt_id",),
    "engine_file": ("backend", "kind", "subfolder", "name"),
    "audit": ("number",),
    "api_key": ("sha256",),
    "secret": ("name",),
    "turn": ("owner",),
}
"""The tables that are copied, each with its key, in the order of their references.

Leases and nodes are not: who held them has stopped. Who starts takes leases of its own, and takes over under them what
is submitted.
"""
BATCH = 500
"""Rows that are read and written at a time."""
ALIVE_S = 60.0
"""The time without a heartbeat after which a node counts as stopped."""

_Fetch = Callable[[str, Sequence[Any]], Awaitable[Sequence[Row]]]


class TransferRefused(Exception):
    """Nothing was copied; the message is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class _Contents:
    """The rows of a table: their number, and the sum of their digests, whatever their order."""

    rows: int = 0
    digest: int = 0

    def plus(self, rows: Iterable[Mapping[str, Any]]) -> _Contents:
        """Return these contents and more rows."""
        digests = [hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest() for row in rows]
        total = self.digest + sum(int.from_bytes(digest, "big") for digest in digests)
        return _Contents(self.rows + len(digests), total % 2**256)


class Transfer(Nodes):
    """The way of all jobs into another database."""

    async def all_jobs(self) -> AsyncIterator[Job]:
        """Yield all jobs, of every owner."""
        after = ""
        while rows := await self._read(
            f"{SELECT_JOB} WHERE job.prompt_id > ? ORDER BY job.prompt_id LIMIT ?", after, BATCH
        ):
            for row in rows:
                yield job_of(row)
            after = rows[-1]["prompt_id"]

    async def check_transfer(self, source: Transfer) -> None:
        """Raise `TransferRefused` unless the jobs of another database can be copied into this one."""
        for store, name in ((source, "from"), (self, "to")):
            if running := [node.name for node in await store.nodes(ALIVE_S)]:
                raise TransferRefused(
                    f"The database to copy {name} is in use by {', '.join(running)}; stop all nodes,"
                    f" and wait {ALIVE_S:.0f} s for one that was killed."
                )
        if await self._read("SELECT 1 FROM job UNION ALL SELECT 1 FROM audit LIMIT 1"):
            raise TransferRefused("The database to copy to has had jobs already; name one that has never been used.")

    async def copy_from(self, source: Transfer, tell: Callable[[str, int], None]) -> dict[str, int]:
        """Copy all jobs of a stopped service, and what belongs to them; returns the number of rows of each table.

        It is one transaction: this database has all of it then, or is as it was. `tell` is given a table and the number
        of its rows that were copied, again and again. Raises `TransferRefused`.
        """
        copied = {}
        async with self._transaction(is_long=True) as tx:
            await tx.lock(QUEUE_LOCK)
            await self.check_transfer(source)
            for table in reversed(TABLES):
                await tx.run(f"DELETE FROM {table}")
            for table in TABLES:
                wanted = _Contents()
                async for rows in _batches(source._engine.fetch, table):
                    names = ", ".join(rows[0])
                    marks = ", ".join("?" * len(rows[0]))
                    sql = f"INSERT INTO {table} ({names}) VALUES ({marks})"
                    await tx.execute_many(sql, [tuple(row.values()) for row in rows])
                    wanted = wanted.plus(rows)
                    tell(table, wanted.rows)
                found = _Contents()
                async for rows in _batches(lambda sql, parameters: tx.all(sql, *parameters), table):
                    found = found.plus(rows)
                if found != wanted:
                    raise TransferRefused(
                        f"The copy of the table {table} is not like the original ({found.rows:,} rows of"
                        f" {wanted.rows:,}); nothing was kept."
                    )
                copied[table] = found.rows
            if self._dialect.restart_numbers:
                await tx.run(self._dialect.restart_numbers)
            if self._dialect.has_statistics:
                await tx.run(f"ANALYZE {', '.join(TABLES)}")
        return copied


async def _batches(fetch: _Fetch, table: str) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield the rows of a table, some at a time, as any kind of database can store them."""
    key = TABLES[table]
    names, marks = ", ".join(key), ", ".join("?" * len(key))
    condition, parameters = "", tuple[Any, ...]()
    while rows := await fetch(f"SELECT * FROM {table}{condition} ORDER BY {names} LIMIT {BATCH}", parameters):
        yield [{name: storable(row[name]) for name in row.keys()} for row in rows]  # noqa: SIM118 - no dict
        condition, parameters = f" WHERE ({names}) > ({marks})", tuple(rows[-1][name] for name in key)
