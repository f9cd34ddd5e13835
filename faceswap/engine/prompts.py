"""The queue of prompts, the one that runs and the history. Everything here happens in the event loop."""

from __future__ import annotations

import asyncio
import bisect
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .execution import Executor, Prompt, PromptResult
from .memory import has_leaked
from .nodes import forget
from .sockets import Sockets

log = logging.getLogger(__name__)

HISTORY_LIMIT = 10_000

STALL_S = 300
"""Most time without a step of the running prompt, counted by checks: a process that was frozen is not blamed."""
STALL_CHECK_S = 1

STALLED_EXIT_CODE = 87

LEAKED_EXIT_CODE = 88


class Prompts:
    """The queue and its worker: one prompt at a time, the smallest number first."""

    def __init__(self, executor: Executor, sockets: Sockets) -> None:
        self.running: Prompt | None = None
        self.running_node: str | None = None
        self.pending: list[Prompt] = []
        self.history: dict[str, dict[str, Any]] = {}
        self._executor = executor
        self._sockets = sockets
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prompt")
        self._free_wanted = False

    @property
    def remaining(self) -> int:
        """Number of prompts that wait or run."""
        return len(self.pending) + (self.running is not None)

    def status(self) -> dict[str, Any]:
        """Return the data of a `status` frame."""
        return {"status": {"exec_info": {"queue_remaining": self.remaining}}}

    def submit(self, prompt: Prompt) -> None:
        """Queue a prompt by its number."""
        bisect.insort(self.pending, prompt, key=lambda waiting: waiting.number)
        self._arrived.set()
        self._broadcast_status()

    def delete(self, prompt_ids: list[str]) -> None:
        """Remove waiting prompts; they leave no trace."""
        kept = [prompt for prompt in self.pending if prompt.id not in prompt_ids]
        if len(kept) < len(self.pending):
            self.pending = kept
            self._broadcast_status()

    def interrupt(self, prompt_id: str | None) -> None:
        """Stop the running prompt, if it is the one named or none is named."""
        if self.running is not None and prompt_id in (None, self.running.id):
            self.running.interrupted.set()

    def free(self) -> None:
        """Release cached results as soon as no prompt runs."""
        self._free_wanted = True
        self._free_if_idle()

    async def work(self) -> None:
        """Run prompts for ever."""
        while True:
            while not self.pending:
                self._arrived.clear()
                await self._arrived.wait()
            await self._run(self.pending.pop(0))

    async def _run(self, prompt: Prompt) -> None:
        if has_leaked():
            log.critical("more than half of the memory is lost before prompt %s: the engine ends", prompt.id)
            os._exit(LEAKED_EXIT_CODE)
        self.running = prompt
        self._broadcast_status()
        if prompt.faults.stuck:
            await asyncio.Event().wait()
        observer = _Relay(self, prompt, self._sockets)
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._thread, self._executor.execute, prompt, observer)
        result = await _unless_stalled(prompt, work)
        self._remember(prompt, result)
        self.running, self.running_node = None, None
        self._free_if_idle()
        self._broadcast_status()
        self._sockets.send(prompt.client_id, "executing", {"node": None, "prompt_id": prompt.id})

    def _remember(self, prompt: Prompt, result: PromptResult) -> None:
        if len(self.history) >= HISTORY_LIMIT:
            del self.history[next(iter(self.history))]
        self.history.pop(prompt.id, None)
        self.history[prompt.id] = {
            "prompt": prompt.listed(),
            "outputs": result.shown,
            "status": {
                "status_str": "success" if result.completed else "error",
                "completed": result.completed,
                "messages": result.messages,
            },
            "meta": {
                node: {"node_id": node, "display_node": node, "parent_node": None, "real_node_id": node}
                for node in result.shown
            },
            "faceswap": result.swaps,
        }

    def _free_if_idle(self) -> None:
        if self._free_wanted and self.running is None:
            self._free_wanted = False
            self._executor.cache.keep(set())
            forget()

    def _broadcast_status(self) -> None:
        self._sockets.broadcast("status", self.status())

    async def close(self) -> None:
        """Stop the running prompt, begin none that waits, and wait until the thread has released its files."""
        self.pending.clear()
        self.interrupt(None)
        await asyncio.to_thread(self._thread.shutdown, wait=True)
        self._executor.cache.keep(set())


async def _unless_stalled(prompt: Prompt, work: asyncio.Future[PromptResult]) -> PromptResult:
    """Wait for a prompt's end. A decoder that hangs cannot be stopped: the process ends, to be started again."""
    steps, still_s = prompt.steps, 0
    while not (await asyncio.wait({work}, timeout=STALL_CHECK_S))[0]:
        still_s = still_s + STALL_CHECK_S if steps == prompt.steps else 0
        steps = prompt.steps
        if still_s >= STALL_S:
            log.critical("prompt %s makes no progress: the engine ends", prompt.id)
            os._exit(STALLED_EXIT_CODE)
    return work.result()


class _Relay:
    """A relay of a running prompt's messages from its thread into the event loop."""

    def __init__(self, prompts: Prompts, prompt: Prompt, sockets: Sockets) -> None:
        self._prompts = prompts
        self._client_id = prompt.client_id
        self._sockets = sockets
        self._loop = asyncio.get_running_loop()

    def message(self, kind: str, data: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._deliver, kind, data)

    def preview(self, jpeg: bytes, metadata: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._sockets.preview, self._client_id, jpeg, metadata)

    def _deliver(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "executing":
            self._prompts.running_node = data["node"]
        self._sockets.send(self._client_id, kind, data)
