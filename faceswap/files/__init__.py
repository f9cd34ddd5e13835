"""The files of jobs. `Files` is the one interface: a data folder, or what stands in its place."""

from __future__ import annotations

from ..config import Settings
from .local import ERASURE, LOCAL_NODE, UPLOAD, Files
from .writer import PIECE_BYTES, FileWriter, new_file

__all__ = ["ERASURE", "LOCAL_NODE", "PIECE_BYTES", "UPLOAD", "FileWriter", "Files", "new_file", "open_files"]


def open_files(settings: Settings, node: str = LOCAL_NODE) -> Files:
    """Return the files that the settings name, for a node of this name."""
    return Files(settings.data_dir, node)
