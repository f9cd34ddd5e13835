"""The users of a world: each request goes to any node, and watchers go on at another when theirs is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Self

from faceswap.api import stream
from faceswap.errors import Conflict, NotFound, Problem
from faceswap.events import Event
from faceswap.hub import Closing, Lagging
from faceswap.intake.files import FileSink, Room, new_input_folder
from faceswap.jobs import ImageFile, Inputs, NewJob, SegmentPlan
from faceswap.options import Options
from faceswap.store import CommitUnknown, StoreError

if TYPE_CHECKING:
    from .loop import Machine
    from .node import Node
    from .world import World

QUEUE_LIMIT = 100
WORKFLOW = "FaceSwap-Reactor-API"
WEBHOOK_URL = "https://receiver.example.com/"
"""The address that is told of the end of every job."""
FRAMES, LONG = (3, 20), (30, 40)
"""Frames of a segment, at least and at most, of most jobs and of those that take long."""
PAUSE_S = 3.0
"""The mean time between two requests."""
BEHIND = 0.2
"""The share of live events that find the connection of their watcher behind."""
RECONNECT_S = 1.0
"""The longest that a watcher waits before it comes back."""


class Users:
    """All users. What they were promised is `Invariants`' to judge."""

    def __init__(self, world: World) -> None:
        self.watchers: list[Watcher] = []
        self._world = world
        self._random = world.random

    async def run(self) -> None:
        """Send one request after another, until cancelled."""
        actions = [self.cancel, self.retry, self.retry, self.watch, self.watch, self.watch, self.delete]
        jobs = self._random.randint(1, 4)
        while True:
            await asyncio.sleep(self._random.expovariate(1 / PAUSE_S))
            node = self.any_node()
            if node is None:
                continue
            action = self._random.choice(actions)
            if jobs > 0 and self._random.random() < 0.6:
                action = self.submit
                jobs -= 1
                prompt_id = self._world.new_id()
            elif self._world.invariants.jobs:
                prompt_id = self._random.choice(sorted(self._world.invariants.jobs))
            else:
                continue
            self._world.counts[action.__name__] += 1
            action(node, prompt_id)

    async def run_calmly(self) -> None:
        """Post a long job, watch it, and perhaps cancel or delete it, while nothing goes wrong."""
        prompt_id = self._world.new_id()
        for action in (
            partial(self.submit, frames=LONG),
            self.watch,
            self.watch,
            self._random.choice((self.cancel, self.cancel, self.delete, self.watch)),
        ):
            node = self.any_node()
            if node is not None:
                action(node, prompt_id)
            await asyncio.sleep(self._random.uniform(0.5, 8.0))

    def any_node(self) -> Node | None:
        """Return one of the nodes that a load balancer would send a request to; None when there is none."""
        nodes = [node for node in self._world.nodes if node.ready]
        return self._random.choice(nodes) if nodes else None

    def machine_died(self, machine: Machine) -> None:
        """Break the connections of watchers to a process that has ended."""
        for watcher in self.watchers:
            watcher.machine_died(machine)

    def _request(self, node: Node, work: Coroutine[Any, Any, None]) -> None:
        """Answer a request as the handlers do: a refusal, or that it cannot be done now, is an answer too."""

        async def answer() -> None:
            try:
                await work
            except (Problem, StoreError, OSError) as error:
                self._world.note(f"{node.name} answers {error!r}")
            except Exception as error:  # noqa: BLE001  # the handlers would answer 500
                if not node.stopping:  # where requests end before the parts do
                    self._world.fail(f"{node.name} answers {error!r}")

        assert node.machine is not None
        node.machine.spawn(answer())

    def submit(self, node: Node, prompt_id: str, *, frames: tuple[int, int] = FRAMES) -> None:
        """Post a job whose segments have so many frames, at least and at most."""
        counts = [self._random.randint(*frames) for _ in range(self._random.choice((1, 1, 2, 3, 6)))]
        self._request(node, self._submit(node, prompt_id, counts))

    async def _submit(self, node: Node, prompt_id: str, counts: Sequence[int]) -> None:
        clip = json.dumps({"job": prompt_id, "first": 0, "count": sum(counts)})
        async with new_input_folder(node.files, prompt_id, Room(node.files, 0)) as folder:
            await folder.expect(2 * len(clip))
            video, face = [await self._receive(FileSink(folder, kind, 1000), clip) for kind in ("video", "image")]
        plans = tuple(SegmentPlan(number, sum(counts[:number]), count) for number, count in enumerate(counts))
        images = (ImageFile(face, "b" * 64),)
        inputs = Inputs(video, images, "a" * 64, 100, 64, 48, sum(counts), Fraction(24), sum(counts) / 24, False)
        new = NewJob(prompt_id, "clip", Options(), WORKFLOW, inputs, plans, webhook_url=WEBHOOK_URL)
        try:
            await node.store.create(new, QUEUE_LIMIT)
        except CommitUnknown:
            self._world.invariants.uncertain.add(prompt_id)
            raise
        except (Problem, StoreError):
            await node.files.delete_upload(prompt_id)
            raise
        self._world.invariants.accepted.add(prompt_id)
        await node.files.accept_upload(prompt_id)
        node.scheduler.wake()

    async def _receive(self, sink: FileSink, text: str) -> str:
        await sink.write(text.encode())
        return (await sink.finish()).name

    def cancel(self, node: Node, prompt_id: str) -> None:
        """Cancel a job."""
        self._request(node, self._cancel(node, prompt_id))

    async def _cancel(self, node: Node, prompt_id: str) -> None:
        await node.store.request_cancel(prompt_id, None)
        node.scheduler.cancel(prompt_id)

    def retry(self, node: Node, prompt_id: str) -> None:
        """Queue a job again."""
        self._request(node, self._retry(node, prompt_id))

    async def _retry(self, node: Node, prompt_id: str) -> None:
        await node.store.retry(prompt_id, None)
        node.scheduler.wake()

    def delete(self, node: Node, prompt_id: str) -> None:
        """Erase a job, whatever it does."""
        self._world.invariants.unwanted.add(prompt_id)
        self._request(node, self._delete(node, prompt_id))

    async def _delete(self, node: Node, prompt_id: str) -> None:
        with suppress(Conflict):
            await self._cancel(node, prompt_id)
        await node.scheduler.erase(await node.store.job(prompt_id))

    def watch(self, node: Node, prompt_id: str) -> None:
        """Watch a job to its end."""
        watcher = Watcher(self._world, prompt_id)
        self.watchers.append(watcher)
        watcher.connect(node)


