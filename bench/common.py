"""Helpers of the benchmarks: memory and CPU of processes, and calls made in processes of their own."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
MODULE_PATHS = os.pathsep.join([str(HERE), str(HERE.parent / "tests")])
"""The `PYTHONPATH` of a process that imports benchmarks and helpers of the tests."""


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
    if not children:
        return time.clock_gettime(_cpu_clock(pid))
    times = psutil.Process(pid).cpu_times()
    alive = sum(time.clock_gettime(_cpu_clock(child.pid)) for child in psutil.Process(pid).children(recursive=True))
    return time.clock_gettime(_cpu_clock(pid)) + float(times.children_user + times.children_system) + alive


def _cpu_clock(pid: int) -> int:
    """Return the clock of the CPU time of a process; /proc counts only ticks (clock_getcpuclockid(3), Linux)."""
    return (~pid << 3) | 2


def p99(times: list[float]) -> float:
    """Return the 99th percentile; of nothing NaN, which meets no goal."""
    return sorted(times)[-(len(times) // 100) - 1] if times else math.nan


@asynccontextmanager
async def calling(
    function: Callable[..., Any], *arguments: Any, env: dict[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Call a function of a benchmark in a process of its own, which writes the answer as JSON when it returns.

    A call that is to go on until it is told to end reads its standard input.
    """
    code = "import json, sys, {0}; print(json.dumps({0}.{1}(*json.loads(sys.argv[1]))), flush=True)"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code.format(function.__module__, function.__name__), json.dumps(arguments)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**26,
        env={**os.environ, **(env or {}), "PYTHONPATH": MODULE_PATHS},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def answer(process: asyncio.subprocess.Process) -> Any:
    """End a call and return what its function returned."""
    told, _ = await process.communicate(b"\n")
    return json.loads(told.splitlines()[-1])


async def call(function: Callable[..., Any], *arguments: Any, env: dict[str, str] | None = None) -> Any:
    """Call a function of a benchmark in a process of its own; returns what it returned."""
    async with calling(function, *arguments, env=env) as process:
        return await answer(process)
