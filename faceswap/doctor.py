"""`faceswap doctor`: looks at all that a job needs, and says of each what is missing and what to do about it.

Nothing is changed, so that a service may run meanwhile; a probe that is written is deleted again.
"""

from __future__ import annotations

import asyncio
import enum
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from .app import FORM_ALLOWANCE_BYTES, check_openness, load_workflow
from .comfy.client import ComfyClient, ComfyError
from .comfy.embedded import EmbeddedEngine, EngineStartError
from .comfy.inspection import node_classes, problems
from .config import ConfigError, Settings, resource_dir
from .files import Files, FilesUnavailable, open_files
from .keyring import read_keys
from .store import ApiKey, NewerDatabase, Store, StoreError, find_version
from .tracing import ENDPOINTS, NOT_INSTALLED
from .workflow import Workflow

NODE = "doctor"
"""The name under which files are probed: no node's."""
CHECK_S = 60.0
"""The longest that one check may take."""
CLIENT_ID = "faceswap-doctor"


class Verdict(enum.StrEnum):
    """The word that a line begins with."""

    FINE = "ok"
    NOTE = "note"
    """It works, and could be better."""
    MISSING = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """A line: what was looked at, and what to do where something is missing."""

    verdict: Verdict
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:<4}  {self.about}: {self.text}"


def doctor(options: Mapping[str, str | None], say: Callable[[str], None]) -> int:
    """Print a line for each thing that a job needs; returns 1 when one is missing, else 0."""
    logging.disable(logging.CRITICAL)  # the lines say it
    return asyncio.run(_print_findings(options, say))


async def _print_findings(options: Mapping[str, str | None], say: Callable[[str], None]) -> int:
    missing = 0
    async for finding in findings(options):
        say(str(finding))
        missing += finding.verdict is Verdict.MISSING
    return 1 if missing else 0


async def findings(
    options: Mapping[str, str | None], environ: Mapping[str, str] = os.environ
) -> AsyncIterator[Finding]:
    """Yield what was found, in the order in which a start of the service would meet it."""
    try:
        settings = Settings.load(environ, **options)
    except ConfigError as error:
        yield Finding(Verdict.MISSING, "settings", str(error))
        return
    yield Finding(Verdict.FINE, "settings", "they can be read")
    if any(environ.get(variable) for variable in ENDPOINTS):
        yield _tracing()
    folder = await asyncio.to_thread(_data_folder, settings)
    yield folder
    if folder.verdict is not Verdict.MISSING:
        yield await asyncio.to_thread(_disk, settings)
        if settings.files_url:
            yield await _bounded("files", _files(settings))
    yield await _bounded("database", _database(settings))
    yield await _bounded("access", _access(settings))
    try:
        workflow = load_workflow(settings)[settings.workflow]
    except ConfigError as error:
        yield Finding(Verdict.MISSING, "workflow", str(error))
        return
    yield Finding(Verdict.FINE, "workflow", f"{settings.workflow}, with {len(workflow.graph)} nodes")
    async for finding in _engines(settings, workflow):
        yield finding


async def _bounded(about: str, check: Awaitable[Finding]) -> Finding:
    try:
        async with asyncio.timeout(CHECK_S):
            return await check
    except TimeoutError:
        return Finding(
            Verdict.MISSING, about, f"no answer within {CHECK_S:.0f} s; is it up, and does the network let us?"
        )


def _tracing() -> Finding:
    if importlib.util.find_spec("opentelemetry") is None:
        return Finding(Verdict.MISSING, "traces", NOT_INSTALLED)
    return Finding(Verdict.FINE, "traces", "they are exported")


def _data_folder(settings: Settings) -> Finding:
    folder = settings.data_dir
    if not folder.exists():
        parent = next(parent for parent in folder.parents if parent.exists())
        if os.access(parent, os.W_OK):
            return Finding(Verdict.FINE, "data folder", f"{folder} will be made at the first start")
        return Finding(
            Verdict.MISSING, "data folder", f"{folder} cannot be made: {parent} is not writable for this user"
        )
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return Finding(Verdict.MISSING, "data folder", f"{folder} is no folder that this user may write to")
    return Finding(Verdict.FINE, "data folder", f"{folder} is writable")


def _disk(settings: Settings) -> Finding:
    folder = next(folder for folder in (settings.data_dir, *settings.data_dir.parents) if folder.exists())
    free_mb = shutil.disk_usage(folder).free // 2**20
    if free_mb < settings.min_free_mb:
        needed = f"jobs are refused below {settings.min_free_mb:,} MB; free some space, or lower FACESWAP_MIN_FREE_MB"
        return Finding(Verdict.MISSING, "disk", f"{free_mb:,} MB free: {needed}")
    if free_mb < settings.min_free_mb + 2 * settings.max_upload_mb:
        largest = f"FACESWAP_MAX_UPLOAD_MB lets in {settings.max_upload_mb:,} MB at a time"
        return Finding(Verdict.NOTE, "disk", f"{free_mb:,} MB free is little: {largest}")
    return Finding(Verdict.FINE, "disk", f"{free_mb:,} MB free")


async def _files(settings: Settings) -> Finding:
    try:
        files = open_files(settings, NODE)
        try:
            await files.check()
        finally:
            await files.close()
    except (ConfigError, FilesUnavailable) as error:
        return Finding(Verdict.MISSING, "files", str(error))
    except OSError as error:
        return Finding(Verdict.MISSING, "files", f"{settings.files_url} cannot be written: {error.strerror or error}")
    return Finding(Verdict.FINE, "files", f"{settings.files_url} can be written, read and deleted from")


