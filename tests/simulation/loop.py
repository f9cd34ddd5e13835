"""Machines under virtual time: each is an event loop of its own, and one scheduler decides whose turn it is.

Nothing waits for real: when no machine has anything to do, the time jumps to the next timer. Between any two callbacks,
which is at any await of the code that runs there, a machine can be killed (none of its callbacks runs again, so that no
`finally` does either) or frozen (its callbacks are held back).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from asyncio.events import _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from datetime import datetime as real_datetime
from datetime import tzinfo
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

WALL_S = 1_700_000_000.0
"""Unix time at which every simulation begins."""
THREAD_S = 0.005
"""The longest that work in a thread takes."""


class Scheduler:
    """The one time of all machines. What happens depends on the seed of `random` and on nothing else."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now = 0.0
        self.steps = 0
        self.machines: list[Machine] = []
        self.running: Machine | None = None
        self.stopped = False
        self.errors: list[str] = []
        """Errors of callbacks, outside of every task."""
        self.before_thread: Callable[[Callable[..., Any]], None] = lambda work: None
        """Called with what a thread is to do; what it raises, that raises."""
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self.task_numbers = itertools.count(random.getrandbits(28) << 32)
        """None is another machine's or world's: in the set of all tasks there would be as many equal hashes."""

    def add(self, when: float, handle: asyncio.TimerHandle) -> None:
        """Run a handle at a time."""
        heapq.heappush(self._timers, (when, next(self._numbers), handle))

    def run(self, until: Callable[[], bool], deadline: float) -> bool:
        """Run until a condition holds, which is asked whenever time passes; False when it does not by the deadline."""
        try:
            while not self.stopped:
                ready = [machine for machine in self.machines if machine.ready and not machine.frozen]
                if not ready:
                    if until():
                        return True
                    if not self._advance(deadline):
                        return False
                    continue
                machine = ready[int(self.random.random() * len(ready))] if len(ready) > 1 else ready[0]
                self.steps += 1
                self.running = machine
                _set_running_loop(machine)
                machine.step()
            return False
        finally:
            self.running = None
            _set_running_loop(None)

    def _advance(self, deadline: float) -> bool:
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers or timers[0][0] > deadline:
            return False
        self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= self.now:
            _, _, handle = heapq.heappop(timers)
            if not handle.cancelled():
                handle._loop.wake(handle)
        return True


class Task(asyncio.Task[Any]):
    """A task whose place in a set, as a task group has one, is the same in every run: that of others is their address.

    The group cancels its tasks in that order.
    """

    def __init__(self, coro: Any, number: int, **more: Any) -> None:
        self._number = number
        super().__init__(coro, **more)

    def __hash__(self) -> int:
        return self._number


class Machine(asyncio.AbstractEventLoop):
    """The event loop of one process. `clock_s` is how far its wall clock is off, `rate` how fast its clocks run."""

    def __init__(self, scheduler: Scheduler, name: str, rate: float = 1.0) -> None:
        self.scheduler = scheduler
        self.name = name
        self.ready: deque[asyncio.Handle] = deque()
        self.frozen = False
        self.dead = False
        self.clock_s = 0.0
        self.rate = rate
        self._fuse: tuple[int, Callable[[], None]] | None = None
        self._steps = 0
        self._booted_at = scheduler.random.uniform(0, 1e6)
        self.tasks: list[asyncio.Task[Any]] = []  # never let go of: collecting a dead one would run its `finally`
        scheduler.machines.append(self)

    def kill(self) -> None:
        """End the process as `kill -9` does."""
        self.dead = True
        self.ready.clear()
        self.scheduler.machines.remove(self)

    def light_fuse(self, steps: int, action: Callable[[], None]) -> None:
        """Do something to this machine, in place of its callback, after so many more of them."""
        self._fuse = (self._steps + steps, action)

    def defuse(self) -> None:
        """Forget what was to be done to this machine."""
        self._fuse = None

    def step(self) -> None:
        """Run the next callback."""
        self._steps += 1
        if self._fuse is not None and self._steps > self._fuse[0]:
            action, self._fuse = self._fuse[1], None
            action()
            return
        handle = self.ready.popleft()
        if not handle._cancelled:
            handle._run()

    def wake(self, handle: asyncio.Handle) -> None:
        """Take a handle that is due."""
        if not self.dead:
            self.ready.append(handle)

    def spawn(self, work: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Start a task from outside, as a request does that comes in."""
        return self.create_task(work, name=name)

    # What asyncio asks of a loop.

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.dead:
            self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if not self.dead:
            self.scheduler.add((when - self._booted_at) / self.rate, handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def time(self) -> float:
        return self.scheduler.now * self.rate + self._booted_at

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        task = Task(coro, next(self.scheduler.task_numbers), loop=self, name=name, context=context)
        self.tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run what a thread would, here and now; its result comes a little later."""
        future = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                self.scheduler.before_thread(func)
                future.set_result(func(*args))
            except Exception as error:  # noqa: BLE001  # raised where the thread is waited for
                future.set_exception(error)

        self.call_later(self.scheduler.random.random() * THREAD_S, work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.dead and "exception" in context:
            self.scheduler.errors.append(f"{self.name}: {context['message']}: {context['exception']!r}")

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False


class Clocks:
    """Stands for the module `time` where the code under simulation uses it: the clocks of the machine that runs."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def monotonic(self) -> float:
        assert self._scheduler.running is not None
        return self._scheduler.running.time()

    def monotonic_ns(self) -> int:
        return int(self.monotonic() * 1e9)

    def time(self) -> float:
        assert self._scheduler.running is not None
        return WALL_S + self._scheduler.now + self._scheduler.running.clock_s

    def time_ns(self) -> int:
        return int(self.time() * 1e9)


def datetime_of(clocks: Clocks) -> type[real_datetime]:
    """Return a `datetime` whose `now` is the running machine's."""

    class Datetime(real_datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Datetime:
            return cls.fromtimestamp(clocks.time(), tz)

    return Datetime
