"""The machine as a process may use it: a container has less than the machine that it is on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from faceswap import machine

CORES, BYTES = 16, 64 << 30


@pytest.mark.parametrize(
    ("group", "files", "cores", "gib"),
    [
        ("0::/", {}, CORES, 64),
        ("0::/", {"memory.max": "max", "cpu.max": "max 100000"}, CORES, 64),
        ("0::/", {"memory.max": str(4 << 30), "cpu.max": "250000 100000"}, 2, 4),
        ("0::/", {"cpu.max": "50000 100000"}, 1, 64),
        ("1:cpu:/a\n0::/a/b", {"a/b/cpu.max": "800000 100000", "a/memory.max": str(8 << 30)}, 8, 8),
        ("0::/a", {"b/memory.max": "1"}, CORES, 64),  # another's
        (None, {"memory.max": "1"}, CORES, 64),
    ],
)
def test_a_control_group_bounds_memory_and_cores(
    group: str | None, files: dict[str, str], cores: int, gib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    if group is not None:
        (tmp_path / "group").write_text(f"{group}\n")
    monkeypatch.setattr(machine, "_GROUP", tmp_path / "group")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": BYTES // 4096}.__getitem__)
    assert (machine.cores(), machine.memory_bytes() >> 30) == (cores, gib)
