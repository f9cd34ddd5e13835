"""Watchers of jobs, in a process of their own: `watching FILE`.

Its lines are `stream URL ID`, `socket URL ID`, or `engine URL` for a ComfyUI's own socket.
Prints a line once all are there; then, on a line of its input, a JSON object of what came since the last such line.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from common import HERE
from yarl import URL

TICK = re.compile(rb'"node": "t(\d+)"')
Taken = dict[str, list[float]]


class Seen:
    """The ticks that came: how often each, and when last, in ns."""

    def __init__(self) -> None:
        self.times: defaultdict[int, int] = defaultdict(int)
        self.last: dict[int, int] = {}

    def take(self) -> Taken:
        """Return the ms from each tick to its last watcher, and to how many watchers it went; begin anew."""
        taken = {
            "lag_ms": [(self.last[tick] - tick) / 1e6 for tick in self.last],
            "watchers": [float(self.times[tick]) for tick in self.last],
        }
        self.times.clear()
        self.last.clear()
        return taken


class Watcher(asyncio.Protocol):
    """A client that asks once and notes every tick in what comes."""

    def __init__(self, request: bytes, seen: Seen, first: asyncio.Future[None]) -> None:
        self._request = request
        self._seen = seen
        self._first = first
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now, end = time.monotonic_ns(), 0
        data = self._rest + data
        for found in TICK.finditer(data):
            tick = int(found[1])
            self._seen.times[tick] += 1
            self._seen.last[tick] = now
            end = found.end()
        self._rest = data[max(end, len(data) - 200) :]
        if not self._first.done():
            self._first.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        sys.exit(f"a watcher lost its connection: {exc}")


def stream_request(url: URL, prompt_id: str) -> bytes:
    """Return the request of an event stream."""
    return f"GET /events/{prompt_id} HTTP/1.1\r\nHost: {url.authority}\r\n\r\n".encode()


def handshake(url: URL, path: str) -> bytes:
    """Return the handshake of a WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: {url.authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode()


def socket_request(url: URL, prompt_id: str) -> bytes:
    """Return the handshake of a WebSocket and the first frame, which subscribes."""
    first = json.dumps({"action": "subscribe", "prompt_id": prompt_id}).encode()
    assert len(first) < 126
    return handshake(url, "/face-swap-ws") + bytes([0x81, 0x80 | len(first), 0, 0, 0, 0]) + first


def engine_request(url: URL) -> bytes:
    """Return the handshake with a ComfyUI."""
    return handshake(url, "/ws?clientId=bare")


REQUESTS: dict[str, Callable[..., bytes]] = {
    "stream": stream_request,
    "socket": socket_request,
    "engine": engine_request,
}


async def main(file: Path) -> None:
    """Watch until the input ends."""
    loop, seen = asyncio.get_running_loop(), Seen()
    for line in file.read_text().splitlines():
        kind, address, *more = line.split()
        url, first = URL(address), loop.create_future()
        request = REQUESTS[kind](url, *more)
        await loop.create_connection(partial(Watcher, request, seen, first), url.host, url.port)
        await first
    print("watching", flush=True)  # noqa: T201  # how it tells that all are there
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        print(json.dumps(seen.take()), flush=True)  # noqa: T201  # its answer


@asynccontextmanager
async def watching(file: Path, targets: Sequence[str]) -> AsyncIterator[Callable[[], Awaitable[Taken]]]:
    """Watch from a process of its own; yields a function that returns what the watchers saw since its last call."""
    file.write_text("\n".join(targets))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "watching", str(file)),
        cwd=HERE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**26,
    )
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def take() -> Taken:
        stdin.write(b"\n")
        return dict(json.loads(await stdout.readuntil(b"\n")))

    try:
        assert b"watching" in await stdout.readline()
        yield take
    finally:
        stdin.close()
        await process.wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
