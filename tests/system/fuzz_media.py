"""Damaged and hostile media through upload and job: `python -m system.fuzz_media`, from `tests`; `make fuzz-media`.

Each request must end in a clear refusal, in a failed job or in a result that can be decoded. The service is never
started anew, its memory returns to where it was, no input stays, and nothing that a file names is opened.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path

import aiohttp
import av
import psutil
from hostile_media import CLIPS, Case, dressed, good_pictures, good_videos, mutated
from processes import Service
from system.talk import ENDED, Api, Media, assert_problem, assert_sentence
from waiting import WAIT_S, eventually

from faceswap.engine.__main__ import ARENAS, KEPT_BYTES

AT_ONCE = 6
MEMORY_MB = 16.0 + ARENAS * KEPT_BYTES / 2**20
"""The most that a process may hold more in the end. The engine keeps so much of each heap that it once had."""


class Canary:
    """A file and an address that hostile media names. Whoever reads the one or connects to the other is noticed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "canary.mp4"
        self.connections = 0
        self.url = ""

    @asynccontextmanager
    async def watch(self, content: bytes) -> AsyncIterator[None]:
        self.path.write_bytes(content)
        os.utime(self.path, (0, time.time()))  # the kernel then notes the next time of reading, whatever its habit
        server = await asyncio.start_server(self._note, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/clip.mp4"
        async with server:
            yield

    async def _note(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()

    @property
    def was_read(self) -> bool:
        return self.path.stat().st_atime > 0


class Run:
    """One run over many cases."""

    def __init__(self, service: Service, api: Api) -> None:
        self._service = service
        self._api = api
        self.ends: Counter[str] = Counter()
        self.faults: list[str] = []
        self._done = 0
        self._memory: dict[str, float] = {}

    async def warm_up(self, cases: Iterable[Case]) -> None:
        """Send good media, one after the other, and measure the memory that is held then."""
        for case in cases:
            assert await self._end(case) == "a valid result", case.name
        self._memory = self._measure()

    async def all(self, cases: Iterable[Case], *, told: bool) -> None:
        """Send all cases, a few at a time."""
        slots = asyncio.Semaphore(AT_ONCE)
        pid = self._service.pid
        async with asyncio.TaskGroup() as tasks:
            for case in cases:
                await slots.acquire()
                task = tasks.create_task(self._one(case))
                task.add_done_callback(lambda _: slots.release())
                if told and self._done % 100 == 99:
                    sys.stderr.write(f"{self._done + 1} done, {len(self.faults)} faults\n")
        assert self._service.running and self._service.pid == pid, self._service.log()

    async def _one(self, case: Case) -> None:
        try:
            end = await self._end(case)
        except (AssertionError, aiohttp.ClientError, TimeoutError) as error:
            end = "fault"
            self.faults.append(f"{case.name}: {type(error).__name__}: {str(error)[:300]}")
        self.ends[end] += 1
        self._done += 1

    async def _end(self, case: Case) -> str:
        """Return how a case ended. Raises AssertionError when it ended as none may."""
        answer = await self._api.swap(video=case.video, image=case.image)
        if answer.status != 202:
            assert 400 <= answer.status < 500, (answer.status, answer.body[:300])
            code = str(answer.json["code"])
            assert_problem(answer, answer.status, code)
            return f"refused: {answer.status} {code}"
        prompt_id = answer.json["prompt_id"]
        document = await self._api.until(prompt_id, *ENDED)
        if document["status"] == "FAILED":
            assert_sentence(document["error"])
            return f"failed: {document['code']}"
        assert document["status"] == "SUCCESS", document
        result = await self._api.get(document["result"])
        assert (result.status, len(result.body)) == (200, document["bytes"])
        assert await asyncio.to_thread(frames, result.body) == document["progress"]["total"], document
        return "a valid result"

    def _measure(self) -> dict[str, float]:
        """Return the memory of service and engine, MiB."""
        service = psutil.Process(self._service.pid)
        engine = next((c for c in service.children() if "faceswap.engine" in " ".join(c.cmdline())), None)
        sizes = {"service": service.memory_info().rss / 2**20}
        return sizes if engine is None else {**sizes, "engine": engine.memory_info().rss / 2**20}

    async def settle(self) -> str:
        """Wait until nothing is left and memory is back; returns what was measured. Raises TimeoutError."""
        before = self._memory

        async def settled() -> bool:
            inputs = [name for name in self._service.files() if name.startswith("inputs/")]
            now = self._measure()
            return not inputs and all(now.get(name, 0) < before[name] + MEMORY_MB for name in before)

        try:
            await eventually(settled)
        except TimeoutError:
            left = [name for name in self._service.files() if name.startswith("inputs/")]
            self.faults.append(f"what is left: {left[:10]}; memory {before} → {self._measure()}")
        assert "Traceback" not in self._service.log(), self._service.log()[-5000:]
        now = self._measure()
        return ", ".join(f"{name} {before[name]:.0f} → {now[name]:.0f} MiB" for name in before if name in now)


def frames(data: bytes) -> int:
    """Decode a result; returns the number of its frames."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        with av.open(file.name) as container:
            return sum(1 for _ in container.decode(video=0))


async def fuzz(
    folder: Path,
    seed: int,
    numbers: Iterable[int],
    kinds: Sequence[str],
    *,
    as_pictures: bool = True,
    told: bool = False,
) -> tuple[Run, str]:
    """Send a good video of each kind, every description and the mutated files of these numbers.

    Returns the run and what its memory was.
    """
    folder.mkdir(exist_ok=True)
    canary = Canary(folder)
    videos, pictures = good_videos(folder, kinds), good_pictures()
    good = videos[kinds[0]]
    settings = {"input_ttl_s": 0, "rate_limit": 0, "url_allow": "127.0.0.0/8", "log_level": "warning"}
    async with (
        canary.watch(good),
        Service(folder, **settings) as service,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WAIT_S * 5)) as session,
    ):
        api = Api(service.url, session, Media(folder))
        run = Run(service, api)
        await run.warm_up(Case(name, video, pictures["face.png"]) for name, video in videos.items())
        hostile = dressed(canary.path, canary.url, good, pictures["face.jpg"], as_pictures=as_pictures)
        await run.all(chain(hostile, mutated(seed, numbers, videos, pictures)), told=told)
        memory = await run.settle()
        engine_ends = service.log().count("the embedded engine ended with")
    if canary.connections or canary.was_read:
        run.faults.append(f"what a file names was opened: {canary.connections} connections, read: {canary.was_read}")
    with contextlib.suppress(OSError):
        canary.path.read_bytes()
    assert canary.was_read, "this disk does not note the time of reading: mount it with relatime"
    return run, f"{memory}; the engine ended {engine_ends} times"


async def main(seed: int, numbers: Iterable[int]) -> int:
    """Print how many ended how; 1 when one ended as none may."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faceswap-fuzz-") as name:
        run, measured = await fuzz(Path(name, "fuzz"), seed, numbers, tuple(CLIPS), told=True)
    for end, number in run.ends.most_common():
        sys.stdout.write(f"{number:6} {end}\n")
    sys.stdout.write(f"{run.ends.total()} cases in {time.monotonic() - started:.0f} s; {measured}\n")
    sys.stdout.write("".join(f"{fault}\n" for fault in run.faults) or "all as promised\n")
    return 1 if run.faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--count", type=int, default=2000, help="mutated files")
    parser.add_argument("--only", type=int, nargs="+", help="the numbers of some of them, as a fault names them")
    options = parser.parse_args()
    sys.stdout.write(f"seed {options.seed}\n")
    sys.exit(asyncio.run(main(options.seed, options.only or range(options.count))))
