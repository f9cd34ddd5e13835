"""A service of one's own, for a command that is told of none."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from ..child_process import kill_group, terminate, wait_within
from ..client import FaceSwap, FaceSwapError
from ..config import default_data_dir

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 15.0
QUIT_TIMEOUT_S = 2.0
LOCK_POLL_S = 0.1
RESUMES = 2
"""Fewer than for a server, because nobody restarts a private service."""
LOG_TAIL_BYTES = 4000

PRIVATE = dict.fromkeys(
    (
        "FACESWAP_API_KEYS_FILE",
        "FACESWAP_DATABASE_URL",
        "FACESWAP_FILES_URL",
        "FACESWAP_PUBLIC_URL",
        "CREDENTIALS_DIRECTORY",
    ),
    "",
)
"""The settings that a private service does not take over: who may use it, and what it would share with others."""

_LISTENING = re.compile(r"faceswap: listening on (https?://\S+)")


@contextlib.asynccontextmanager
async def private_service(data_dir: Path | None = None) -> AsyncIterator[FaceSwap]:
    """Start a private service with the embedded engine on a free port, and stop it afterwards.

    Its files are in `data_dir`, where the next one finds its jobs again, or in a folder that is removed. Yields a
    client of it. Raises `FaceSwapError` with the end of its log when it does not start, or ends too early.
    """
    with _folder(data_dir) as folder, tempfile.TemporaryFile() as log:
        await _unlocked(Path(folder, "lock"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "faceswap", "serve", "--watch-stdin"),
            *("--host", "127.0.0.1", "--port", "0", "--data-dir", folder),
            env={**os.environ, "FACESWAP_COMFYUI_URLS": "", "FACESWAP_MODELS_DIR": _models_dir(), **PRIVATE},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process only, which cancels the job, then stops the service
        )
        grace_s = STOP_TIMEOUT_S
        try:
            async with FaceSwap(await _listening(process), resumes=RESUMES) as client:
                yield client
        except FaceSwapError as error:
            if error.status or not error.transient:
                raise
            log.seek(0)
            tail = log.read()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
            raise FaceSwapError(0, error.code, f"{error.detail}\n{tail}") from error
        except asyncio.CancelledError:  # asked to quit at once
            grace_s = QUIT_TIMEOUT_S
            raise
        finally:
            await _stop(process, grace_s)


def _models_dir() -> str:
    """Return the folder of networks of this user's own service."""
    return os.environ.get("FACESWAP_MODELS_DIR") or str(default_data_dir(os.environ) / "models")


@contextlib.contextmanager
def _folder(data_dir: Path | None) -> Iterator[str]:
    if data_dir is not None:
        yield str(data_dir)
        return
    with tempfile.TemporaryDirectory(prefix="faceswap-", ignore_cleanup_errors=True) as folder:
        yield folder


async def _unlocked(lock: Path) -> None:
    """Wait for the end of a service that lost the command that had started it; it stops by itself."""
    with contextlib.suppress(FileNotFoundError, TimeoutError), lock.open("rb") as file:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            while True:
                try:
                    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await asyncio.sleep(LOCK_POLL_S)


async def _listening(process: asyncio.subprocess.Process) -> str:
    """Read the address from the line that the service prints when it accepts requests."""
    assert process.stdout is not None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S):
            async for line in process.stdout:
                if found := _LISTENING.search(line.decode(errors="replace")):
                    return found[1]
    raise FaceSwapError(0, "not_started", "The service did not start.")


async def _stop(process: asyncio.subprocess.Process, grace_s: float) -> None:
    """Stop the service, which stops its engine; after `grace_s` seconds both are killed."""
    try:
        if process.returncode is None:
            terminate(process.pid)
        await wait_within(grace_s, process.wait())
    finally:
        if process.returncode is None:
            kill_group(process.pid)
        await process.wait()
