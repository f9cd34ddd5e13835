"""The access log names routes, not paths: no file name, no query string, nothing that a client could write into it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from waiting import until

from faceswap.api import access_log
from faceswap.api.connection import Listener
from faceswap.api.keys import OWNER, SETTINGS
from faceswap.config import Settings

PROMPT_ID = "00000000-0000-4000-8000-000000000001"


async def answer(request: web.Request) -> web.Response:
    request[OWNER] = "ann"
    return web.Response(text="here")


@pytest.fixture
async def port(caplog: pytest.LogCaptureFixture) -> AsyncIterator[int]:
    caplog.set_level(logging.INFO, "faceswap.access")
    app = web.Application()
    app[SETTINGS] = Settings(Path("unused"), trusted_proxies=(ipaddress.ip_network("127.0.0.0/8"),))
    app.add_routes([web.get("/download/{filename}", answer), web.get("/status/{prompt_id}", answer)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    assert runner.server is not None
    listener = Listener(runner.server, access_log.log)
    _, port = await listener.bind("127.0.0.1", 0)
    accepting = asyncio.create_task(listener.run())
    yield port
    accepting.cancel()
    await asyncio.gather(accepting, return_exceptions=True)
    listener.close()
    await runner.cleanup()


@pytest.mark.parametrize(
    ("request_line", "beginning", "end"),
    [
        (
            b"GET /download/anna.mp4?signature=hidden",
            "GET /download/{filename} 200, ",
            ", key ann, from 9.9.9.9",
        ),
        (
            f"GET /status/{PROMPT_ID}?wait=1".encode(),
            "GET /status/{prompt_id} 200, ",
            f", job {PROMPT_ID}, key ann, from 9.9.9.9",
        ),
        (b"GET /status/%0AERROR%20forged", "GET /status/{prompt_id} 200, ", " s, key ann, from 9.9.9.9"),
        (b"GET /anna.mp4", "GET - 404, ", ", from 9.9.9.9"),
        (b"PUT /download/anna.mp4", "PUT - 405, ", ", from 9.9.9.9"),
        (b"GET /\x00anna", "UNKNOWN - 400, ", ", from 127.0.0.1"),
    ],
)
async def test_each_request_has_a_line(
    port: int, caplog: pytest.LogCaptureFixture, request_line: bytes, beginning: str, end: str
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_line + b" HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 9.9.9.9\r\nConnection: close\r\n\r\n")
    await reader.read()
    writer.close()
    await until(lambda: caplog.messages)
    [line] = [record.getMessage() for record in caplog.records if record.name == "faceswap.access"]
    assert line.startswith(beginning) and line.endswith(end)
    assert not any(word in line for word in ("anna", "hidden", "forged", "\n"))
