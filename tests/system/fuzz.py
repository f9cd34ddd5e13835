"""The API under schemathesis: cases made of its own description against a running service that asks for keys.

`make fuzz` sends at least 2,000 cases to each group of endpoints, with every check that schemathesis has, and holds as
many conversations over the WebSocket (`fuzz_socket`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from clips import make_clip
from processes import Engine, Service
from system.fuzz_socket import PATH, Client, conversations, fuzz_socket
from waiting import eventually

from faceswap import samples
from faceswap.api.openapi import TAGS

KEY, OTHER_KEY = "fuzz-key-of-the-first", "fuzz-key-of-the-second"
ROUND_S = 1500.0
REQUEST_S = 120
"""The longest that one request may take: the longest `?wait=`, and more on a busy machine."""
MOST_QUEUED = 16
"""Jobs that may wait, so that a stream of events ends within `REQUEST_S`; one more is answered with 429."""
SOCKET = "socket"
"""The group of conversations over the WebSocket, which schemathesis does not hold."""
LINES, LINE_CHARACTERS = 200, 500
"""The most that is shown of a failure, and of each line."""

MEDIA_REFUSED = ["2xx", "400", "401", "403", "404", "409", "410", "413", "415", "422", "429"]
"""Answers to a request for a swap that is as described: its media may be none, and its addresses lead nowhere."""
GONE = ["2xx", "3xx", "401", "403", "404", "409", "410", "412", "416", "429"]
"""Answers to any other request that is as described: a job may be in any state, or gone."""
UPLOAD_REFUSED = [*GONE, "413", "423"]
"""Answers to a request as described to add to an upload: it may be whole, or another's turn."""
REFUSED = ["400", "401", "403", "404", "405", "409", "410", "411", "412", "413", "415", "416", "422", "429", "431"]
"""Answers to a request that is not as described. One that stands for a DELETE (204) may have any headers of a PATCH."""

HOOKS = """
from pathlib import Path

import schemathesis
from hypothesis import strategies as st

schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
here = Path(__file__).parent
good = [path.read_bytes() for path in (here / "clip.mp4", here / "face.png")]
cut = st.sampled_from(good).flatmap(lambda data: st.integers(0, len(data)).map(lambda end: data[:end]))
schemathesis.openapi.format("binary", st.sampled_from(good) | cut | st.binary(max_size=64))
"""


class Fuzz:
    """A service with jobs in every state, and schemathesis in front of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        keys = folder / "keys"
        named = {"first": KEY, "second": OTHER_KEY}
        keys.write_text("".join(f"{name}:{hashlib.sha256(key.encode()).hexdigest()}\n" for name, key in named.items()))
        (folder / "engine").mkdir()
        self.engine = Engine(folder / "engine", paint=True)
        address = f"http://127.0.0.1:{self.engine.port}"
        self.service = Service(
            folder / "service", address, api_keys_file=keys, rate_limit=0, queue_limit_per_key=MOST_QUEUED
        )
        self.clip = make_clip(folder / "clip.mp4", frames=2)
        (folder / "face.png").write_bytes(samples.FACE.read_bytes())
        (folder / "fuzz_hooks.py").write_text(HOOKS)
        self.jobs: list[str] = []

    async def __aenter__(self) -> Fuzz:
        await self.engine.start()
        await self.service.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.__aexit__()
        await self.engine.__aexit__()

    async def prepare(self) -> None:
        """Make jobs in every state and of another owner, and name them to schemathesis."""
        async with aiohttp.ClientSession(self.service.url, headers={"X-API-Key": KEY}) as session:

            async def idle() -> bool:
                async with session.get("/jobs?status=QUEUED") as response:
                    return not (await response.json())["jobs"]

            await eventually(idle)
            done = [await self._submit(session) for _ in range(2)]
            disposable = [await self._submit(session) for _ in range(3)]
            failed = await self._submit(session, face_index="9")
            cancelled = await self._submit(session)
            async with session.post(f"/jobs/{cancelled}/cancel") as response:
                await response.read()
            others = await self._submit(session, OTHER_KEY)
            uploads = [await self._create_upload(session, key) for key in (KEY, KEY, KEY, OTHER_KEY)]
            results = [await self._end(session, prompt_id) for prompt_id in (*done, failed, cancelled, *disposable)]
        names = [result.rpartition("/")[2] for result in results if result]
        self.jobs, deleted = [*done, failed, cancelled, others], [*disposable, others]
        (self.folder / "schemathesis.toml").write_text(
            f"""
hooks = "fuzz_hooks"
request-timeout = {REQUEST_S}
continue-on-failure = true
warnings = false

[dictionaries]
jobs.values = {json.dumps(self.jobs)}
deleted.values = {json.dumps(deleted)}
results.values = {json.dumps(names)}
uploads.values = {json.dumps(uploads)}
web.values = ["app.js", "style.css", "docs.css"]

[parameters]
"path.prompt_id" = {{ dictionary = "jobs", probability = 0.7 }}
"path.filename" = {{ dictionary = "results", probability = 0.7 }}
"path.name" = {{ dictionary = "web", probability = 0.7 }}
"path.upload_id" = {{ dictionary = "uploads", probability = 0.7 }}

[checks]
max_response_time = {REQUEST_S}
positive_data_acceptance.expected-statuses = {json.dumps(GONE)}
negative_data_rejection.expected-statuses = {json.dumps(REFUSED)}

