"""More connections than the service has descriptors for."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Callable
from pathlib import Path

import psutil
from processes import Service, dead_url, eventually
from talk import Api

WARNINGS = ("connections cannot be accepted", "all connections are in use")


async def test_descriptors_that_run_out_are_one_line_in_the_log_and_no_end(
    tmp_path: Path, api_of: Callable[[Service], Api]
) -> None:
    async with Service(tmp_path, dead_url()) as service:
        api = api_of(service)
        used = psutil.Process(service.pid).num_fds()
        hard = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (used + 10, hard))
        connections = await asyncio.gather(*(api.raw() for _ in range(40)))

        async def told() -> bool:
            return any(warning in service.log() for warning in WARNINGS)

        await eventually(told)
        assert sum(service.log().count(warning) for warning in WARNINGS) == 1
        assert len(service.log()) < 5000
        for _, writer in connections:
            writer.close()

        async def answers() -> bool:
            with contextlib.suppress(OSError):
                return (await api.get("/livez")).status == 200
            return False

        await eventually(answers)
        assert "Traceback" not in service.log()


def test_the_unit_allows_as_many_descriptors_as_the_service_wants() -> None:
    unit = (Path(__file__).parent.parent.parent / "faceswap.service").read_text(encoding="utf-8")
    assert "\nLimitNOFILE=65536\n" in unit
