"""The architecture: what stands above what. Nothing imports upward, nothing in circles, and the engine stands alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "faceswap"

LAYERS: tuple[tuple[str, frozenset[str]], ...] = (
    ("the command line", frozenset({"__main__", "cli", "demo"})),
    (
        "the process",
        frozenset(
            {"serve", "migrate", "provenance", "doctor", "key_command", "backup", "audit", "log_setup", "systemd"}
        ),
    ),
    ("every part wired", frozenset({"app"})),
    ("handlers", frozenset({"api"})),
    (
        "what moves jobs",
        frozenset({"scheduler", "erasure", "other_nodes", "janitor", "outbox", "intake", "thumbnails"}),
    ),
    ("one segment, one result", frozenset({"runner", "assembly"})),
    (
        "the engines together",
        frozenset({"engine_watch", "held_backends", "leaseholder", "node", "orphans", "recovery"}),
    ),
    ("ComfyUI", frozenset({"comfy"})),
    ("what is told", frozenset({"feed", "keyring", "progress_reporter"})),
    (
        "parts of one thing each",
        frozenset({"media", "store", "hub", "url_guard", "workflow", "client", "blocking", ""}),
    ),
    ("where things lie", frozenset({"files", "config"})),
    (
        "what a job is, and how it is counted",
        frozenset({"backlog", "deliveries", "events", "jobs", "links", "metrics", "options", "tracing", "uploads"}),
    ),
    (
        "ground",
        frozenset(
            {
                "child_process",
                "clock",
                "durable",
                "errors",
                "label",
                "limits",
                "machine",
                "marker",
                "marks",
                "progress",
                "samples",
                "watermark",
            }
        ),
    ),
)
"""The layers from top to bottom. Each module or subpackage stands in one; `""` is the package itself."""

ALONE = frozenset({"engine"})
"""Parts that no other part imports and that import no other part: processes of their own."""

SHARED = frozenset({"durable", "limits", "machine", "marker", "marks"})
"""Modules that the parts that stand alone share with the others."""

DETECTOR = frozenset({"engine.landmarks"})
"""The module of the engine that finds faces; the workers of `media` find them with the same."""

DETECTOR_PARTS = frozenset({"engine.landmarks", "engine.mesh", "engine.networks", "engine.pixels"})
"""All that it consists of: nothing of the engine's server."""


def name_of(path: Path) -> str:
    """Name a file's module in the package: `comfy.client`; `comfy` for its `__init__.py`, `""` for the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES: Mapping[str, Path] = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[str]:
    """Yield the full names that a file imports: of modules, or of what is in them."""
    package = ("faceswap", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            origin = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def modules(path: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    found = set()
    for full_name in imports(path):
        root, _, name = full_name.partition(".")
        if root == "faceswap":
            while name not in FILES:
                name = name.rpartition(".")[0]
            found.add(name)
    return found


@cache
def graph() -> Mapping[str, set[str]]:
    """Return what each module imports of the package: made at first use, since every worker collects all tests."""
    return {name: modules(path) - {name} for name, path in FILES.items()}


def part(module: str) -> str:
    """Return the part of the architecture that a module belongs to."""
    return module.split(".")[0]


def layer(module: str) -> int:
    """Return the number of layers above a module."""
    return next(level for level, (_, parts) in enumerate(LAYERS) if part(module) in parts)


def test_every_part_has_its_one_place() -> None:
    placed = [name for _, parts in LAYERS for name in parts] + list(ALONE)
    assert sorted(placed) == sorted({part(module) for module in FILES})


@pytest.mark.parametrize("module", [module for module in FILES if part(module) not in ALONE])
def test_nothing_imports_upward(module: str) -> None:
    upward = {target for target in graph()[module] if part(target) not in ALONE and layer(target) < layer(module)}
    assert not upward


def test_parts_do_not_lean_on_each_other_in_circles() -> None:
    parts = {part(module) for module in FILES}
    between_parts = {
        name: {part(target) for module in FILES if part(module) == name for target in graph()[module]} - {name}
        for name in parts
    }
    assert circle(between_parts) is None


def test_files_do_not_import_each_other_in_circles() -> None:
    # A package's own file gathers what lies in it: there, importing from one's package is no circle.
    between_files = {
        module: {target for target in targets if not module.startswith(f"{target}.")}
        for module, targets in graph().items()
    }
    assert circle(between_files) is None


def circle(edges: Mapping[str, set[str]]) -> list[str] | None:
    """Find a circle in a graph, as the names on its way."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str] | None:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for target in sorted(edges[name]):
                if found := walk(target, [*way, name]):
                    return found
            done.add(name)
        return None

    return next((found for name in sorted(edges) if (found := walk(name, []))), None)


@pytest.mark.parametrize("name", sorted(ALONE))
def test_the_engine_and_the_service_know_each_other_over_the_wire_only(name: str) -> None:
    for module, targets in graph().items():
        others = targets - SHARED - (DETECTOR if part(module) == "media" else frozenset())
        crossing = {target for target in others if (part(target) in {name}) != (part(module) in {name})}
        assert not crossing, module


def test_the_detector_needs_nothing_else_of_the_engine() -> None:
    needed = set().union(*(graph()[module] for module in DETECTOR_PARTS))
    assert needed - {"engine"} <= DETECTOR_PARTS


@pytest.mark.parametrize(
    "name", ["jobs", "options", "deliveries", "events", "progress", "errors", "workflow", "uploads", "backlog"]
)
def test_what_is_pure_knows_of_no_loop_socket_or_database(name: str) -> None:
    roots = {full_name.split(".")[0] for full_name in imports(FILES[name])}
    assert not roots & {"asyncio", "aiohttp", "sqlite3", "aiosqlite", "socket", "subprocess", "threading"}


def test_sql_is_spoken_in_the_store_only() -> None:
    for kind in ("sqlite3", "aiosqlite", "asyncpg"):
        assert {part(module) for module, path in FILES.items() if kind in imports(path)} == {"store"}


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import faceswap.store", "faceswap.store"),
        ("from faceswap.store import Store", "faceswap.store.Store"),
        ("from ..store import Store", "faceswap.store.Store"),
        ("from .. import errors", "faceswap.errors"),
        ("from . import keys", "faceswap.api.keys"),
        ("def f():\n    from .keys import STORE", "faceswap.api.keys.STORE"),
    ],
)
def test_every_way_to_import_is_seen(line: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_architecture.PACKAGE", tmp_path)
    (tmp_path / "api").mkdir()
    file = tmp_path / "api" / "new.py"
    file.write_text(line)
    assert list(imports(file)) == [found]
