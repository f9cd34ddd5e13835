"""A bare aiohttp handler that answers the JSON document of its first argument: `python -m bare '{"a": 1}'`."""

from __future__ import annotations

import asyncio
import json
import sys

from aiohttp import web


async def main(document: object) -> None:
    """Serve until killed, on a free port that is printed."""

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(document)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)  # noqa: T201  # how it tells its port
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
