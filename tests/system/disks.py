"""A small disk for a folder, that can be filled and freed: a tmpfs where we may mount one, else a limit on files."""

from __future__ import annotations

import contextlib
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import psutil

SIZE_MB = 256
BALLAST = "ballast"
"""The file that fills a disk."""


class Disk(Protocol):
    """The disk that a process writes to."""

    def fill(self) -> None:
        """Let every write that needs room fail from now on."""

    def free(self) -> None:
        """Make room again."""


class Tmpfs:
    """A file system of its own: writing to a full one is ENOSPC, as on any disk."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / BALLAST

    def fill(self) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


class FileSizeLimit:
    """No file of a process may grow: its writes fail with EFBIG. What its children write is not limited."""

    def __init__(self, pid: Callable[[], int]) -> None:
        self._pid = pid

    def fill(self) -> None:
        self._limit(0)

    def free(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, soft: int) -> None:
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            hard = resource.prlimit(self._pid(), resource.RLIMIT_FSIZE)[1]
            resource.prlimit(self._pid(), resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def mounted(*files: Path) -> Iterator[bool]:
    """Make the folders, each with a tmpfs on it; tells whether that is allowed here, else they are plain folders."""
    done: list[Path] = []
    try:
        for folder in files:
            folder.mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=700", "faceswap-chaos", str(folder)]
            with contextlib.suppress(FileNotFoundError):
                if subprocess.run(command, capture_output=True).returncode == 0:
                    done.append(folder)
        yield len(done) == len(files)
    finally:
        for folder in done:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
