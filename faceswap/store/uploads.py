"""Moves of resumable uploads: created, grown, used, expired, forgotten."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

from ..errors import NotFound, TooManyRequests
from ..uploads import Part, Upload
from .connection import Row
from .database import transaction
from .leases import Leases, upload_lease
from .transaction import UPLOADS_LOCK, Transaction

RETRY_AFTER_S = 3600
"""The time after which an owner with too many uploads may try again."""
_COLUMNS = "id, owner, length, received, parts, sha256, metadata, created_at, expires_at"


class Uploads(Leases):
    """The moves of an upload, one method each. One that has expired is there for nobody."""

    @transaction
    async def create_upload(
        self,
        tx: Transaction,
        upload_id: str,
        owner: str | None,
        length: int,
        metadata: str,
        ttl_s: float,
        most: int,
        most_bytes: int,
    ) -> Upload:
        """Store a new upload, to expire in `ttl_s` seconds.

        Raises `TooManyRequests` when its owner has `most` others, or with it more than `most_bytes` bytes.
        """
        await tx.lock(UPLOADS_LOCK)
        now = await tx.now_ms()
        sql = "SELECT count(*), coalesce(sum(length), 0) FROM upload WHERE coalesce(owner, '') = ?"
        count, size = await tx.one(sql, owner or "") or (0, 0)
        if count >= most or size + length > most_bytes:
            raise TooManyRequests(
                f"There are {count:,} uploads of {size:,} bytes already; delete some, or let them expire.",
                code="too_many_uploads",
                retry_after=RETRY_AFTER_S,
            )
        row = await tx.one(
            "INSERT INTO upload (id, owner, length, metadata, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)"
            f" RETURNING {_COLUMNS}",
            upload_id,
            owner,
            length,
            metadata,
            now,
            now + int(ttl_s * 1000),
        )
        return _found([] if row is None else [row])

    async def upload(self, upload_id: str, owner: str | None) -> Upload:
        """Return an upload of an owner. Raises `NotFound`."""
        sql = f"SELECT {_COLUMNS} FROM upload WHERE id = ? AND coalesce(owner, '') = ? AND expires_at > ?"
        return _found(await self._read(sql, upload_id, owner or "", await self._engine.now_ms()))

    @transaction
    async def use_upload(self, tx: Transaction, upload_id: str, owner: str | None, ttl_s: float) -> Upload:
        """Return an upload of an owner, which expires `ttl_s` seconds from now. Raises `NotFound`."""
        now = await tx.now_ms()
        row = await tx.one(
            "UPDATE upload SET expires_at = ? WHERE id = ? AND coalesce(owner, '') = ? AND expires_at > ?"
            f" RETURNING {_COLUMNS}",
            now + int(ttl_s * 1000),
            upload_id,
            owner or "",
            now,
        )
        return _found([] if row is None else [row])

    @transaction
    async def grow_upload(
        self, tx: Transaction, upload: Upload, parts: Iterable[Part], sha256: str | None, ttl_s: float
    ) -> Upload | None:
        """Store the parts of an upload that has grown since it was read, and the digest of all of it where it is known.

        It expires `ttl_s` seconds from now. Returns it as it is then; None when it has grown otherwise, or expired.
        """
        grown = list(parts)
        now = await tx.now_ms()
        row = await tx.one(
            "UPDATE upload SET received = ?, parts = ?, sha256 = ?, expires_at = ?"
            f" WHERE id = ? AND received = ? AND expires_at > ? RETURNING {_COLUMNS}",
            sum(part.size for part in grown),
            json.dumps([asdict(part) for part in grown]),
            sha256,
            now + int(ttl_s * 1000),
            upload.id,
            upload.received,
            now,
        )
        return None if row is None else _found([row])

    @transaction
    async def expire_upload(self, tx: Transaction, upload_id: str, owner: str | None) -> None:
        """Store that an upload of an owner is about to be erased. Raises `NotFound`."""
        row = await tx.one(
            "UPDATE upload SET expires_at = 0 WHERE id = ? AND coalesce(owner, '') = ? AND expires_at > ?"
            f" RETURNING {_COLUMNS}",
            upload_id,
            owner or "",
            await tx.now_ms(),
        )
        _found([] if row is None else [row])

    async def expired_uploads(self, limit: int) -> list[str]:
        """Return uploads that have expired and are to be erased."""
        sql = "SELECT id FROM upload WHERE expires_at <= ? ORDER BY expires_at LIMIT ?"
        return [row[0] for row in await self._read(sql, await self._engine.now_ms(), limit)]

    @transaction
    async def forget_upload(self, tx: Transaction, upload_id: str) -> None:
        """Delete the record of an upload whose bytes are gone."""
        await tx.run("DELETE FROM upload WHERE id = ?", upload_id)
        await tx.run("DELETE FROM lease WHERE name = ?", upload_lease(upload_id))

    async def known_uploads(self, upload_ids: Iterable[str]) -> set[str]:
        """Return the ids that are uploads."""
        sql = f"SELECT id FROM upload WHERE id IN ({self._dialect.values})"
        return {row[0] for row in await self._read(sql, json.dumps(list(upload_ids)))}


def _found(rows: Iterable[Row]) -> Upload:
    for row in rows:
        values = {name: row[name] for name in row.keys()}  # noqa: SIM118 - no dict
        values["parts"] = tuple(Part(**part) for part in json.loads(values["parts"]))
        return Upload(**values)
    raise NotFound("There is no upload with this id.", code="unknown_upload")
