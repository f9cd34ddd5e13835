"""The service under siege: `python -m system.siege`, from `tests`; `make siege`.

A crowd: senders of a byte a second, idle event streams, clients that never read. `/health` is asked all the while. Then
more uploads than there are descriptors. What ran before must run to its end. Prints what it measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
from clips import make_clip
from media_samples import astronaut_frames
from processes import Engine, Service
from system.talk import UPGRADE, Api, Media, frame_head
from waiting import WAIT_S, eventually, until
from yarl import URL

BYTE_EVERY_S = 1.0
HEALTH_MS = 100.0
"""The longest that an answer of `/health` may take, in `make siege`."""
DESCRIPTORS = 256
FRAMES, SIZE = 60, (320, 320)

HEAD = b"POST /face-swap HTTP/1.1\r\nHost: localhost\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 900000\r\n\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\n'
LARGE_BYTES = 64 << 20
"""More than the buffers of a connection hold."""


ASK = """
import http.client, select, sys, time
connection = http.client.HTTPConnection(sys.argv[1])
while not select.select([sys.stdin], [], [], 0.02)[0]:
    started = time.perf_counter()
    connection.request("GET", "/health")
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200
    print((time.perf_counter() - started) * 1000, flush=True)
"""
"""A program that asks for `/health` until its input ends."""


@dataclass(frozen=True)
class Crowd:
    """The numbers of clients of each kind."""

    slow: int
    idle: int
    unread: int


class Sockets:
    """Connections that are kept open until the end, most of them good for nothing."""

    def __init__(self, url: str, ahead_bytes: int) -> None:
        self._address = (URL(url).host, URL(url).port)
        self._ahead_bytes = ahead_bytes
        self._tasks: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self, data: bytes) -> asyncio.StreamReader:
        """Open a connection and send a beginning."""
        reader, writer = await asyncio.open_connection(*self._address, limit=self._ahead_bytes)
        self._writers.append(writer)
        writer.write(data)
        return reader

    def attempt_all(self, beginnings: Iterable[bytes]) -> None:
        """Open connections beside everything else; those that are refused are given up."""
        self._tasks.append(asyncio.create_task(self._attempt_all(beginnings)))

    async def _attempt_all(self, beginnings: Iterable[bytes]) -> None:
        await asyncio.gather(*(self.open(beginning) for beginning in beginnings), return_exceptions=True)

    async def open_all(self, beginnings: Iterable[bytes]) -> list[asyncio.StreamReader]:
        return list(await asyncio.gather(*(self.open(beginning) for beginning in beginnings)))

    def trickle(self) -> None:
        """Send one byte a second on every connection that is open now."""
        self._tasks.append(asyncio.create_task(self._trickle(list(self._writers))))

    async def _trickle(self, writers: list[asyncio.StreamWriter]) -> None:
        while writers:
            for writer in writers:
                if not writer.is_closing():
                    writer.write(b"x")
                await asyncio.sleep(BYTE_EVERY_S / len(writers))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def sockets(url: str, ahead_bytes: int = 1 << 20) -> AsyncIterator[Sockets]:
    """Yield connections that read at most so much of what nobody asks for."""
    opened = Sockets(url, ahead_bytes)
    try:
        yield opened
    finally:
        await opened.close()


async def begun(stream: asyncio.StreamReader) -> None:
    """Wait for the first event of a stream."""
    await stream.readuntil(b"\nid: ")


@asynccontextmanager
async def health_asked(url: str) -> AsyncIterator[list[float]]:
    """Ask for `/health` all the time, in a process of its own; yields the milliseconds, which are there at the end."""
    asking = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ASK, str(URL(url).authority), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert asking.stdout is not None
    taken = [float(await asking.stdout.readline())]
    try:
        yield taken
    finally:
        told, _ = await asking.communicate(b"")
        taken += map(float, told.split())
    assert asking.returncode == 0


def get(path: str) -> bytes:
    """Return a request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def large_download(api: Api, service: Service) -> str:
    """Return the path of a result that is made large afterwards."""
    path = str((await api.finished(output_name="large"))["result"])
    [file] = service.data_dir.rglob("large.mp4")
    os.truncate(file, LARGE_BYTES)
    return path


def slow(number: int) -> bytes:
    """Return the beginning of a request that goes on a byte a second: in its head, or in its body."""
    return HEAD + b"X-Slow: " if number % 4 == 0 else HEAD + FORM + PART


