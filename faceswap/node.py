"""A node among those that share its database: its name, its heartbeat, and what the others told of themselves."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import __version__
from .clock import monotonic
from .comfy.backend import BackendPool
from .config import ConfigError, Settings
from .store import LOCAL_HOLDER, LeaseRow, NodeRow, Store, StoreError

log = logging.getLogger(__name__)

HEARTBEATS = 5
"""Heartbeats within the time after which a node counts as gone."""
LEAVE_S = 2.0
"""The time for a node that stops to say so; the others notice besides."""
NAME_FILE = "node"
"""The file in the data folder that keeps the name which was made for the node."""
NEWCOMER_BEATS = 3
"""Heartbeats after which a node is no newcomer: of two with one name the newcomer ends, or one that was frozen."""


class NameTaken(Exception):
    """Another process runs under this node's name."""


def node_name(settings: Settings) -> str:
    """Return the name of this node: as set, or as made at its first start. Raises `OSError`.

    A node that has its database alone needs none of its own.
    """
    if not settings.database_url:
        return LOCAL_HOLDER
    if settings.node:
        return settings.node
    file = settings.data_dir / NAME_FILE
    name = file.read_text(encoding="utf-8").strip() if file.exists() else ""
    if not name:  # it is empty after a power cut at the first start
        name = _new_name()
        _write_name(file, name)
    return name


def _new_name() -> str:
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:40]
    return f"{host}-{secrets.token_hex(3)}"


def _write_name(file: Path, name: str) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_text(name + "\n", encoding="utf-8")
    part.replace(file)


class Node:
    """The process as one of the nodes. Alone with its database it tells nothing and knows of no others."""

    def __init__(
        self, store: Store, name: str, pool: BackendPool, gone_s: float, *, shares_files: bool = False
    ) -> None:
        """`gone_s`: the seconds without a sign of a node after which it does not count any more."""
        self.name = name
        self.leases: Sequence[LeaseRow] = ()
        """The leases that nodes hold, as they were at the last heartbeat."""
        self.held: frozenset[str] = frozenset()
        """The names of the backends that this node holds."""
        self._store = store
        self._pool = pool
        self._gone_s = gone_s
        self._shares_files = shares_files
        self._process = secrets.token_hex(4)
        self._living: Mapping[str, NodeRow] = {}
        self._beats = 0
        self._beaten_at = monotonic()

    @property
    def is_sure(self) -> bool:
        """True while the database tells of the other nodes: what it told before may be past."""
        return monotonic() - self._beaten_at < self._gone_s

    @property
    def others(self) -> list[NodeRow]:
        """The other nodes that are alive."""
        return [row for name, row in self._living.items() if name != self.name]

    def named_elsewhere(self) -> set[str]:
        """Return the names of the backends that other nodes work with, or would."""
        return {name for row in self.others for name in _named(row)}

    def describe(self) -> list[dict[str, Any]]:
        """Return what `/health` tells of the nodes."""
        since_s = monotonic() - self._beaten_at
        return [
            {
                "name": row.name,
                "version": row.version,
                "seen_s_ago": round(row.seen_s + since_s, 1),
                "backends": row.report.get("backends", []),
            }
            for row in self._living.values()
        ]

    def describe_leases(self) -> list[dict[str, Any]]:
        """Return what `/health` tells of the leases."""
        since_s = monotonic() - self._beaten_at
        return [
            {
                "name": row.name,
                "holder": row.holder,
                "epoch": row.epoch,
                "left_s": round(max(row.left_s - since_s, 0.0), 1),
            }
            for row in self.leases
        ]

    async def join(self) -> None:
        """Join the nodes that are there. Raises `ConfigError` where this one cannot work beside them."""
        if not self._store.is_shared:
            return
        for row in await self._store.nodes(self._gone_s):
            if row.name != self.name and not (self._shares_files and row.report.get("shares_files")):
                keeper = "this node" if not self._shares_files else f"the node {row.name}"
                raise ConfigError(
                    f"FACESWAP_FILES_URL: the node {row.name} uses this database, and {keeper} keeps its files in its"
                    " own data folder; set it at every node to the bucket or folder that all share"
                )
        await self._beat(starting=True)

    async def leave(self) -> None:
        """Have the other nodes not wait for this one, which stops."""
        if self._store.is_shared:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self._store.forget_node(self.name)

    async def run(self) -> None:
        """Tell that this node is alive, for as long as the service runs. Raises `NameTaken`."""
        seen = True
        while self._store.is_shared:
            await asyncio.sleep(self._gone_s / HEARTBEATS)
            try:
                await self._beat()
                seen = True
            except StoreError as error:
                if not error.transient:
                    raise
                if seen:
                    log.warning("this node cannot be seen by the others: %s", error)
                seen = False

    async def _beat(self, *, starting: bool = False) -> None:
        """Tell of this node, and take what the others tell."""
        if not starting:
            self._check_name(await self._store.nodes(self._gone_s))
        await self._store.heartbeat(self.name, __version__, self._report(), starting=starting)
        self._beats += 1
        self._living = {row.name: row for row in await self._store.nodes(self._gone_s)}
        self.leases = await self._store.leases()
        self._beaten_at = monotonic()
        self._pool.elsewhere = any(row.report.get("healthy") for row in self.others)

    def _check_name(self, rows: Iterable[NodeRow]) -> None:
        """Find out whether another process has told of a node of this name since this one did."""
        if any(row.name == self.name and row.report.get("process") != self._process for row in rows):
            message = f"another process runs under the name of this node, {self.name}; give each its own FACESWAP_NODE"
            if self._beats < NEWCOMER_BEATS or not self.is_sure:
                raise NameTaken(message)
            log.error("%s", message)

    def _report(self) -> dict[str, Any]:
        return {
            "process": self._process,
            "shares_files": self._shares_files,
            "healthy": any(backend.healthy for backend in self._pool.backends),
            "backends": [backend.describe() for backend in self._pool.backends],
            "holds": sorted(self.held),
        }

    def hesitation_s(self, pause_s: float) -> float:
        """Return how long to leave a free backend to the other nodes, which may hold fewer."""
        return pause_s * len(self.held) if self.others else 0.0

    def may_give_back(self, backend: str) -> bool:
        """Return whether a backend that is held here is better held by a node that holds fewer."""
        names = (row.report.get("holds", ()) for row in self.others if backend in _named(row))
        return any(len(holds) + 2 <= len(self.held) for holds in names)


def _named(row: NodeRow) -> set[str]:
    return {backend["url"] for backend in row.report.get("backends", ())}
