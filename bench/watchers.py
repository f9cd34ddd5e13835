"""P2: a thousand watchers of one job while its engine sends 25 durable events a second."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
from clips import make_clip
from common import cpu_s, print_table
from processes import Child, Service

from faceswap.client import FaceSwap
from faceswap.samples import FACE

HERE = Path(__file__).parent
STREAMS, SOCKETS = 800, 200
RATES = (4, 25)
WINDOW_S, ROUNDS = 5.0, 5
WARM_UP_S = 3.0


@asynccontextmanager
async def watching(service: Service, prompt_id: str, streams: int, sockets: int) -> AsyncIterator[Callable[[], object]]:
    """Watch a job; yields a function that returns what the watchers saw since its last call."""
    command = (sys.executable, "-m", "watching", service.url, prompt_id, str(streams), str(sockets))
    process = await asyncio.create_subprocess_exec(
        *command, cwd=HERE, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def take() -> dict[str, list[float]]:
        stdin.write(b"\n")
        return dict(json.loads(await stdout.readuntil(b"\n")))

    try:
        assert b"watching" in await stdout.readline()
        yield take
    finally:
        stdin.close()
        await process.wait()


async def measure(folder: Path, rate: float) -> list[object]:
    """Return the row of a rate of events."""
    folder.mkdir()
    env = {"PYTHONPATH": str(HERE.parent / "tests")}
    talker = Child(folder / "talker.log", "talker", str(folder / "engine"), str(rate), cwd=HERE, env=env)
    async with talker, Service(folder, talker.url) as service, FaceSwap(service.url) as client:
        prompt_id = await client.submit(make_clip(folder / "clip.mp4", 24), FACE)
        async for event in client.events(prompt_id):
            if event.type == "executing":
                break
        before = psutil.Process(service.pid).memory_info().rss
        async with watching(service, prompt_id, STREAMS, SOCKETS) as take:
            memory = psutil.Process(service.pid).memory_info().rss - before
            (folder / "engine" / "go").touch()
            await asyncio.sleep(WARM_UP_S)
            rounds = []
            for _ in range(ROUNDS):
                await take()
                started, cpu = time.monotonic(), cpu_s(service.pid, children=False)
                await asyncio.sleep(WINDOW_S)
                cpu = (cpu_s(service.pid, children=False) - cpu) / (time.monotonic() - started)
                await asyncio.sleep(1)  # for the last to arrive
                seen = await take()
                rounds.append((cpu, seen))
    lags = [sorted(seen["lag_ms"]) for _, seen in rounds]
    # The first and the last ticks of a window may be cut by its ends.
    missed = sum(count < STREAMS + SOCKETS for _, seen in rounds for count in seen["watchers"][2:-2])
    return [
        rate,
        f"{statistics.median(len(lag) for lag in lags) / (WINDOW_S + 1):.1f}",
        f"{statistics.median(cpu for cpu, _ in rounds):.0%}",
        f"{statistics.median(statistics.median(lag) for lag in lags):.1f}",
        f"{statistics.median(statistics.quantiles(lag, n=100)[98] for lag in lags):.1f}",
        f"{memory / 1024 / (STREAMS + SOCKETS):.1f}",
        missed,
    ]


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="faceswap-bench-") as name:
        rows = [await measure(Path(name) / str(rate), rate) for rate in RATES]
    print_table(
        f"One job, {STREAMS} event streams and {SOCKETS} WebSockets",
        ["events/s", "arrived/s", "CPU", "last watcher p50, ms", "p99, ms", "KB a watcher", "incomplete"],
        rows,
    )


if __name__ == "__main__":
    asyncio.run(main())
