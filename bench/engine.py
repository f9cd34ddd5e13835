"""P9 and P12: the embedded engine, against decoding and encoding alone, and a long clip against a short one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import av
import cv2
from common import peak_memory_mb, reset_peak_memory
from media_samples import astronaut_frames
from processes import Child
from rows import Effort, Figure, Goal, Row, at_least, at_most, in_turn, ratio
from yarl import URL

from faceswap.comfy.client import ComfyClient
from faceswap.config import resource_dir
from faceswap.samples import FACE
from faceswap.workflow import Workflow

FRAME_RATE = 25
CRF = 20
SIZES = {"512²": (512, 512), "720p": (1280, 720), "1080p": (1920, 1080)}
SPEED_SECONDS = 5
SHORT_SECONDS, LONG_SECONDS = 10, 40


def clip(folder: Path, size: tuple[int, int], seconds: int) -> Path:
    """Write a clip of the moving astronaut, which repeats."""
    path, period = folder / f"{size[1]}-{seconds}.mp4", min(seconds, SHORT_SECONDS)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "veryfast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for _ in range(0, seconds, period):
            for picture in astronaut_frames(period * FRAME_RATE, (512, 512)):
                scaled = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(scaled, format="bgr24")))
        container.mux(stream.encode())
    return path


def recode(path: Path, out: Path, preset: str) -> float:
    """Decode and encode with the engine's settings, without a swap; returns the seconds it took."""
    started = time.perf_counter()
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        video = source.streams.video[0]
        video.thread_type = "AUTO"
        stream = target.add_stream("libx264", rate=FRAME_RATE, options={"preset": preset, "crf": str(CRF)})
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


@asynccontextmanager
async def running_engine(folder: Path, preset: str) -> AsyncIterator[EngineRun]:
    """Start an engine that encodes with a preset."""
    options = ("--no-token", "--port", "0", "--preset", preset, "--data-dir", str(folder / "engine"))
    engine = Child(folder / "log", "faceswap.engine", *options)
    async with engine, aiohttp.ClientSession() as session:
        yield EngineRun(engine, ComfyClient(URL(engine.url), session))


async def speed_row(preset: str, goals: Mapping[str, Goal | None], folder: Path, effort: Effort) -> list[Figure]:
    """Swap, and decode and encode alone, in turn, at each of the sizes that `goals` names."""
    seconds = effort.of(SPEED_SECONDS)
    figures = []
    async with running_engine(folder, preset) as run:
        for name, goal in goals.items():
            path = clip(folder, SIZES[name], seconds)

            async def swap(path: Path = path) -> tuple[float]:
                return (seconds * FRAME_RATE / await run.swap(path),)

            async def alone(path: Path = path) -> tuple[float]:
                return (seconds * FRAME_RATE / await asyncio.to_thread(recode, path, folder / "recoded.mp4", preset),)

            (ours,), (theirs,) = await in_turn(effort.rounds, swap, alone)
            figures.append(Figure(f"{name}, {preset}", "frames/s", ours, theirs, ratio, goal))
    return figures


async def length_row(folder: Path, effort: Effort) -> list[Figure]:
    """Hold a long clip against a short one: once, since each takes its time."""
    found = []
    async with running_engine(folder, "medium") as run:
        await run.swap(clip(folder, SIZES["720p"], 1))
        for seconds in (SHORT_SECONDS, max(SHORT_SECONDS, effort.of(LONG_SECONDS))):
            path = clip(folder, SIZES["720p"], seconds)
            reset_peak_memory(run.engine.pid)
            took_s = await run.swap(path)
            found.append((peak_memory_mb(run.engine.pid), seconds * FRAME_RATE / took_s))
    (short_memory, short_fps), (long_memory, long_fps) = found
    return [
        Figure("peak memory", "MiB", [long_memory], [short_memory], ratio, at_most(1.1)),
        Figure("speed", "frames/s", [long_fps], [short_fps], ratio, at_least(0.95)),
    ]


ROWS = (
    Row(
        "P9",
        f"the embedded engine, {SPEED_SECONDS} s, crf {CRF}, against decoding and encoding alone",
        partial(speed_row, "medium", {"512²": at_least(0.80), "720p": at_least(0.80), "1080p": None}),
    ),
    Row(
        "P9-veryfast",
        f"the embedded engine, {SPEED_SECONDS} s, crf {CRF}, against decoding and encoding alone",
        partial(speed_row, "veryfast", {"512²": at_least(0.65), "720p": at_least(0.65)}),
    ),
    Row(
        "P12",
        f"the embedded engine, {LONG_SECONDS} s of 720p against {SHORT_SECONDS} s (SHARE=15: ten minutes)",
        length_row,
    ),
)
