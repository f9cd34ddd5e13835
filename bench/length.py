"""The cost of jobs of 1, 4 and 16 minutes of the same picture: CPU seconds of the engine and of the service.

The engine is the embedded one, made to decode from the first frame for each prompt as ComfyUI does. A real ComfyUI
takes its place where `BENCH_COMFYUI_URL` and the id of its process, `BENCH_COMFYUI_PID`, are set.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from clips import make_clip
from common import cpu_s, print_table
from processes import Engine, Service

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


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="faceswap-bench-"))
    rows = []
    for name, group in GROUPS.items():
        costs = []
        for minutes in MINUTES:
            home = folder / f"{group}-{minutes}"
            home.mkdir()
            clip = make_clip(home / "clip.mp4", minutes * 60 * RATE, size=SIZE, gop=group, b_frames=0)
            costs.append(await cost(clip, home))
            seconds, ratios = costs[-1], (ours / first for ours, first in zip(costs[-1], costs[0], strict=True))
            rows.append([name, minutes, *(f"{s:.1f} s" for s in seconds), *(f"{ratio:.1f}" for ratio in ratios)])
    header = ["video", "minutes", "engine", "service", "engine, ratio", "service, ratio"]
    print_table("CPU seconds by length", header, rows)


if __name__ == "__main__":
    asyncio.run(main())
