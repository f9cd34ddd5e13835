"""One simulated world: nodes, ComfyUIs, a database, a disk, their users, and everything that goes wrong there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import shutil
import sqlite3
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace

from faceswap import engine_watch, progress_reporter
from faceswap.api.stream import follow
from faceswap.config import Timeouts, resource_dir
from faceswap.errors import Problem
from faceswap.files import Files
from faceswap.hub import Lagging
from faceswap.jobs import Inputs, NewJob, Options, SegmentPlan
from faceswap.store import StoreError
from faceswap.store.sqlite import migrate
from faceswap.workflow import load_workflows

from .comfyui import ComfyUI
from .invariants import TRIGGERS, Invariants
from .loop import Clocks, Machine, Scheduler, datetime_of
from .node import Node

MEMORY = Path("/dev/shm")
"""The folder of simulated disks: nothing there waits for a real one."""
TIMEOUTS = Timeouts(
    reconcile_s=3.0,
    silence_s=15.0,
    stuck_s=40.0,
    stop_s=10.0,
    unreachable_s=8.0,
    confirm_s=0.5,
    retry_s=(2.0, 5.0),
    inspect_s=30.0,
    outage_s=5.0,
    lease_s=15.0,
    gone_s=40.0,
)
TICK_S = 2.0
"""Between two progress events of a simulated service: fewer, so that a seed takes less time."""
NODES = (1, 1, 1, 2, 2, 3)
"""Numbers of nodes that a world may have."""
WORKFLOW = "FaceSwap-Reactor-API"
QUEUE_LIMIT = 100
NEED_ROOM = frozenset({"begin_upload", "make_scratch", "mark_erasure", "keep_result"})
"""Methods of `Files` that make something new on the disk."""
FAULTS_END_S = (20.0, 80.0)
"""Between which times faults and users stop."""
QUIET_S = 6.0
"""The time for which nothing may be left to do before a simulation is over."""
SETTLE_S = 3600.0
"""The longest that everything may take to end then."""

_workflows = load_workflows(resource_dir("workflows"))
_database = bytearray()


def prepare() -> None:
    """Make what all worlds begin with: a database of the product's newest version that writes down every move."""
    if not _database:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            path = Path(folder, "empty.db")
            migrate(path, resource_dir("migrations"))
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.executescript(TRIGGERS)
            _database.extend(path.read_bytes())


