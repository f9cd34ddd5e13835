"""S1: files on S3: an upload and a download through the service against the bare `obstore` client, at the same server.

The server, the service and the client are processes of their own. The service's client sends to it or reads from it
over HTTP, while the service sends to the server or reads from it: every byte goes two ways.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import obstore
from clips import make_clip
from common import call, peak_memory_mb, reset_peak_memory
from obstore.store import S3Store
from processes import Engine, Service
from rows import Effort, Figure, Row, difference, in_turn, ratio
from s3_servers import S3Server

from faceswap.client import FaceSwap
from faceswap.samples import FACE

SIZE_MB = 256
PIECE_BYTES = 1024 * 1024


def big_video(folder: Path, size_mb: int) -> Path:
    """Write a playable clip followed by a `free` box of random bytes."""
    path = make_clip(folder / "big.mp4", 24)
    padding = size_mb * 2**20 - path.stat().st_size
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
    """Send a video to the service in one request, until it is accepted."""
    with Path(video).open("rb") as file, FACE.open("rb") as face:  # noqa: ASYNC230  # in a process of its own
        form = aiohttp.FormData({"return_prompt_id_only": "true"})
        form.add_field("video", file, filename="video.mp4")
        form.add_field("image", face, filename="face.png")
        async with aiohttp.ClientSession() as session, session.post(f"{url}/face-swap", data=form) as answer:
            answer.raise_for_status()


async def resumable_upload(url: str, video: str) -> None:
    """Send a video to the service by tus, as the client does with a large one, and have it made a job's."""
    async with FaceSwap(url) as client:
        await client.submit(Path(video), FACE)


async def download(url: str, _: str) -> None:
    """Read a result from the service to its end."""
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        answer.raise_for_status()
        async for _ in answer.content.iter_chunked(PIECE_BYTES):
            pass


def timed(work: str, one: str, other: str) -> float:
    """Return the seconds that a transfer takes, by the name of its function."""
    started = time.perf_counter()
    asyncio.run(TRANSFERS[work](one, other))
    return time.perf_counter() - started


TRANSFERS: Mapping[str, Callable[[str, str], Coroutine[Any, Any, None]]] = {
    "bare upload": bare_upload,
    "bare download": bare_download,
    "upload": upload,
    "resumable upload": resumable_upload,
    "download": download,
}


async def measure_row(folder: Path, effort: Effort) -> list[Figure]:
    """Take both ways in turn, bare and through the service, so that the machine is the same for both."""
    with S3Server("nanio") as server:
        return await measure(folder, server, effort)


async def measure(folder: Path, server: S3Server, effort: Effort) -> list[Figure]:
    """Take both ways at a server."""
    size_mb = effort.of(SIZE_MB)
    video, bucket, env = big_video(folder, size_mb), server.new_bucket(), dict(server.environment())
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

        async def ours() -> tuple[float, float, float]:
            return (
                await call(timed, "upload", service.url, str(video), env=env),
                await call(timed, "resumable upload", service.url, str(video), env=env),
                await call(timed, "download", f"{service.url}/download/result.mp4", "", env=env),
            )

        async def bare() -> tuple[float, float]:
            return (
                await call(timed, "bare upload", bucket, str(video), env=env),
                await call(timed, "bare download", bucket, key, env=env),
            )

        (ups, resumables, downs), (bare_ups, bare_downs) = await in_turn(effort.rounds, ours, bare)
        peak = peak_memory_mb(service.pid)
    return [
        Figure(f"{size_mb} MiB up", "seconds", ups, bare_ups, ratio),
        Figure(f"{size_mb} MiB up, resumably", "seconds", resumables, bare_ups, ratio),
        Figure(f"{size_mb} MiB down", "seconds", downs, bare_downs, ratio),
        Figure("memory", "MiB more at most", [peak], [before], difference),
    ]


ROWS = (Row("S1", "files on S3 (nanio), against the bare client", measure_row),)
