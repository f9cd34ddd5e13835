"""The node classes that the engine offers, as `/object_info` lists them, and the files that a graph may name."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from .folders import Folders, OutsideError
from .network_files import NetworkFolder
from .network_kinds import RESTORERS, SWAP_KINDS, Kind

FILE_INPUTS = {("LoadImage", "image"): "image", ("VHS_LoadVideo", "video"): "video"}
"""The inputs that name a file of the input folder, and what it is called in errors."""

NETWORK_INPUTS: dict[tuple[str, str], tuple[Kind, ...]] = {
    ("ReActorFaceSwap", "swap_model"): SWAP_KINDS,
    ("ReActorFaceSwap", "face_restore_model"): RESTORERS,
    ("ReActorFaceBoost", "boost_model"): RESTORERS,
}
"""The inputs that name a network, and its kinds. Beside those of the models folder the names of ReActor's are taken."""

_SUFFIXES = {
    "image": {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"},
    "video": {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".gif"},
}


@functools.cache
def _template() -> str:
    return Path(__file__).with_name("object_info.json").read_text("utf-8")


def describe(folders: Folders) -> dict[str, Any]:
    """Return the node classes as `/object_info` answers them, with the files that can be chosen now."""
    descriptions: dict[str, Any] = json.loads(_template())
    names = sorted(path.name for path in folders.folder("input").iterdir() if path.is_file())
    for (class_type, name), kind in FILE_INPUTS.items():
        chosen = [file for file in names if PurePosixPath(file).suffix.lower() in _SUFFIXES[kind]]
        descriptions[class_type]["input"]["required"][name][0] = chosen
    networks = NetworkFolder(folders.models)
    for (class_type, name), kinds in NETWORK_INPUTS.items():
        choices = descriptions[class_type]["input"]["required"][name][0]
        choices += [file for file in networks.names(kinds) if file not in choices]
    return descriptions


def file_checks(folders: Folders) -> dict[tuple[str, str], Callable[[Any], str | None]]:
    """Return the checks for `graph.validate` that a named file exists."""

    def check(kind: str, value: Any) -> str | None:
        return None if existing_file(folders, value) else f"Invalid {kind} file: {value}"

    return {key: functools.partial(check, kind) for key, kind in FILE_INPUTS.items()}


def existing_file(folders: Folders, value: Any) -> Path | None:
    """Return the file that a graph names, None if there is no such file within the engine's folders."""
    try:
        path = folders.annotated(str(value))
    except OutsideError:
        return None
    return path if path.is_file() else None


@functools.cache
def load_formats() -> dict[str, dict[str, Any]]:
    """Return the presets of VHS_LoadVideo's `format`."""
    spec = json.loads(_template())["VHS_LoadVideo"]["input"]["optional"]["format"]
    formats: dict[str, dict[str, Any]] = spec[1]["formats"]
    return formats