[[operations]]
include-name = "DELETE /jobs/{{prompt_id}}"
parameters = {{ "path.prompt_id" = {{ dictionary = "deleted", probability = 0.5 }} }}

[[operations]]
include-name = "GET /readyz"
checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]
checks.positive_data_acceptance.expected-statuses = {json.dumps([*GONE, "503"])}

[[operations]]
include-name = "POST /face-swap"
checks.positive_data_acceptance.expected-statuses = {json.dumps(MEDIA_REFUSED)}

[[operations]]
include-name = "POST /uploads"
checks.positive_data_acceptance.expected-statuses = {json.dumps(MEDIA_REFUSED)}

[[operations]]
include-name = "PATCH /uploads/{{upload_id}}"
checks.positive_data_acceptance.expected-statuses = {json.dumps(UPLOAD_REFUSED)}

[[operations]]
include-name = "POST /uploads/{{upload_id}}"
checks.positive_data_acceptance.expected-statuses = {json.dumps(UPLOAD_REFUSED)}
checks.negative_data_rejection.expected-statuses = {json.dumps([*REFUSED, "204"])}

[[operations]]
include-name = "POST /faces"
checks.positive_data_acceptance.expected-statuses = {json.dumps(MEDIA_REFUSED)}
"""
        )

    async def _submit(self, session: aiohttp.ClientSession, key: str = KEY, **options: Any) -> str:
        form = aiohttp.FormData({"return_prompt_id_only": "true", "options": json.dumps(options)})
        form.add_field("video", self.clip.read_bytes(), filename="clip.mp4")
        form.add_field("image", samples.FACE.read_bytes(), filename="face.png")
        async with session.post("/face-swap", data=form, headers={"X-API-Key": key}) as response:
            assert response.status == 200, await response.text()
            return str((await response.json())["prompt_id"])

    async def _create_upload(self, session: aiohttp.ClientSession, key: str) -> str:
        headers = {"X-API-Key": key, "Tus-Resumable": "1.0.0", "Upload-Length": "1000"}
        async with session.post("/uploads", headers=headers) as response:
            assert response.status == 201, await response.text()
            return str((await response.json())["id"])

    async def _end(self, session: aiohttp.ClientSession, prompt_id: str) -> str | None:
        async def ended() -> dict[str, Any] | None:
            async with session.get(f"/status/{prompt_id}") as response:
                status: dict[str, Any] = await response.json()
            return status if status["finished_at"] else None

        status = await eventually(ended)
        return None if status is None else status["result"]

    async def run(self, *arguments: str) -> int:
        """Run schemathesis once; returns the number of its cases. Raises AssertionError with what it found."""
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "schemathesis.cli.__main__",
                "--config-file",
                str(self.folder / "schemathesis.toml"),
            ),
            *("run", f"{self.service.url}/openapi.json", "--checks", "all", "--header", f"Authorization: Bearer {KEY}"),
            *("--exclude-path", PATH, "--report-json-path", str(report), *arguments),
            cwd=self.folder,
            env={"PYTHONPATH": str(self.folder), "PATH": "/usr/bin:/bin", "HOME": str(self.folder)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(ROUND_S):
                output, _ = await process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        assert process.returncode == 0, _readable(output)
        assert self.service.running
        assert "Traceback" not in self.service.log(), self.service.log()[-5_000:]
        return int(json.loads(report.read_text())["test_cases"]["generated"])

    async def talk(self, cases: int, seed: int) -> None:
        """Hold conversations over the WebSocket. Raises AssertionError with what was found."""
        files = {"video": self.clip.read_bytes(), "image": samples.FACE.read_bytes()}
        client = Client(self.service.url, files, {"X-API-Key": KEY})
        await asyncio.to_thread(fuzz_socket, client, conversations(files, self.jobs), cases, seed)
        assert self.service.running
        assert "Traceback" not in self.service.log(), self.service.log()[-5_000:]


def _readable(output: bytes) -> str:
    """Return what schemathesis found, without the bytes of media."""
    lines = [line[:LINE_CHARACTERS] for line in output.decode(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-LINES:])


async def fuzz(cases: int, groups: Sequence[str], seed: int) -> None:
    """Send at least so many cases to each group of endpoints, then chains of calls to all."""
    with tempfile.TemporaryDirectory(prefix="faceswap-fuzz-") as folder:
        async with Fuzz(Path(folder)) as service:
            for group in groups:
                if group == SOCKET:
                    await service.prepare()
                    await service.talk(cases, seed)
                    print(f"{group}: {cases} conversations, seed {seed}", flush=True)
                    continue
                sent = 0
                while sent < cases:
                    await service.prepare()
                    chosen = ("--include-tag", group, "--phases", "coverage,fuzzing", "--max-examples", "250")
                    sent += await service.run(*chosen, "--seed", str(seed))
                    print(f"{group}: {sent} cases, seed {seed}", flush=True)
                    seed += 1
            await service.prepare()
            chained = await service.run("--phases", "stateful", "--max-examples", "100", "--seed", str(seed))
            print(f"chains of calls: {chained} cases; nothing was found", flush=True)


def main() -> None:
    """Read the command line and fuzz."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000, help="at least, for each group of endpoints")
    parser.add_argument("--group", action="append", choices=[*TAGS, SOCKET], help="only this one, repeatable")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    try:
        asyncio.run(fuzz(arguments.cases, arguments.group or [*TAGS, SOCKET], arguments.seed))
    except AssertionError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