async def stand_a_crowd(folder: Path, crowd: Crowd, seconds: float) -> dict[str, list[float]]:
    """Let a crowd come while a job is held; returns what `/health` took before, while it came, and then.

    Everybody who watches must hear of the job's end, and nothing may be left of the crowd. Raises AssertionError.
    """
    folder.mkdir()
    media = Media(folder)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=WAIT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        Engine(folder, paint=True) as engine,
        Service(folder, engine.url) as service,
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
    ):
        api = Api(service.url, session, media)
        download = await large_download(api, service)
        await engine.hold()
        held = await api.submit()
        await api.until(held, "PROCESSING")
        at_rest = psutil.Process(service.pid).num_fds()
        async with health_asked(service.url) as alone:
            await asyncio.sleep(seconds / 4)
        async with sockets(service.url) as bad, sockets(service.url, 4096) as unread, sockets(service.url) as idle:
            await bad.open_all(slow(number) for number in range(crowd.slow))
            bad.trickle()
            await unread.open_all(get(download) for _ in range(crowd.unread))
            async with health_asked(service.url) as arrival:
                streams = await idle.open_all(get(f"/events/{held}") for _ in range(crowd.idle))
                await asyncio.gather(*map(begun, streams))
            async with health_asked(service.url) as meanwhile:
                await asyncio.sleep(seconds)
            assert (await api.get("/health")).json["watchers"] == crowd.idle
            engine.release()
            ends = await asyncio.gather(*(stream.readuntil(b"event: completed") for stream in streams))
            assert len(ends) == crowd.idle
        await api.done(held)
        await until(lambda: psutil.Process(service.pid).num_fds() <= at_rest + 5)
        await until(lambda: not [name for name in service.files() if name.endswith(".upload")])
        assert "Traceback" not in service.log(), service.log()
    return {"alone": alone, "while they come": arrival, "meanwhile": meanwhile}


def uploads() -> list[bytes]:
    """Return the beginnings of twice as many uploads as there are descriptors, over HTTP and WebSockets."""
    text = b'{"video": {"filename": "v", "size": 900000}, "image": {"filename": "i", "size": 900000}}'
    frames = frame_head(aiohttp.WSMsgType.TEXT, len(text)) + text + frame_head(aiohttp.WSMsgType.BINARY, 900_000)
    return [HEAD + FORM + PART + bytes(1000), UPGRADE + frames + bytes(1000)] * DESCRIPTORS


async def stand_uploads_without_descriptors(folder: Path) -> int:
    """Let uploads take every descriptor that they can get; returns how many the service had open, at most.

    The job that runs meanwhile must succeed, and the service must answer when the uploads are gone.
    """
    pictures = [picture[..., ::-1] for picture in astronaut_frames(FRAMES, SIZE)]
    folder.mkdir()
    media = Media(folder)
    media.video = make_clip(folder / "astronaut.mp4", FRAMES, size=SIZE, draw=lambda i, *_: pictures[i]).read_bytes()
    async with (
        Service(folder, descriptors=DESCRIPTORS, segment_frames=FRAMES // 4) as service,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_read=WAIT_S)) as session,
    ):
        api = Api(service.url, session, media)
        prompt_id = await api.submit()
        async with api.watching(prompt_id) as stream:
            most = 0
            async with sockets(service.url) as bad:
                bad.attempt_all(uploads())
                async with asyncio.timeout(WAIT_S):
                    async for event in stream:
                        most = max(most, psutil.Process(service.pid).num_fds())
                        last = event
            assert last.type == "completed", (last, service.log())
        await eventually(lambda: answers(api))
        assert "Traceback" not in service.log() and "Too many open files" not in service.log(), service.log()
        assert (await api.status(prompt_id))["attempts"] == 4, await api.status(prompt_id)
    return most


async def answers(api: Api) -> bool:
    with contextlib.suppress(aiohttp.ClientError):
        return (await api.get("/health")).status == 200
    return False


def table(times: dict[str, list[float]]) -> Iterable[str]:
    for when, taken in times.items():
        ranked = sorted(taken)
        p99 = ranked[int(len(ranked) * 0.99)]
        median = statistics.median(ranked)
        yield f"/health {when}: {len(ranked)} answers, median {median:.1f}, p99 {p99:.1f}, worst {ranked[-1]:.1f} ms\n"


async def main(crowd: Crowd, seconds: float) -> int:
    """Run both; 1 when `/health` was late."""
    with tempfile.TemporaryDirectory(prefix="faceswap-siege-") as name:
        times = await stand_a_crowd(Path(name, "crowd"), crowd, seconds)
        sys.stdout.write("".join(table(times)))
        most = await stand_uploads_without_descriptors(Path(name, "descriptors"))
    sys.stdout.write(f"{most} of {DESCRIPTORS} descriptors were open, and the job that ran succeeded\n")
    late = sum(ms > HEALTH_MS for ms in times["meanwhile"])
    sys.stdout.write(
        f"{late} answers of /health took longer than {HEALTH_MS:.0f} ms\n" if late else "all as promised\n"
    )
    return 1 if late else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", type=int, default=200, help="senders of a byte a second")
    parser.add_argument("--idle", type=int, default=1000, help="event streams of a job that is held")
    parser.add_argument("--unread", type=int, default=20, help="clients that never read")
    parser.add_argument("--seconds", type=float, default=60, help="of asking for /health")
    options = parser.parse_args()
    sys.exit(asyncio.run(main(Crowd(options.slow, options.idle, options.unread), options.seconds)))
