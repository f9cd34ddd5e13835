"""One simulated world: nodes, ComfyUIs, a database, a disk, their users, and everything that goes wrong there."""

from __future__ import annotations

import hashlib
import logging
import shutil
import sqlite3
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace

from faceswap import engine_watch, feed, leaseholder, other_nodes, outbox, progress_reporter
from faceswap.comfy.backend import EMBEDDED
from faceswap.config import Timeouts, resource_dir
from faceswap.files import UPLOAD, Files, s3
from faceswap.files.s3 import S3Files
from faceswap.files.shared import SharedFolder
from faceswap.store import StoreError
from faceswap.store.sqlite import migrate
from faceswap.workflow import load_workflows

from .bucket import Bucket, SimulatedObjects
from .comfyui import ComfyUI
from .database import IDLE_TRANSACTION_S
from .faults import Faults
from .invariants import GRACE_S, TRIGGERS, Invariants
from .loop import WALL_S, Clocks, Machine, Scheduler, datetime_of
from .node import Node
from .users import Users

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
    node_gone_s=15.0,
)
TICK_S = 2.0
"""Between two progress events, and two looks, of a simulated service: fewer, so that a seed takes less time."""
NODES = (1, 1, 1, 2, 2, 3)
"""Numbers of nodes that a world may have, unless it is told how many."""
DRIFT = 2e-4
"""The share by which the clocks of a node run too fast or too slow, at most."""
NEED_ROOM = frozenset({"begin_upload", "make_scratch", "mark_erasure", "keep_result"})
"""Methods of `Files` that make something new on the disk."""
FAULTS_END_S = (20.0, 80.0)
"""Between which times faults stop."""
MORE_S = 15.0
"""The longest that users go on after that."""
CALM_SHARE = 0.3
"""Share of the worlds with a job that is posted once nothing goes wrong any more."""
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

    def __init__(self, seed: int, folder: Path, nodes: int | None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.scheduler = Scheduler(self.random)
        self.environment = Machine(self.scheduler, "environment")
        self.timeouts = TIMEOUTS
        self.workflows = _workflows
        self.violation: str | None = None
        self.trace: list[str] = []
        self.counts: Counter[str] = Counter()
        self.folder = folder
        self.database = folder / "faceswap.db"
        self.scheduler.before_thread = self._check_thread
        self.database_away = self.disk_full = False
        self.media_trouble = 0.0
        self._busy_at = 0.0
        self._users_left = False
        """True until the last users have done what they came for."""
        count = nodes or self.random.choice(NODES)
        self.is_shared = count > 1
        """True where several nodes share the database, as on PostgreSQL."""
        self.nodes = [Node(self, f"node{number}", 1 + self.random.uniform(-DRIFT, DRIFT)) for number in range(count)]
        self.comfies = self._make_comfies()
        self.bucket = Bucket() if self.is_shared and self.random.random() < 0.5 else None
        """The place of the files; None for a folder."""
        self.shared_folder = folder / "shared" if self.is_shared else folder
        self.shared_folder.mkdir(exist_ok=True)

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

    def files_of(self, node: Node) -> Files:
        """Return the files as a node has them."""
        if self.bucket is not None:
            return S3Files(self.folder / node.name, "s3://simulated", node.name, 1)
        if self.is_shared:
            return SharedFolder(self.folder / node.name, self.shared_folder, node.name)
        return Files(self.folder)

    def results(self) -> dict[str, str]:
        """Return all results: the text of each by its name, which is that of its job where nodes share the files."""
        if self.bucket is not None:
            found = {key: data for key, (data, _) in self.bucket.objects.items() if key.startswith("results/")}
            return {key.removeprefix("results/"): data.decode() for key, data in found.items()}
        folder = self.shared_folder / "outputs"
        paths = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}

    def jobs_with_files(self) -> set[str]:
        """Return the ids of the jobs that have inputs or parts where all nodes find them."""
        if self.bucket is not None:
            keys = (key.split("/") for key in self.bucket.objects)
            return {key[1] for key in keys if key[0] in ("inputs", "segments", "previews")}
        return _folders(self.shared_folder)

    def marked_uploads(self) -> dict[str, str]:
        """Return the ids of the jobs whose upload is still marked, each with the name of the node that marked it."""
        if self.bucket is not None:
            marks = {key: data.decode() for key, (data, _) in self.bucket.objects.items() if key.endswith(UPLOAD)}
        else:
            paths = (self.shared_folder / "inputs").glob(f"*{UPLOAD}")
            marks = {path.name: path.read_text(encoding="utf-8") for path in paths}
        return {name.removeprefix("marks/").removesuffix(UPLOAD): node for name, node in marks.items()}

    def jobs_with_copies(self) -> set[str]:
        """Return the ids of the jobs of whose files a node that runs has copies of its own."""
        if not self.is_shared:
            return set()
        return {name for node in self.nodes if node.machine for name in _folders(self.folder / node.name)}

    @property
    def wall_ms(self) -> int:
        """The Unix time of clocks that are right, as that of a database that nodes share, in milliseconds."""
        return int((WALL_S + self.scheduler.now) * 1000)

    @property
    def running_node(self) -> Node:
        """The node whose turn it is."""
        return next(node for node in self.nodes if node.machine is self.scheduler.running)

    def chance(self, share: float) -> bool:
        """Return True with a probability of `share`."""
        return share > 0 and self.random.random() < share

    def check_disk_of_database(self) -> None:
        """Raise `StoreError` while the database cannot be written."""
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
        self.database.write_bytes(_database)
        self.invariants = Invariants(self, self.database)
        self.users, self.faults = Users(self), Faults(self)
        for node in self.nodes:
            node.start()
        faults_end = self.faults_end = random.uniform(*FAULTS_END_S)
        users = self.environment.create_task(self.users.run())
        faults = self.environment.create_task(self.faults.run())
        self.environment.call_later(faults_end, faults.cancel)
        self.environment.call_later(faults_end, self.faults.heal)
        self.environment.call_later(faults_end + random.uniform(0.0, MORE_S), users.cancel)
        if random.random() < CALM_SHARE:
            self._users_left = True
            self.environment.call_later(faults_end + GRACE_S, self._begin_calm)
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

    def _begin_calm(self) -> None:
        task = self.environment.create_task(self.users.run_calmly())
        task.add_done_callback(lambda _: setattr(self, "_users_left", False))

    def _make_comfies(self) -> list[ComfyUI]:
        """Make ComfyUIs: all nodes name all of them, or each names some; who names none has one of its own."""
        random = self.random
        share = random.choice((1.0, 0.6)) if self.is_shared else 1.0
        comfies = []
        for number in range(random.choice((1, 1, 2, 2, 3))):
            named_by = [node for node in self.nodes if random.random() < share]
            if named_by:
                comfies.append(self._make_comfy(f"comfy{number}", named_by))
        for node in self.nodes:
            if not any(node in comfy.named_by for comfy in comfies):
                own = self._make_comfy(f"{EMBEDDED}:{node.name}", [node])
                own.is_embedded = True
                comfies.append(own)
        return comfies

    def _make_comfy(self, name: str, named_by: list[Node]) -> ComfyUI:
        return ComfyUI(self, name, named_by, self.random.uniform(0.05, 0.4), self.random.random() < 0.5)

    def _is_quiet(self) -> bool:
        """Return whether faults are over and nothing was left to do for a while: requests may have been held back."""
        if self._users_left or not (self.faults.over and self.invariants.all_ended()):
            self._busy_at = self.scheduler.now
        return self.scheduler.now - self._busy_at > QUIET_S

    @property
    def digest(self) -> str:
        """A digest of the trace and of every random number that was drawn: two runs of one seed have the same."""
        text = "\n".join((*self.trace, str(self.scheduler.steps), str(self.random.random())))
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def new_id(self) -> str:
        """Return an id as `uuid4` would."""
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def restart(self, comfy: ComfyUI) -> None:
        """Have a ComfyUI die and come again after a while, if there is somebody to start it."""

        def start() -> None:
            if not comfy.is_embedded or comfy.named_by[0].machine is not None:
                comfy.start()

        if comfy.up:
            self.note(f"{comfy.name} dies")
            comfy.die()
            self.environment.call_later(self.random.uniform(0.1, self.random.choice((1.0, 20.0))), start)

    def end_idle_transactions(self) -> None:
        """Have the database end the transaction of a session that says nothing."""
        for node in self.nodes:
            for session in node.way.sessions:
                if session.inner.in_transaction and self.scheduler.now - session.spoke_at > IDLE_TRANSACTION_S:
                    session.end()


def _folders(root: Path) -> set[str]:
    """Return the names of the folders of inputs and parts below a data folder."""
    return {path.name for kind in ("inputs", "work") for path in (root / kind).glob("*") if path.is_dir()}


_kept: list[World] = []
"""Worlds that are over: were one collected, the `finally` of every task that was killed there would run."""


def simulate(seed: int, disks: Path = MEMORY, nodes: int | None = None) -> World:
    """Run the world of a seed, its disk a folder in `disks`; with `nodes` nodes, or as many as the seed has."""
    prepare()
    folder = Path(tempfile.mkdtemp(prefix="faceswap-simulation-", dir=disks))
    try:
        world = World(seed, folder, nodes)
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
    s3.Objects = lambda url: SimulatedObjects(world)
    engine_watch.LOOK_S = feed.LOOK_S = leaseholder.ASK_S = other_nodes.LOOK_S = outbox.LOOK_S = TICK_S
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