async def _database(settings: Settings) -> Finding:
    """Look at the database without bringing it up to date."""
    name = "PostgreSQL" if settings.database_url else "SQLite"
    where = settings.database_url or Files(settings.data_dir).database
    try:
        version, newest = await find_version(where, resource_dir("migrations"))
    except (NewerDatabase, StoreError) as error:
        return Finding(Verdict.MISSING, "database", f"{name} cannot be used: {error}")
    if version is None:
        return Finding(Verdict.FINE, "database", f"{name}, to be filled at the first start")
    if version < newest:
        return Finding(Verdict.FINE, "database", f"{name} of version {version}, to become {newest} at the next start")
    return Finding(Verdict.FINE, "database", f"{name} of version {version}")


async def _access(settings: Settings) -> Finding:
    """Look at who is let in."""
    try:
        names = set(read_keys(settings.api_keys_file).values() if settings.api_keys_file else ())
    except ConfigError as error:
        return Finding(Verdict.MISSING, "access", str(error))
    stored: Sequence[ApiKey] = ()
    with suppress(NewerDatabase, StoreError):  # which was told before
        stored = await _stored_keys(settings)
    names |= {key.name for key in stored if key.revoked_at is None}
    if names:
        return Finding(Verdict.FINE, "access", f"by the keys of {', '.join(sorted(names))}")
    if settings.api_keys_file or stored:
        advice = "nobody has a key that counts, and nobody is let in; make one with `faceswap key add NAME`"
        return Finding(Verdict.NOTE, "access", advice)
    try:
        check_openness(settings, has_keys=False)
    except ConfigError as error:
        return Finding(Verdict.MISSING, "access", str(error))
    if settings.allow_anonymous:
        return Finding(Verdict.NOTE, "access", f"without keys, for everybody who reaches {settings.host}")
    return Finding(Verdict.FINE, "access", f"without keys, from this machine only ({settings.host})")


async def _stored_keys(settings: Settings) -> Sequence[ApiKey]:
    """Return the keys in the database, none where it is to be brought up to date first."""
    where, migrations = settings.database_url or Files(settings.data_dir).database, resource_dir("migrations")
    version, newest = await find_version(where, migrations)
    if version != newest:
        return ()
    store = await Store.open(where, migrations, lambda _: None)
    try:
        return await store.api_keys()
    finally:
        await store.close()


async def _engines(settings: Settings, workflow: Workflow) -> AsyncIterator[Finding]:
    """Look at every ComfyUI of the settings, or at the embedded engine, which is started for that."""
    async with aiohttp.ClientSession() as session:
        for url in settings.comfyui_urls:
            client = ComfyClient(url, session, settings.comfyui_headers)
            async for finding in _comfyui(f"ComfyUI at {client.url}", client, settings, workflow):
                yield finding
        if not settings.comfyui_urls:
            try:
                async with _embedded(session, settings) as client:
                    async for finding in _comfyui("embedded engine", client, settings, workflow):
                        yield finding
            except EngineStartError as error:
                text = f"{error} Run `faceswap engine` to see them; a package may be missing: pip install faceswap"
                yield Finding(Verdict.MISSING, "embedded engine", text)


@asynccontextmanager
async def _embedded(session: aiohttp.ClientSession, settings: Settings) -> AsyncIterator[ComfyClient]:
    """Start an embedded engine in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="faceswap-doctor-", ignore_cleanup_errors=True) as folder:
        limit = Settings(Path(folder)).max_upload_bytes + FORM_ALLOWANCE_BYTES
        options = ("--max-upload-size", str(limit), "--models-dir", str(settings.models_folder))
        engine = EmbeddedEngine(Path(folder) / "engine", extra_args=options)
        try:
            yield ComfyClient(await engine.start(), session, engine.headers)
        finally:
            await engine.stop()


async def _comfyui(about: str, client: ComfyClient, settings: Settings, workflow: Workflow) -> AsyncIterator[Finding]:
    try:
        async with asyncio.timeout(CHECK_S):
            features = await client.features()
            infos = {name: await client.object_info(name) for name in node_classes(workflow.graph)}
            await (await client.open_socket(CLIENT_ID)).close()
    except ComfyError as error:
        advice = "start it, or correct FACESWAP_COMFYUI_URLS" if error.transient and not error.answered else "see there"
        yield Finding(Verdict.MISSING, about, f"{error.message.removesuffix('.')}; {advice}")
        return
    except TimeoutError:
        yield Finding(Verdict.MISSING, about, f"it did not answer all questions within {CHECK_S:.0f} s")
        return
    missing = problems(workflow.graph, infos)
    for problem in missing:
        yield Finding(Verdict.MISSING, about, problem)
    if not missing:
        yield Finding(Verdict.FINE, about, "it answers, and has the nodes and models of the workflow")
    limit = features.max_upload_size
    if limit is None:
        yield Finding(Verdict.NOTE, about, "its upload limit is not known; ComfyUI's own is 100 MB")
    elif limit < settings.max_upload_bytes:
        advice = f"longer videos are sent in pieces; start it with --max-upload-size {settings.max_upload_mb}"
        yield Finding(Verdict.NOTE, about, f"it takes files of up to {limit // 2**20:,} MB: {advice}")
    else:
        yield Finding(Verdict.FINE, about, f"it takes files of up to {limit // 2**20:,} MB")
