"""The service and the engine as real processes, to be talked to, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import psutil
from forks import PROGRAMS, ForkServer, Process
from ports import free_port
from waiting import WAIT_S, until
from waiting import eventually as eventually

_TAKEN: list[socket.socket] = []
LISTENING = re.compile(rb"listening on (http://\S+)")


def dead_url() -> str:
    """Return an address that nobody answers at: its port stays taken for as long as the tests run."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    _TAKEN.append(taken)
    return f"http://127.0.0.1:{taken.getsockname()[1]}"


def files_in(folder: Path) -> list[str]:
    """Return every file in a folder, relative; unlike `rglob` it bears folders that appear and vanish meanwhile."""
    return sorted(os.path.relpath(Path(at, name), folder) for at, _, names in os.walk(folder) for name in names)


async def at_rest(files: Callable[[], list[str]]) -> list[str]:
    """Return the files of a service once no work is among them: a job's is erased after its end has been told."""
    await until(lambda: not any(name.startswith("work/") for name in files()))
    return files()


class Child:
    """A process that prints where it listens. It may have no more than `descriptors` open."""

    forks: ForkServer | None = None
    """Forks the processes where it can; else, and without it, each is started from nothing."""

    def __init__(
        self,
        log: Path,
        *command: str,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        descriptors: int | None = None,
    ) -> None:
        self._forkable = descriptors is None and command[0] in PROGRAMS and "PYTHONPATH" not in (env or {})
        self._limit = () if descriptors is None else ("prlimit", f"--nofile={descriptors}:{descriptors}")
        self._command = command
        self._cwd = cwd
        self._env = {**os.environ, **(env or {})}
        self._log = log
        self._process: asyncio.subprocess.Process | Process | None = None
        self._drain: asyncio.Task[Any] | None = None
        self.url = ""

    async def _spawn(self) -> asyncio.StreamReader:
        """Start the process; returns what it prints."""
        with self._log.open("ab") as log:
            if self.forks and self._forkable:
                self._process = await self.forks.start(*self._command, env=self._env, stderr=log, cwd=self._cwd)
            else:
                self._process = await asyncio.create_subprocess_exec(
                    *(*self._limit, sys.executable, "-m", *self._command),
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    env=self._env,
                    cwd=self._cwd,
                )
        assert self._process.stdout is not None
        return self._process.stdout

    async def begin(self) -> asyncio.Task[bytes]:
        """Start the process, which may never listen; returns all that it prints, once it has ended."""
        return asyncio.create_task((await self._spawn()).read())

    async def start(self) -> Self:
        printed = await self._spawn()
        try:
            async with asyncio.timeout(WAIT_S):
                line = await printed.readline()
                if not line:
                    await self.ended()  # with an exit status of its own, which a signal would take from it
            found = LISTENING.search(line)
            assert found, f"{self._command} printed {line!r}; its log: {self.log()}"
        except BaseException:
            if self.running:
                await self.kill()
            raise
        self.url = found[1].decode()
        self._drain = asyncio.create_task(printed.read())
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    async def kill(self) -> None:
        """Kill the process, as a power cut would."""
        await self._signal(signal.SIGKILL)

    async def stop(self) -> int:
        """Stop the process as systemd would; returns the exit status."""
        return await self._signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Wait for its own end; returns the exit status."""
        assert self._process is not None
        return await self._process.wait()

    async def _signal(self, number: int) -> int:
        assert self._process is not None
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)  # `send_signal` would reap one that has just ended, and lose its status
        async with asyncio.timeout(WAIT_S):
            return await self._process.wait()

    def memory_mb(self) -> float:
        """Return the memory that the process holds now, MiB."""
        return psutil.Process(self.pid).memory_info().rss / 2**20

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        if self.running:
            await self.kill()
        if self._drain is not None:
            await self._drain


class Engine(Child):
    """An embedded engine with faults on demand, on a port that stays the same over restarts."""

    def __init__(self, folder: Path, **faults: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.data_dir = folder / "engine"
        self._gate = folder / "released"
        super().__init__(
            folder / "engine.log",
            "faceswap.engine",
            *("--port", str(self.port), "--data-dir", str(self.data_dir)),
            *("--no-token", "--preset", "ultrafast", "--faults", json.dumps(faults)),
        )

    async def hold(self) -> None:
        """Let prompts from now on stop after their first frame, until `release`."""
        self._gate.unlink(missing_ok=True)
        await self.set_faults(hold_until=str(self._gate))

    def release(self) -> None:
        """Let what is held go on, painting."""
        self._gate.touch()

    async def set_faults(self, **faults: Any) -> None:
        """Set these faults and no others from now on."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/faults", json=faults) as response,
        ):
            assert response.status == 200, await response.text()


class Service(Child):
    """The service over a data folder that stays the same over restarts."""

    def __init__(
        self,
        folder: Path,
        *comfyui_urls: str,
        env: dict[str, str] | None = None,
        descriptors: int | None = None,
        **settings: object,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.data_dir = folder / "data"
        env = {**(env or {}), **{f"FACESWAP_{name.upper()}": str(value) for name, value in settings.items()}}
        super().__init__(
            folder / "service.log",
            "faceswap",
            *("serve", "--port", "0", "--data-dir", str(self.data_dir)),
            *(argument for url in comfyui_urls for argument in ("--comfyui-url", url)),
            env={"FACESWAP_MIN_FREE_MB": "0", **env},
            descriptors=descriptors,
        )

    def set(self, **settings: object) -> None:
        """Change settings from the next start on."""
        self._env.update({f"FACESWAP_{name.upper()}": str(value) for name, value in settings.items()})

    def files(self) -> list[str]:
        """Return every file in the data folder but the database, the lock and the node's name, relative."""
        return [name for name in files_in(self.data_dir) if not name.startswith(("faceswap.db", "lock", "node"))]


@asynccontextmanager
async def service_and_engine(
    folder: Path, faults: dict[str, Any], **settings: object
) -> AsyncIterator[tuple[Service, Engine]]:
    """Yield a service in front of one engine with faults."""
    async with Engine(folder, **faults) as engine, Service(folder, engine.url, **settings) as service:
        yield service, engine
