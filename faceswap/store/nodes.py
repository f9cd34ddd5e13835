"""The nodes: which processes use the database, and which holds what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .database import Database, transaction
from .transaction import Transaction

FORGOTTEN_MS = 24 * 3600 * 1000
"""The time after which a node that died is forgotten."""


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node as it last told of itself. Times are seconds ago."""

    name: str
    version: str
    started_s: float
    seen_s: float
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A lease with its holder. `left_s` are the seconds it still lasts."""

    name: str
    holder: str
    epoch: int
    left_s: float


class Nodes(Database):
    """The nodes that share the database."""

    @transaction
    async def heartbeat(
        self, tx: Transaction, node: str, version: str, report: Mapping[str, Any], *, starting: bool = False
    ) -> None:
        """Store that a node is alive, and what it tells of itself, such as the engines it knows.

        One that is `starting` has the nodes forgotten that were not seen for `FORGOTTEN_MS`.
        """
        now = await tx.now_ms()
        await tx.run(
            "INSERT INTO node (name, version, started_at, seen_at, report) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET version = excluded.version, seen_at = excluded.seen_at,"
            " report = excluded.report,"
            " started_at = CASE WHEN 1 = ? THEN excluded.started_at ELSE node.started_at END",
            node,
            version,
            now,
            now,
            json.dumps(report),
            int(starting),
        )
        if starting:
            await tx.run("DELETE FROM node WHERE seen_at < ?", now - FORGOTTEN_MS)

    async def nodes(self, within_s: float) -> list[NodeRow]:
        """Return the nodes that were seen in the last `within_s` seconds, by name."""
        now = await self._engine.now_ms()
        rows = await self._read(
            "SELECT name, version, started_at, seen_at, report FROM node WHERE seen_at >= ? ORDER BY name",
            now - int(within_s * 1000),
        )
        return [
            NodeRow(name, version, (now - started_at) / 1000, (now - seen_at) / 1000, json.loads(report))
            for name, version, started_at, seen_at, report in rows
        ]

    @transaction
    async def forget_node(self, tx: Transaction, name: str) -> None:
        """Forget a node, which has stopped."""
        await tx.run("DELETE FROM node WHERE name = ?", name)

    async def leases(self) -> list[LeaseRow]:
        """Return the leases that last, by name."""
        now = await self._engine.monotonic_ms()
        rows = await self._read(
            "SELECT name, holder, epoch, expires_at FROM lease WHERE expires_at > ? ORDER BY name", now
        )
        return [LeaseRow(name, holder, epoch, (expires_at - now) / 1000) for name, holder, epoch, expires_at in rows]
