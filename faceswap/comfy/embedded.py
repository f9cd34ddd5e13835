"""Looks after the embedded engine: a child process that speaks ComfyUI's protocol on the loopback."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from yarl import URL

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "faceswap.engine")
LISTENING = re.compile(r"faceswap engine: listening on (http://\S+)")

START_TIMEOUT = 60.0
STOP_TIMEOUT = 5.0
DRAIN_TIMEOUT = 1.0
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0
STABLE_AFTER = 60.0
LINE_CHARACTERS = 1000


class EngineStartError(Exception):
    """The engine did not get as far as listening, in one sentence."""


class EmbeddedEngine:
    """One engine process, started again whenever it dies.

    `url` is where it listens, None while it does not. The port stays the same over restarts unless another program
    took it; 0 picks a free one. The child ends by itself when its standard input closes, so it never outlives this
    process. `command` is what to run instead of `python -m faceswap.engine`.
    """

    def __init__(
        self, data_dir: Path, port: int = 0, extra_args: Sequence[str] = (), command: Sequence[str] = COMMAND
    ) -> None:
        self.state: Literal["starting", "running", "restarting", "stopped"] = "stopped"
        self.url: URL | None = None
        self.restarts = 0
        self._arguments = (*command, "--watch-stdin", "--host", "127.0.0.1", "--data-dir", str(data_dir), *extra_args)
        self._wanted_port = port
        self._port = port
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return None if self._process is None else self._process.pid

    async def start(self, timeout: float = START_TIMEOUT) -> URL:
        """Start the child and wait, at most `timeout` seconds, until it listens. Raises EngineStartError."""
        if self.state == "stopped":
            self.state = "starting"
        listening: asyncio.Future[URL] = asyncio.get_running_loop().create_future()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments,
                "--port",
                str(self._port),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={name: value for name, value in os.environ.items() if not name.startswith("FACESWAP_")},
                start_new_session=True,  # Ctrl-C in a terminal is ours to pass on, after the jobs are put down
            )
            assert self._process.stdout is not None and self._process.stderr is not None
            self._readers = [
                asyncio.create_task(_forward(self._process.stdout, listening)),
                asyncio.create_task(_forward(self._process.stderr)),
            ]
            async with asyncio.timeout(timeout):
                self.url = await listening
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

    async def run(self, on_ready: Callable[[URL], Awaitable[None] | None]) -> None:
        """Keep an engine running until cancelled, and stop it then. `on_ready` is called whenever one listens."""
        pause = FIRST_PAUSE
        try:
            while True:
                started = time.monotonic()
                try:
                    url = self.url or await self.start()
                    ready = on_ready(url)
                    if ready is not None:
                        await ready
                    log.warning("the embedded engine ended with %s", await self._ended())
                except EngineStartError as error:
                    self._port = self._wanted_port
                    log.warning("%s", error)
                self.state = "restarting"
                self.restarts += 1
                pause = FIRST_PAUSE if time.monotonic() - started >= STABLE_AFTER else pause
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stop the child: politely, then, after five seconds, for good. Does nothing when there is none."""
        self.state = "stopped"
        await self._end()

    async def _ended(self) -> int:
        """Wait for the child's death; returns its exit status."""
        assert self._process is not None
        status = await self._process.wait()
        await self._end()
        return status

    async def _end(self) -> None:
        """Have no child, and no process of the child's, any more."""
        self.url = None
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT):
                    await process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if self._readers:
            _, unfinished = await asyncio.wait(self._readers, timeout=DRAIN_TIMEOUT)
            for reader in unfinished:
                reader.cancel()
        self._readers = []
        self._process = None


async def _forward(stream: asyncio.StreamReader, listening: asyncio.Future[URL] | None = None) -> None:
    """Put what the child writes into our log; the line that says where it listens goes to `listening` too."""
    async for line in _lines(stream):
        log.info("engine: %s", line)
        if listening is not None and not listening.done() and (found := LISTENING.match(line)):
            listening.set_result(URL(found[1]))
    if listening is not None and not listening.done():
        listening.set_exception(EngineStartError("It ended before it listened."))


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines of any length, each cut to 1000 characters, in bounded memory."""
    pending = b""
    while chunk := await stream.read(4096):
        *lines, pending = (pending + chunk).split(b"\n")
        pending = pending[:LINE_CHARACTERS]
        for line in lines:
            yield line[:LINE_CHARACTERS].decode("utf-8", "replace").rstrip()
    if pending:
        yield pending.decode("utf-8", "replace")
