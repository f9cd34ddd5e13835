"""A ComfyUI whose outputs are so many bytes: `giant FOLDER 1073741824`."""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from pathlib import Path

from aiohttp import web
from service_rig import EngineRig, Handler


def pad(path: Path, size: int) -> None:
    """Put a `free` box behind the media of a file, sparse, unless it has one."""
    with path.open("r+b") as file:
        missing = size - file.seek(0, os.SEEK_END)
        if missing > 0:
            file.write(struct.pack(">I4sQ", 1, b"free", missing))
            file.truncate(size)


async def main(folder: Path, size: int) -> None:
    """Serve until killed, on a free port that is printed."""

    async def enlarge(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/view" and request.query["type"] == "output":
            pad(folder / "output" / request.query["subfolder"] / request.query["filename"], size)
        return await handler(request)

    async with EngineRig(folder, enlarge, paint=True) as rig:
        print(f"listening on {rig.url}", flush=True)  # noqa: T201  # how it tells its port
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
