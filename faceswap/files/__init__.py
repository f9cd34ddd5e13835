"""The files of jobs. `Files` is the one interface: a data folder, or what stands in its place."""

from __future__ import annotations

from pathlib import Path

from ..config import ConfigError, Settings
from .copying import copy_job
from .errors import FilesRefused, FilesUnavailable
from .local import ERASURE, LOCAL_NODE, UPLOAD, Files, RemoteFile
from .shared import SharedFolder
from .writer import PIECE_BYTES, FileWriter, new_file

__all__ = [
    "ERASURE",
    "LOCAL_NODE",
    "PIECE_BYTES",
    "UPLOAD",
    "FileWriter",
    "Files",
    "FilesRefused",
    "FilesUnavailable",
    "RemoteFile",
    "copy_job",
    "new_file",
    "open_files",
]


def open_files(settings: Settings, node: str = LOCAL_NODE) -> Files:
    """Return the files that the settings name, for a node of this name. Raises `ConfigError`."""
    if not settings.files_url:
        return Files(settings.data_dir, node)
    if not settings.files_url.startswith("s3://"):
        return SharedFolder(settings.data_dir, Path(settings.files_url), node)
    try:
        from .s3 import S3Files
    except ImportError as error:
        raise ConfigError("FACESWAP_FILES_URL on S3 needs obstore: pip install 'faceswap[cluster]'") from error
    return S3Files(settings.data_dir, settings.files_url, node, settings.max_upload_bytes)
