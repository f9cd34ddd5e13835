"""Handlers of the service itself: its health."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from aiohttp import web

from .. import __version__
from ..jobs import JobState
from ..store import StoreError
from .access import is_stranger
from .keys import ENGINES, FEED, FILES, HUB, NODE, SCHEDULER, SETTINGS, STORE

T = TypeVar("T")

CHECK_TIMEOUT_S = 0.8
"""The bound that lets `/health` always answer within a second."""
WRITABLE_FOR_S = 1.0
"""The time for which a database that could be written counts as writable: to try is to wait behind others' commits."""


async def get_livez(request: web.Request) -> web.Response:
    """Answer that the event loop runs."""
    return web.json_response({"status": "alive"})


async def get_readyz(request: web.Request) -> web.Response:
    """Tell whether a job would be accepted and worked on now."""
    checks = (await _find_out(request.app)).checks
    return web.json_response(
        {"ready": all(checks.values()), "checks": checks}, status=200 if all(checks.values()) else 503
    )


async def get_health(request: web.Request) -> web.Response:
    """Report the state of the service, its queue and its engines; to who has no key, whether all is well only."""
    app = request.app
    findings = await _find_out(app)
    checks, free_bytes = findings.checks, findings.free_bytes
    settings, scheduler = app[SETTINGS], app[SCHEDULER]
    status = "healthy" if all(checks.values()) else "degraded"
    database = "writable" if checks["database"] else "unwritable"
    if is_stranger(request):
        return web.json_response({"status": status, "database": database})
    return web.json_response(
        {
            "status": status,
            "comfyui_status": _comfyui_status(app),
            "outage": scheduler.outage,
            "workflow_status": _workflow_status(app),
            # Not `request.host`: without a `Host` header it looks this machine's name up, blocking the event loop.
            "server_address": request.headers.get("Host", f"{settings.host}:{settings.port}"),
            "workflow_path": f"{settings.workflow}.json",
            "communication_method": "websocket",
            "version": __version__,
            "database": database,
            "queue": {state.lower(): count for state, count in findings.counts.items()},
            "backends": [backend.describe() for backend in scheduler.backends],
            "disk_free_mb": None if free_bytes is None else free_bytes // 2**20,
            "watchers": app[HUB].watchers,
            **_nodes(app),
        }
    )


def _nodes(app: web.Application) -> dict[str, Any]:
    """Return what is told of the nodes that share the database; nothing where one has it alone."""
    if not app[STORE].is_shared:
        return {}
    node = app[NODE]
    return {"node": node.name, "nodes": node.describe(), "leases": node.describe_leases()}


def _comfyui_status(app: web.Application) -> str:
    scheduler = app[SCHEDULER]
    if scheduler.has_engine_elsewhere or any(backend.healthy for backend in scheduler.backends):
        return "healthy"
    is_starting = any(engine.state in ("starting", "restarting") for engine in app[ENGINES])
    return "starting" if is_starting else "unreachable"


def _workflow_status(app: web.Application) -> str:
    """Return `invalid` when every ComfyUI that was inspected lacks something; `backends` names what."""
    told = [backend.problems for backend in app[SCHEDULER].backends if backend.problems is not None]
    return "invalid" if told and all(told) else "valid"


class Question(Generic[T]):
    """A question to the database or a disk, which may be slow; one try serves all requests that ask meanwhile.

    An answer that is no older than `good_for_s` is given while the next try is under way.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]], otherwise: T, good_for_s: float = 0.0) -> None:
        self._ask = ask
        self._otherwise = otherwise
        self._good_for_s = good_for_s
        self._answered: tuple[float, T] | None = None
        self._trying: asyncio.Task[T] | None = None

    async def answer(self) -> T:
        """Return the answer, or `otherwise` where there is none in time; the next request waits for the same try."""
        if self._trying is None or self._trying.done():
            self._trying = asyncio.create_task(self._try(), name="question of health")
        if self._answered is not None:
            answered_at, answer = self._answered
            if asyncio.get_running_loop().time() - answered_at <= self._good_for_s:
                return answer
        await asyncio.wait({self._trying}, timeout=CHECK_TIMEOUT_S)
        return self._trying.result() if self._trying.done() else self._otherwise

    async def _try(self) -> T:
        try:
            answer = await self._ask()
        except (StoreError, OSError):
            self._answered = None
            return self._otherwise
        self._answered = asyncio.get_running_loop().time(), answer
        return answer


NO_COUNTS: Mapping[str, int] = {}
WRITABLE: web.AppKey[Question[bool]] = web.AppKey("writable")
COUNTS: web.AppKey[Question[Mapping[str, int]]] = web.AppKey("counts")
AVAILABLE: web.AppKey[Question[bool]] = web.AppKey("available")
FREE_BYTES: web.AppKey[Question[int | None]] = web.AppKey("free_bytes")


def add_questions(app: web.Application) -> None:
    """Make ready what `/readyz` and `/health` ask the database and the disks."""

    async def is_writable() -> bool:
        await app[STORE].check_writable()
        return True

    app[WRITABLE] = Question(is_writable, otherwise=False, good_for_s=WRITABLE_FOR_S)
    app[COUNTS] = Question(lambda: app[STORE].counts(), otherwise=NO_COUNTS)
    app[AVAILABLE] = Question(lambda: app[FILES].is_available(), otherwise=False)
    app[FREE_BYTES] = Question(lambda: app[FILES].free_bytes(), otherwise=None)


@dataclass(frozen=True, slots=True)
class _Findings:
    checks: dict[str, bool]
    """The checks of `/readyz`, by name."""
    counts: Mapping[str, int]
    """The numbers of jobs, by state."""
    free_bytes: int | None
    """The room on the disk; None where it does not tell."""


async def _find_out(app: web.Application) -> _Findings:
    """Look at what a job needs."""
    settings, scheduler = app[SETTINGS], app[SCHEDULER]
    writable, counts, available, free_bytes = await asyncio.gather(
        app[WRITABLE].answer(), app[COUNTS].answer(), app[AVAILABLE].answer(), app[FREE_BYTES].answer()
    )
    ready_here = any(backend.healthy and not backend.problems for backend in scheduler.backends)
    checks = {
        "database": writable,
        "disk": free_bytes is not None and free_bytes >= settings.min_free_mb * 2**20,
        "queue": bool(counts) and counts[JobState.QUEUED] < settings.queue_limit,
        "engine": ready_here or scheduler.has_engine_elsewhere,
    }
    if app[FILES].is_shared:
        checks["files"] = available
    if app[FEED].is_shared:
        checks["feed"] = app[FEED].listening
    return _Findings(checks, counts, free_bytes)
