"""One ComfyUI: what it is busy with, how it is doing, and the way of a prompt through it.

The socket makes it lively; `/history` and `/queue` decide. They are asked every few seconds while a prompt is out, at
once after every (re)connect, and whenever the socket tells of an end.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from .comfy.client import ComfyClient, ComfyError, Features, Outcome, Place
from .comfy.inspection import node_classes, problems
from .comfy.listener import Listener
from .comfy.messages import Executing, Message, Preview, Progress, QueueRemaining
from .errors import JobFailure
from .flight import Flight, GivenUp, Lost, Patience, Stopped
from .jobs import Segment
from .workflow import Graph

T = TypeVar("T")

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
"""The name under which the embedded engine's work is kept, whatever port it listens on."""
EMBEDDED_TITLE = "The embedded engine"
MAX_PROMPTS = 2
"""Prompts given to one ComfyUI at a time: one running and one ready."""
MAX_COLLECTING = 4
"""Outputs of one ComfyUI that may be fetched and checked at a time before it is given more to do."""
PACE_WEIGHT = 0.5
"""Of the newest prompt in what is known of an engine's pace."""
BYTES_A_PIXEL = 37
"""Memory of ComfyUI for each pixel of each frame of a segment, as measured at its peak."""
MEMORY_SHARE = 0.5
"""Of ComfyUI's free memory that one segment may take."""
DANGEROUS_DEATHS = 2
"""An engine that died so often in a row with a segment is given nothing else together with it."""


