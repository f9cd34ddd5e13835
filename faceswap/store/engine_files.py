"""Files of jobs at a ComfyUI that is not ours: written down before they are there, until they were emptied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .database import Database, transaction
from .transaction import Transaction


@dataclass(frozen=True, slots=True)
class EngineFile:
    """A file in one of ComfyUI's folders, by the three words that `/view` takes."""

    kind: str
    subfolder: str
    name: str


_FIRST = EngineFile("", "", "")
"""A file before all others."""


class EngineFiles(Database):
    """The needs of who empties them."""

    @transaction
    async def add_engine_files(
        self, tx: Transaction, backend: str, prompt_id: str, files: Iterable[EngineFile]
    ) -> None:
        """Remember files of a job that a backend is about to have."""
        now = await tx.now_ms()
        await tx.execute_many(
            "INSERT INTO engine_file (backend, kind, subfolder, name, prompt_id, added_at)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [(backend, file.kind, file.subfolder, file.name, prompt_id, now) for file in files],
        )

    async def engine_files_to_empty(self, backend: str, limit: int, after: EngineFile = _FIRST) -> list[EngineFile]:
        """Return files at a backend of jobs that were erased, or whose inputs were, in an order that stays."""
        rows = await self._read(
            "SELECT kind, subfolder, name FROM engine_file WHERE backend = ? AND (kind, subfolder, name) > (?, ?, ?)"
            " AND NOT EXISTS (SELECT 1 FROM job WHERE job.prompt_id = engine_file.prompt_id AND inputs_erased = 0)"
            " ORDER BY kind, subfolder, name LIMIT ?",
            backend,
            *(after.kind, after.subfolder, after.name),
            limit,
        )
        return [EngineFile(*row) for row in rows]

    @transaction
    async def forget_engine_files(self, tx: Transaction, backend: str, files: Iterable[EngineFile]) -> None:
        """Forget files that were emptied."""
        await tx.execute_many(
            "DELETE FROM engine_file WHERE backend = ? AND kind = ? AND subfolder = ? AND name = ?",
            [(backend, file.kind, file.subfolder, file.name) for file in files],
        )

    @transaction
    async def forget_old_engine_files(self, tx: Transaction, before: int) -> None:
        """Forget files at backends that were not reached since a time: they may be there no more."""
        await tx.run(
            "DELETE FROM engine_file WHERE added_at < ? AND NOT EXISTS"
            " (SELECT 1 FROM job WHERE job.prompt_id = engine_file.prompt_id AND inputs_erased = 0)",
            before,
        )
