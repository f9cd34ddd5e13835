"""The machine as this process may use it: a container has less than the machine that it is on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_GROUP, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The file that names a process's control group, and the folder of all groups."""


def memory_bytes() -> int:
    """Return the memory that this process may have: the machine's, or less where its control group has a limit."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(int(limit) for limit in _group_limits("memory.max") if limit.isdigit())])


def cores() -> int:
    """Return the cores that this process may keep busy, at least one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for limit in _group_limits("cpu.max"):
        quota, _, period = limit.partition(" ")
        if quota.isdigit() and period.isdigit():
            count = min(count, int(quota) // int(period))
    return max(1, count)


def _group_limits(name: str) -> Iterator[str]:
    """Yield the texts of a file of this process's control group (version 2) and of those above it, where it has any."""
    with suppress(OSError):
        lines = _GROUP.read_text("utf-8").splitlines()
        group = PurePosixPath(next((line[3:] for line in lines if line.startswith("0::")), "/"))
        for folder in (group, *group.parents):
            with suppress(OSError):
                yield (_GROUPS / folder.relative_to("/") / name).read_text("ascii").strip()
