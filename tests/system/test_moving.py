"""The way from one machine to several, as docs/scaling.md has it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import postgres
from processes import Engine, Service
from talk import Api

SCALING = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")


def copying() -> str:
    """Return the commands that copy the files."""
    found = re.search(r"```sh\n(\s+cp -a .*?)```", SCALING, re.DOTALL)
    assert found
    return found[1]


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
            environment = {**os.environ, "FACESWAP_DATABASE_URL": url, "DATA": str(data), "SHARED": str(shared)}
            migrate = [sys.executable, "-m", "faceswap", "migrate", "--from", f"sqlite:{data / 'faceswap.db'}"]
            subprocess.run(migrate, check=True, env=environment)
            subprocess.run(["bash", "-euc", copying()], check=True, env=environment)
            engine.release()
            async with Service(tmp_path / "node", engine.url, database_url=url, files_url=shared) as node:
                api = api_of(node)
                assert (await api.get(done["result"])).body == result
                assert await api.status(done["prompt_id"]) == done
                assert (await api.done(running))["attempts"] == 1
