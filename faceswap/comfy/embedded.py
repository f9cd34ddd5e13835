"""The embedded engine's supervisor: a child process that speaks ComfyUI's protocol on the loopback."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from yarl import URL

from .. import machine
from ..child_process import kill_group, terminate, wait_within
from ..limits import ENGINE_BYTES, ENGINE_SHARE

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "faceswap.engine")
TOKEN_VARIABLE = "FACESWAP_ENGINE_TOKEN"
LISTENING = re.compile(r"faceswap engine: listening on (http://\S+)")

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 1.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
STABLE_AFTER_S = 60.0
LINE_BYTES = 1000

CORES = 2
"""The cores that one engine keeps busy: its steps, each in a thread, take about as much."""
MOST_ENGINES = 8
"""At most, unless more are asked for: by then the service that gives them work and checks it has its hands full."""


class EngineStartError(Exception):
    """The engine did not get as far as listening; the text is one sentence."""


def usual_count(*, with_networks: bool) -> int:
    """Return how many engines this machine has cores and memory for: at least one.

    One only where they may have an operator's networks: each would have a copy in memory, on the graphics card too.
    """
    if with_networks:
        return 1
    memory = int(ENGINE_SHARE * machine.memory_bytes())
    return max(1, min(machine.cores() // CORES, memory // ENGINE_BYTES, MOST_ENGINES))


class EmbeddedEngine:
    """One engine process, started again whenever it dies.

    `url` is where it listens, None while it does not; `headers` let a caller in. The port stays the same over restarts
    unless another program took it; 0 picks a free one. The child ends by itself when its standard input closes, so it
    never outlives this process. `command` is what to run instead of `python -m faceswap.engine`, `name` what its lines
    begin with in our log.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        extra_args: Sequence[str] = (),
        command: Sequence[str] = COMMAND,
        name: str = "engine",
    ) -> None:
        self.state: Literal["starting", "running", "restarting", "stopped"] = "stopped"
        self.url: URL | None = None
        self.restarts = 0
        self.input_folder = data_dir / "input"
        self._name = name
        self._token = secrets.token_urlsafe(32)
        self._arguments = (*command, "--watch-stdin", "--host", "127.0.0.1", "--data-dir", str(data_dir), *extra_args)
        self._wanted_port = port
        self._port = port
        self._child: _Child | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that the engine asks of every call, the same for all its starts."""
        return {"Authorization": f"Bearer {self._token}"}

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return None if self._child is None else self._child.transport.get_pid()

    async def start(self, timeout: float = START_TIMEOUT_S) -> URL:
        """Start the child and wait, at most `timeout` seconds, until it listens. Raises EngineStartError."""
        if self.state == "stopped":
            self.state = "starting"
        try:
            _, self._child = await asyncio.get_running_loop().subprocess_exec(
                partial(_Child, self._name),
                *self._arguments,
                "--port",
                str(self._port),
                env=self._environment(),
                start_new_session=True,  # Ctrl-C in a terminal is ours to pass on, after the jobs are put down
            )
            async with asyncio.timeout(timeout):
                self.url = await self._child.listening
        except (OSError, EngineStartError) as error:
            await self._end()
            reason = f"did not listen within {timeout:g} s" if isinstance(error, TimeoutError) else "did not start"
            raise EngineStartError(f"The embedded engine {reason}; its log lines say why.") from error
        except asyncio.CancelledError:
            await self._end()
            raise
        self._port = self.url.port or self._wanted_port
        self.state = "running"
        return self.url

    def _environment(self) -> dict[str, str]:
        """Return our environment with the token, which a command line would show, and without our own settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FACESWAP_")}
        return inherited | {TOKEN_VARIABLE: self._token}

    async def run(self, on_ready: Callable[[URL], Awaitable[None] | None]) -> None:
        """Keep an engine running until cancelled, and stop it then. `on_ready` is called whenever one listens."""
        pause = FIRST_PAUSE_S
        try:
            while True:
                listening_at = None
                try:
                    url = self.url or await self.start()
                    listening_at = time.monotonic()
                    ready = on_ready(url)
                    if ready is not None:
                        await ready
                    await self._wait_for_exit()
                except EngineStartError as error:
                    self._port = self._wanted_port
                    log.warning("%s", error)
                self.state = "restarting"
                self.restarts += 1
                if listening_at is not None and time.monotonic() - listening_at >= STABLE_AFTER_S:
                    pause = FIRST_PAUSE_S
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stop the child: politely, then, after five seconds, for good. Does nothing when there is none."""
        self.state = "stopped"
        await self._end()

    async def _wait_for_exit(self) -> None:
        """Wait until the child is gone, and clear away what it leaves."""
        assert self._child is not None
        await self._child.exited.wait()
        log.warning("the embedded %s ended with %s", self._name, self._child.transport.get_returncode())
        await self._end()

    async def _end(self) -> None:
        """End the child and every process of its group."""
        self.url = None
        if self._child is None:
            return
        transport = self._child.transport
        if stdin := transport.get_pipe_transport(0):
            stdin.close()
        if not self._child.exited.is_set():
            terminate(transport.get_pid())
            await wait_within(STOP_TIMEOUT_S, self._child.exited.wait())
        kill_group(transport.get_pid())
        await self._child.exited.wait()
        await wait_within(DRAIN_TIMEOUT_S, self._child.silent.wait())
        transport.close()
        self._child = None


class _Child(asyncio.SubprocessProtocol):
    """One child: its output goes to our log, and its exit is known at once.

    `asyncio.subprocess.Process.wait` would do for neither: it waits for every pipe to close, and the engine's own
    workers hold them open when it is killed.
    """

    transport: asyncio.SubprocessTransport

    def __init__(self, name: str) -> None:
        self._name = name
        self.listening: asyncio.Future[URL] = asyncio.get_running_loop().create_future()
        self.exited = asyncio.Event()
        self.silent = asyncio.Event()
        self._unfinished = {1: b"", 2: b""}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self.transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, unfinished = (self._unfinished[fd] + data).split(b"\n")
        self._unfinished[fd] = unfinished[:LINE_BYTES]
        for line in lines:
            self._take(line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if self._unfinished.get(fd):
            self._take(self._unfinished.pop(fd))

    def process_exited(self) -> None:
        self.exited.set()
        if not self.listening.done():
            self.listening.set_exception(EngineStartError("It ended before it listened."))
            self.listening.exception()  # nobody may be waiting any more, which is no error

    def connection_lost(self, exc: Exception | None) -> None:
        self.silent.set()

    def _take(self, raw: bytes) -> None:
        line = raw[:LINE_BYTES].decode("utf-8", "replace").rstrip()
        log.info("%s: %s", self._name, line)
        if not self.listening.done() and (found := LISTENING.match(line)):
            self.listening.set_result(URL(found[1]))
