"""Leases: what only one holder may do at a time, and the epoch that tells a former holder from the present one."""

from __future__ import annotations

from dataclasses import dataclass

from ..jobs import Segment
from .database import Database, transaction
from .transaction import Transaction

JANITOR_LEASE = "janitor"
LOCAL_HOLDER = "local"
"""The holder of every lease where there is one node only."""

_BACKEND = "backend:"
_JOIN = "join:"
_UPLOAD = "upload:"


class LeaseLost(Exception):
    """Another has the lease under which something was to be changed: nothing was."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to do what `name` says, as one holder had it from one `epoch` on."""

    name: str
    holder: str
    epoch: int

    @property
    def backend(self) -> str:
        """The name of the backend that it is for."""
        assert self.name.startswith(_BACKEND)
        return self.name.removeprefix(_BACKEND)


def backend_lease(backend: str) -> str:
    """Return the name of the lease on a backend."""
    return f"{_BACKEND}{backend}"


def join_lease(prompt_id: str) -> str:
    """Return the name of the lease on a job's joining."""
    return f"{_JOIN}{prompt_id}"


def upload_lease(upload_id: str) -> str:
    """Return the name of the lease on the growing of an upload."""
    return f"{_UPLOAD}{upload_id}"


class Leases(Database):
    """The leases, each with its present holder."""

    async def acquire_lease(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        """Take a lease for `ttl_s` seconds, under the next epoch; None while another holds it.

        Who holds it already takes it again at once: a process that was started anew takes up what the last one left.
        """
        if self._dialect.locks_rows and await self._is_held_by_another(name, holder):
            return None
        return await self._take_lease(name, holder, ttl_s)

    @transaction
    async def _take_lease(self, tx: Transaction, name: str, holder: str, ttl_s: float) -> Lease | None:
        now = await tx.monotonic_ms()
        row = await tx.one(
            "INSERT INTO lease (name, holder, epoch, expires_at) VALUES (?, ?, 1, ?)"
            " ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, epoch = lease.epoch + 1,"
            " expires_at = excluded.expires_at WHERE lease.holder = excluded.holder OR lease.expires_at <= ?"
            " RETURNING epoch",
            name,
            holder,
            now + int(ttl_s * 1000),
            now,
        )
        return None if row is None else Lease(name, holder, row["epoch"])

    async def _is_held_by_another(self, name: str, holder: str) -> bool:
        """Return whether it is in vain to ask for a lease: who waits asks again and again, and would lock its row."""
        sql = f"SELECT 1 FROM lease WHERE name = ? AND holder <> ? AND expires_at > {self._dialect.now_ms}"
        return bool(await self._read(sql, name, holder))

    @transaction
    async def renew_lease(self, tx: Transaction, lease: Lease, ttl_s: float) -> bool:
        """Keep a lease for `ttl_s` seconds from now; False when it has run out or another has it: it is lost then."""
        now = await tx.monotonic_ms()
        row = await tx.one(
            "UPDATE lease SET expires_at = ? WHERE name = ? AND epoch = ? AND expires_at > ? RETURNING 1",
            now + int(ttl_s * 1000),
            lease.name,
            lease.epoch,
            now,
        )
        return row is not None

    @transaction
    async def release_lease(self, tx: Transaction, lease: Lease) -> None:
        """Let others take a lease at once, unless one has it already."""
        await tx.run("UPDATE lease SET expires_at = 0 WHERE name = ? AND epoch = ?", lease.name, lease.epoch)
        if lease.name.startswith(_JOIN):
            # Of a job that was erased meanwhile nothing is left.
            await tx.run(
                "DELETE FROM lease WHERE name = ? AND NOT EXISTS (SELECT 1 FROM job WHERE prompt_id = ?)",
                lease.name,
                lease.name.removeprefix(_JOIN),
            )

    async def _check_lease(self, tx: Transaction, lease: Lease | Segment) -> None:
        """Raise `LeaseLost` unless a lease, or the one on a submitted segment's backend, is still the same holder's."""
        name = lease.name if isinstance(lease, Lease) else backend_lease(lease.backend or "")
        row = await tx.one(f"SELECT epoch FROM lease WHERE name = ?{self._dialect.share_lock}", name)
        if row is None or row["epoch"] != lease.epoch:
            raise LeaseLost(f"{name}: epoch {lease.epoch} is past")
