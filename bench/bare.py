"""The limits of the service: bare aiohttp handlers, `python -m bare FOLDER '{"a": 1}'`.

`GET /json` answers the document, `PUT /plain` writes a body to a file of the folder and syncs it, `PUT /hashed` takes
its SHA-256 too, and `GET /files/NAME` sends a file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path

from aiohttp import web

PIECE_BYTES = 256 * 1024


def create_app(folder: Path, document: object) -> web.Application:
    """Return the handlers."""

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(document)

    async def put(request: web.Request) -> web.Response:
        digest = hashlib.sha256() if request.path == "/hashed" else None
        with (folder / "put").open("wb", buffering=0) as file:
            async for piece in request.content.iter_chunked(PIECE_BYTES):
                if digest is not None:
                    digest.update(piece)
                file.write(piece)  # a thread for each piece costs more than it saves
            await asyncio.to_thread(os.fsync, file.fileno())
        return web.Response(text=digest.hexdigest() if digest else "")

    async def send(request: web.Request) -> web.FileResponse:
        return web.FileResponse(folder / request.match_info["name"])

    app = web.Application(client_max_size=2**40)
    app.router.add_get("/json", answer)
    app.router.add_put("/plain", put)
    app.router.add_put("/hashed", put)
    app.router.add_get("/files/{name}", send)
    return app


async def main(folder: Path, document: object) -> None:
    """Serve until killed, on a free port that is printed."""
    runner = web.AppRunner(create_app(folder, document), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)  # noqa: T201  # how it tells its port
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
