"""The inspection of a ComfyUI by its `/object_info`: node classes and models that a workflow misses. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .failures import node_missing, shown

UPLOADED = frozenset({"video", "image"})
"""Inputs that name an uploaded file: their choices change with every upload."""

Graph = Mapping[str, Mapping[str, Any]]
Infos = Mapping[str, Mapping[str, Any] | None]
"""Node class → what `/object_info` tells of it; None for a class that ComfyUI does not have."""


def node_classes(graph: Graph) -> tuple[str, ...]:
    """Return the node classes of a graph, each once."""
    return tuple(dict.fromkeys(node["class_type"] for node in graph.values()))


def problems(graph: Graph, infos: Infos) -> tuple[str, ...]:
    """Return what is missing, a sentence each: node classes, and choices (models) that ComfyUI does not offer."""
    return tuple(dict.fromkeys(_problems(graph, infos)))


def _problems(graph: Graph, infos: Infos) -> Iterator[str]:
    for node in graph.values():
        name = node["class_type"]
        info = infos.get(name)
        if info is None:
            yield node_missing(name)
            continue
        for input_name, choices in _choices(info):
            value = node["inputs"].get(input_name)
            if isinstance(value, str) and input_name not in UPLOADED and value not in choices:
                yield f"ComfyUI has no {shown(value)} for {input_name} of {shown(name)}; add it and restart ComfyUI."


def _choices(info: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the inputs with choices: `[[choice, …], …]`, in newer nodes `["COMBO", {"options": [choice, …]}]`."""
    sections = info.get("input")
    for section in sections.values() if isinstance(sections, dict) else ():
        for input_name, spec in section.items() if isinstance(section, dict) else ():
            match spec:
                case [[*choices], *_] | ["COMBO", {"options": [*choices]}, *_]:
                    yield input_name, choices
