"""The book of a chaos run: promises to the users, actions, and results."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import aiohttp

from faceswap.client import JobEvent

FRAMES_IN_NAME = re.compile(r" of (\d+) frames")
SUPERSEDED = ("progress", "preview")
ENDS = {"SUCCESS": "completed", "FAILED": "error", "CANCELLED": "cancelled"}


@dataclass
class Book:
    """One run. Jobs are known by their `prompt_id`.

    promised        every job that was accepted
    cancelled       those somebody asked to end, and nobody to do again
    retried         those somebody asked to do again
    erasing         those whose record somebody asked to be erased
    erased          those whose record is gone, as was asked
    heard           the events that each watcher of a job saw live, over all cuts
    take_overs_s    the times after which others held all that a killed node did
    """

    promised: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    retried: set[str] = field(default_factory=set)
    erasing: set[str] = field(default_factory=set)
    erased: set[str] = field(default_factory=set)
    heard: defaultdict[str, list[list[JobEvent]]] = field(default_factory=lambda: defaultdict(list))
    done: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    take_overs_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def violated(self, what: str) -> None:
        """Note something that must not happen."""
        self.violations.append(what)


def name_of(number: int, frames: int) -> str:
    """Name a job's result, so that a job of which no user was told can be judged too."""
    return f"job {number} of {frames} frames"


def frames_of(name: str) -> int:
    """Return the frames of a job's clip, from the name of its result."""
    found = FRAMES_IN_NAME.search(name)
    assert found is not None, name
    return int(found[1])


def durable(events: list[JobEvent]) -> list[tuple[str, str]]:
    """Numbers and types of the events that are never superseded."""
    return [(event.id, event.type) for event in events if event.type not in SUPERSEDED]


def story_faults(events: list[JobEvent]) -> list[str]:
    """Return the faults of a job's events in themselves."""
    faults = []
    numbers = [int(event.id) for event in events]
    if numbers != sorted(set(numbers)):
        faults.append(f"numbers repeat or fall: {numbers}")
    told = [event.data["percentage"] for event in events if event.type == "progress"]
    if told != sorted(told):
        faults.append(f"progress falls: {told}")
    return faults


def differing_events(stories: list[list[JobEvent]]) -> list[str]:
    """Return the numbers under which two watchers of a job heard different events."""
    faults = []
    first: dict[str, JobEvent] = {}
    for event in (event for story in stories for event in story):
        other = first.setdefault(event.id, event)
        if other != event:
            faults.append(f"number {event.id} is {other} and {event}")
    return faults


async def server_error(book: Book, what: str, answer: aiohttp.ClientResponse) -> None:
    """Note an answer that says something went wrong inside: whatever happens, 503 is the worst there is."""
    if answer.status == 500:
        book.violated(f"{what} was answered with 500: {(await answer.text())[:200]}")
