"""Several nodes in the test's own process, on one PostgreSQL and a folder that they share."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import postgres
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from described import Described
from service_rig import QUICK, EngineRig, ServiceRig
from system.tcp_proxy import TcpProxy
from waiting import eventually
from yarl import URL

from faceswap.api import keys
from faceswap.app import create_app
from faceswap.comfy.backend import Backend
from faceswap.config import Settings, Timeouts

TIMEOUTS = replace(QUICK, lease_s=3.0, outage_s=3.0, node_gone_s=3.0)
"""Leases that a test can wait for the end of, and a busy machine can renew in time."""


@dataclass
class Nodes:
    """The place of some nodes: a database and a folder."""

    folder: Path
    database_url: str

    def app(
        self,
        name: str,
        *engines: EngineRig | str,
        way: TcpProxy | None = None,
        timeouts: Timeouts = TIMEOUTS,
        **settings: Any,
    ) -> web.Application:
        """Make a node in front of these engines; its way to the database may be a proxy."""
        shared = self.folder / "shared"
        shared.mkdir(exist_ok=True)
        urls = tuple(URL(engine if isinstance(engine, str) else engine.url) for engine in engines)
        parts = urlsplit(self.database_url)
        if way is not None:
            parts = parts._replace(netloc=f"postgres@127.0.0.1:{way.port}")
        values = {"node": name, "files_url": str(shared), "min_free_mb": 0, "comfyui_urls": urls, **settings}
        return create_app(Settings(self.folder / name, database_url=urlunsplit(parts), **values), timeouts)

    @asynccontextmanager
    async def node(self, name: str, *engines: EngineRig | str, **settings: Any) -> AsyncIterator[NodeRig]:
        """Run the node that `app` makes, ready for jobs."""
        app = self.app(name, *engines, **settings)
        described = Described(app)
        async with TestClient(TestServer(app)) as client:
            rig = NodeRig(client, self.folder / name, described)
            await rig.is_ready()
            yield rig
        assert not described.faults, described.faults

    @property
    def port(self) -> int:
        """The port of the database."""
        return urlsplit(self.database_url).port or 5432

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return postgres.sql(self.database_url, statement, *parameters)


class NodeRig(ServiceRig):
    """One of several nodes."""

    @property
    def backends(self) -> list[Backend]:
        return list(self.client.app[keys.SCHEDULER].backends)

    @property
    def held(self) -> list[str]:
        """The names of the backends that it holds."""
        return sorted(self.client.app[keys.NODE].held)

    @property
    def in_flight(self) -> int:
        return sum(len(backend.in_flight) for backend in self.backends)

    async def is_ready(self) -> None:
        async def ready() -> bool:
            async with self.client.get("/readyz") as response:
                return response.status == 200

        await eventually(ready)

    @property
    def name(self) -> str:
        return self.client.app[keys.NODE].name

    async def checks(self) -> dict[str, bool]:
        async with self.client.get("/readyz") as response:
            checks: dict[str, bool] = (await response.json())["checks"]
            return checks

    async def events(
        self, prompt_id: str, after: int = 0, found: list[dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """Watch a job to its end; returns its events, which come into `found` one by one."""
        found = [] if found is None else found
        async with self.client.get(f"/events/{prompt_id}?last_event_id={after}") as response:
            assert response.status == 200
            async for block in _blocks(response.content):
                event = dict(line.split(": ", 1) for line in block if ": " in line and not line.startswith(":"))
                if event:
                    found.append({"id": int(event["id"]), "event": event["event"], **json.loads(event["data"])})
        return found

    async def call(self, method: str, path: str, status: int) -> None:
        async with self.client.request(method, path) as response:
            assert response.status == status, await response.text()


async def _blocks(content: Any) -> AsyncIterator[list[str]]:
    block: list[str] = []
    async for line in content:
        if line.strip():
            block.append(line.decode().rstrip("\n"))
        else:
            yield block
            block = []
