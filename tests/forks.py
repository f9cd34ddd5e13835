"""Processes of the service that begin as forks of one that has imported everything, so that each need not.

`python -m forks` is that one: a connection to its socket brings what to run, with the descriptors for standard input,
output and errors; it answers the process id, and later the exit status. All end when its own standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
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
import traceback
from pathlib import Path
from typing import Any, NoReturn

from faceswap.limits import limit_process

WORKER = "faceswap.media.child"
MODULES = (WORKER, "faceswap.media.examine", "faceswap.media.faces", "faceswap.media.picture", "faceswap.media.verify")
"""Modules that import most of what the processes need."""
REQUEST_BYTES = 1 << 16
ANSWER_BYTES = 1 << 20
DETECTOR = "ai_edge_litert.interpreter"


class Process:
    """A forked process, as `asyncio.subprocess.Process` shows one."""

    def __init__(self, pid: int, stdin: asyncio.StreamWriter, stdout: asyncio.StreamReader) -> None:
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

    def watch(self, told: asyncio.StreamReader, connection: asyncio.StreamWriter, output: asyncio.Transport) -> None:
        """Take the exit status when it is told."""
        self._end = asyncio.create_task(self._watch(told, connection, output))

    async def _watch(
        self, told: asyncio.StreamReader, connection: asyncio.StreamWriter, output: asyncio.Transport
    ) -> None:
        try:
            self.returncode = os.waitstatus_to_exitcode(int(await told.readline() or signal.SIGKILL))
        finally:
            for transport in (self.stdin.transport, connection.transport, output):
                transport.close()
            await asyncio.sleep(0)  # they close in the loop's next round


class ForkServer:
    """The process that others are forked from; it starts when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "forks"
        self._process: subprocess.Popen[bytes] | None = None

    async def start_worker(self) -> Process:
        """Start a process that works on media."""
        if self._process is None:
            await asyncio.to_thread(self._start)
        theirs, stdin = os.pipe()
        stdout, answers = os.pipe()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._path))
        with os.fdopen(theirs, "rb"), os.fdopen(answers, "wb"), Path(os.devnull).open("wb") as nothing:
            request = json.dumps({"module": WORKER, "env": {**os.environ, "OPENBLAS_NUM_THREADS": "1"}})
            socket.send_fds(connection, [request.encode()], [theirs, answers, nothing.fileno()])
        told, telling = await asyncio.open_unix_connection(sock=connection)
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(ANSWER_BYTES)
        output, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(stdout, "rb"))
        pipe, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(stdin, "wb"))
        process = Process(int(await told.readline()), asyncio.StreamWriter(pipe, protocol, None, loop), reader)
        process.watch(told, telling, output)
        return process

    def _start(self) -> None:
        command = (sys.executable, "-m", "forks", self._path)
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parent, env=env
        )
        assert self._process.stdout
        assert self._process.stdout.readline(), "the fork server did not start"

    def close(self) -> None:
        """End it, and all that it has started."""
        if self._process is not None:
            with self._process:
                assert self._process.stdin
                self._process.stdin.close()


def serve(path: str) -> None:
    """Fork a process for each request until standard input ends."""
    limit_process(resource.RLIM_INFINITY)
    for module in (*MODULES, DETECTOR):
        importlib.import_module(module)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(100)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    processes: dict[int, tuple[int, socket.socket]] = {}
    while True:
        ready, _, _ = select.select([sys.stdin, listener, *processes], [], [])
        if sys.stdin in ready:
            break
        if listener in ready:
            connection, _ = listener.accept()
            descriptor, pid = fork(connection, [listener, *(told for _, told in processes.values())], list(processes))
            processes[descriptor] = (pid, connection)
        for descriptor in ready:
            if descriptor in processes:
                pid, told = processes.pop(descriptor)
                os.close(descriptor)
                _, status = os.waitpid(pid, 0)
                answer(told, status)
                told.close()
    for pid, _ in processes.values():
        os.kill(pid, signal.SIGKILL)


def answer(connection: socket.socket, number: int) -> None:
    """Tell a number, unless nobody listens any more."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(b"%d\n" % number)


def fork(connection: socket.socket, sockets: list[socket.socket], descriptors: list[int]) -> tuple[int, int]:
    """Fork a process for what a connection brings; returns its descriptor and id."""
    message, files, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 3)
    pid = os.fork()
    if not pid:
        for other in (connection, *sockets):
            other.close()
        for descriptor in descriptors:
            os.close(descriptor)
        run(json.loads(message), files)
    for file in files:
        os.close(file)
    answer(connection, pid)
    return os.pidfd_open(pid), pid


def run(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Be the process that is asked for."""
    status = 1
    try:
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(request["env"])
        status = importlib.import_module(request["module"]).main() or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - the top of a process
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
