"""The way from one machine to several, as docs/scaling.md has it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import postgres
from processes import Engine, Service
from talk import Api


async def test_what_sqlite_and_a_folder_hold_goes_on_in_postgresql_and_a_shared_folder(
    tmp_path: Path, api_of: Callable[[Service], Api]
) -> None:
    data, shared = tmp_path / "data", tmp_path / "shared"
    shared.mkdir()
    with postgres.empty_database() as url:
        async with Engine(tmp_path, paint=True) as engine:
            async with Service(tmp_path, engine.url) as service:
                api = api_of(service)
                done = await api.finished(output_name="a name with spaces")
                result = (await api.get(done["result"])).body
                await engine.hold()
                running = await api.submit()
                await api.until(running, "PROCESSING")
                await service.stop()
            migrate = [sys.executable, "-m", "faceswap", "migrate", "--from", f"sqlite:{data / 'faceswap.db'}"]
            environment = {**os.environ, "FACESWAP_DATABASE_URL": url}
            subprocess.run([*migrate, "--files", shared], check=True, env=environment)
            engine.release()
            async with Service(tmp_path / "node", engine.url, database_url=url, files_url=shared) as node:
                api = api_of(node)
                assert (await api.get(done["result"])).body == result
                assert await api.status(done["prompt_id"]) == done
                assert (await api.done(running))["attempts"] == 1
