"""The files of jobs where several nodes use them at the same time: the base of all kinds, and a folder that all mount.

A former holder of the lease on a join may wake at any time, so no result is ever replaced: its name holds the epoch of
the lease and the digest, and the job's record, which names the digest, decides which of them is the result.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from .. import durable
from ..config import ConfigError
from ..jobs import Job
from .local import ERASURE, Files, folders_in, in_thread, in_thread_at_once

log = logging.getLogger(__name__)

ABANDONED_S = 24 * 3600.0
"""The age at which the mark of another node is taken for that of a node which does not come back."""


def result_name(epoch: int, sha256: str) -> str:
    """Return the name of a joined video among those of its job."""
    return f"{epoch}-{sha256}.mp4"


def result_epoch(name: str) -> int:
    """Return the epoch of the lease under which a video was joined, by its name."""
    return int(name.partition("-")[0])


def is_result_of(job: Job, name: str) -> bool:
    """Return whether a name is that of the result which a job's record holds."""
    return name.endswith(f"-{job.result_sha256}.mp4")


class SharedFiles(Files):
    """Files that several nodes use; only the folders of the data directory are this node's own."""

    is_shared = True

    def _own_folders(self) -> tuple[Path, ...]:
        """Return the folders of this node alone that hold a subfolder for each job."""
        return tuple(self._engine_folders())

    @in_thread
    def copied_jobs(self) -> set[str]:
        """Return the ids of the jobs of whose files this node has copies, in the embedded engine too."""
        return {name for parent in self._own_folders() for name in folders_in(parent)}

    @in_thread
    def delete_copies(self, prompt_ids: Iterable[str]) -> None:
        """Delete this node's copies of the files of jobs, in the embedded engine too."""
        for prompt_id in prompt_ids:
            for parent in self._own_folders():
                shutil.rmtree(parent / prompt_id, ignore_errors=True)

    async def move_to_lost(self, prompt_ids: Iterable[str], filenames: Iterable[str], now: datetime) -> list[Path]:
        """Leave what the database does not know where it is, and tell: it may be another database's."""
        unknown = {*prompt_ids, *filenames}
        if unknown:
            log.warning(
                "the database knows nothing of %d jobs with files in FACESWAP_FILES_URL; is it the right one?"
                " Their files are left: %s",
                len(unknown),
                ", ".join(sorted(unknown)[:10]),
            )
        return []


