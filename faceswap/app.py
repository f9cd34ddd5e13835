"""The application: every part is made and wired here. No other module knows all parts."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import aiohttp
from aiohttp import web
from yarl import URL

from .api import access, keys, middleware, rate_limit
from .api.origins import Origins
from .api.results import RESULTS, Results
from .api.routes import add_routes
from .api.status import ANSWERS, Answers
from .comfy.backend import Backend, BackendPool, embedded_name
from .comfy.client import ComfyClient
from .comfy.embedded import EmbeddedEngine, usual_count
from .config import ConfigError, Settings, Timeouts, is_loopback, resource_dir
from .errors import JobFailure
from .feed import Feed
from .files import Files, FilesUnavailable, open_files
from .hub import Hub
from .intake import Fetcher, Submitter
from .janitor import Janitor
from .keyring import Keyring
from .links import SECRET_NAME
from .media import Marking, MediaWorker, Signing
from .node import Node, node_name
from .outbox import Outbox
from .progress_reporter import ProgressReporter
from .scheduler import Scheduler
from .store import Store, StoreError, retry_writes
from .thumbnails import Thumbnails
from .url_guard import UrlGuard
from .workflow import Graph, Workflow, WorkflowError, load_workflows

T = TypeVar("T")

log = logging.getLogger(__name__)

FORM_ALLOWANCE_BYTES = 1024 * 1024
"""Bytes of an upload to the engine besides the file, at most."""
START_S = 300.0
"""The time that what nodes share, database and files, may take to start."""
FILES_RETRY_S = 2.0
FAILED = web.AppKey("failed", asyncio.Event)
"""Set when a background task failed: the process must end."""


def load_workflow(settings: Settings) -> dict[str, Workflow]:
    """Load the workflows to choose from, the default one among them. Raises `ConfigError`."""
    if not settings.workflow_dir.is_dir():
        raise ConfigError(f"FACESWAP_WORKFLOW_DIR={str(settings.workflow_dir)!r}: allowed is a folder with workflows")
    try:
        workflows = load_workflows(settings.workflow_dir)
        if settings.workflow not in workflows:
            path = settings.workflow_dir / f"{settings.workflow}.json"
            if path.is_file():
                Workflow.load(path)
            raise WorkflowError(f"there is no workflow of this name; there are {', '.join(workflows) or 'none'}")
    except WorkflowError as error:
        raise ConfigError(f"FACESWAP_WORKFLOW={settings.workflow!r}: {error}") from error
    return workflows


def create_app(settings: Settings, timeouts: Timeouts | None = None) -> web.Application:
    """Make the service, ready to be run. Raises `ConfigError` for a setting that cannot be used."""
    timeouts = timeouts or Timeouts.of(settings)
    name = node_name(settings)
    app = web.Application(middlewares=[middleware.problems, middleware.same_origin, access.authenticate])
    app[keys.SETTINGS] = settings
    app[middleware.ORIGINS] = Origins(settings)
    app[rate_limit.RATE_LIMIT] = rate_limit.RateLimit(settings.rate_limit)
    looks = rate_limit.LOOKS_PER_SUBMISSION * settings.rate_limit
    app[rate_limit.LOOK_LIMIT] = rate_limit.RateLimit(looks, rate_limit.LOOKS)
    uploads = rate_limit.UPLOADS_PER_SUBMISSION * settings.rate_limit
    app[rate_limit.UPLOAD_LIMIT] = rate_limit.RateLimit(uploads, rate_limit.UPLOADS)
    app[keys.HUB] = Hub()
    app[keys.FEED] = Feed(app[keys.HUB])
    app[keys.FILES] = open_files(settings, name)
    app[FAILED] = asyncio.Event()
    workflows, marking = load_workflow(settings), marking_of(settings)

    async def parts(app: web.Application) -> AsyncIterator[None]:
        """Make the parts, lowest layer first; close them in the reverse order."""
        async with _ground(app, marking) as ground:
            await _load_secrets(app, ground)
            work = await _work(app, ground, timeouts, name, workflows)
            background = asyncio.create_task(work, name="background")
            background.add_done_callback(lambda task: _check(task, app[FAILED]))
            yield
            background.cancel()
            await asyncio.gather(background, return_exceptions=True)
            await app[keys.SUBMITTER].uploads.close()
            await app[keys.NODE].leave()

    app.cleanup_ctx.append(parts)
    app.on_shutdown.append(_close_streams)
    add_routes(app)
    return app


@dataclass(frozen=True)
class _Ground:
    """The parts that the others stand on."""

    store: Store
    files: Files
    guard: UrlGuard
    media: MediaWorker
    fetcher: Fetcher
    session: aiohttp.ClientSession


@asynccontextmanager
async def _ground(app: web.Application, marking: Marking) -> AsyncIterator[_Ground]:
    """Open files and database, and what leads outside; close them in the end."""
    settings, files, feed = app[keys.SETTINGS], app[keys.FILES], app[keys.FEED]
    await _start_files(files)
    store = app[keys.STORE] = await _open_store(settings, files, feed)
    feed.attach(store)
    guard = UrlGuard(settings.url_allow)
    media = app[keys.MEDIA] = MediaWorker(marking)
    fetcher = Fetcher(guard)
    # Each ComfyUI has a socket of its own and calls beside it: no limit may keep one waiting for another.
    session = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
    try:
        yield _Ground(store, files, guard, media, fetcher, session)
    finally:
        await session.close()
        await fetcher.close()
        await media.close()
        await store.close()
        await files.close()


async def _load_secrets(app: web.Application, ground: _Ground) -> None:
    """Load what says who may do what. Raises `ConfigError` for what would leave a door open, or cannot be used."""
    settings, store = app[keys.SETTINGS], ground.store
    keyring = app[keys.KEYRING] = Keyring(settings.api_keys_file, store)
    await _when_possible(keyring.load, is_shared=store.is_shared)
    check_openness(settings, has_keys=keyring.is_required)
    app[keys.LINK_SECRET] = await _when_possible(partial(store.secret, SECRET_NAME), is_shared=store.is_shared)
    await _check_signing(settings, ground.media)


async def _work(
    app: web.Application, ground: _Ground, timeouts: Timeouts, name: str, workflows: Mapping[str, Workflow]
) -> Coroutine[Any, Any, None]:
    """Make the parts that work, and have the other nodes know of this one; return all that runs in the background."""
    settings, store, files, feed = app[keys.SETTINGS], ground.store, ground.files, app[keys.FEED]
    engines = app[keys.ENGINES] = () if settings.comfyui_urls else await _embedded_engines(settings, files)
    graph = workflows[settings.workflow].graph
    connect = partial(make_backends, settings, store, ground.session, timeouts, engines, graph, name)
    pool = await _when_possible(connect, is_shared=store.is_shared)
    node = app[keys.NODE] = Node(store, name, pool, timeouts.node_gone_s, shares_files=files.is_shared)
    await _when_possible(node.join, is_shared=store.is_shared)
    app[keys.SUBMITTER] = Submitter(
        settings,
        store,
        files,
        ground.media,
        ground.fetcher,
        workflows,
        pool.frame_limit,
        pool.person_problem,
        name,
        engines=len(engines),
    )
    app[keys.THUMBNAILS] = Thumbnails(store, files, ground.media)
    progress_reporter = app[keys.PROGRESS_REPORTER] = ProgressReporter(store, files)
    scheduler = app[keys.SCHEDULER] = Scheduler(
        store, files, ground.media, progress_reporter, workflows, pool, timeouts, feed, node
    )
    app[ANSWERS] = Answers(store, lambda: scheduler.outage)
    app[RESULTS] = Results(store, files)
    janitor = Janitor(settings, store, files, name)
    outbox = Outbox(settings, store, files, ground.guard, name)
    await _when_possible(janitor.clear_debris, is_shared=store.is_shared or files.is_shared)
    return _background(scheduler, janitor, outbox, feed, app[keys.KEYRING], engines)


def marking_of(settings: Settings) -> Marking:
    """Return the way in which results are marked. Raises `ConfigError` for a certificate without a key."""
    cert, key = settings.c2pa_cert, settings.c2pa_key
    if bool(cert) != bool(key):
        raise ConfigError("FACESWAP_C2PA_CERT and FACESWAP_C2PA_KEY are set together, or neither")
    signing = Signing(cert, key) if cert and key else None
    is_embedded = not settings.comfyui_urls
    return Marking(settings.label, settings.watermark, signing, pictures=settings.watermark or is_embedded)


async def _check_signing(settings: Settings, media: MediaWorker) -> None:
    """Raise `ConfigError` if results cannot be signed with the certificate and key of the settings."""
    try:
        problem = await media.signing_problem()
    except JobFailure as failure:
        problem = failure.message
    if problem is not None:
        raise ConfigError(f"FACESWAP_C2PA_CERT={str(settings.c2pa_cert)!r}: {problem}")


async def _start_files(files: Files) -> None:
    """Make the files ready. A store of objects may start later than the nodes do: it is waited for."""
    try:
        async with asyncio.timeout(START_S):
            while True:
                try:
                    await files.start()
                    return
                except FilesUnavailable as error:
                    log.error("the files cannot be used, trying again until they can: %s", error)
                await asyncio.sleep(FILES_RETRY_S)
    except TimeoutError:
        raise FilesUnavailable(f"the files could not be used for {START_S:.0f} s") from None


async def _open_store(settings: Settings, files: Files, feed: Feed) -> Store:
    """Open the database. One that nodes share may start later than they do: it is waited for."""
    migrations = resource_dir("migrations")
    if not settings.database_url:
        return await Store.open(files.database, migrations, feed.publish)
    try:
        async with asyncio.timeout(START_S):
            return await retry_writes(partial(Store.open, settings.database_url, migrations, feed.publish))
    except TimeoutError:
        raise StoreError(f"it could not be used for {START_S:.0f} s", transient=True) from None


async def _when_possible(action: Callable[[], Awaitable[T]], *, is_shared: bool) -> T:
    """Do a part of the start, again when what nodes share has gone away meanwhile."""
    now = asyncio.get_running_loop().time
    started = now()
    while True:
        try:
            return await action()
        except (FilesUnavailable, StoreError) as error:
            may_pass = isinstance(error, FilesUnavailable) or error.transient
            if not (is_shared and may_pass) or now() - started >= START_S:
                raise
            log.error("the start goes on when database and files can be used: %s", error)
        await asyncio.sleep(FILES_RETRY_S)


def check_openness(settings: Settings, *, has_keys: bool) -> None:
    """Raise `ConfigError` where everybody would be let in over the network and nobody said that this is wanted."""
    if has_keys or settings.allow_anonymous:
        return
    public = settings.public_url
    if not is_loopback(settings.host):
        opening = f"FACESWAP_HOST={settings.host!r} is"
    elif public is not None and not is_loopback(public.host or ""):
        opening = f"FACESWAP_PUBLIC_URL={str(public)!r} says that the service is"
    else:
        return
    raise ConfigError(
        f"{opening} open to others and there are no API keys: make one with 'faceswap key add NAME', stay on 127.0.0.1,"
        " or give --allow-anonymous if that is what you want"
    )


async def make_backends(
    settings: Settings,
    store: Store,
    session: aiohttp.ClientSession,
    timeouts: Timeouts,
    engines: Sequence[EmbeddedEngine],
    graph: Graph,
    node: str,
) -> BackendPool:
    """Make a backend for each ComfyUI of the settings, or for each embedded engine, whose address comes later.

    ComfyUI forgets a client id when any socket of that id closes: where nodes take over from each other, each has ids
    of its own.
    """
    pool = BackendPool()

    async def add(name: str, client: ComfyClient) -> Backend:
        client_id = await store.client_id(name)
        if store.is_shared:
            client_id = uuid.uuid5(uuid.UUID(client_id), node).hex
        return Backend(pool, name, client, client_id, timeouts, graph=graph)

    for number, engine in enumerate(engines, 1):
        name = embedded_name(number, node if store.is_shared else None)
        backend = await add(name, ComfyClient(URL("http://127.0.0.1:1"), session, engine.headers))
        backend.input_folder = engine.input_folder
    for url in settings.comfyui_urls:
        client = ComfyClient(url, session, settings.comfyui_headers)
        backend = await add(str(client.url), client)
        backend.address_known.set()
    return pool


async def _embedded_engines(settings: Settings, files: Files) -> Sequence[EmbeddedEngine]:
    limit = settings.max_upload_bytes + FORM_ALLOWANCE_BYTES
    options = ("--max-upload-size", str(limit), "--models-dir", str(settings.models_folder))
    count = settings.engines or usual_count(with_networks=await asyncio.to_thread(settings.has_networks))
    roots = [files.engine_root(number + 1) for number in range(count)]
    return [EmbeddedEngine(root, extra_args=options, name=root.name) for root in roots]


async def _background(
    scheduler: Scheduler,
    janitor: Janitor,
    outbox: Outbox,
    feed: Feed,
    keyring: Keyring,
    engines: Sequence[EmbeddedEngine],
) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(feed.run(), name="feed")
        tasks.create_task(scheduler.run(), name="scheduler")
        tasks.create_task(janitor.run(), name="janitor")
        tasks.create_task(outbox.run(), name="outbox")
        tasks.create_task(keyring.run(), name="keyring")
        for engine, backend in zip(engines, scheduler.backends, strict=False):
            tasks.create_task(engine.run(partial(_listen_at, backend)), name=f"engine of {backend.name}")


async def _listen_at(backend: Backend, url: URL) -> None:
    """Have a backend listen at the address at which its engine was started."""
    backend.client.url = url
    backend.address_known.set()
    await backend.listener.reconnect()


def _check(background: asyncio.Task[None], failed: asyncio.Event) -> None:
    """End the process when a background task fails: its supervisor starts it again."""
    if not background.cancelled() and background.exception() is not None:
        log.critical("a background task died", exc_info=background.exception())
        failed.set()


async def _close_streams(app: web.Application) -> None:
    app[keys.HUB].close()
