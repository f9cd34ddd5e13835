"""Files on S3: an upload and a download through the service against the bare `obstore` client, at the same server.

The server, the service and the client are processes of their own. The service's client sends to it or reads from it
over HTTP, while the service sends to the server or reads from it: every byte goes two ways.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import aiohttp
import obstore
from clips import make_clip
from common import peak_memory_mb, print_table, reset_peak_memory
from obstore.store import S3Store
from processes import Engine, Service
from s3_servers import S3Server

from faceswap.client import FaceSwap
from faceswap.samples import FACE

SIZE_MB = 256
ROUNDS = 3
PIECE_BYTES = 1024 * 1024


def big_video(folder: Path) -> Path:
    """Write a playable clip followed by a `free` box of random bytes."""
    path = make_clip(folder / "big.mp4", 24)
    padding = SIZE_MB * 2**20 - path.stat().st_size
    with path.open("ab") as file:
        file.write(struct.pack(">I4sQ", 1, b"free", padding))
        file.write(os.urandom(padding - 16))
    return path


def bare_store(bucket: str) -> S3Store:
    """Return the client as it is, at the server of the environment."""
    return S3Store(bucket, client_options={"allow_http": True, "timeout": timedelta(seconds=300)})


async def bare_upload(bucket: str, video: str) -> None:
    """Put a file."""
    await obstore.put_async(bare_store(bucket), "bare", Path(video))


async def bare_download(bucket: str, key: str) -> None:
    """Read an object to its end."""
    found = await obstore.get_async(bare_store(bucket), key)
    async for _ in found.stream(PIECE_BYTES):
        pass


async def upload(url: str, video: str) -> None:
    """Send a video to the service until it is accepted."""
    async with FaceSwap(url) as client:
        await client.submit(Path(video), FACE)


async def download(url: str, _: str) -> None:
    """Read a result from the service to its end."""
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        answer.raise_for_status()
        async for _ in answer.content.iter_chunked(PIECE_BYTES):
            pass


async def timed(work: Callable[[str, str], Awaitable[None]], one: str, other: str) -> None:
    """Print the seconds that a transfer takes."""
    started = time.perf_counter()
    await work(one, other)
    sys.stdout.write(f"{time.perf_counter() - started}")


async def in_a_process(work: Callable[[str, str], Awaitable[None]], one: str, other: str, env: dict[str, str]) -> float:
    """Return the seconds that a transfer takes in a process of its own."""
    code = f"import asyncio, s3; asyncio.run(s3.timed(s3.{work.__name__}, {one!r}, {other!r}))"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **env, "PYTHONPATH": paths},
    )
    told, _ = await process.communicate()
    return float(told)


async def main() -> None:
    """Print a row for each way; the folder goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="faceswap-bench-") as name, S3Server("nanio") as server:
        await measure(Path(name), server)


async def measure(folder: Path, server: S3Server) -> None:
    """Take both ways in turn, bare and through the service, so that the machine is the same for both."""
    video, bucket, env = big_video(folder), server.new_bucket(), dict(server.environment())
    seconds: dict[str, list[tuple[float, float]]] = {"upload": [], "download": []}
    async with (
        Engine(folder, paint=True) as engine,
        Service(folder, engine.url, env=env, files_url=f"s3://{bucket}/prefix") as service,
        FaceSwap(service.url) as client,
    ):
        prompt_id = await client.submit(make_clip(folder / "small.mp4", 24), FACE, output_name="result")
        async for _ in client.events(prompt_id):
            pass
        found = server.client.list_objects_v2(Bucket=bucket, Prefix=f"prefix/results/{prompt_id}/")
        key = found["Contents"][0]["Key"]
        server.client.upload_file(str(video), bucket, key)  # as if the result were that large
        await engine.hold()
        before = reset_peak_memory(service.pid)
        for _ in range(ROUNDS):
            bare = await in_a_process(bare_upload, bucket, str(video), env)
            seconds["upload"].append((bare, await in_a_process(upload, service.url, str(video), env)))
            bare = await in_a_process(bare_download, bucket, key, env)
            through = await in_a_process(download, f"{service.url}/download/result.mp4", "", env)
            seconds["download"].append((bare, through))
        peak = peak_memory_mb(service.pid)
    print_table(
        f"{SIZE_MB} MiB to and from S3 (nanio), medians of {ROUNDS}; the service held {before:.0f} MiB before,"
        f" {peak:.0f} MiB at most",
        ["way", "bare client", "through the service", "ratio", "MiB/s through the service"],
        [
            [
                way,
                f"{statistics.median(bare for bare, _ in times):.2f} s",
                f"{statistics.median(through for _, through in times):.2f} s",
                f"{statistics.median(through / bare for bare, through in times):.2f}",
                f"{SIZE_MB / statistics.median(through for _, through in times):.0f}",
            ]
            for way, times in seconds.items()
        ],
    )


if __name__ == "__main__":
    asyncio.run(main())
