"""Sync files, folders and names to the disk, so that they survive a power cut. Every call waits for the disk.

The service and the engine share this module.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a full disk, a full quota, or a file at its size limit. They pass when there is room again."""


def sync(*paths: Path) -> None:
    """Sync files, and the names in folders."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def rename(source: Path, destination: Path) -> None:
    """Give a file that was synced its name, in place of any other file of that name, and sync the name."""
    source.replace(destination)
    sync(destination.parent)
