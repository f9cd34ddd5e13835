"""The jobs that have not ended, in memory: their places and their number need no count of rows.

So is the number of what waits: where nothing does, nobody needs to look for it.

There is one where all that changes the database goes through one connection, which tells what a commit has changed
(`changes.py`). It never shows what is not committed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping
from operator import add

from ..jobs import JobState
from .changes import Change, JobChange, TurnChange, WaitingChange
from .turns import places_in_turn

_Key = tuple[int, int, str]


class Queue:
    """The queued and the processing jobs, and the turns of their owners, as they were committed last."""

    def __init__(self, jobs: Iterable[JobChange], turns: Iterable[TurnChange], waiting: WaitingChange) -> None:
        self.version = 0
        """It is another one whenever a place in the queue, or the work that waits, may be."""
        self.ended = 0
        """It is another one whenever a job ended, or one that had was changed."""
        self.on_change: list[Callable[[str], None]] = []
        """Functions that are called with the id of each job that a commit has changed, before anybody is told of it."""
        self.waiting = waiting
        """The numbers of what waits."""
        self._jobs: dict[str, JobChange] = {}
        self._lines: dict[str, list[_Key]] = {}
        """The queued jobs of each owner who has any, in order."""
        self._turns: dict[str, int] = {}
        self._counts: dict[str, int] = dict.fromkeys((JobState.QUEUED, JobState.PROCESSING), 0)
        self._frames = dict(self._counts)
        self.apply([*jobs, *turns])

    def apply(self, changes: Iterable[Change]) -> None:
        """Take over what a commit has changed, in the order in which it did."""
        for change in changes:
            if isinstance(change, WaitingChange):
                self.waiting = WaitingChange(*map(add, self.waiting, change))
                continue
            if isinstance(change, TurnChange):
                self._turns[change.owner] = change.number
                self.version += 1
                continue
            was, state = self._jobs.pop(change.prompt_id, None), change.state
            if was is not None:
                self._count(was, -1)
            if state in self._counts:
                self._jobs[change.prompt_id] = change
                self._count(change, 1)
            else:
                self.ended += 1
            if was is not None or state in self._counts:
                self.version += 1
            for on_change in self.on_change:
                on_change(change.prompt_id)

    def _count(self, job: JobChange, number: int) -> None:
        assert job.state is not None
        self._counts[job.state] += number
        self._frames[job.state] += number * job.frames_left
        if job.state != JobState.QUEUED:
            return
        line = self._lines.setdefault(job.owner, [])
        if number > 0:
            insort(line, _key(job))
        else:
            del line[bisect_left(line, _key(job))]
            if not line:
                del self._lines[job.owner]

    def place(self, prompt_id: str) -> int | None:
        """Return the place of a job, 1 for the next to start; None when it is not queued."""
        return self.places([prompt_id]).get(prompt_id)

    def places(self, prompt_ids: Iterable[str]) -> dict[str, int]:
        """Return the places of those that are queued, by id."""
        own_places: dict[str, dict[str, int]] = {}
        for prompt_id in prompt_ids:
            job = self._jobs.get(prompt_id)
            if job is not None and job.state == JobState.QUEUED:
                own_place = bisect_left(self._lines[job.owner], _key(job)) + 1
                own_places.setdefault(job.owner, {})[prompt_id] = own_place
        lines = (
            {owner: (len(line), self._turns.get(owner, 0)) for owner, line in self._lines.items()} if own_places else {}
        )
        return {
            prompt_id: place
            for owner, of_owner in own_places.items()
            for prompt_id, place in zip(of_owner, places_in_turn(owner, of_owner.values(), lines), strict=True)
        }

    def queued_of(self, owner: str) -> int:
        """Return the number of an owner's queued jobs."""
        return len(self._lines.get(owner, ()))

    @property
    def counts(self) -> Mapping[str, int]:
        """The numbers of queued and of processing jobs."""
        return dict(self._counts)

    @property
    def frames_left(self) -> Mapping[str, int]:
        """The frames that are still to be swapped of queued and of processing jobs."""
        return dict(self._frames)


def _key(job: JobChange) -> _Key:
    return -job.priority, job.created_at, job.prompt_id
