"""One service with one engine for all of these tests, and one whose ComfyUI never answers: its jobs stay queued."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import postgres
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from processes import Engine, Service, dead_url, eventually, service_and_engine
from talk import Api, Media
from waiting import WAIT_S

NewDatabase = Callable[[], dict[str, object]]


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return Media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="session")
def database(request: pytest.FixtureRequest) -> Iterator[NewDatabase]:
    """Make a new database, of the kind that `on_both_databases` asks for; it gives the settings that name it."""
    with ExitStack() as databases:
        if getattr(request, "param", "sqlite") == "sqlite":
            yield dict
        else:
            yield lambda: {"database_url": databases.enter_context(postgres.empty_database())}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def processes(
    database: NewDatabase, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Service, Engine]]:
    folder = tmp_path_factory.mktemp("system")
    settings = {"url_allow": "127.0.0.0/8", "max_upload_mb": 1, **database()}
    async with service_and_engine(folder, {"paint": True}, **settings) as both:
        yield both


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def idle_process(database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with Service(tmp_path_factory.mktemp("idle"), dead_url(), **database()) as service:
        yield service


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=WAIT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.fixture
def api_of(session: aiohttp.ClientSession, media: Media) -> Callable[[Service], Api]:
    """Make a user of a service that the test started."""
    return lambda service: Api(service.url, session, media)


@pytest.fixture
def service(processes: tuple[Service, Engine]) -> Service:
    return processes[0]


@pytest.fixture
async def engine(processes: tuple[Service, Engine]) -> AsyncIterator[Engine]:
    """Yield the engine, whose faults are the test's to choose."""
    engine = processes[1]
    yield engine
    await engine.set_faults(paint=True)
    engine.release()


@pytest.fixture
async def api(service: Service, api_of: Callable[[Service], Api]) -> Api:
    """Return a user of the service, once that is ready for jobs."""
    api = api_of(service)

    async def ready() -> bool:
        return (await api.get("/readyz")).status == 200

    await eventually(ready)
    return api


@pytest.fixture
def idle(idle_process: Service, api_of: Callable[[Service], Api]) -> Api:
    """Return a user of a service whose jobs stay queued."""
    return api_of(idle_process)


@pytest.fixture
def own_database(database: NewDatabase) -> dict[str, object]:
    """Return the settings of a database that only this test uses."""
    return database()


@pytest.fixture
def folder_service(tmp_path: Path, own_database: dict[str, object]) -> Callable[..., Service]:
    """Make a service with settings of its own, whose jobs stay queued."""
    return lambda **settings: Service(tmp_path / "own", dead_url(), **own_database, **settings)


@pytest.fixture
async def media_url(media: Media) -> AsyncIterator[str]:
    """Yield a web server that has the media under `/video` and `/image`."""

    async def serve(request: web.Request) -> web.Response:
        return web.Response(body={"video": media.video, "image": media.image}[request.match_info["name"]])

    app = web.Application()
    app.router.add_get("/{name}", serve)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.fixture
async def nothing_is_left(service: Service) -> AsyncIterator[None]:
    """Check, once the test is over, that the service has erased every input that the test sent."""
    before = inputs(service)
    yield

    async def erased() -> bool:
        return inputs(service) <= before

    await eventually(erased)


def inputs(service: Service) -> set[str]:
    return {name for name in service.files() if name.startswith("inputs/")}