class Backend:
    """A ComfyUI that prompts are given to."""

    def __init__(
        self,
        name: str,
        client: ComfyClient,
        client_id: str,
        patience: Patience | None = None,
        *,
        abandoned: Iterable[str] = (),
        graph: Graph | None = None,
    ) -> None:
        """`abandoned` are the prompt ids that were given up and that it may still know; `graph` is the workflow that
        is looked for in what it has."""
        self.name = name
        self.client = client
        self.client_id = client_id
        self.patience = patience or Patience()
        self.flights: dict[str, Flight] = {}
        self.abandoned = set(abandoned)
        self.stuck = False
        self.features: Features | None = None
        self.problems: tuple[str, ...] | None = None
        """What it lacks for the workflow, a sentence each; None until it has told."""
        self._graph = graph or {}
        self._free_bytes: int | None = None
        self._unanswered = False
        self._missed: set[str] = set()
        self._stop_asked_at: dict[str, float] = {}
        self._look_again = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        self.replaceable: Callable[[], bool] = lambda: False
        self.listener = Listener(client, client_id, self._heard, self._connected)
        self.address_known = asyncio.Event()
        self._collecting = 0
        self._pace_s: float | None = None
        self._ended_at = 0.0

    @property
    def healthy(self) -> bool:
        """Whether it may be given work: it is heard, it answers, and it is done with what was given up."""
        return self.listener.state == "connected" and not self._unanswered and not self.abandoned and not self.stuck

    @property
    def title(self) -> str:
        """What a person knows it by."""
        return EMBEDDED_TITLE if self.name == EMBEDDED else f"ComfyUI at {self.client.url}"

    @property
    def idle(self) -> bool:
        """Whether nothing of ours is with it, or on its way back."""
        return not self.flights and not self._collecting

    def takes_a_prompt(self, busy: int) -> bool:
        """Whether it may be given one more when it has at most `busy` prompts now."""
        alone = any(flight.segment.deaths >= DANGEROUS_DEATHS for flight in self.flights.values())
        return self.healthy and not alone and len(self.flights) <= busy and self._collecting < MAX_COLLECTING

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
            tasks.create_task(self._inspect_regularly(), name=f"inspection of {self.name}")

    async def _inspect_regularly(self) -> None:
        """Look at what it has: after every connect, every minute, and every few seconds while it does not answer."""
        while True:
            self._look_again.clear()
            await self._inspect()
            pause_s = self.patience.reconcile_s if self._unanswered else self.patience.inspect_s
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._look_again.wait()

    async def _inspect(self) -> None:
        try:
            self.features = await self._ask(self.client.features())
            await self._ask(self.client.find_jobs())
            free_bytes = await self._ask(self.client.free_memory())
            queue = await self._ask(self.client.queue())
            self._answered()
            if free_bytes is not None and not (queue.running or queue.pending):
                # What it has when it rests: while it works, much of that is in use by what is to be replaced.
                self._free_bytes = max(free_bytes, self._free_bytes or 0)
        except ComfyError as error:
            self._note(error)
            return
        # A node that fetches its models while it is asked may keep this answer back, and nothing else.
        with suppress(ComfyError):
            infos = {name: await self.client.object_info(name) for name in node_classes(self._graph)}
            self.problems = problems(self._graph, infos)

    def frame_limit(self, pixels: int, frame_rate: float) -> int | None:
        """How many frames of so many pixels a segment may have for its memory, at least a second's; None for any."""
        if self.features is None or self.features.streams or self._free_bytes is None:
            return None
        return max(int(self._free_bytes * MEMORY_SHARE / (BYTES_A_PIXEL * pixels)), math.ceil(frame_rate), 1)

    async def make_room(self, pixels: int, frames: int) -> None:
        """Have it let go of what it keeps of its last prompts when the next of so many frames would not fit."""
        if self.features is None or self.features.streams:
            return
        with suppress(ComfyError):
            free_bytes = await self.client.free_memory()
            if free_bytes is not None and free_bytes < BYTES_A_PIXEL * pixels * frames:
                await self.client.free(models=False)

    async def _ask(self, question: Coroutine[Any, Any, T]) -> T:
        """The answer to a question; one that takes too long cannot be had. Raises `ComfyError`."""
        try:
            async with asyncio.timeout(self.patience.unreachable_s):
                return await question
        except TimeoutError:
            raise ComfyError("ComfyUI did not answer in time.", passing=True) from None

    async def answers(self) -> bool:
        """Whether it can be asked now."""
        try:
            await self._ask(self.client.queue())
        except ComfyError as error:
            self._note(error)
            return error.answered
        self._answered()
        return True

    @property
    def trouble(self) -> str:
        """Why it is given no work, as what follows its title."""
        if self.stuck:
            return "is stuck"
        if self.listener.state == "connected" and not self._unanswered:
            return "still has prompts that were given up"
        return "is not running" if self.name == EMBEDDED else "does not answer"

    def _answered(self) -> None:
        if self._unanswered:
            self._unanswered = False
            self.on_change()

    def _note(self, error: ComfyError) -> None:
        """Take note of a question that came to nothing. An error that ComfyUI answers is an answer too."""
        if error.passing and not error.answered:
            if not self._unanswered:
                self._unanswered = True
                self._look_again.set()
        else:
            self._answered()

    def describe(self) -> dict[str, Any]:
        """What `/health` tells of it."""
        last = self.listener.last_frame_at
        return {
            "url": self.name,
            "listener": self.listener.state,
            "answers": self.listener.state == "connected" and not self._unanswered,
            "stuck": self.stuck,
            "abandoned": len(self.abandoned),
            "problems": list(self.problems or ()),
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
        no more, `GivenUp` when it cannot be asked and another can do the work, `Stopped` after `flight.stop()`.
        """
        self.flights[flight.prompt_id] = flight
        if look_first:
            flight.sent = True
            flight.nudge()
            try:
                return await self._follow(flight)
            except Lost:
                if flight.running:
                    raise
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
        answered_at = time.monotonic()
        while True:
            hurry = misses or flight.stopping_since is not None
            await self._listen(flight, self.patience.confirm_s if hurry else self.patience.reconcile_s)
            try:
                found = await self._ask(self.client.look(flight.prompt_id))
                if flight.stopping_since is not None and isinstance(found, Place):
                    await self.client.stop(flight.prompt_id, found)
            except ComfyError as error:
                if not error.passing:
                    raise JobFailure("engine_error", error.sentence) from error
                self._note(error)
                self._check_patience(flight, error, time.monotonic() - answered_at)
                continue
            answered_at = time.monotonic()
            self._answered()
            if isinstance(found, Outcome):
                return _judge(found, flight)
            if found is not None:
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

    def _check_patience(self, flight: Flight, error: ComfyError, unanswered_s: float) -> None:
        """Leave an engine that cannot be asked, when somebody waits for a cancel or another could do the work."""
        if error.answered and unanswered_s > self.patience.stuck_s:
            self.abandoned.add(flight.prompt_id)
            raise JobFailure("engine_error", error.sentence, passing=self.replaceable())
        if unanswered_s < self.patience.unreachable_s:
            return
        if flight.stopping_since is not None:
            self.abandoned.add(flight.prompt_id)
            raise Stopped
        if self.replaceable():
            self.abandoned.add(flight.prompt_id)
            raise GivenUp(f"{self.title} does not answer")

    async def _check_silence(self, flight: Flight, place: Place) -> None:
        """Distrust a socket that says nothing of a prompt that runs; then the engine, for its thread may be dead."""
        now = time.monotonic()
        if flight.stopping_since is not None and now - flight.stopping_since > self.patience.stop_s:
            self._hold_for_stuck(flight)
            raise Stopped
        if place is Place.PENDING:
            flight.heard_at = now
            if self.stuck:
                self.abandoned.add(flight.prompt_id)
                raise GivenUp(f"{self.title} is stuck")
            return
        flight.running = True
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
        self.abandoned.add(flight.prompt_id)

    def _heard(self, message: Message) -> None:
        """Hand what the socket brings to the prompt it is about."""
        if isinstance(message, QueueRemaining):
            return
        flight = self.flights.get(message.prompt_id or "")
        if flight is None:
            return
        flight.heard_at = time.monotonic()
        flight.running = True
        match message:
            case Progress(node=node, value=value, maximum=maximum):
                flight.on_progress(node, value, maximum)
            case Preview(image=image):
                flight.on_preview(image)
            case _:
                flight.nudge(message)

    async def stop_abandoned(self) -> set[str]:
        """Ask once more for the end of the prompts that were given up; returns those that are gone for good.

        One that is not in the queue is looked for twice: a request that was on its way may still arrive. One that
        stays for long shows that the engine is stuck, which ends with the last of them. Raises `ComfyError`.
        """
        queue = await self._ask(self.client.queue())
        known = {*queue.running, *queue.pending}
        absent = self.abandoned - known
        gone, self._missed = absent & self._missed, absent
        for prompt_id in self.abandoned & known:
            place = Place.RUNNING if prompt_id in queue.running else Place.PENDING
            await self.client.stop(prompt_id, place)
            asked_at = self._stop_asked_at.setdefault(prompt_id, time.monotonic())
            if time.monotonic() - asked_at > self.patience.stop_s and not self.stuck:
                log.error("%s is stuck: it does not let go of %s", self.name, prompt_id)
                self.stuck = True
        for prompt_id in gone:
            self.abandoned.discard(prompt_id)
            self._stop_asked_at.pop(prompt_id, None)
        self._answered()
        if not self.abandoned:
            self.stuck = False
            self.on_change()
        return gone

    def _connected(self) -> None:
        """The socket is open (again): nothing is replayed, so everything that is out is looked at."""
        for flight in self.flights.values():
            flight.nudge()
        self._unanswered = False
        self.client.has_jobs = False  # it may be another version than before
        self._look_again.set()
        self.on_change()


def frame_limit(backends: Iterable[Backend], pixels: int, frame_rate: float) -> int | None:
    """How many frames of so many pixels a segment may have at any of the backends; None for any number."""
    limits = [backend.frame_limit(pixels, frame_rate) for backend in backends]
    return min((limit for limit in limits if limit is not None), default=None)


def _judge(outcome: Outcome, flight: Flight) -> Outcome:
    """Success goes on; everything else is raised."""
    if flight.stopping_since is not None:
        raise Stopped
    if outcome.failure is not None:
        raise outcome.failure
    if outcome.state == "interrupted":
        sentence = "Somebody interrupted the prompt in ComfyUI; retry the job to run it again."
        raise JobFailure("interrupted", sentence, passing=True)
    return outcome
