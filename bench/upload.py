"""P4: a 1 GiB video on its way in, against bare handlers that write the body of a PUT to a file and sync it."""

from __future__ import annotations

import json
from pathlib import Path

from clips import make_clip, padded
from common import HERE, call, peak_memory_mb, reset_peak_memory
from jobs import submit_and_watch
from processes import Child, Engine, Service, eventually
from rows import Effort, Figure, Row, at_most, difference, in_turn, ratio
from transfers import post_job, put

from faceswap.client import FaceSwap
from faceswap.samples import FACE

SIZE_BYTES = 2**30


async def measure_row(folder: Path, effort: Effort) -> list[Figure]:
    """Send the same file by the same sender to the service and to both bare handlers."""
    video = padded(folder / "big.mp4", effort.of(SIZE_BYTES, 2**20))
    async with (
        Engine(folder, paint=True) as engine,
        Service(folder, engine.url) as service,
        FaceSwap(service.url) as client,
        Child(folder / "bare.log", "bare", str(folder), "{}", cwd=HERE) as bare,
    ):
        await submit_and_watch(client, make_clip(folder / "small.mp4", 24))
        await engine.hold()

        async def upload() -> tuple[float, float, float]:
            before = reset_peak_memory(service.pid)
            seconds, body = await call(post_job, service.url, str(video), str(FACE))
            peak = peak_memory_mb(service.pid)
            prompt_id = json.loads(body)["prompt_id"]
            await client.cancel(prompt_id)
            inputs = service.data_dir / "inputs" / prompt_id
            await client.delete(prompt_id)
            await eventually(lambda: _is_gone(inputs))
            return seconds, before, peak

        async def bare_put(path: str) -> tuple[float]:
            seconds = await call(put, f"{bare.url}{path}", str(video))
            (folder / "put").unlink()
            return (seconds,)

        (ours, before, peaks), (hashed,), (plain,) = await in_turn(
            effort.rounds, upload, lambda: bare_put("/hashed"), lambda: bare_put("/plain")
        )
    return [
        Figure("against a bare PUT that hashes", "seconds", ours, hashed, ratio, at_most(1.3)),
        Figure("against a bare PUT", "seconds", ours, plain, ratio, at_most(1.3)),
        Figure("memory", "MiB more at most", peaks, before, difference, at_most(8)),
    ]


async def _is_gone(folder: Path) -> bool:
    return not folder.exists()


ROWS = (Row("P4", "`POST /face-swap` with 1 GiB of video until the asynchronous answer", measure_row),)
