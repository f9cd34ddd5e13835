"""A disk that fills and is freed, for one process: real ENOSPC where a small disk can be mounted, else EFBIG."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FILLER = "filler"
_ENTRIES = 64


class SmallDisk:
    """Room for the files of a process in `folder`.

    Root mounts a small disk of its own there. Others bound the size of the files that the process may write: it meets
    EFBIG in place of ENOSPC, which to a program is the same: a file that cannot grow.
    """

    def __init__(self, folder: Path, mounted: bool) -> None:
        self.folder = folder
        self.mounted = mounted

    def leave(self, size: int, pid: int) -> None:
        """Leave room for `size` more bytes."""
        self.free(pid)
        if not self.mounted:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            return
        state = os.statvfs(self.folder)
        filler = max(0, state.f_bavail * state.f_frsize - size)
        with (self.folder / _FILLER).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, filler) if filler else None

    def fill_with_files(self) -> None:
        """Leave no room for another file, where the disk is a real one."""
        with suppress(OSError):
            for number in range(_ENTRIES if self.mounted else 0):
                (self.folder / f"{_FILLER}-{number}").touch()

    def free(self, pid: int | None = None) -> None:
        """Give all room back."""
        for path in self.folder.glob(f"{_FILLER}*"):
            path.unlink()
        if pid is not None and not self.mounted:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def small_disk(folder: Path, size: str = "16m") -> Iterator[SmallDisk]:
    """Yield a disk at `folder`."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes={_ENTRIES}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield SmallDisk(folder, mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
