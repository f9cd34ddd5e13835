"""One ComfyUI: its prompts in flight, its health, and all calls to it.

The socket is for progress only: `/history` and `/queue` decide. They are asked every few seconds while a prompt is in
flight, at once after every (re)connect, and whenever the socket reports an end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ..clock import monotonic
from ..config import Timeouts
from ..errors import JobFailure
from ..jobs import Segment
from ..store import LeaseLost
from ..workflow import PERSON_CLASSES, Graph
from .capacity import Memory, Speed
from .client import ComfyClient, ComfyError, Features, Outcome, Place
from .failures import node_missing
from .in_flight import GivenUp, InFlightPrompt, Lost, News, Stopped
from .inspection import node_classes, problems
from .listener import Listener
from .messages import Executing, Message, Preview, Progress

T = TypeVar("T")

log = logging.getLogger(__name__)

EMBEDDED = "embedded"
"""Name of the embedded engine in the database, on any port: see `embedded_name`."""
EMBEDDED_TITLE = "The embedded engine"
MAX_PROMPTS = 2
"""Prompts that one ComfyUI is given at a time: one running and one ready."""
MAX_COLLECTING = 4
"""Outputs of one ComfyUI that may be fetched and checked at a time before it is given more to do."""
DANGEROUS_DEATHS = 2
"""Deaths of engines in a row with one segment, after which an engine that has it is given no other segment."""

MakeListener = Callable[[ComfyClient, str, Callable[[Message], None], Callable[[], None]], Listener]
"""A listener for a client, its client id, what takes each message and what is called after each (re)connect."""


def embedded_name(number: int, node: str | None = None) -> str:
    """Return the name of one of a node's embedded engines, counted from 1: `embedded`, `embedded-2`, and so on.

    That of a node among others ends with `:<node>`.
    """
    return f"{EMBEDDED}{'' if number == 1 else f'-{number}'}{'' if node is None else f':{node}'}"


class BackendPool:
    """The backends that work goes to. `changed` is set whenever one of them can do more or less than before."""

    def __init__(self) -> None:
        self.backends: list[Backend] = []
        self.changed = asyncio.Event()
        self.elsewhere = False
        """True while another node has a backend that can be given work."""

    def has_other_than(self, backend: Backend) -> bool:
        """Return whether another backend can be given work."""
        return self.elsewhere or any(other.healthy for other in self.backends if other is not backend)

    def frame_limit(self, pixels: int, frame_rate: float) -> int | None:
        """Return how many frames of so many pixels a segment may have at any of the backends; None for any number."""
        limits = [backend.memory.frame_limit(pixels, frame_rate) for backend in self.backends]
        return min((limit for limit in limits if limit is not None), default=None)

    def person_problem(self) -> str | None:
        """Return what every backend lacks to make one face of several pictures; None where one of them may do it."""
        lacking = [backend.person_problem for backend in self.backends]
        return None if self.elsewhere or not all(lacking) else next(iter(lacking), None)


class Backend:
    """A ComfyUI that prompts are given to."""

    def __init__(
        self,
        pool: BackendPool,
        name: str,
        client: ComfyClient,
        client_id: str,
        timeouts: Timeouts | None = None,
        *,
        graph: Graph | None = None,
        make_listener: MakeListener = Listener,
    ) -> None:
        """Join a pool. `graph` is the workflow that is looked for in what it has."""
        self.name = name
        self.client = client
        self.client_id = client_id
        self.timeouts = timeouts or Timeouts()
        self.in_flight: dict[str, InFlightPrompt] = {}
        self.speed, self.memory = Speed(self.in_flight), Memory(client)
        self.may_be_given_work: Callable[[], bool] = lambda: True
        """Tells whether this node's right to it is beyond doubt. Called right before a prompt is sent."""
        self.abandoned = set[str]()
        """The prompt ids that were given up and that it may still know."""
        self.stuck = False
        self.features: Features | None = None
        self.problems: tuple[str, ...] | None = None
        """Node classes and models that the workflow misses in it, a sentence each; None until it has told."""
        self.person_problem: str | None = None
        """A sentence about what it lacks to make one face of several pictures; None as long as nothing is known."""
        self.input_folder: Path | None = None
        """The folder that files for it are put into, where that is one of ours."""
        self.listener = make_listener(client, client_id, self._take, self._connected)
        self.address_known = asyncio.Event()
        self._pool = pool
        self._graph = graph or {}
        self._unanswered = False
        self._missed: set[str] = set()
        self._stop_asked_at: dict[str, float] = {}
        self._inspection_due = asyncio.Event()
        self._collecting = 0
        pool.backends.append(self)

    @property
    def healthy(self) -> bool:
        """Readiness for work: it is heard, it answers, and it is done with the prompts that were given up."""
        return self.in_reach and not self.abandoned

    @property
    def in_reach(self) -> bool:
        """True while it is heard and answers."""
        return self.listener.state == "connected" and not self._unanswered

    @property
    def replaceable(self) -> bool:
        """True while another one could do its work."""
        return self._pool.has_other_than(self)

    @property
    def is_embedded(self) -> bool:
        """True for an embedded engine of this node."""
        return self.name.partition(":")[0].partition("-")[0] == EMBEDDED

    @property
    def title(self) -> str:
        """Name for a person to read."""
        return EMBEDDED_TITLE if self.is_embedded else f"ComfyUI at {self.client.url}"

    @property
    def idle(self) -> bool:
        """True while no prompt of ours is with it, or on its way back."""
        return not self.in_flight and not self._collecting

    @property
    def trouble(self) -> str:
        """Reason why it is given no work, to follow its title."""
        if self.stuck:
            return "is stuck"
        if self.in_reach:
            return "still has prompts that were given up"
        return "is not running" if self.is_embedded else "does not answer"

    def describe(self) -> dict[str, Any]:
        """Return what `/health` tells of it."""
        last = self.listener.last_frame_at
        return {
            "url": self.name,
            "listener": self.listener.state,
            "answers": self.listener.state == "connected" and not self._unanswered,
            "stuck": self.stuck,
            "abandoned": len(self.abandoned),
            "problems": list(self.problems or ()),
            "running": len(self.in_flight),
            "last_event_age_s": None if last is None else round(monotonic() - last, 3),
            "reconnects": self.listener.reconnects,
        }

    async def run(self) -> None:
        """Listen, for as long as the service runs."""
        await self.address_known.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.listener.run(), name=f"socket of {self.name}")
            tasks.create_task(self._inspect_regularly(), name=f"inspection of {self.name}")

    async def answers(self) -> bool:
        """Ask it something; return whether an answer came."""
        try:
            await self._ask(self.client.queue())
        except ComfyError as error:
            self._note(error)
            return error.answered
        self._answered()
        return True

    def _connected(self) -> None:
        """Look at everything in flight, for the socket is open (again) and nothing is replayed."""
        for prompt in self.in_flight.values():
            prompt.look_soon()
        self._unanswered = False
        self.client.forget()  # it may be another version than before
        self._inspection_due.set()
        self._pool.changed.set()

    async def _inspect_regularly(self) -> None:
        """Look at what it has: after every connect, every minute, and every few seconds while it does not answer."""
        while True:
            self._inspection_due.clear()
            await self._inspect()
            pause_s = self.timeouts.reconcile_s if self._unanswered else self.timeouts.inspect_s
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._inspection_due.wait()

    async def _inspect(self) -> None:
        try:
            self.features = await self._ask(self.client.features())
            self.memory.streams = self.features.streams
            await self._ask(self.client.find_jobs())
            free_bytes = await self._ask(self.client.free_memory())
            queue = await self._ask(self.client.queue())
            self._answered()
            if free_bytes is not None and not (queue.running or queue.pending):
                self.memory.learn(free_bytes)
        except ComfyError as error:
            self._note(error)
            return
        # A node that fetches its models while it is asked may keep this answer back, and nothing else.
        with suppress(ComfyError):
            names = dict.fromkeys((*node_classes(self._graph), *PERSON_CLASSES))
            infos = {name: await self.client.object_info(name) for name in names}
            self.problems = problems(self._graph, infos)
            self.person_problem = next((node_missing(name) for name in PERSON_CLASSES if infos[name] is None), None)

    async def _ask(self, question: Coroutine[Any, Any, T]) -> T:
        """Return the answer to a question; one that takes too long cannot be had. Raises `ComfyError`."""
        try:
            async with asyncio.timeout(self.timeouts.unreachable_s):
                return await question
        except TimeoutError:
            raise ComfyError("ComfyUI did not answer in time.", transient=True) from None

    def _answered(self) -> None:
        if self._unanswered:
            self._unanswered = False
            self._pool.changed.set()

    def _note(self, error: ComfyError) -> None:
        """Take note of a question that came to nothing. An error that ComfyUI answers is an answer too."""
        if error.transient and not error.answered:
            if not self._unanswered:
                self._unanswered = True
                self._inspection_due.set()
        else:
            self._answered()

    def takes_a_prompt(self, busy: int) -> bool:
        """Return whether it may be given one more when it has at most `busy` prompts now."""
        alone = any(prompt.segment.deaths >= DANGEROUS_DEATHS for prompt in self.in_flight.values())
        return self.healthy and not alone and len(self.in_flight) <= busy and self._collecting < MAX_COLLECTING

    def begin(self, segment: Segment) -> InFlightPrompt:
        """Add a segment's prompt to those in flight, until `end`."""
        prompt = InFlightPrompt(segment)
        self.in_flight[prompt.prompt_id] = prompt
        return prompt

    def end(self, prompt: InFlightPrompt) -> None:
        """Remove a prompt from those in flight, however it ended."""
        self.in_flight.pop(prompt.prompt_id, None)
        self._pool.changed.set()

    @contextmanager
    def collecting(self, prompt: InFlightPrompt) -> Iterator[None]:
        """Make room for another prompt while the output of this one, which has ended, is fetched and checked."""
        self.end(prompt)
        self._collecting += 1
        try:
            yield
        finally:
            self._collecting -= 1
            self._pool.changed.set()

    async def submit(
        self, prompt: InFlightPrompt, graph: Mapping[str, Any], extra_data: Mapping[str, Any], *, output_node: str
    ) -> None:
        """Send a prompt. Its `prompt_id` is another afterwards when ComfyUI chose one itself.

        Where nothing or an error was answered, `follow` finds out whether it arrived. Raises `JobFailure`, and
        `LeaseLost` where another node may have sent it by now.
        """
        if not self.may_be_given_work():
            raise LeaseLost(self.name)
        prompt.sent = prompt.timed = prompt.audible = True
        try:
            queued_id = await self.client.submit(
                graph, self.client_id, prompt.prompt_id, extra_data, output_node=output_node
            )
        except ComfyError as error:
            if not error.transient:
                raise JobFailure("engine_error", error.message) from error
            log.warning("%s: submitting %s: %s", self.name, prompt.prompt_id, error.message)
            prompt.refusal = error if error.answered else None
            prompt.look_soon()
            return
        del self.in_flight[prompt.prompt_id]
        prompt.prompt_id = queued_id
        self.in_flight[queued_id] = prompt

    async def follow(self, prompt: InFlightPrompt) -> AsyncGenerator[News]:
        """Yield what the socket tells of a prompt, until history tells of its success: see `prompt.outcome` then.

        ComfyUI is asked meanwhile, however slowly the messages are read. Raises `JobFailure` when ComfyUI says why it
        failed, `Lost` when it knows the prompt no more, `GivenUp` when it cannot be asked and another can do the work,
        `Stopped` after `prompt.stop()`. Close it (`contextlib.aclosing`) when it is left early.
        """
        prompt.sent = True
        self.in_flight[prompt.prompt_id] = prompt
        end = asyncio.create_task(self._end_of(prompt), name=f"end of {prompt.prompt_id}")
        end.add_done_callback(lambda _: prompt.inbox.wake())
        try:
            while True:
                while (message := prompt.inbox.take()) is not None:
                    yield message
                if end.done():
                    break
                await prompt.inbox.wait()
            prompt.outcome = end.result()
        finally:
            end.cancel()
            await asyncio.gather(end, return_exceptions=True)

    def _take(self, message: Message) -> None:
        """Hand a message of the socket to its prompt."""
        prompt = self.in_flight.get(message.prompt_id or "")
        if prompt is None:
            return
        prompt.heard_at = monotonic()
        prompt.running = prompt.audible = True
        match message:
            case Executing(node=None):
                prompt.look_soon()
            case Executing(node=node) if node != prompt.node:
                prompt.node = node
                prompt.inbox.put(message)
            case Progress() | Preview():
                prompt.inbox.put(message)

    async def _end_of(self, prompt: InFlightPrompt) -> Outcome:
        """Ask until history reports a prompt's end, whatever the socket reports."""
        misses = 0
        answered_at = monotonic()
        while True:
            if misses:
                await asyncio.sleep(self.timeouts.confirm_s)
            else:
                hurry = prompt.stopping_since is not None
                await prompt.until_due(self.timeouts.confirm_s if hurry else self.timeouts.reconcile_s)
            try:
                found = await self._ask(self.client.look(prompt.prompt_id))
                if prompt.stopping_since is not None and isinstance(found, Place):
                    await self._ask(self.client.stop(prompt.prompt_id, found))
            except ComfyError as error:
                if not error.transient:
                    raise JobFailure("engine_error", error.message) from error
                self._note(error)
                self._check_unanswered(prompt, error, monotonic() - answered_at)
                continue
            answered_at = monotonic()
            self._answered()
            if isinstance(found, Outcome):
                return self._judge(found, prompt)
            if found is not None:
                misses = 0
                prompt.refusal = None
                await self._check_silence(prompt, found)
            else:
                misses += 1
            if misses > 1:
                raise _missing(prompt)

    def _judge(self, outcome: Outcome, prompt: InFlightPrompt) -> Outcome:
        """Return a success; everything else is raised."""
        if prompt.stopping_since is not None:
            raise Stopped
        if outcome.failure is not None:
            raise outcome.failure
        if outcome.state == "interrupted":
            message = "Somebody interrupted the prompt in ComfyUI; retry the job to run it again."
            raise JobFailure("interrupted", message, transient=True)
        if prompt.timed:
            prompt.timed = False
            self.speed.learn(prompt)
        return outcome

    def _check_unanswered(self, prompt: InFlightPrompt, error: ComfyError, unanswered_s: float) -> None:
        """Leave an engine that cannot be asked, when somebody waits for a cancel or another could do the work."""
        if error.answered and unanswered_s > self.timeouts.stuck_s:
            self.abandoned.add(prompt.prompt_id)
            raise JobFailure("engine_error", error.message, transient=self.replaceable)
        if unanswered_s < self.timeouts.unreachable_s:
            return
        if prompt.stopping_since is not None:
            self.abandoned.add(prompt.prompt_id)
            raise Stopped
        if self.replaceable:
            self.abandoned.add(prompt.prompt_id)
            raise GivenUp(f"{self.title} does not answer")

    async def _check_silence(self, prompt: InFlightPrompt, place: Place) -> None:
        """Distrust a socket that says nothing of a prompt that runs; then the engine, for its thread may be dead."""
        now = monotonic()
        if prompt.stopping_since is not None and now - prompt.stopping_since > self.timeouts.stop_s:
            self._hold_for_stuck(prompt)
            raise Stopped
        if place is Place.PENDING:
            prompt.heard_at = now
            if self.stuck:
                self.abandoned.add(prompt.prompt_id)
                raise GivenUp(f"{self.title} is stuck")
            return
        prompt.running = True
        stuck_s = self.timeouts.stuck_s if prompt.audible else self.timeouts.gone_s
        if now - prompt.heard_at > stuck_s:
            self._hold_for_stuck(prompt)
            raise JobFailure(
                "engine_stuck",
                "ComfyUI has the prompt in its queue but does not work on it any more; restart ComfyUI and retry.",
                transient=self.replaceable,
            )
        if prompt.audible and now - max(prompt.heard_at, prompt.distrusted_at) > self.timeouts.silence_s:
            prompt.distrusted_at = now
            log.warning("%s: silence for %.0f s; opening the socket anew", self.name, now - prompt.heard_at)
            await self.listener.reconnect()

    def _hold_for_stuck(self, prompt: InFlightPrompt) -> None:
        log.error("%s is stuck: it has %s and does not move", self.name, prompt.prompt_id)
        self.stuck = True
        self.abandoned.add(prompt.prompt_id)

    async def stop_abandoned(self) -> set[str]:
        """Ask once more for the end of the prompts that were given up; return those that are gone for good.

        One that is not in the queue is looked for twice: a request that was on its way may still arrive. One that
        stays for long shows that the engine is stuck, which ends with the last of them. Raises `ComfyError`.
        """
        queue = await self._ask(self.client.queue())
        known = {*queue.running, *queue.pending}
        absent = self.abandoned - known
        gone, self._missed = absent & self._missed, absent
        for prompt_id in self.abandoned & known:
            place = Place.RUNNING if prompt_id in queue.running else Place.PENDING
            await self._ask(self.client.stop(prompt_id, place))
            asked_at = self._stop_asked_at.setdefault(prompt_id, monotonic())
            if monotonic() - asked_at > self.timeouts.stop_s and not self.stuck:
                log.error("%s is stuck: it does not let go of %s", self.name, prompt_id)
                self.stuck = True
        for prompt_id in gone:
            self.abandoned.discard(prompt_id)
            self._stop_asked_at.pop(prompt_id, None)
        self._answered()
        if not self.abandoned:
            self.stuck = False
            self._pool.changed.set()
        return gone


def _missing(prompt: InFlightPrompt) -> Exception:
    """Return the error for a prompt that ComfyUI, asked twice, does not know."""
    if prompt.stopping_since is not None:
        return Stopped()
    if prompt.refusal is not None:
        return JobFailure("engine_error", prompt.refusal.message, transient=True)
    return Lost()
