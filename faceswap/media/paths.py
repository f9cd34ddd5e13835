"""The paths of results that are being written. The service and its workers share this module."""

from __future__ import annotations

from pathlib import Path


def partial_path(out: Path) -> Path:
    """Return the path to write to until the file is complete: in the same folder, so that a rename is atomic."""
    return out.with_name(f".{out.name}.part")


def unsigned_path(out: Path) -> Path:
    """Return the path of the complete file before it is signed."""
    return out.with_name(f".{out.name}.unsigned")
