"""The time of a start with 100,000 ended and 1,000 waiting jobs, against a start with none; `/status` in both."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
import uuid
from pathlib import Path

import aiohttp
from clips import make_clip
from common import print_table
from processes import Engine, Service

from faceswap.client import FaceSwap
from faceswap.samples import FACE

ENDED, WAITING = 100_000, 1_000
FAR_FUTURE_MS = 4_000_000_000_000
"""The time until which the waiting jobs, which have no inputs, are not worked on."""
STARTS, REQUESTS = 5, 2_000


def fill(database: Path, prompt_id: str, ended: int, waiting: int) -> None:
    """Insert the jobs as copies of one ended job."""
    connection = sqlite3.connect(database)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(job)")]
    values = connection.execute("SELECT * FROM job WHERE prompt_id = ?", (prompt_id,)).fetchone()
    job = dict(zip(columns, values, strict=True))
    marks = ", ".join("?" * len(columns))
    with connection:
        for number in range(ended + waiting):
            copy = {**job, "prompt_id": str(uuid.uuid4()), "output_name": f"copy {number}"}
            copy |= {"created_at": job["created_at"] - 1000 * number, "idempotency_key": None}
            if number < ended:
                # Ended, and its files are erased, as after a year.
                copy |= {"inputs_erased": 1, "result_erased": 1, "result_file": f"copy {number}.mp4"}
            else:
                copy |= {"state": "QUEUED", "finished_at": None, "result_file": None, "segments_done": 0}
            connection.execute(f"INSERT INTO job VALUES ({marks})", list(copy.values()))
            connection.execute(
                "INSERT INTO input SELECT ?, role, number, file, bytes, sha256, facts FROM input WHERE prompt_id = ?",
                (copy["prompt_id"], prompt_id),
            )
            connection.execute(
                "INSERT INTO segment"
                " (prompt_id, number, first_frame, frame_count, state, priority, created_at, not_before)"
                " VALUES (?, 0, 0, 24, ?, 0, ?, ?)",
                (copy["prompt_id"], "done" if number < ended else "waiting", copy["created_at"], FAR_FUTURE_MS),
            )
            for seq in range(1, 9):
                connection.execute(
                    "INSERT INTO event VALUES (?, ?, 'status', '{}', ?)", (copy["prompt_id"], seq, copy["created_at"])
                )
    connection.close()


async def seconds_to_ready(service: Service) -> float:
    started = time.perf_counter()
    await service.start()
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{service.url}/readyz") as answer:
                if answer.status == 200:
                    return time.perf_counter() - started
            await asyncio.sleep(0.005)


async def requests_a_second(service: Service, prompt_id: str) -> float:
    started = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        for _ in range(REQUESTS):
            async with session.get(f"{service.url}/status/{prompt_id}") as answer:
                await answer.read()
    return REQUESTS / (time.perf_counter() - started)


async def measure(folder: Path, fill_it: bool) -> list[object]:
    folder.mkdir()
    async with Engine(folder, paint=True) as engine:
        service = Service(folder, engine.url, queue_limit=100_000)
        async with service, FaceSwap(service.url) as client:
            prompt_id = await client.submit(make_clip(folder / "clip.mp4", 24), FACE)
            async for _ in client.events(prompt_id):
                pass
            await service.stop()
            if fill_it:
                fill(service.data_dir / "faceswap.db", prompt_id, ENDED, WAITING)
            starts, speeds = [], []
            for _ in range(STARTS):
                starts.append(await seconds_to_ready(service))
                speeds.append(await requests_a_second(service, prompt_id))
                await service.stop()
    what = f"{ENDED + WAITING:,} jobs" if fill_it else "1 job"
    return [what, f"{statistics.median(starts):.2f} s", f"{statistics.median(speeds):,.0f}"]


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="faceswap-bench-"))
    rows = [await measure(folder / "empty", False), await measure(folder / "full", True)]
    print_table("Start", ["database", "ready after", "/status a second, one connection"], rows)


if __name__ == "__main__":
    asyncio.run(main())
