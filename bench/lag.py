"""P3: a thousand jobs with a watcher each, five of them running, against a bare client on ComfyUI's own socket."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path

from clips import make_clip
from places import all_connected, deployed
from processes import Service, eventually
from rows import Effort, Figure, Place, at_most, in_turn, ratio, rows_in
from status import status_document
from talker import Talkers
from watchers import TAIL_S, submit_until_held
from watching import Taken, watching

from faceswap.client import FaceSwap

JOBS, RUNNING = 1_000, 5
RATE = 25
WINDOW_S = 3.0


async def measure_row(place: Place, folder: Path, effort: Effort) -> list[Figure]:
    """Let the engines of the service and those of the bare client talk in turn."""
    jobs = effort.of(JOBS, 2 * RUNNING)
    async with (
        Talkers(folder / "ours", RUNNING) as ours,
        Talkers(folder / "theirs", RUNNING) as theirs,
        deployed(place, folder, *ours.urls, queue_limit=2 * JOBS) as nodes,
    ):
        await all_connected(nodes.nodes[0], RUNNING)
        async with FaceSwap(nodes.asked.url) as client:
            clip = make_clip(folder / "clip.mp4", 24)
            running = [await submit_until_held(client, clip) for _ in range(RUNNING)]
            await nodes.stop()
            _, waiting = nodes.fill(running[0], waiting=jobs - RUNNING)
            await nodes.start()
        service = nodes.asked
        await all_connected(nodes.nodes[0], RUNNING)
        await asyncio.gather(*(eventually(lambda one=one: is_processing(service, one)) for one in running))
        streams = [f"stream {service.url} {prompt_id}" for prompt_id in (*running, *waiting)]
        sockets = [f"engine {url}" for url in theirs.urls]
        async with (
            watching(folder / "streams", streams) as take_ours,
            watching(folder / "sockets", sockets) as take_theirs,
        ):
            (lags, counts), (bare_lags, bare_counts) = await in_turn(
                effort.rounds, lambda: measure(ours, take_ours), lambda: measure(theirs, take_theirs)
            )
    return [
        Figure("lag", "p50 ms", lags, bare_lags, ratio, at_most(2.5)),
        Figure("arrived", "events", counts, bare_counts, ratio),
    ]


async def is_processing(service: Service, prompt_id: str) -> bool:
    """Tell whether a job is being worked on."""
    document = await status_document(service, prompt_id)
    return isinstance(document, dict) and document["status"] == "PROCESSING"


async def measure(talkers: Talkers, take: Callable[[], Awaitable[Taken]]) -> tuple[float, float]:
    """Return the median lag of a window in ms, and how many events came."""
    async with talkers.talking(RATE):
        await asyncio.sleep(TAIL_S)
        await take()
        await asyncio.sleep(WINDOW_S)
        lags = (await take())["lag_ms"]
    await asyncio.sleep(TAIL_S)
    return statistics.median(lags), len(lags)


ROWS = rows_in("P3", f"{JOBS:,} jobs with a watcher each, {RUNNING} running at {RATE} events/s each", measure_row)
