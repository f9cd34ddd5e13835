"""API keys, by their SHA-256 only, and secrets that the services of one database share."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from .database import Database, transaction
from .transaction import Transaction

SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that was given to somebody. Times are Unix milliseconds."""

    sha256: str
    name: str
    created_at: int
    revoked_at: int | None


class Keys(Database):
    """The keys that were made with `faceswap key add`."""

    @transaction
    async def add_key(self, tx: Transaction, sha256: str, name: str) -> None:
        """Let in who has a key of this digest, hexadecimal; the jobs are those of `name`."""
        await tx.run("INSERT INTO api_key (sha256, name, created_at) VALUES (?, ?, ?)", sha256, name, await tx.now_ms())

    @transaction
    async def revoke_keys(self, tx: Transaction, name: str, sha256_prefix: str = "") -> int:
        """Let in nobody any more with the keys of a name, or with the one whose digest begins so; return their number.

        A key that was revoked stays in the table: where the last one was, nobody is let in.
        """
        rows = await tx.all(
            "UPDATE api_key SET revoked_at = ? WHERE name = ? AND substr(sha256, 1, ?) = ? AND revoked_at IS NULL"
            " RETURNING sha256",
            await tx.now_ms(),
            name,
            len(sha256_prefix),
            sha256_prefix,
        )
        return len(rows)

    async def api_keys(self) -> list[ApiKey]:
        """Return all keys, revoked ones included, in the order in which they were made."""
        rows = await self._read("SELECT sha256, name, created_at, revoked_at FROM api_key ORDER BY created_at, sha256")
        return [ApiKey(*row) for row in rows]

    @transaction
    async def secret(self, tx: Transaction, name: str) -> bytes:
        """Return a secret of this name, which is made at the first call and stays the same while the database lives."""
        row = await tx.one(
            "INSERT INTO secret (name, value) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = secret.value RETURNING value",
            name,
            secrets.token_hex(SECRET_BYTES),
        )
        assert row is not None
        return bytes.fromhex(row[0])
