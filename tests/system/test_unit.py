"""faceswap.service as it stands: what systemd says of it, and a whole job inside its restrictions."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from clips import make_clip
from machine import need, program
from media_samples import astronaut_frames
from private_systemd import ROOT, Manager, missing, systemd
from processes import LISTENING
from waiting import until

from faceswap.client import FaceSwap
from faceswap.media.child import MAX_DATA_BYTES, MAX_OPEN_FILES
from faceswap.samples import FACE

MOST_EXPOSURE = 1.5
FRAMES, SIZE = 20, (320, 320)
DROP_IN = f"""
[Service]
Environment=FACESWAP_PORT=0 FACESWAP_MIN_FREE_MB=0
# On a busy machine both take what they take.
TimeoutStopSec=120
WatchdogSec=120
StandardOutput=append:/var/lib/faceswap.log
StandardError=append:/var/lib/faceswap.log
# The Python and the checkout of this test may lie in a home folder.
ProtectHome=tmpfs
BindReadOnlyPaths={sys.base_prefix} {sys.prefix} {ROOT}
"""
KEY = "a key of nobody"
SECRETS = {
    "api_keys_file": f"tester:{sha256(KEY.encode()).hexdigest()}\n",
    "webhook_secret": f"whsec_{b64encode(bytes(32)).decode()}",
}
CONFINED = {"NoNewPrivs": "1", "Seccomp": "2", "CapBnd": "0" * 16, "CapEff": "0" * 16}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unit(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Manager]:
    """Yield a systemd in which the unit runs."""
    need(missing())
    async with systemd(tmp_path_factory.mktemp("unit"), DROP_IN, **SECRETS) as manager:
        await manager.run("systemctl", "start", manager.UNIT)
        yield manager


def test_the_units_exposure_is_low() -> None:
    command = [program("systemd-analyze", "systemd"), "security", "--offline=true", str(ROOT / Manager.UNIT)]
    analysed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"Overall exposure level for faceswap\.service: ([\d.]+)", analysed)
    assert found and float(found[1]) <= MOST_EXPOSURE, analysed


@pytest.mark.asyncio(loop_scope="module")
async def test_systemd_has_nothing_to_say_against_the_unit(unit: Manager) -> None:
    assert await unit.run("systemd-analyze", "verify", f"{unit.folder}/units/{unit.UNIT}") == ""


@pytest.mark.asyncio(loop_scope="module")
async def test_a_whole_job_runs_inside_the_units_restrictions(unit: Manager, tmp_path: Path) -> None:
    pictures = [picture[..., ::-1] for picture in astronaut_frames(FRAMES, SIZE)]
    clip = make_clip(tmp_path / "clip.mp4", FRAMES, size=SIZE, draw=lambda i, *_: pictures[i], sounds=["aac"])
    listening = await until(lambda: LISTENING.search(unit.log().encode()))
    async with FaceSwap(listening[1].decode(), key=KEY) as client:
        prompt_id = await client.submit(clip, FACE, output_name="inside")
        events = [event async for event in client.events(prompt_id)]
        assert events[-1].type == "completed", (events[-1], unit.log())
        result = tmp_path / "result.mp4"
        await client.download("inside.mp4", result, sha256=events[-1].data["sha256"])
    processes = await unit.processes()
    modules = [" ".join(process.cmdline()) for process in processes]
    assert any("faceswap.engine" in module for module in modules)
    for process in processes:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines)
        assert {name: status[name] for name in CONFINED} == CONFINED
        assert process.uids().real > 0
    workers = [p.pid for p, module in zip(processes, modules, strict=True) if "faceswap.media.child" in module]
    assert workers
    for pid in workers:
        assert resource.prlimit(pid, resource.RLIMIT_DATA)[1] == MAX_DATA_BYTES
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[1] == MAX_OPEN_FILES
    assert "Traceback" not in unit.log()


@pytest.mark.asyncio(loop_scope="module")
async def test_secrets_come_from_systemds_credential_store(unit: Manager) -> None:
    service = (await unit.processes())[0]
    folder = service.environ()["CREDENTIALS_DIRECTORY"]
    seen = {path.name: path.read_text() for path in Path(f"/proc/{service.pid}/root{folder}").iterdir()}
    assert seen == {f"faceswap.{name}": text for name, text in SECRETS.items()}
    listening = LISTENING.search(unit.log().encode())
    assert listening
    async with aiohttp.ClientSession(listening[1].decode()) as session:
        for key, status in (("another", 401), (KEY, 200)):
            async with session.get("/jobs", headers={"X-API-Key": key}) as answer:
                assert answer.status == status


@pytest.mark.asyncio(loop_scope="module")
async def test_the_unit_stops_when_it_is_told(unit: Manager) -> None:
    await unit.run("systemctl", "stop", unit.UNIT)
    assert await unit.show("Result") == "success"
    assert await unit.show("ExecMainStatus") == "0"
