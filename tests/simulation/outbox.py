"""The outbox of a node, and a receiver that answers late, wrongly or not at all while things go wrong."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from faceswap.config import Settings
from faceswap.deliveries import Delivery
from faceswap.files import Files
from faceswap.outbox import Outbox, _Failure
from faceswap.store import Store

if TYPE_CHECKING:
    from .world import World

ANSWER_S = 0.5
"""The longest that an answer takes, unless it does not come."""
HANG_S = 60.0
FAILURES, HANGS = 0.2, 0.1
"""The shares of the attempts that fail, and that hang, while things go wrong."""


class SimulatedOutbox(Outbox):
    """An outbox that sends to the world's receiver."""

    def __init__(self, world: World, store: Store, files: Files, holder: str) -> None:
        guard: Any = SimpleNamespace(session=lambda stall_s: nullcontext())
        super().__init__(Settings(data_dir=files.root), store, files, guard, holder)
        self._world = world

    async def _send(self, delivery: Delivery, session: Any) -> int:
        world = self._world
        await asyncio.sleep(world.random.uniform(0.0, ANSWER_S))
        if not world.faults.over and world.chance(HANGS):
            await asyncio.sleep(HANG_S)
        if not world.faults.over and world.chance(FAILURES):
            raise _Failure("The receiver answered with HTTP status 500.", 500)
        world.invariants.received.add(delivery.id)
        await asyncio.sleep(world.random.uniform(0.0, ANSWER_S))
        return 204
