"""Many jobs under random faults: `python -m system.chaos --jobs 500 --seed 7`, from the folder `tests`.

The service, the engine, or both are killed at random moments; a proxy between them cuts, delays, duplicates and
deafens; outputs vanish; the disk is full and freed again. At the end every accepted job must have ended rightly.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import aiohttp
import cv2
import numpy as np
import psutil
from clips import make_clip, read_numbers
from processes import Engine, Service
from system.proxy import Proxy

from faceswap.client import ClientError, FaceSwapClient

SEGMENT_FRAMES = 6
CLIP_FRAMES = (4, 9, 16)
SUBMITTERS = 6
CANCEL_SHARE = 0.05
MISCHIEF = 0.08
FAULT_PAUSE_S = (0.3, 2.0)
END_TIMEOUT_S = 240.0
TERMINAL = ("SUCCESS", "FAILED", "CANCELLED")


@dataclass
class Book:
    """What was promised, and what came of it."""

    frames: dict[str, int] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    faults: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    half_files: list[str] = field(default_factory=list)
    wrong_states: list[str] = field(default_factory=list)


class Chaos:
    """One run."""

    def __init__(self, folder: Path, jobs: int, seed: int) -> None:
        self.folder = folder
        self.jobs = jobs
        self.rng = random.Random(seed)
        self.book = Book()
        self.engine = Engine(folder, paint=True)
        self.proxy = Proxy(f"http://127.0.0.1:{self.engine.port}", self.rng, MISCHIEF)
        self.service: Service | None = None
        self._clips = [make_clip(folder / f"{frames}.mp4", frames, sounds=["aac"]) for frames in CLIP_FRAMES]
        self._face = folder / "face.png"
        cv2.imwrite(str(self._face), np.full((64, 64, 3), 128, np.uint8))
        self._calm = asyncio.Event()
        self._url: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self) -> Book:
        """Submit everything while faults happen, then wait, quietly, for every end."""
        async with self.engine, self.proxy.running():
            self.service = Service(self.folder, self.proxy.url, segment_frames=SEGMENT_FRAMES, queue_limit=100000)
            async with self.service:
                self._url.set_result(self.service.url)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._cause_faults())
                    await self._submit_all()
                    await self._wait_until_nearly_done()
                    self._calm.set()
                # A socket that was deafened stays so: it is the listener's to find out.
                self.proxy.mischief = 0.0
                await self._wait_for_ends()
                await self._check_results()
                return self.book

    # The users.

    async def _submit_all(self) -> None:
        numbers = iter(range(self.jobs))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(SUBMITTERS):
                tasks.create_task(self._submit_some(numbers))

    async def _submit_some(self, numbers) -> None:  # type: ignore[no-untyped-def]
        for number in numbers:
            clip = self.rng.choice(self._clips)
            prompt_id = await self._submit(number, clip)
            self.book.frames[prompt_id] = int(clip.stem)
            if self.rng.random() < CANCEL_SHARE:
                await asyncio.sleep(self.rng.uniform(0, 2))
                await self._cancel(prompt_id)

    async def _submit(self, number: int, clip: Path) -> str:
        """As a careful client does: the same key until there is an answer."""
        while True:
            try:
                async with FaceSwapClient(await self._url, resumes=0) as client:
                    return await client.submit(
                        clip, self._face, output_name=f"job {number}", idempotency_key=f"job {number}"
                    )
            except ClientError as error:
                if error.status and error.status < 500:
                    raise
                await asyncio.sleep(0.2)

    async def _cancel(self, prompt_id: str) -> None:
        while True:
            try:
                async with FaceSwapClient(await self._url, resumes=0) as client:
                    await client.cancel(prompt_id)
                self.book.cancelled.add(prompt_id)
                return
            except ClientError as error:
                if error.status == 409:
                    return
                await asyncio.sleep(0.2)

    # The faults.

    async def _cause_faults(self) -> None:
        """One after the other, each to its end: what was killed runs again, what was full is free."""
        causes = {
            self._kill_service: 3,
            self._kill_engine: 3,
            self._kill_both: 1,
            self.proxy.cut_sockets: 3,
            self._lose_outputs: 2,
            self._fill_the_disk: 2,
        }
        while not self._calm.is_set():
            await asyncio.sleep(self.rng.uniform(*FAULT_PAUSE_S))
            (cause,) = self.rng.choices(list(causes), list(causes.values()))
            self.book.faults[cause.__name__.strip("_").replace("_", " ")] += 1
            await cause()

    async def _kill_service(self) -> None:
        assert self.service is not None
        self._url = asyncio.get_running_loop().create_future()
        await self.service.kill()
        await self.service.start()
        self._url.set_result(self.service.url)

    async def _kill_engine(self) -> None:
        await self.engine.kill()
        self.proxy.engine_died()
        await asyncio.sleep(self.rng.uniform(0, 1))
        await self.engine.start()

    async def _kill_both(self) -> None:
        await self.engine.kill()
        self.proxy.engine_died()
        await self._kill_service()
        await self.engine.start()

    async def _lose_outputs(self) -> None:
        """What the engine has made and nobody fetched yet vanishes."""
        for path in (self.engine.data_dir / "temp").rglob("*.mp4"):
            path.unlink(missing_ok=True)

    async def _fill_the_disk(self) -> None:
        """No file of the service may grow for a while: every write fails, as on a full disk."""
        assert self.service is not None
        _limit_file_size(self.service.pid, 0)
        await asyncio.sleep(self.rng.uniform(0.2, 1.5))
        _limit_file_size(self.service.pid, resource.RLIM_INFINITY)

    # The reckoning.

    async def _states(self) -> dict[str, str]:
        states = {}
        async with aiohttp.ClientSession() as session:
            for prompt_id in self.book.frames:
                async with session.get(f"{await self._url}/status/{prompt_id}") as answer:
                    states[prompt_id] = (await answer.json())["status"] if answer.status == 200 else "UNKNOWN"
        return states

    async def _open(self) -> list[str]:
        with contextlib.suppress(aiohttp.ClientError):
            return [prompt_id for prompt_id, state in (await self._states()).items() if state not in TERMINAL]
        return list(self.book.frames)

    async def _wait_until_nearly_done(self) -> None:
        while len(await self._open()) > max(2, self.jobs // 50):
            await asyncio.sleep(1)

    async def _wait_for_ends(self) -> None:
        deadline = time.monotonic() + END_TIMEOUT_S
        while (still_open := await self._open()) and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
        self.book.lost += [f"{prompt_id} has not ended" for prompt_id in still_open]

    async def _check_results(self) -> None:
        assert self.service is not None
        expected = set()
        async with FaceSwapClient(self.service.url) as client:
            for prompt_id, frames in self.book.frames.items():
                status = await client.status(prompt_id)
                self.book.ended[status["status"]] += 1
                if status["status"] == "SUCCESS":
                    filename = unquote(status["result"].removeprefix("/download/"))
                    expected.add(f"outputs/{filename}")
                    await self._check_result(client, prompt_id, filename, status["sha256"], frames)
                elif status["status"] != "CANCELLED" or prompt_id not in self.book.cancelled:
                    self.book.wrong_states.append(
                        f"{prompt_id}: {status['status']}, {status['code']}: {status['error']}"
                    )
        found = {name for name in self.service.files() if name.startswith("outputs/")}
        self.book.half_files += sorted(found ^ expected)
        # Work of cancelled jobs stays for a retry; nothing may be half written.
        self.book.half_files += [name for name in self.service.files() if ".part" in name]

    async def _check_result(
        self, client: FaceSwapClient, prompt_id: str, filename: str, sha256: str, frames: int
    ) -> None:
        result = self.folder / "result.mp4"
        try:
            await client.download(filename, result, sha256=sha256)
        except ClientError as error:
            self.book.half_files.append(f"{filename}: {error.detail}")
            return
        numbers = await asyncio.to_thread(read_numbers, result)
        if numbers != list(range(frames)):
            self.book.wrong_states.append(f"{prompt_id}: frames {numbers} instead of {frames}")


def _limit_file_size(pid: int, soft: int) -> None:
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


async def run(folder: Path, jobs: int, seed: int) -> tuple[Book, Proxy, list[str]]:
    """One run; returns what happened and the violations, none when all is well."""
    chaos = Chaos(folder, jobs, seed)
    book = await chaos.run()
    violations = book.lost + chaos.proxy.run_twice + book.half_files + book.wrong_states
    return book, chaos.proxy, violations


def main() -> int:
    """Run, print the figures, keep the logs when something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faceswap-chaos-"))
    sys.stdout.write(f"seed {arguments.seed}; logs in {folder}\n")
    started = time.monotonic()
    book, proxy, violations = asyncio.run(run(folder, arguments.jobs, arguments.seed))
    figures = {
        "seconds": round(time.monotonic() - started),
        "faults": dict(book.faults + proxy.counts),
        "accepted": len(book.frames),
        "ended": dict(book.ended),
        "lost": len(book.lost),
        "run twice": len(proxy.run_twice),
        "half files": len(book.half_files),
        "wrong states": len(book.wrong_states),
        "violations": violations,
    }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