class World:
    """The world of one seed. `violation` is the first promise that did not hold."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.scheduler = Scheduler(self.random)
        self.environment = Machine(self.scheduler, "environment")
        self.timeouts = TIMEOUTS
        self.workflows = _workflows
        self.violation: str | None = None
        self.trace: list[str] = []
        self.counts: Counter[str] = Counter()
        self.files = Files(folder)
        self.files.create()
        self.scheduler.before_thread = self._check_thread
        self.database_away = self.disk_full = False
        self.media_trouble = 0.0
        self.faults_over = False
        self._busy_at = 0.0
        self._watched: dict[str, int] = {}

    # What the parts of the world ask.

    def note(self, text: str) -> None:
        """Write a line of the trace."""
        self.trace.append(f"{self.scheduler.now:9.3f} {text}")

    def fail(self, violation: str) -> None:
        """End the simulation: a promise did not hold."""
        if self.violation is None:
            self.violation = violation
            self.note(f"VIOLATION: {violation}")
            self.scheduler.stopped = True

    def chance(self, share: float) -> bool:
        """Return True with a probability of `share`."""
        return share > 0 and self.random.random() < share

    def check_database(self) -> None:
        """Raise `StoreError` while the database is away."""
        if self.database_away:
            raise StoreError("the database is away", transient=True)

    def check_disk_of_database(self) -> None:
        """Raise `StoreError` while the database cannot be written."""
        self.check_database()
        if self.disk_full:
            raise StoreError("the disk is full", transient=True, disk_full=True)

    def check_disk(self) -> None:
        """Raise `OSError` while the disk is full."""
        if self.disk_full:
            raise OSError(28, "No space left on device")

    def _check_thread(self, work: Callable[..., object]) -> None:
        """Raise `OSError` where a thread is to write while the disk is full."""
        inner = work.args[0] if isinstance(work, partial) and work.args else work
        if getattr(inner, "__name__", "") in NEED_ROOM:
            self.check_disk()

    # The run.

    def run(self) -> None:
        """Let everything happen: jobs under faults, then the end of faults, then the end of all jobs."""
        random = self.random
        self.files.database.write_bytes(_database)
        self.invariants = Invariants(self, self.files.database)
        self.comfies = [
            ComfyUI(self, f"comfy{number}", random.uniform(0.05, 0.4), random.random() < 0.5)
            for number in range(random.choice((1, 1, 2, 2, 3)))
        ]
        self.nodes = [Node(self, f"node{number}") for number in range(random.choice(NODES))]
        for node in self.nodes:
            node.start()
        faults_end = random.uniform(*FAULTS_END_S)
        self.environment.create_task(self._users(faults_end))
        self.environment.create_task(self._faults(faults_end))
        self.environment.call_later(faults_end, self._heal)
        try:
            self.scheduler.run(self._is_quiet, faults_end + SETTLE_S)
            for error in self.scheduler.errors:
                self.fail(error)
            if self.violation is None:
                self.invariants.check_end()
        finally:
            for node in self.nodes:
                node.kill()
            self.invariants.close()
        self.counts.update(state.value for state in self.invariants.jobs.values())
        self.counts["prompts"] += len(self.invariants.prompts)
        self.counts["steps"] += self.scheduler.steps

    def _is_quiet(self) -> bool:
        """Return whether faults are over and nothing was left to do for a while: requests may have been held back."""
        if not (self.faults_over and self.invariants.all_ended()):
            self._busy_at = self.scheduler.now
        return self.scheduler.now - self._busy_at > QUIET_S

    @property
    def digest(self) -> str:
        """A digest of the trace and of every random number that was drawn: two runs of one seed have the same."""
        text = "\n".join((*self.trace, str(self.scheduler.steps), str(self.random.random())))
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    # Faults.

    async def _faults(self, end: float) -> None:
        pause_s = self.random.choice((2.0, 5.0, 15.0))
        kinds = [
            self._crash,
            self._crash,
            self._freeze,
            self._restart_comfy,
            self._freeze_comfy,
            self._trouble_comfy,
            self._lying_comfy,
            self._drop_sockets,
            self._forget,
            self._database_away,
            self._disk_full,
            self._clock_jump,
            self._media_trouble,
        ]
        chosen = self.random.sample(kinds, self.random.randint(1, len(kinds)))
        while True:
            await asyncio.sleep(self.random.expovariate(1 / pause_s))
            fault = self.random.choice(chosen)
            self.counts[fault.__name__.strip("_")] += 1
            fault()

    def _for_a_while(self, longest_s: float, undo: Callable[[], None]) -> None:
        self.environment.call_later(self.random.uniform(0.1, longest_s), undo)

    def _crash(self) -> None:
        node = self.random.choice(self.nodes)
        if node.machine is None:
            return

        def crash() -> None:
            node.kill()
            self._for_a_while(self.random.choice((1.0, 5.0, 40.0)), lambda: self._start(node))

        self._strike(node, node.machine, crash)

    def _strike(self, node: Node, machine: Machine, action: Callable[[], None]) -> None:
        """Do something to a machine between two callbacks: some time soon, or soon after it moves a segment."""
        steps = self.random.randrange(self.random.choice((10, 100, 1000)))
        if self.random.random() < 0.5:
            machine.light_fuse(steps, action)
        else:
            node.on_move = lambda: machine.light_fuse(steps // 10, action)

    def _start(self, node: Node) -> None:
        if node.machine is None:
            node.start()

    def _freeze(self) -> None:
        node = self.random.choice(self.nodes)
        machine = node.machine
        if machine is None:
            return

        def freeze() -> None:
            self.note(f"{node.name} is frozen")
            machine.frozen = True
            self._for_a_while(self.random.choice((1.0, 10.0, 60.0)), lambda: self._thaw(machine))

        self._strike(node, machine, freeze)

    def _thaw(self, machine: Machine) -> None:
        if machine.frozen:
            self.note(f"{machine.name} thaws")
            machine.frozen = False

    def _restart_comfy(self) -> None:
        self.restart(self.random.choice(self.comfies))

    def restart(self, comfy: ComfyUI) -> None:
        """Have a ComfyUI die and come again after a while."""
        if comfy.up:
            self.note(f"{comfy.name} dies")
            comfy.die()
            self._for_a_while(self.random.choice((1.0, 20.0)), comfy.start)

    def _freeze_comfy(self) -> None:
        comfy = self.random.choice(self.comfies)
        if comfy.up and not comfy.frozen:
            self.note(f"{comfy.name} is frozen")
            comfy.freeze()
            self._for_a_while(self.random.choice((1.0, 10.0, 40.0)), lambda: self._thaw_comfy(comfy))

    def _thaw_comfy(self, comfy: ComfyUI) -> None:
        if comfy.frozen:
            self.note(f"{comfy.name} thaws")
            comfy.thaw()

    def _trouble_comfy(self) -> None:
        comfy = self.random.choice(self.comfies)
        comfy.trouble = self.random.choice((0.1, 0.5, 1.0))
        self.note(f"{comfy.name} cannot be relied on: {comfy.trouble}")
        self._for_a_while(20.0, lambda: setattr(comfy, "trouble", 0.0))

    def _lying_comfy(self) -> None:
        comfy = self.random.choice(self.comfies)
        comfy.lies = self.random.choice((0.2, 0.7))
        self._for_a_while(20.0, lambda: setattr(comfy, "lies", 0.0))

    def _drop_sockets(self) -> None:
        comfy = self.random.choice(self.comfies)
        self.note(f"{comfy.name} loses its sockets")
        comfy.drop_sockets()

    def _forget(self) -> None:
        self.random.choice(self.comfies).forget()

    def _database_away(self) -> None:
        self.note("the database is away")
        self.database_away = True
        self._for_a_while(self.random.choice((1.0, 15.0)), lambda: setattr(self, "database_away", False))

    def _disk_full(self) -> None:
        self.note("the disk is full")
        self.disk_full = True
        self._for_a_while(self.random.choice((1.0, 15.0)), lambda: setattr(self, "disk_full", False))

    def _clock_jump(self) -> None:
        node = self.random.choice(self.nodes)
        node.clock_s = self.random.choice((-1, 1)) * self.random.choice((1.0, 60.0, 3600.0, 86400.0))
        self.note(f"the clock of {node.name} is off by {node.clock_s} s")
        if node.machine is not None:
            node.machine.clock_s = node.clock_s

    def _media_trouble(self) -> None:
        self.media_trouble = 0.5
        self._for_a_while(10.0, lambda: setattr(self, "media_trouble", 0.0))

    def _heal(self) -> None:
        """Let nothing more go wrong, and have what only an operator can put right put right."""
        self.note("faults are over")
        self.faults_over = True
        for task in self.environment.tasks:
            task.cancel()
        self.database_away = self.disk_full = False
        self.media_trouble = 0.0
        for comfy in self.comfies:
            comfy.trouble = comfy.lies = 0.0
            if comfy.frozen:
                comfy.thaw()
            stuck = comfy.running is not None and comfy.running.fate == "stuck"
            if stuck or any(prompt.fate != "success" for prompt in comfy.pending):
                comfy.die()
            comfy.start()
        for node in self.nodes:
            if node.machine is None:
                node.start()
            else:
                node.machine.frozen = False
                node.machine.defuse()
            node.on_move = None

    # Users.

    async def _users(self, end: float) -> None:
        actions = [self._cancel, self._cancel, self._retry, self._retry, self._delete, self._watch, self._watch]
        jobs = self.random.randint(1, 4)
        while True:
            await asyncio.sleep(self.random.expovariate(1 / 3.0))
            nodes = [node for node in self.nodes if node.ready]
            if not nodes:
                continue
            node = self.random.choice(nodes)
            action = self.random.choice(actions)
            if jobs > 0 and self.random.random() < 0.6:
                action = self._submit
                jobs -= 1
                prompt_id = self.new_id()
            elif self.invariants.jobs:
                prompt_id = self.random.choice(sorted(self.invariants.jobs))
            else:
                continue
            self.counts[action.__name__.strip("_")] += 1
            assert node.machine is not None
            node.machine.spawn(self._request(action(node, prompt_id)))

    async def _request(self, work: object) -> None:
        """Answer a request as the handlers do: what is refused, or cannot be done now, is an answer too."""
        with suppress(Problem, StoreError, OSError, Lagging):
            await work

    def new_id(self) -> str:
        """Return an id as `uuid4` would."""
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    async def _submit(self, node: Node, prompt_id: str) -> None:
        counts = [self.random.randint(3, 20) for _ in range(self.random.choice((1, 1, 2, 3, 6)))]
        await node.files.begin_upload(prompt_id)
        folder = node.files.inputs(prompt_id)
        clip = {"job": prompt_id, "first": 0, "count": sum(counts)}
        (folder / "video.mp4").write_text(json.dumps(clip), encoding="utf-8")
        (folder / "face.png").write_text("{}", encoding="utf-8")
        plans = tuple(SegmentPlan(number, sum(counts[:number]), count) for number, count in enumerate(counts))
        inputs = Inputs(
            "video.mp4", "face.png", "a" * 64, "b" * 64, 100, 64, 48, sum(counts), Fraction(24), sum(counts) / 24, False
        )
        new = NewJob(prompt_id, "clip", Options(), WORKFLOW, inputs, plans)
        try:
            await node.store.create(new, QUEUE_LIMIT)
        except (Problem, StoreError):
            await node.files.delete_upload(prompt_id)
            raise
        self.invariants.accepted.add(prompt_id)
        await node.files.accept_upload(prompt_id)
        node.scheduler.wake()

    async def _cancel(self, node: Node, prompt_id: str) -> None:
        await node.store.request_cancel(prompt_id, None)
        node.scheduler.cancel(prompt_id)

    async def _retry(self, node: Node, prompt_id: str) -> None:
        await node.store.retry(prompt_id, None)
        node.scheduler.wake()

    async def _delete(self, node: Node, prompt_id: str) -> None:
        if len(self.nodes) > 1:
            return
        self.invariants.unwanted.add(prompt_id)
        with suppress(Problem):
            await self._cancel(node, prompt_id)
        await node.scheduler.erase(await node.store.job(prompt_id))

    async def _watch(self, node: Node, prompt_id: str) -> None:
        last = self._watched.get(prompt_id, 0)
        async for event in follow(node.store, node.feed, prompt_id, last):
            if event is not None:
                self.invariants.watched(prompt_id, last, event)
                last = self._watched[prompt_id] = event.seq


_kept: list[World] = []
"""Worlds that are over: were one collected, the `finally` of every task that was killed there would run."""


def simulate(seed: int, disks: Path = MEMORY) -> World:
    """Run the world of a seed, its disk a folder in `disks`."""
    prepare()
    folder = Path(tempfile.mkdtemp(prefix="faceswap-simulation-", dir=disks))
    try:
        world = World(seed, folder)
        _kept.append(world)
        install(world)
        world.run()
        return world
    finally:
        shutil.rmtree(folder)


def install(world: World) -> None:
    """Give the product the world's clocks and chance in place of the real ones."""
    clocks = Clocks(world.scheduler)
    stands_for = {
        "time": clocks,
        "random": world.random,
        "uuid": SimpleNamespace(uuid4=lambda: uuid.UUID(world.new_id()), uuid5=uuid.uuid5, UUID=uuid.UUID),
        "datetime": datetime_of(clocks),
    }
    import datetime as datetime_module
    import random as random_module
    import time as time_module

    real = {"time": time_module, "random": random_module, "uuid": uuid, "datetime": datetime_module.datetime}
    for name, module in sorted(sys.modules.items()):
        if name.startswith("faceswap"):
            for attribute, stand_in in stands_for.items():
                if getattr(module, attribute, None) is real[attribute] or (module, attribute) in _installed:
                    setattr(module, attribute, stand_in)
                    _installed.add((module, attribute))
    progress_reporter.TICK_S = TICK_S
    engine_watch.LOOK_S = TICK_S
    handler = _Failures(world)
    log = logging.getLogger("faceswap")
    log.handlers[:] = [handler]
    log.propagate = False


_installed: set[tuple[object, str]] = set()


class _Failures(logging.Handler):
    """Takes what the product logs: an exception that nobody expected is a violation."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.note(record.getMessage())
        deleted = self._world.invariants.is_unwanted(*map(str, record.args or ()))
        if record.exc_info and record.exc_info[1] is not None and not deleted:
            self._world.fail(f"{record.getMessage()}: {record.exc_info[1]!r}")
