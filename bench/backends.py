"""Speed-up of one long job by several ComfyUI servers, against one.

The engines only wait for each frame, as if each had a GPU of its own: measured is how busy the service keeps them.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
from clips import make_clip
from common import print_table
from processes import Engine, Service, eventually

from faceswap.client import FaceSwap
from faceswap.samples import FACE

FRAMES = 1200
WAIT_S = 0.03
SEGMENT_FRAMES = 30


async def seconds_on(count: int, clip: Path, folder: Path) -> float:
    """Measure the seconds of a job on `count` engines, from its submission to its end."""
    folder.mkdir()
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(Engine(folder / str(number), wait_per_frame_s=WAIT_S))
            for number in range(count)
        ]
        urls = [engine.url for engine in engines]
        service = await stack.enter_async_context(Service(folder, *urls, segment_frames=SEGMENT_FRAMES))
        await all_connected(service, count)
        client = await stack.enter_async_context(FaceSwap(service.url))
        started = time.perf_counter()
        prompt_id = await client.submit(clip, FACE)
        async for event in client.events(prompt_id):
            assert event.type != "error", event.data
        return time.perf_counter() - started


async def all_connected(service: Service, count: int) -> None:
    async with aiohttp.ClientSession() as session:

        async def connected() -> bool:
            async with session.get(f"{service.url}/health") as answer:
                backends = (await answer.json())["backends"]
            return sum(backend["listener"] == "connected" for backend in backends) == count

        await eventually(connected)


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="faceswap-bench-"))
    clip = make_clip(folder / "clip.mp4", FRAMES, size=(96, 64), sounds=["aac"])
    taken = {count: await seconds_on(count, clip, folder / f"with-{count}") for count in (1, 2, 4)}
    print_table(
        f"{FRAMES} frames that cost {WAIT_S * 1000:.0f} ms each, in segments of {SEGMENT_FRAMES}",
        ["engines", "seconds", "times as fast"],
        [[count, f"{seconds:.1f}", f"{taken[1] / seconds:.2f}"] for count, seconds in taken.items()],
    )


if __name__ == "__main__":
    asyncio.run(main())
