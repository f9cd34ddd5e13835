"""A large upload by tus-js-client that is cut off at random: its connection, its own process, the service killed.

`make uploads` sends 1 GiB with 20 interruptions, and compares what the service has in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import tempfile
import time
from pathlib import Path

import aiohttp
from processes import Service, dead_url
from tus_clients import Cutter, random_cuts, start_tus_js
from waiting import WAIT_S
from yarl import URL

from faceswap.config import resource_dir
from faceswap.files import Files
from faceswap.store import Store

PIECE_BYTES = 1 << 20
UPLOAD_S = 1800.0
KINDS = ("connection", "client", "service")


class _Way(Cutter):
    """A way that tells when it has passed on so many bytes, in place of being cut."""

    def __init__(self, after: list[int]) -> None:
        super().__init__(0, after)
        self.due = asyncio.Event()

    def lead_to(self, url: str) -> None:
        """Lead to a service from now on."""
        self._target = URL(url).port or 0

    def drop_connections(self) -> None:
        """Ask for an interruption."""
        self.due.set()

    def cut_now(self) -> None:
        """Drop every connection."""
        super().drop_connections()


async def cut_uploads(size: int, interruptions: int, seed: int) -> None:
    """Upload random bytes and compare. Raises AssertionError."""
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="faceswap-uploads-") as name:
        folder = Path(name)
        file, digest = folder / "large.bin", hashlib.sha256()
        with file.open("wb") as target:
            for at in range(0, size, PIECE_BYTES):
                piece = generator.randbytes(min(PIECE_BYTES, size - at))
                digest.update(piece)
                target.write(piece)
        service = Service(folder, dead_url(), max_upload_mb=-(-size // PIECE_BYTES))
        way = _Way(random_cuts(generator, size, interruptions))
        began = time.monotonic()
        async with service, way.running(), asyncio.timeout(UPLOAD_S):
            way.lead_to(service.url)
            address, done = await _upload(service, way, file, folder / "state", generator)
            print(f"{size >> 20} MiB in {time.monotonic() - began:.0f} s, interrupted {done}", flush=True)
            await _compare(service, URL(address).name, size, digest.hexdigest())


async def _upload(
    service: Service, way: _Way, file: Path, state: Path, generator: random.Random
) -> tuple[str, dict[str, int]]:
    """Upload to the end; return the address and the number of interruptions of each kind."""
    done = dict.fromkeys(KINDS, 0)
    endpoint = f"http://127.0.0.1:{way.port}/uploads"
    process = await start_tus_js(file, endpoint, state)
    while True:
        due, end = asyncio.create_task(way.due.wait()), asyncio.create_task(process.wait())
        await asyncio.wait({due, end}, return_when=asyncio.FIRST_COMPLETED)
        due.cancel()
        if end.done():
            if process.returncode == 0:
                assert process.stdout is not None
                return (await process.stdout.read()).decode().strip(), done
            # It tries for nine seconds only, and a service may take longer to start: its user calls it again.
            done["given up"] = done.get("given up", 0) + 1
            process = await start_tus_js(file, endpoint, state)
            continue
        end.cancel()
        way.due.clear()
        kind = generator.choice(KINDS)
        done[kind] += 1
        if kind == "client":
            process.kill()
            await process.wait()
            process = await start_tus_js(file, endpoint, state)
        elif kind == "service":
            await service.kill()
            way.cut_now()
            await service.start()
            way.lead_to(service.url)
        else:
            way.cut_now()


async def _compare(service: Service, upload_id: str, size: int, sha256: str) -> None:
    """Compare the digest of the bytes that the service has, in the order of their parts."""
    headers = {"Tus-Resumable": "1.0.0"}
    async with (
        aiohttp.ClientSession(service.url, timeout=aiohttp.ClientTimeout(WAIT_S)) as session,
        session.get(f"/uploads/{upload_id}", headers=headers) as response,
    ):
        assert (await response.json())["offset"] == size
    files, digest = Files(service.data_dir), hashlib.sha256()
    store = await Store.open(files.database, resource_dir("migrations"), lambda event: None)
    try:
        upload = await store.upload(upload_id, None)
        async for piece in files.read_parts(upload_id, upload.parts):
            digest.update(piece)
    finally:
        await store.close()
    assert digest.hexdigest() == sha256, "the bytes are not those that were sent"


def main() -> None:
    """Read the command line and upload."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size-mb", type=int, default=1024)
    parser.add_argument("--interruptions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    asyncio.run(cut_uploads(arguments.size_mb << 20, arguments.interruptions, arguments.seed))


if __name__ == "__main__":
    main()
