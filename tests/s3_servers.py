"""S3 servers for tests, each a process of its own: moto's, which keeps all in memory, and nanio, which stores on disk.

`FACESWAP_TEST_FILES_URL` (`s3://bucket/prefix`, with the `AWS_…` variables that belong to it) names a real one, which
is tested in addition.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

import boto3
from botocore.config import Config
from ports import free_port
from waiting import POLL_S, WAIT_S

ACCESS_KEY, SECRET_KEY, REGION = "faceswap-test", "faceswap-test-secret", "us-east-1"
REAL_URL = os.environ.get("FACESWAP_TEST_FILES_URL", "")
KINDS = ("moto", "nanio", *(("real",) if REAL_URL else ()))
"""The servers there are. `moto` checks no credentials, and `nanio` knows no conditional put; nothing here needs one."""
_PR_SET_PDEATHSIG = 1


class S3Server:
    """A server in a process of its own; `with S3Server(kind) as server` runs it, on a port that stays the same."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix=f"faceswap-{kind}-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def environment(self, endpoint: str | None = None) -> Mapping[str, str]:
        """Return the variables that lead to it; `endpoint` is the address of a proxy in between."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": endpoint or self.url,
        }

    def new_bucket(self) -> str:
        """Make a bucket; return its name."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return name

    @property
    def client(self) -> Any:
        """A client of another make, to look at what is really there."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}),
        )

    def unfinished(self, bucket: str) -> list[str]:
        """Return the keys of the multipart uploads that are neither finished nor aborted."""
        return unfinished(self.client, bucket)

    def start(self) -> None:
        """Start the server; returns when it accepts connections."""
        program = Path(sys.executable).parent
        if self.kind == "moto":
            command = [program / "moto_server", "-H", "127.0.0.1", "-p", str(self.port)]
        else:
            options = ("--host", "127.0.0.1", "--port", str(self.port), "--log-level", "error", "--no-access-log")
            command = [program / "nanio", "serve", "--data-dir", str(self._folder / "data"), *options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NANIO_ACCESS_KEY": ACCESS_KEY, "NANIO_SECRET_KEY": SECRET_KEY},
                preexec_fn=_end_with_us,
            )
        deadline = time.monotonic() + WAIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.kind} does not start: {(self._folder / 'log').read_text(errors='replace')}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Kill the server."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(WAIT_S)

    def remove(self) -> None:
        """Kill it for good, and leave nothing of it."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _end_with_us() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def unfinished(client: Any, bucket: str) -> list[str]:
    """Return the keys of the multipart uploads in a bucket that are neither finished nor aborted."""
    return [upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


def s3_client(kind: str) -> Any:
    """Return a client of another make for a server, or for the real one, which the environment leads to."""
    return boto3.client("s3") if kind == "real" else s3_server(kind).client


@cache
def s3_server(kind: str) -> S3Server:
    """Return a server that all tests of this process share; it ends with the process."""
    server = S3Server(kind)
    server.start()
    atexit.register(server.remove)
    return server


def s3_place(kind: str) -> tuple[str, Mapping[str, str]]:
    """Return an empty place, as `FACESWAP_FILES_URL`, and the environment that leads to it."""
    if kind == "real":
        return f"{REAL_URL.rstrip('/')}/{uuid.uuid4().hex}", {}
    server = s3_server(kind)
    return f"s3://{server.new_bucket()}/some/prefix", server.environment()
