"""Processes of the service that begin as forks of one that has imported everything, so that each need not.

`python -m forks` is that one: a connection to its socket brings what to run, with the descriptors for standard input,
output and errors; it answers the process id, and later the exit status. All end when its own standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from patience import be_patient

from faceswap.child_process import wait_within
from faceswap.limits import FEW_THREADS, limit_process
from faceswap.media.process import MAX_ANSWER_BYTES, Child

PROGRAMS = {"faceswap": "faceswap.cli", "faceswap.engine": "faceswap.engine.__main__", "faceswap.media.child": ""}
"""The programs that can be forked, each with the module that holds its `main`, where that is not its own."""
MODULES = (
    *("faceswap.media.child", "faceswap.media.examine", "faceswap.media.faces", "faceswap.media.picture"),
    *("faceswap.media.verify", "faceswap.serve", "faceswap.engine.server", "ai_edge_litert.interpreter"),
)
"""Modules that import what the programs need."""
REQUEST_BYTES = 1 << 16
PR_SET_PDEATHSIG = 1
"""For `prctl`: the signal that a process gets when its parent has ended, however that came."""
OUTPUT_S = 1.0
"""The longest wait for the end of a process's output, which processes of its own may hold open."""
"""No thread may run in a process that is forked."""


Closable = asyncio.BaseTransport | asyncio.StreamWriter


class Process:
    """A forked process, as `asyncio.subprocess.Process` shows one."""

    def __init__(self, pid: int, stdin: asyncio.StreamWriter | None, stdout: asyncio.StreamReader) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None
        self._end: asyncio.Task[None] | None = None

    async def wait(self) -> int:
        """Wait for the end; returns the exit status."""
        assert self._end
        await asyncio.shield(self._end)
        assert self.returncode is not None
        return self.returncode

    def watch(self, told: asyncio.StreamReader, output: Output, *ends: Closable) -> None:
        """Take the exit status when it is told, and close our ends then."""
        self._end = asyncio.create_task(self._watch(told, output, ends))

    async def _watch(self, told: asyncio.StreamReader, output: Output, ends: tuple[Closable, ...]) -> None:
        try:
            self.returncode = os.waitstatus_to_exitcode(int(await told.readline() or signal.SIGKILL))
            await wait_within(OUTPUT_S, output.ended.wait())
        finally:
            for end in ends:
                end.close()


class Output(asyncio.StreamReaderProtocol):
    """The output of a process, and its end."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self.ended = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.ended.set()


class ForkServer:
    """The process that others are forked from. It starts when it is first needed, unless it is at `path` already."""

    def __init__(self, path: Path, *, running: bool = False) -> None:
        self._path = path
        self._running = running
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()

    async def start(
        self,
        program: str,
        *arguments: str,
        env: Mapping[str, str],
        stderr: IO[bytes],
        cwd: Path | None = None,
        stdin: bool = False,
        limit: int = 1 << 16,
    ) -> Process:
        """Start one of the programs, whose output is read, and whose input is written if `stdin` says so."""
        if not self._running:
            await asyncio.to_thread(self._start)
        os.umask(umask := os.umask(0o077))
        request = {"program": program, "arguments": arguments, "env": {**env}, "cwd": str(cwd or Path.cwd())}
        request["umask"] = umask
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit)
        input_end, ours = os.pipe() if stdin else (os.open(os.devnull, os.O_RDONLY), None)
        output, output_end = os.pipe()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._path))
        with os.fdopen(input_end, "rb"), os.fdopen(output_end, "wb"):
            socket.send_fds(connection, [json.dumps(request).encode()], [input_end, output_end, stderr.fileno()])
        told, telling = await asyncio.open_unix_connection(sock=connection)
        read, printed = await loop.connect_read_pipe(lambda: Output(reader), os.fdopen(output, "rb"))
        writer = None
        if ours is not None:
            write, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(ours, "wb"))
            writer = asyncio.StreamWriter(write, protocol, None, loop)
        process = Process(int(await told.readline()), writer, reader)
        process.watch(told, printed, telling, read, *([writer] if writer else []))
        return process

    def _start(self) -> None:
        with self._starting:
            if self._running:
                return
            command = (sys.executable, "-m", "forks", self._path)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parent,
                env={**os.environ, **FEW_THREADS},
            )
            assert self._process.stdout
            assert self._process.stdout.readline(), "the fork server did not start"
            self._running = True

    def close(self) -> None:
        """End it, and all that it has started."""
        if self._process is not None:
            with self._process:
                assert self._process.stdin
                self._process.stdin.close()

    async def start_worker(self) -> Child:
        """Start a worker of the service, as `Child.start` does."""
        with Path(os.devnull).open("wb") as nothing:
            env = {**os.environ, **FEW_THREADS}
            process = await self.start(
                "faceswap.media.child", env=env, stderr=nothing, stdin=True, limit=MAX_ANSWER_BYTES
            )
        return Child(process)


class Forks:
    """The server's own side: it forks a process for each request, and tells of its end."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(100)
        self._processes: dict[int, tuple[int, socket.socket]] = {}

    @classmethod
    def prepared(cls, path: str) -> Self:
        """Import everything, and be patient, then listen."""
        limit_process(resource.RLIM_INFINITY)
        for module in MODULES:
            importlib.import_module(module)
        be_patient(setattr)
        gc.freeze()
        return cls(path)

    def serve(self) -> int:
        """Serve until standard input ends; returns the exit status, in a forked process that of its program."""
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            ready, _, _ = select.select([sys.stdin, self._listener, *self._processes], [], [])
            if sys.stdin in ready:
                break
            for descriptor in ready:
                if descriptor is self._listener:
                    connection, _ = self._listener.accept()
                    message, files, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 3)
                    if not (pid := os.fork()):
                        return self._run(json.loads(message), files, connection)
                    for file in files:
                        os.close(file)
                    tell(connection, pid)
                    self._processes[os.pidfd_open(pid)] = (pid, connection)
                else:
                    pid, told = self._processes.pop(descriptor)
                    os.close(descriptor)
                    tell(told, os.waitpid(pid, 0)[1])
                    told.close()
        for pid, _ in self._processes.values():
            os.kill(pid, signal.SIGKILL)
        return 0

    def _run(self, request: dict[str, Any], files: list[int], connection: socket.socket) -> int:
        """Be the process that is asked for; returns its exit status."""
        for other in (connection, self._listener, *(told for _, told in self._processes.values())):
            other.close()
        for descriptor in self._processes:
            os.close(descriptor)
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(request["cwd"])
        os.umask(request["umask"])
        os.environ.clear()
        os.environ.update(request["env"])
        program = request["program"]
        sys.argv = [program, *request["arguments"]]
        Child.start = ForkServer(Path(self._path), running=True).start_worker
        return int(importlib.import_module(PROGRAMS[program] or program).main() or 0)


def tell(connection: socket.socket, number: int) -> None:
    """Send a number, unless nobody listens any more."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(b"%d\n" % number)


if __name__ == "__main__":
    sys.exit(Forks.prepared(sys.argv[1]).serve())
