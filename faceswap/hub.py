"""Publish and subscribe within the process: each subscriber has a bounded queue, and a slow one slows nobody."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .events import SUPERSEDED_EVENTS, Event

QUEUE_LIMIT = 256
"""Events a subscriber may lag behind before it is closed; it resumes by `Last-Event-ID`."""


class Lagging(Exception):
    """The subscriber did not keep up and was closed."""


class Closing(Exception):
    """The service stops: no more events come."""


class Subscription:
    """One watcher's view of one job."""

    def __init__(self) -> None:
        self.pass_on: Callable[[Event], bool] | None = None
        """A function that hands an event over at once; it returns False where the event has to be queued."""
        self._events: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None
        self._overflowed = False
        self._turned_away = False
        self._closing = False

    @property
    def unread(self) -> int:
        """The number of events that wait to be read."""
        return len(self._events)

    def offer(self, event: Event) -> None:
        """Hand an event over, or queue it. A newer `progress` or `preview` takes the place of the one before it."""
        if self.pass_on is not None and not self._events and not self._overflowed and self.pass_on(event):
            return
        if event.type in SUPERSEDED_EVENTS and self._events and self._events[-1].type == event.type:
            self._events[-1] = event
        elif len(self._events) >= QUEUE_LIMIT:
            self._overflowed = True
        else:
            self._events.append(event)
        self._wake()

    def turn_away(self) -> None:
        """End the subscription once what is queued was read, as one that was too slow."""
        self._turned_away = True
        self._wake()

    def close(self) -> None:
        """End the subscription once what is queued was read."""
        self._closing = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event; returns None after `timeout` seconds of silence.

        Raises `Lagging` when the queue overflowed or nothing more can come, `Closing` when the service stops.
        """
        if not (self._events or self._overflowed or self._turned_away or self._closing):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout):
                    await self._waiter
            except TimeoutError:
                return None
            finally:
                self._waiter = None
        if self._overflowed:
            raise Lagging
        if not self._events and self._turned_away:
            raise Lagging
        if not self._events and self._closing:
            raise Closing
        return self._events.pop(0)


class Hub:
    """Carries events to the watchers of each job. It only ever carries what the database already holds."""

    def __init__(self) -> None:
        self._subscriptions: defaultdict[str, dict[Subscription, None]] = defaultdict(dict)
        self._closing = False

    @contextmanager
    def subscribe(self, prompt_id: str) -> Iterator[Subscription]:
        """Watch a job for as long as the context lasts."""
        subscription = Subscription()
        self._subscriptions[prompt_id][subscription] = None
        if self._closing:
            subscription.close()
        try:
            yield subscription
        finally:
            watchers = self._subscriptions[prompt_id]
            del watchers[subscription]
            if not watchers:
                del self._subscriptions[prompt_id]

    def publish(self, event: Event) -> None:
        """Hand an event to every watcher of its job. Never waits."""
        for subscription in self._subscriptions.get(event.prompt_id, ()):
            subscription.offer(event)

    def is_watched(self, prompt_id: str) -> bool:
        """Return whether a job has watchers."""
        return prompt_id in self._subscriptions

    def turn_away(self, prompt_id: str) -> None:
        """Close the subscriptions of a job of which no more comes: who comes back is told why."""
        for subscription in self._subscriptions.get(prompt_id, ()):
            subscription.turn_away()

    def close(self) -> None:
        """End every subscription, those to come too: the service stops."""
        self._closing = True
        for watchers in self._subscriptions.values():
            for subscription in watchers:
                subscription.close()

    @property
    def lag(self) -> int:
        """The number of events that the slowest subscriber has not read yet."""
        subscriptions = (subscription for watchers in self._subscriptions.values() for subscription in watchers)
        return max((subscription.unread for subscription in subscriptions), default=0)

    @property
    def watchers(self) -> int:
        """The number of open subscriptions."""
        return sum(len(watchers) for watchers in self._subscriptions.values())
