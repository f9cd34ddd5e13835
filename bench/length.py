"""L1: the cost of jobs of 1, 4 and 16 minutes of the same picture: CPU seconds of the engine and of the service.

The engine is the embedded one, made to decode from the first frame for each prompt as ComfyUI does. A real ComfyUI
takes its place where `BENCH_COMFYUI_URL` and the id of its process, `BENCH_COMFYUI_PID`, are set.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from clips import make_clip
from common import cpu_s
from processes import Engine, Service
from rows import Effort, Figure, Row, growth

from faceswap.client import FaceSwap
from faceswap.samples import FACE

MINUTES = (1, 4, 16)
RATE = 24
SIZE = (96, 64)
GROUPS = {"a key frame every 2 seconds": 48, "one group of pictures": 1_000_000}


@asynccontextmanager
async def engine(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """Yield the address and the process id of the engine to measure, started here unless the environment names one."""
    if url := os.environ.get("BENCH_COMFYUI_URL"):
        yield url, int(os.environ["BENCH_COMFYUI_PID"])
        return
    async with Engine(folder, paint=True, streams=False) as started:
        yield started.url, started.pid


async def cost(clip: Path, folder: Path) -> tuple[float, float]:
    """Measure the CPU seconds of the engine and of the service for one job."""
    async with engine(folder) as (url, pid), Service(folder, url) as service, FaceSwap(service.url) as client:
        before = cpu_s(pid), cpu_s(service.pid)
        prompt_id = await client.submit(clip, FACE)
        async for event in client.events(prompt_id):
            assert event.type != "error", event.data
        return cpu_s(pid) - before[0], cpu_s(service.pid) - before[1]


async def measure_row(folder: Path, effort: Effort) -> list[Figure]:
    """Run a job of each length once, for each way to place the key frames."""
    figures = []
    for name, group in GROUPS.items():
        costs = {}
        for minutes in MINUTES:
            home = folder / f"{group}-{minutes}"
            home.mkdir()
            frames = effort.of(minutes * 60 * RATE)
            clip = make_clip(home / "clip.mp4", frames, size=SIZE, gop=group, b_frames=0)
            costs[minutes] = await cost(clip, home)
        for number, process in enumerate(("engine", "service")):
            rounds = [{minutes: of_both[number] for minutes, of_both in costs.items()}]
            figures.append(growth(f"{process}, {name}", "CPU s by minutes", rounds, of_each=False))
    return figures


ROWS = (Row("L1", "growth: jobs of 1, 4 and 16 minutes", measure_row),)
