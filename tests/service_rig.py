"""The service and its engines in the test's own process: fast to start, and with as little patience as a test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from described import Described
from processes import files_in
from waiting import WAIT_S, eventually
from yarl import URL

from faceswap import samples
from faceswap.api import keys
from faceswap.app import FAILED, create_app
from faceswap.config import Settings, Timeouts
from faceswap.engine.faults import Faults
from faceswap.engine.server import ENGINE
from faceswap.engine.server import create_app as create_engine

QUICK = Timeouts(
    reconcile_s=0.2,
    silence_s=WAIT_S,
    stuck_s=WAIT_S,
    stop_s=60.0,
    unreachable_s=10.0,
    outage_s=0.3,
    confirm_s=0.05,
    retry_s=(0.1, 0.2),
)
"""Pauses a test can wait for; an engine has long enough to answer and to stop on a busy machine, and to be held."""

PATIENT = replace(QUICK, unreachable_s=WAIT_S)
"""No engine is given up because the machine stands still."""


class PlainServer(TestServer):
    """A server whose handlers go on when their client is gone, as those of `faceswap serve` and of the engine do.

    One that is cancelled while its file is opened would leave that open.
    """

    async def _make_runner(self, **options: Any) -> web.BaseRunner[Any]:
        return await super()._make_runner(**{**options, "handler_cancellation": False})


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]


class EngineRig:
    """One ComfyUI with faults on demand; every call to it is written down."""

    def __init__(self, folder: Path, lie: Middleware | None = None, **faults: Any) -> None:
        self.calls: list[tuple[str, str]] = []
        self.folder = folder
        self.most = 0
        """The most prompts it had at a time."""
        self._held_from: int | None = None
        self._gate = folder / "released"
        self._app = create_engine(folder, faults=Faults.parse(faults), preset="ultrafast")
        if lie is not None:
            self._app.middlewares.append(web.middleware(lie))
        self._app.middlewares.insert(0, self._recorder())
        self._server = PlainServer(self._app)

    def _recorder(self) -> Middleware:
        @web.middleware
        async def record(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.calls.append((request.method, request.path))
            if self.submissions == self._held_from:
                self._app[ENGINE].faults.now = Faults.parse({"hold_until": str(self._gate)})
            response = await handler(request)
            self.most = max(self.most, len(self.pending) + bool(self.running))
            return response

        return record

    @property
    def url(self) -> str:
        return str(self._server.make_url("/"))

    def set_faults(self, **faults: Any) -> None:
        """Set these faults and no others from now on, also where it was to be held."""
        self._held_from = None
        self._app[ENGINE].faults.now = Faults.parse(faults)

    def hold(self, *, after: int = 0) -> None:
        """Prompts, after so many more, stop after their first frame, until `release`."""
        self._gate.unlink(missing_ok=True)
        self._held_from = self.submissions + after + 1

    def release(self) -> None:
        """Let what is held go on, painting."""
        self._gate.touch()

    def broadcast(self, kind: str, data: dict[str, Any]) -> None:
        """Send a message to all who listen."""
        self._app[ENGINE].sockets.broadcast(kind, data)

    @property
    def running(self) -> str | None:
        """The prompt it works on."""
        prompt = self._app[ENGINE].prompts.running
        return prompt.id if prompt else None

    @property
    def pending(self) -> list[str]:
        """The prompts that wait, in order."""
        return [prompt.id for prompt in self._app[ENGINE].prompts.pending]

    @property
    def submissions(self) -> int:
        """The number of prompts sent to it."""
        return self.calls.count(("POST", "/prompt"))

    @property
    def finished(self) -> list[str]:
        """The prompts it worked on to an end, good or bad, in order."""
        return list(self._app[ENGINE].prompts.history)

    @property
    def loads(self) -> list[dict[str, Any]]:
        """The inputs of VHS_LoadVideo in each of these prompts."""
        graphs = (entry["prompt"][2] for entry in self._app[ENGINE].prompts.history.values())
        return [node["inputs"] for graph in graphs for node in graph.values() if node["class_type"] == "VHS_LoadVideo"]

    @property
    def extra_data(self) -> list[dict[str, Any]]:
        """The extra data of each of these prompts."""
        return [entry["prompt"][3] for entry in self._app[ENGINE].prompts.history.values()]

    def interrupt(self) -> None:
        """Interrupt as a user of ComfyUI's own page would."""
        self._app[ENGINE].prompts.interrupt(None)

    async def __aenter__(self) -> EngineRig:
        await self._server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()