class SharedFolder(SharedFiles):
    """A folder that all nodes mount: inputs, scratch and results are there."""

    def __init__(self, data_dir: Path, folder: Path, node: str) -> None:
        super().__init__(data_dir, node)
        self.folder = folder
        self._inputs = folder / "inputs"
        self._scratch = folder / "work"
        self._results = folder / "outputs"
        self._uploads = folder / "uploads"
        self._thumbnails = folder / "thumbnails"

    async def start(self) -> None:
        """Make the folders that are missing below the shared one. Raises `ConfigError` when that is not there."""
        await self._check_mounted()
        await super().start()

    async def check(self) -> None:
        """Check that files can be written, while a service may use them. Raises as `start` does."""
        await self._check_mounted()
        await super().check()

    async def _check_mounted(self) -> None:
        if not await asyncio.to_thread(self.folder.is_dir):
            raise ConfigError(f"FACESWAP_FILES_URL={str(self.folder)!r}: there is no such folder; is it mounted?")

    @in_thread_at_once
    def is_available(self) -> bool:
        """Return whether the folder is there."""
        return self._inputs.is_dir()

    def still(self, prompt_id: str) -> Path:
        """Return the path of the picture that a job changes, for this node only."""
        return self._scratch / prompt_id / f"still-{self._node}.png"

    def prepared(self, prompt_id: str) -> Path:
        """Return the path of this node's copy of a job's video that pieces are cut from."""
        return self._scratch / prompt_id / f"prepared-{self._node}.mp4"

    async def delete_unfinished(self) -> set[str]:
        """Leave them: other nodes may be writing them."""
        return set()

    @in_thread_at_once
    def free_bytes(self) -> int:
        """Return the free space on the fuller one of the two disks, in bytes."""
        return min(shutil.disk_usage(folder).free for folder in (self.root, self.folder))

    # Previews

    def _preview(self, prompt_id: str) -> Path:
        return self._scratch / prompt_id / "preview"

    @in_thread
    def put_preview(self, prompt_id: str, image: bytes) -> None:
        """Keep the newest preview of a job where other nodes find it. Raises `OSError`."""
        path = self._preview(prompt_id)
        partial = path.with_name(f".preview-{self._node}")
        partial.write_bytes(image)
        partial.replace(path)

    @in_thread
    def delete_preview(self, prompt_id: str) -> None:
        """Delete the preview of a job that has ended."""
        self._preview(prompt_id).unlink(missing_ok=True)

    @in_thread
    def preview(self, prompt_id: str) -> bytes | None:
        """Return the newest preview of a job that runs at another node; None when there is none."""
        try:
            return self._preview(prompt_id).read_bytes()
        except FileNotFoundError:
            return None

    # Results

    @in_thread
    def keep_result(self, prompt_id: str, epoch: int, filename: str, sha256: str) -> None:
        """Move a job's joined video to a name of its own, and sync the name. Those of former holders are deleted."""
        result = self.result(prompt_id) / result_name(epoch, sha256)
        result.parent.mkdir(mode=0o700, exist_ok=True)
        durable.rename(self.joined(prompt_id, epoch), result)
        durable.sync(self._results)
        self._discard_results(prompt_id, epoch - 1)

    def _discard_results(self, prompt_id: str, epoch: int) -> None:
        kept, joined = self.result(prompt_id).glob("*.mp4"), (self._scratch / prompt_id).glob("joined-*.mp4")
        for path in (*kept, *joined):
            if result_epoch(path.stem.removeprefix("joined-")) <= epoch:
                path.unlink(missing_ok=True)

    @in_thread
    def discard_result(self, prompt_id: str, epoch: int, filename: str) -> None:
        """Delete what the holder of the lease from `epoch` on, and those before it, kept without a commit."""
        self._discard_results(prompt_id, epoch)

    async def list_results(self) -> AsyncIterator[set[str]]:
        """Yield the ids of all jobs with a result."""
        yield set(await asyncio.to_thread(os.listdir, self._results))

    @in_thread
    def find_result(self, job: Job) -> Path | None:
        """Return the path of a job's committed result; None when it is gone."""
        folder = self.result(job.prompt_id)
        paths = folder.iterdir() if folder.is_dir() else ()
        return next((path for path in paths if is_result_of(job, path.name)), None)

    @in_thread
    def delete_result(self, prompt_id: str, filename: str) -> None:
        """Delete all that was kept as a result of a job, and its thumbnails."""
        for folder in (self.result(prompt_id), self._thumbnails / prompt_id):
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)

    # Marks

    @in_thread
    def mark_erasure(self, prompt_id: str) -> None:
        """Mark a job that is being erased, by this node."""
        self._mark(prompt_id, ERASURE).write_text(self._node, encoding="utf-8")

    @in_thread
    def is_own_mark(self, prompt_id: str, mark: str) -> bool:
        """Return whether this node has set a mark, or another that does not come back."""
        try:
            is_own = self._mark(prompt_id, mark).read_text(encoding="utf-8") == self._node
        except FileNotFoundError:
            return False
        return is_own or self._is_abandoned(prompt_id, mark)

    @in_thread
    def is_abandoned(self, prompt_id: str, mark: str) -> bool:
        """Return whether a mark was set so long ago that the node which set it does not come back."""
        return self._is_abandoned(prompt_id, mark)

    def _is_abandoned(self, prompt_id: str, mark: str) -> bool:
        try:
            return time.time() - self._mark(prompt_id, mark).stat().st_mtime > ABANDONED_S
        except FileNotFoundError:
            return False
