"""The database of a run, read beside the service: SQLite's file, or PostgreSQL over a way of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any, Protocol

import asyncpg
from waiting import WAIT_S

Row = dict[str, Any]

AGAIN_S = 0.2
FOREIGN_KEYS = ("input", "segment", "event")
"""The tables whose rows belong to a job."""


TRANSIENT = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.InsufficientResourcesError,
)
"""Errors of a database that is away, or has no connection to spare."""


class Records(Protocol):
    """The rows as they are committed."""

    async def rows(self, sql: str) -> list[Row]:
        """Return rows; waits while the disk is full or the database away."""

    async def integrity_faults(self) -> list[str]:
        """Return how the database is damaged."""


class SqliteRecords:
    """The rows of a database file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def rows(self, sql: str) -> list[Row]:
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    return self._read(sql)
                except sqlite3.OperationalError:  # the disk is full, or the service is just killed
                    await asyncio.sleep(AGAIN_S)

    async def integrity_faults(self) -> list[str]:
        faults = []
        for pragma, right in (("integrity_check", [{"integrity_check": "ok"}]), ("foreign_key_check", [])):
            found = await self.rows(f"PRAGMA {pragma}")
            if found != right:
                faults.append(f"{pragma}: {found}")
        return faults

    def _read(self, sql: str) -> list[Row]:
        with contextlib.closing(sqlite3.connect(self._path)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(sql)]


class PostgresRecords:
    """The rows of a PostgreSQL database."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def rows(self, sql: str) -> list[Row]:
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    return await self._read(sql)
                except TRANSIENT:
                    await asyncio.sleep(AGAIN_S)

    async def integrity_faults(self) -> list[str]:
        """Check every page of every table and index, and that no row is left of a job that is gone."""
        faults = []
        await self.rows("CREATE EXTENSION IF NOT EXISTS amcheck")
        relations = "pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = 'public'"
        heaps = f"SELECT relname, (verify_heapam(pg_class.oid)).msg FROM {relations} AND relkind = 'r'"
        faults += [f"{row['relname']}: {row['msg']}" for row in await self.rows(heaps)]
        indexes = (
            "SELECT bt_index_parent_check(pg_class.oid, true) FROM pg_class JOIN pg_am ON pg_am.oid = relam"
            " JOIN pg_namespace ON pg_namespace.oid = relnamespace"
            " WHERE nspname = 'public' AND relkind = 'i' AND amname = 'btree'"
        )
        try:
            await self.rows(indexes)
        except asyncpg.PostgresError as error:
            faults.append(str(error))
        for table in FOREIGN_KEYS:
            lost = f"SELECT prompt_id FROM {table} WHERE prompt_id NOT IN (SELECT prompt_id FROM job)"
            faults += [f"{table} has rows of {row['prompt_id']}, which is gone" for row in await self.rows(lost)]
        return faults

    async def _read(self, sql: str) -> list[Row]:
        connection = await asyncpg.connect(self._url, timeout=WAIT_S)
        try:
            return [dict(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()
