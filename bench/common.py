"""Helpers of the benchmarks: a table, and peak memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil


def peak_memory_mb(pid: int) -> float:
    """Return the most memory a process has held since its start or the last reset, MiB (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def reset_peak_memory(pid: int) -> float:
    """Reset the peak; returns the memory that the process holds now, MiB (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_memory_mb(pid)


def cpu_s(pid: int, *, children: bool = True) -> float:
    """Return the CPU seconds of a process and, by default, of its children, the ended ones included."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    if not children:
        return float(times.user + times.system)
    alive = [child.cpu_times() for child in process.children(recursive=True)]
    return float(sum(times) + sum(each.user + each.system for each in alive))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    lines = [f"\n**{title}**\n", f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
