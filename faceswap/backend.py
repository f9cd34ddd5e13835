"""One ComfyUI: what it is busy with, how it is doing, and the way of a prompt through it.

The socket makes it lively; `/history` and `/queue` decide. They are asked every few seconds while a prompt is out, at
once after every (re)connect, and whenever the socket tells of an end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .comfy.client import ComfyClient, ComfyError, Outcome, QueueState
from .comfy.listener import Listener
from .comfy.messages import Executing, Message, Preview, Progress, QueueRemaining
from .errors import JobFailure
from .flight import Flight, Lost, Patience, Stopped
from .jobs import Segment

log = logging.getLogger(__name__)

MAX_PROMPTS = 2
"""Prompts given to one ComfyUI at a time: one running and one ready."""
MAX_COLLECTING = 4
"""Outputs of one ComfyUI that may be fetched and checked at a time before it is given more to do."""
PACE_WEIGHT = 0.5
"""Of the newest prompt in what is known of an engine's pace."""


class Backend:
    """A ComfyUI that prompts are given to."""

    def __init__(self, name: str, client: ComfyClient, client_id: str, patience: Patience | None = None) -> None:
        self.name = name
        self.client = client
        self.client_id = client_id
        self.patience = patience or Patience()
        self.flights: dict[str, Flight] = {}
        self.stuck = False
        self.on_change: Callable[[], None] = lambda: None
        self.replaceable: Callable[[], bool] = lambda: False
        self.listener = Listener(client, client_id, self._heard, self._connected)
        self.address_known = asyncio.Event()
        self._forsaken: set[str] = set()
        self._collecting = 0
        self._pace_s: float | None = None
        self._ended_at = 0.0

    @property
    def healthy(self) -> bool:
        """Whether it may be given work."""
        return self.listener.state == "connected" and not self.stuck

    @property
    def idle(self) -> bool:
        """Whether nothing of ours is with it, or on its way back."""
        return not self.flights and not self._collecting

    def takes_a_prompt(self, busy: int) -> bool:
        """Whether it may be given one more when it has at most `busy` prompts now."""
        return self.healthy and len(self.flights) <= busy and self._collecting < MAX_COLLECTING

    @contextmanager
    def released(self, flight: Flight) -> Iterator[None]:
        """The prompt has ended: while its output is fetched and checked, there is room for another."""
        self.flights.pop(flight.prompt_id, None)
        self._collecting += 1
        self.on_change()
        try:
            yield
        finally:
            self._collecting -= 1
            self.on_change()

    @property
    def pace_s(self) -> float | None:
        """Seconds a frame, as last measured, or more when the prompt in hand takes longer; None when never measured."""
        if self._pace_s is None or not self.flights:
            return self._pace_s
        oldest = next(iter(self.flights.values()))
        elapsed_s = time.monotonic() - max(oldest.started_at, self._ended_at)
        return max(self._pace_s, elapsed_s / oldest.segment.frame_count)

    def done_in_s(self, frames: int) -> float:
        """Seconds until it would be done with what it has and with `frames` more; 0 when its pace is unknown."""
        frames += sum(flight.segment.frame_count for flight in self.flights.values())
        return (self.pace_s or 0.0) * frames

    async def run(self) -> None:
        """Listen, for as long as the service runs."""
        await self.address_known.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.listener.run(), name=f"socket of {self.name}")
            tasks.create_task(self._disown(), name=f"forsaken prompts of {self.name}")

    def describe(self) -> dict[str, Any]:
        """What `/health` tells of it."""
        last = self.listener.last_frame_at
        return {
            "url": self.name,
            "listener": self.listener.state,
            "stuck": self.stuck,
            "running": len(self.flights),
            "last_event_age_s": None if last is None else round(time.monotonic() - last, 3),
            "reconnects": self.listener.reconnects,
        }

    async def perform(
        self,
        flight: Flight,
        make_graph: Callable[[], Coroutine[Any, Any, Mapping[str, Any]]],
        extra_data: Mapping[str, Any],
        *,
        output_node: str,
        look_first: bool,
        on_queued: Callable[[str], Awaitable[Segment]],
    ) -> Outcome:
        """Take a prompt from submission to success. `make_graph` uploads what the graph names.

        With `look_first` it is looked for before it is sent, as after a crash; `on_queued` is told of the id when
        ComfyUI chose one itself. Raises `JobFailure` when ComfyUI says why it failed, `Lost` when it knows the prompt
        no more, `Stopped` after `flight.stop()`.
        """
        self.flights[flight.prompt_id] = flight
        if look_first:
            flight.sent = True
            flight.nudge()
            try:
                return await self._follow(flight)
            except Lost:
                log.info("%s does not know %s: sending it", self.name, flight.prompt_id)
        graph = await flight.unless_stopped(make_graph())
        refusal = await self._submit(flight, graph, extra_data, output_node, on_queued)
        try:
            outcome = await self._follow(flight)
        except Lost:
            if refusal is None:
                raise
            raise JobFailure("engine_error", refusal.sentence, passing=True) from refusal
        self._learn_pace(flight)
        return outcome

    def _learn_pace(self, flight: Flight) -> None:
        """Take the time of a prompt that ended well, from its start or from the end of the one before."""
        now = time.monotonic()
        pace_s = (now - max(flight.started_at, self._ended_at)) / flight.segment.frame_count
        self._ended_at = now
        self._pace_s = pace_s if self._pace_s is None else self._pace_s + PACE_WEIGHT * (pace_s - self._pace_s)

    async def _submit(
        self,
        flight: Flight,
        graph: Mapping[str, Any],
        extra_data: Mapping[str, Any],
        output_node: str,
        on_queued: Callable[[str], Awaitable[Segment]],
    ) -> ComfyError | None:
        """Send the prompt; returns the error ComfyUI answered when the prompt may have been queued all the same."""
        flight.sent = True
        try:
            queued_id = await self.client.submit(
                graph, self.client_id, flight.prompt_id, extra_data, output_node=output_node
            )
        except ComfyError as error:
            if not error.passing:
                raise JobFailure("engine_error", error.sentence) from error
            # _follow looks for it, and calls it lost when it is not there.
            log.warning("%s: submitting %s: %s", self.name, flight.prompt_id, error.sentence)
            flight.nudge()
            return error if error.answered else None
        if queued_id != flight.prompt_id:
            sent_as = flight.prompt_id
            flight.segment = await on_queued(queued_id)
            self.flights[queued_id] = self.flights.pop(sent_as)
        return None

    async def _follow(self, flight: Flight) -> Outcome:
        """Wait for the end, whatever the socket says or does not say."""
        misses = 0
        unreachable_since: float | None = None
        while True:
            hurry = misses or flight.stopping_since is not None
            await self._listen(flight, self.patience.confirm_s if hurry else self.patience.reconcile_s)
            try:
                found = await self._look(flight.prompt_id)
                if flight.stopping_since is not None and isinstance(found, QueueState):
                    await self._stop(flight.prompt_id, found)
            except ComfyError as error:
                if not error.passing:
                    raise JobFailure("engine_error", error.sentence) from error
                unreachable_since = unreachable_since or time.monotonic()
                self._give_up_waiting(flight, unreachable_since)
                continue
            unreachable_since = None
            if isinstance(found, Outcome):
                return _judge(found, flight)
            if isinstance(found, QueueState):
                misses = 0
                await self._check_silence(flight, found)
            else:
                misses += 1
            if misses > 1:
                raise Stopped if flight.stopping_since is not None else Lost

    async def _listen(self, flight: Flight, timeout: float) -> None:
        """Take what the socket brings until it tells of an end, of a reconnect, or `timeout` seconds have passed."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    message = await flight.inbox.get()
            except TimeoutError:
                return
            match message:
                case Executing(node=str(node)) if node != flight.node:
                    flight.node = node
                    await flight.on_executing(node)
                case Executing(node=None) | None:
                    return

    async def _look(self, prompt_id: str) -> Outcome | QueueState | None:
        """The prompt's end, or the queue it is in, or None when ComfyUI does not know it."""
        outcome = await self.client.outcome(prompt_id)
        if outcome is not None:
            return outcome
        queue = await self.client.queue()
        if prompt_id in queue.running or prompt_id in queue.pending:
            return queue
        # It may have ended between the two questions.
        return await self.client.outcome(prompt_id)

    async def _stop(self, prompt_id: str, queue: QueueState) -> None:
        """Ask for a prompt's end. An older ComfyUI interrupts whatever runs: it is asked only when that is ours."""
        if prompt_id in queue.running:
            await self.client.interrupt(prompt_id)
        else:
            await self.client.cancel_pending(prompt_id)

    def _give_up_waiting(self, flight: Flight, since: float) -> None:
        """Leave an engine that does not answer, when somebody waits for a cancel or others could do the work."""
        if time.monotonic() - since < self.patience.unreachable_s:
            return
        if flight.stopping_since is not None:
            self._forsaken.add(flight.prompt_id)
            raise Stopped
        if self.replaceable():
            self._forsaken.add(flight.prompt_id)
            raise Lost

    async def _check_silence(self, flight: Flight, queue: QueueState) -> None:
        """Distrust a socket that says nothing of a prompt that runs; then the engine, for its thread may be dead."""
        now = time.monotonic()
        if flight.stopping_since is not None and now - flight.stopping_since > self.patience.stop_s:
            self._hold_for_stuck(flight)
            raise Stopped
        if flight.prompt_id not in queue.running and queue.running:
            flight.heard_at = now
            if self._forsaken.issuperset(queue.running):
                self._hold_for_stuck(flight)
                raise Lost
            return
        if now - flight.heard_at > self.patience.stuck_s:
            self._hold_for_stuck(flight)
            raise JobFailure(
                "engine_stuck",
                "ComfyUI has the prompt in its queue but does not work on it any more; restart ComfyUI and retry.",
                passing=self.replaceable(),
            )
        if now - max(flight.heard_at, flight.distrusted_at) > self.patience.silence_s:
            flight.distrusted_at = now
            log.warning("%s: silence for %.0f s; opening the socket anew", self.name, now - flight.heard_at)
            await self.listener.reconnect()

    def _hold_for_stuck(self, flight: Flight) -> None:
        log.error("%s is stuck: it has %s and does not move", self.name, flight.prompt_id)
        self.stuck = True
        self._forsaken.add(flight.prompt_id)

    def _heard(self, message: Message) -> None:
        """Hand what the socket brings to the prompt it is about."""
        if isinstance(message, QueueRemaining):
            return
        flight = self.flights.get(message.prompt_id or "")
        if flight is None:
            return
        flight.heard_at = time.monotonic()
        match message:
            case Progress(node=node, value=value, maximum=maximum):
                flight.on_progress(node, value, maximum)
            case Preview(image=image):
                flight.on_preview(image)
            case _:
                flight.nudge(message)

    async def _disown(self) -> None:
        """Ask for the end of prompts that were given up until they are gone; an engine is stuck as long as one is."""
        while True:
            await asyncio.sleep(self.patience.reconcile_s)
            if not self._forsaken:
                continue
            try:
                queue = await self.client.queue()
                self._forsaken &= {*queue.running, *queue.pending}
                for prompt_id in tuple(self._forsaken):
                    await self._stop(prompt_id, queue)
            except ComfyError:
                continue
            if self.stuck and not self._forsaken:
                self.stuck = False
                self.on_change()

    def _connected(self) -> None:
        """The socket is open (again): nothing is replayed, so everything that is out is looked at."""
        for flight in self.flights.values():
            flight.nudge()
        self.on_change()


def _judge(outcome: Outcome, flight: Flight) -> Outcome:
    """Success goes on; everything else is raised."""
    if flight.stopping_since is not None:
        raise Stopped
    if outcome.failure is not None:
        raise outcome.failure
    if outcome.state == "interrupted":
        raise JobFailure("interrupted", "Somebody interrupted the prompt in ComfyUI; retry the job to run it again.")
    return outcome
