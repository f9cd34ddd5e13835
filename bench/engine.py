"""The embedded engine's frames a second, against only decoding and encoding the same clip, and its peak memory."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import av
import cv2
from common import peak_memory_mb, print_table, reset_peak_memory
from media_samples import astronaut_frames
from processes import Child
from yarl import URL

from faceswap.comfy.client import ComfyClient
from faceswap.config import resource_dir
from faceswap.samples import FACE
from faceswap.workflow import Workflow

FRAME_RATE = 25
CRF = 20
SIZES = {"512²": (512, 512), "720p": (1280, 720)}
SPEED_SECONDS, LONG_SECONDS = 10, 180
RUNS = 3


def clip(folder: Path, size: tuple[int, int], seconds: int) -> Path:
    """Write a clip of the moving astronaut, which repeats every ten seconds."""
    path = folder / f"{size[1]}-{seconds}.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "veryfast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for _ in range(0, seconds, SPEED_SECONDS):
            for picture in astronaut_frames(SPEED_SECONDS * FRAME_RATE, (512, 512)):
                scaled = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(scaled, format="bgr24")))
        container.mux(stream.encode())
    return path


def recode(path: Path, out: Path) -> float:
    """Decode and encode with the engine's settings, without a swap; returns the seconds it took."""
    started = time.perf_counter()
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        video = source.streams.video[0]
        video.thread_type = "AUTO"
        stream = target.add_stream("libx264", rate=FRAME_RATE, options={"preset": "medium", "crf": str(CRF)})
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        for frame in source.decode(video):
            frame.pict_type = av.video.frame.PictureType.NONE
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return time.perf_counter() - started


class EngineRun:
    """An engine process, with a client."""

    def __init__(self, engine: Child, client: ComfyClient) -> None:
        self.engine = engine
        self.client = client
        self.workflow = Workflow.load(resource_dir("workflows") / "FaceSwap-Reactor-API.json")
        self.number = 0

    async def swap(self, path: Path) -> float:
        """Swap the sample face into a clip; returns the seconds between prompt and history."""
        video = await self.client.upload(path, path.name, "bench")
        image = await self.client.upload(FACE, FACE.name, "bench")
        self.number += 1
        prompt_id = f"bench-{self.number}"
        graph = self.workflow.build(
            video=video, images=(image,), output_prefix=f"bench/{prompt_id}", options={"crf": CRF}
        )
        started = time.perf_counter()
        await self.client.submit(graph, "bench", prompt_id)
        while (outcome := await self.client.outcome(prompt_id)) is None:
            await asyncio.sleep(0.02)
        assert outcome.state == "success", outcome
        return time.perf_counter() - started


async def speed_row(run: EngineRun, folder: Path, name: str, size: tuple[int, int]) -> list[object]:
    path = clip(folder, size, SPEED_SECONDS)
    frames = SPEED_SECONDS * FRAME_RATE
    await run.swap(path)
    swap_s, alone_s = [], []
    for _ in range(RUNS):
        swap_s.append(await run.swap(path))
        alone_s.append(await asyncio.to_thread(recode, path, folder / "recoded.mp4"))
    ratios = [alone / swap for alone, swap in zip(alone_s, swap_s, strict=True)]
    swap_fps, alone_fps = frames / statistics.median(swap_s), frames / statistics.median(alone_s)
    return [name, f"{swap_fps:.0f}", f"{alone_fps:.0f}", f"{statistics.median(ratios):.2f}"]


async def memory_row(run: EngineRun, folder: Path, seconds: int) -> list[object]:
    path = clip(folder, SIZES["720p"], seconds)
    reset_peak_memory(run.engine.pid)
    took_s = await run.swap(path)
    sys.stderr.write(f"{seconds} s of 720p took {took_s:.0f} s\n")
    return [f"{seconds} s", f"{peak_memory_mb(run.engine.pid):.0f} MiB", f"{seconds * FRAME_RATE / took_s:.0f}"]


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="faceswap-bench-"))
    options = ("--no-token", "--port", "0", "--data-dir", str(folder / "engine"))
    engine = Child(folder / "log", "faceswap.engine", *options)
    async with engine, aiohttp.ClientSession() as session:
        run = EngineRun(engine, ComfyClient(URL(engine.url), session))
        rows = [await speed_row(run, folder, name, size) for name, size in SIZES.items()]
        print_table("Embedded engine, crf 20, preset medium", ["size", "fps", "decode + encode alone", "ratio"], rows)
        rows = [await memory_row(run, folder, seconds) for seconds in (SPEED_SECONDS, LONG_SECONDS)]
        print_table("Embedded engine, 720p", ["clip", "peak memory", "fps"], rows)


if __name__ == "__main__":
    asyncio.run(main())
