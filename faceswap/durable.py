"""Sync files, folders and names to the disk, so that they survive a power cut. Every call waits for the disk."""

from __future__ import annotations

import os
from pathlib import Path


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
