"""Work that was given to backends which no living node names: it is put back for the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from .comfy.backend import Backend
from .node import Node
from .store import LeaseLost, Store, backend_lease, retry_writes

log = logging.getLogger(__name__)


async def requeue_orphans(store: Store, node: Node, backends: Sequence[Backend], lease_s: float) -> None:
    """Put back what was submitted to backends that no living node names, unless another node is about to.

    Where nodes share the database the prompts are given up: one that comes back with such a backend has them stopped.
    """
    submitted = await retry_writes(store.submitted)
    named = {backend.name for backend in backends} | node.named_elsewhere()
    for name in {segment.backend or "" for segment in submitted} - named:
        lease = await retry_writes(partial(store.acquire_lease, backend_lease(name), node.name, lease_s))
        if lease is None:
            continue
        with suppress(LeaseLost):
            for segment in await retry_writes(partial(store.adopt, lease)):
                log.warning("job %s: no node has %s any more; its part is done again", segment.prompt_id, name)
                if store.is_shared:
                    await retry_writes(partial(store.abandon, name, segment.comfy_prompt_id or ""))
                await retry_writes(partial(store.requeue, segment))
        await retry_writes(partial(store.release_lease, lease))
