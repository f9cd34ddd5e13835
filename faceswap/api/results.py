"""The results that are asked for: what the database and the disk tell of them, remembered while it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from aiohttp import web

from ..errors import Gone
from ..files import Files, RemoteFile
from ..jobs import Job
from ..store import Store

K = TypeVar("K")
V = TypeVar("V")

MOST_KEPT = 4096
"""Results, and names of results, that are remembered; the one that was kept for the longest time goes first."""


@dataclass(frozen=True, slots=True)
class Result:
    """A result, and the job that it is of."""

    job: Job
    file: Path | RemoteFile


def removed(job: Job) -> Gone:
    """Return the problem of a job whose result is gone from the disk."""
    return Gone("This result was removed from the server's disk.", code="result_expired", prompt_id=job.prompt_id)


class Results:
    """The results by their names.

    All that is remembered is forgotten when a job ends, or one that had ended is changed, before anybody is told of
    that commit. Where other nodes may commit, nothing is remembered.
    """

    def __init__(self, store: Store, files: Files) -> None:
        self._store = store
        self._files = files
        self._results: dict[tuple[str, str | None], Result] = {}
        self._owners: dict[str, Mapping[str, str | None]] = {}
        self._version: int | None = None

    async def find(self, filename: str, owner: str | None) -> Result:
        """Return the owner's result of a name. Raises `NotFound`, or `Gone` when it is erased."""
        version = self._forget()
        kept = self._results.get((filename, owner))
        if kept is not None:
            return kept
        job = await self._store.result(filename, owner)
        file = await self._files.find_result(job)
        if file is None:
            raise removed(job)
        result = Result(job, file)
        if isinstance(file, Path):
            self._keep(version, self._results, (filename, owner), result)
        return result

    async def owners(self, filename: str) -> Mapping[str, str | None]:
        """Return the owners of all jobs whose result has this name, by the ids of their jobs."""
        version = self._forget()
        kept = self._owners.get(filename)
        if kept is not None:
            return kept
        owners = dict(await self._store.with_result(filename))
        if owners:
            self._keep(version, self._owners, filename, owners)
        return owners

    def _forget(self) -> int | None:
        """Forget what a commit may have changed; returns the version of the database that is known of."""
        version = None if self._store.queue is None else self._store.queue.ended
        if version != self._version:
            self._results.clear()
            self._owners.clear()
            self._version = version
        return version

    def _keep(self, version: int | None, among: dict[K, V], key: K, value: V) -> None:
        """Remember what was read, unless a commit may have changed it since that version was known of."""
        if version is None or version != self._forget():
            return
        if len(among) >= MOST_KEPT:
            del among[next(iter(among))]
        among[key] = value


RESULTS = web.AppKey("results", Results)