class Wire:
    """The connection of a watcher: what is written to it arrives at once, and now and then it is behind."""

    def __init__(self, heard: Callable[[Event], None], seed: str) -> None:
        self.output_size = 0
        self._heard = heard
        self._random = Random(seed)  # of its own: how often it is asked does not change the world
        self._event: Event | None = None

    @property
    def transport(self) -> Self:
        return self

    def encode(self, event: Event) -> bytes:
        self._event = event
        return event.sse()

    def write(self, data: bytes) -> None:
        if data:
            assert self._event is not None and data == self._event.sse()
            self._heard(self._event)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return stream.BEHIND_BYTES + 1 if self._random.random() < BEHIND else 0

    async def drain(self) -> None:
        await asyncio.sleep(0)


class Watcher:
    """A client that watches a job, wherever it is let in, until it has heard the end. `ended` then."""

    def __init__(self, world: World, prompt_id: str) -> None:
        self.prompt_id = prompt_id
        self.ended = False
        self.heard: list[int] = []
        """The numbers of the stored events that it has heard."""
        self.last = 0
        """The number of the last event of any kind."""
        self.node: Node | None = None
        self.since = 0.0
        """The time at which it came to the node."""
        self._world = world
        self._machine: Machine | None = None

    def connect(self, node: Node | None = None) -> None:
        """Go to a node, any one that lets clients in."""
        node = node or self._world.users.any_node()
        if node is None:
            self._come_back()
            return
        self.node, self._machine, self.since = node, node.machine, self._world.scheduler.now
        assert node.machine is not None
        node.machine.spawn(self._follow(node, node.machine))

    def machine_died(self, machine: Machine) -> None:
        """Come back when it was this process that has ended."""
        if self._machine is machine:
            self._lost()

    def _lost(self) -> None:
        self.node = self._machine = None
        if not self.ended:
            self._come_back()

    def _come_back(self) -> None:
        self._world.environment.call_later(self._world.random.uniform(0.1, RECONNECT_S), self.connect)

    def _heard(self, machine: Machine, event: Event) -> None:
        if self._machine is machine:
            self._world.invariants.heard(self, event)
            self.last = event.seq

    async def _follow(self, node: Node, machine: Machine) -> None:
        wire: Any = Wire(partial(self._heard, machine), self.prompt_id)
        try:
            await stream.Watcher(wire, wire.encode, self.last).follow(node.store, node.feed, self.prompt_id)
            self.ended = True
        except NotFound:
            self.ended = True
            self._world.invariants.not_found(self)
        except (Lagging, Closing, StoreError):
            pass
        if self.ended and self._machine is machine:
            self._world.invariants.heard_all(self)
        if self._machine is machine:
            self._lost()
