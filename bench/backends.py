"""P10: one long job on several ComfyUI servers, against one.

The engines only wait for each frame, as if each had a GPU of its own: measured is how busy the service keeps them.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from clips import make_clip
from jobs import submit_and_watch
from places import all_connected
from processes import Engine, Service
from rows import Effort, Figure, Row, at_least, in_turn

from faceswap.client import FaceSwap

COUNTS = (1, 2, 4)
FRAMES = 360
WAIT_S = 0.02
SEGMENT_FRAMES = 15


async def seconds_of_job(client: FaceSwap, clip: Path) -> tuple[float]:
    """Return the seconds of a job, from its submission to its end."""
    started = time.perf_counter()
    await submit_and_watch(client, clip)
    return (time.perf_counter() - started,)


async def measure_row(folder: Path, effort: Effort) -> list[Figure]:
    """Run the job on each number of engines in turn."""
    clip = make_clip(folder / "clip.mp4", effort.of(FRAMES, 2), size=(96, 64), sounds=["aac"])
    async with AsyncExitStack() as stack:
        clients = []
        for count in COUNTS:
            home = folder / f"with-{count}"
            home.mkdir()
            engines = [
                await stack.enter_async_context(Engine(home / str(number), wait_per_frame_s=WAIT_S))
                for number in range(count)
            ]
            urls = [engine.url for engine in engines]
            service = await stack.enter_async_context(Service(home, *urls, segment_frames=SEGMENT_FRAMES))
            await all_connected(service, count)
            clients.append(await stack.enter_async_context(FaceSwap(service.url)))
        taken = await in_turn(effort.rounds, *(partial(seconds_of_job, client, clip) for client in clients))
    one = taken[0][0]
    goals = {4: at_least(3.6)}
    return [
        Figure(f"{count} engines against one", "seconds", times, one, speed_up, goals.get(count))
        for count, (times,) in zip(COUNTS[1:], taken[1:], strict=True)
    ]


def speed_up(seconds: float, with_one: float) -> float:
    """Compare by how many times as fast."""
    return with_one / seconds


ROWS = (Row("P10", f"one job of {FRAMES} frames on engines that wait {WAIT_S * 1000:.0f} ms for each", measure_row),)
