"""Jobs to put into a real store, and a store whose published events are kept."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import postgres
from waiting import WAIT_S

from faceswap.config import resource_dir
from faceswap.events import Event
from faceswap.jobs import ImageFile, Inputs, Job, NewJob, Segment, SegmentPlan
from faceswap.options import Options
from faceswap.store import LOCAL_HOLDER, Lease, Store, backend_lease, join_lease
from faceswap.store.connection import Clock

MIGRATIONS = resource_dir("migrations")
QUEUE_LIMIT = 1000
LEASE_S = 3600.0

_LEASES = WeakKeyDictionary[Store, dict[str, Lease]]()
_CREATED = count(1)


def grow_id() -> str:
    """Make an id above those before it, as jobs of one millisecond are served in the order of their ids."""
    return str(uuid.UUID(int=next(_CREATED) << 96 | uuid.uuid4().int >> 32, version=4))


def new_job(
    *,
    segments: int | tuple[SegmentPlan, ...] = 1,
    frames: int = 10,
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> NewJob:
    """Make a job of some segments of `frames` frames, or of the given ones, ready to be created."""
    if isinstance(segments, int):
        segments = tuple(SegmentPlan(number, number * frames, frames) for number in range(segments))
    total = sum(plan.frame_count for plan in segments)
    values: dict[str, Any] = {
        "prompt_id": grow_id(),
        "output_name": "clip",
        "options": Options.parse(options),
        "workflow": "FaceSwap-Reactor-API",
        "inputs": Inputs(
            video_file="video.mp4",
            images=(ImageFile("image.png", "b" * 64),),
            video_sha256="a" * 64,
            video_bytes=1234,
            width=640,
            height=480,
            frames=total,
            frame_rate=Fraction(30000, 1001),
            duration_s=total * 1001 / 30000,
            has_audio=True,
        ),
        "segments": segments,
        **changes,
    }
    return NewJob(**values)


async def create(store: Store, **changes: Any) -> Job:
    """Store an accepted job."""
    return (await store.create(new_job(**changes), QUEUE_LIMIT))[0]


async def hold(store: Store, backend: str = "one") -> Lease:
    """Return the lease on a backend, which a store acquires once."""
    leases = _LEASES.setdefault(store, {})
    if backend not in leases:
        leases[backend] = await acquire(store, backend_lease(backend))
    return leases[backend]


async def acquire(store: Store, name: str, holder: str = LOCAL_HOLDER) -> Lease:
    """Acquire a lease, which no other holder may have."""
    lease = await store.acquire_lease(name, holder, LEASE_S)
    assert lease is not None
    return lease


async def try_claim(store: Store, backend: str = "one", **conditions: Any) -> Segment | None:
    """Claim the next segment, if there is one."""
    return await store.claim(await hold(store, backend), **conditions)


async def claim(store: Store, backend: str = "one") -> Segment:
    """Claim the next segment; there must be one."""
    segment = await try_claim(store, backend)
    assert segment is not None
    return segment


async def adopt(store: Store) -> list[Segment]:
    """Return the submitted segments of all backends, taken over as at a start."""
    names = sorted({segment.backend or "" for segment in await store.submitted()})
    return [segment for name in names for segment in await store.adopt(await hold(store, name))]


async def finish(store: Store, job: Job) -> bool:
    """End a job that is processing with a result."""
    lease = await acquire(store, join_lease(job.prompt_id))
    return await store.succeed(job, lease, result_file=f"{job.output_name}.mp4", size=99, sha256="c" * 64, warnings=())


async def run_to_success(store: Store, **changes: Any) -> Job:
    """Store a job of one segment that is done."""
    job = await create(store, **changes)
    await store.finish_segment(await claim(store), "00000-1.mp4", 1.0)
    assert await finish(store, job)
    return await store.job(job.prompt_id)


async def learn_costs(store: Store, key: str, costs: Mapping[str, float]) -> None:
    """Have the costs of phases learned, as with the end of a segment."""
    await store._run(lambda tx: tx.learn_costs(key, costs))


def sql(where: Path | str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run a statement past the store, as time or another process would."""
    if isinstance(where, str):
        return postgres.sql(where, statement, *parameters)
    with closing(sqlite3.connect(where, timeout=WAIT_S)) as connection, connection:
        return connection.execute(statement, parameters).fetchall()


@asynccontextmanager
async def opened(
    where: Path | str, published: list[Event] | None = None, clock: Clock | None = None
) -> AsyncIterator[Store]:
    """Yield a store on a file, or on PostgreSQL, closed in the end; its events are put into the list."""
    store = await Store.open(where, MIGRATIONS, (published if published is not None else []).append, clock=clock)
    try:
        yield store
    finally:
        await store.close()