class ServiceRig:
    """A service, talked to over HTTP as users do."""

    def __init__(self, client: TestClient[Any, Any], folder: Path, described: Described) -> None:
        self.client = client
        self.folder = folder
        self.described = described

    def form(self, video: Path, *images: Path, **options: Any) -> aiohttp.FormData:
        """Return a request for a job, with the sample face where no pictures are given."""
        form = aiohttp.FormData()
        form.add_field("video", video.read_bytes(), filename=video.name)
        for image in images or (samples.FACE,):
            form.add_field("image", image.read_bytes(), filename=image.name)
        form.add_field("return_prompt_id_only", "true")
        form.add_field("options", web.json_response(options).text)
        return form

    async def post(self, video: Path, *images: Path, **options: Any) -> str:
        """Submit a job; returns its id."""
        async with self.client.post("/face-swap", data=self.form(video, *images, **options)) as response:
            assert response.status == 200, await response.text()
            return str((await response.json())["prompt_id"])

    async def get(self, path: str) -> dict[str, Any]:
        async with self.client.get(path) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
            return answer

    async def status(self, prompt_id: str) -> dict[str, Any]:
        return await self.get(f"/status/{prompt_id}")

    async def ended(self, prompt_id: str) -> dict[str, Any]:
        """Return the status of a job once it has ended."""

        async def end() -> dict[str, Any] | None:
            assert not self.client.app[FAILED].is_set(), "a background task of the service died"
            status = await self.status(prompt_id)
            return status if status["finished_at"] else None

        found: dict[str, Any] = await eventually(end)
        return found

    async def ready(self, backends: int = 1) -> None:
        """Wait until so many engines are connected."""

        async def connected() -> bool:
            listeners = [backend["listener"] for backend in (await self.get("/health"))["backends"]]
            return listeners.count("connected") >= backends

        await eventually(connected)

    async def download(self, status: dict[str, Any], to: Path) -> Path:
        async with self.client.get(status["result"]) as response:
            assert response.status == 200, await response.text()
            to.write_bytes(await response.read())
        return to

    async def messages(self, prompt_id: str) -> list[str]:
        """Return the events of an ended job, in order."""
        events = await self.client.app[keys.STORE].events(prompt_id, 0)
        return [str(event.data.get("message") or event.data.get("detail")) for event in events]

    async def segments(self, prompt_id: str) -> list[tuple[int, int, int]]:
        """Return first frame, frames and attempts of each segment of a job, in order."""
        found = await self.client.app[keys.STORE].segments(prompt_id)
        return [(segment.first_frame, segment.frame_count, segment.attempt) for segment in found]

    async def finished_segments(self, prompt_id: str) -> set[str]:
        """Return the files of a job's finished segments, relative to the data folder."""
        found = await self.client.app[keys.STORE].segments(prompt_id)
        return {f"work/{prompt_id}/{segment.output_file}" for segment in found if segment.state == "done"}

    def files(self) -> list[str]:
        """Return every file in the data folder but the database, relative."""
        return [name for name in files_in(self.folder) if not name.startswith("faceswap.db")]


@asynccontextmanager
async def running_service(
    folder: Path,
    *engines: EngineRig | str,
    timeouts: Timeouts = QUICK,
    headers: Mapping[str, str] | None = None,
    server: type[TestServer] = TestServer,
    **settings: Any,
) -> AsyncIterator[ServiceRig]:
    """Yield a service in front of these engines, or addresses, ready for jobs. All its answers are to be described.

    `headers` are sent with each call.
    """
    urls = tuple(URL(engine if isinstance(engine, str) else engine.url) for engine in engines)
    app = create_app(Settings(folder, comfyui_urls=urls, min_free_mb=0, **settings), timeouts)
    described = Described(app)
    async with TestClient(server(app), headers=headers) as client:
        rig = ServiceRig(client, folder, described)
        await rig.ready(sum(isinstance(engine, EngineRig) for engine in engines))
        yield rig
    assert not described.faults, described.faults


@asynccontextmanager
async def service_and_engines(
    folder: Path,
    count: int = 1,
    *,
    lie: Middleware | None = None,
    timeouts: Timeouts = QUICK,
    settings: dict[str, Any] | None = None,
    **faults: Any,
) -> AsyncIterator[tuple[ServiceRig, list[EngineRig]]]:
    """Yield a service in front of some engines, all with the same faults."""
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(EngineRig(folder / f"engine-{number}", lie, **faults))
            for number in range(count)
        ]
        service = running_service(folder / "data", *engines, timeouts=timeouts, **(settings or {}))
        yield await stack.enter_async_context(service), engines
