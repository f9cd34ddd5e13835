"""Events reach the watchers at every node: each durable one once, in order, whatever becomes of the notes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from waiting import WAIT_S, until

from faceswap.events import Event
from faceswap.feed import HELD_LIMIT, NOTE_BYTES, Feed, Signal
from faceswap.hub import Hub, Lagging, Subscription
from faceswap.store import StoreError

JOB = "job"


class Bus:
    """A database that several nodes share: what is committed, and the notes on their way."""

    def __init__(self) -> None:
        self.jobs: dict[str, list[Event]] = {}
        self.last: dict[str, int] = {}
        self.notes: list[str] = []
        self.listeners: dict[FakeStore, tuple[Callable[[str], None], asyncio.Event]] = {}
        self.carry: Callable[[str], bool] = lambda _: True
        """Returns whether a note arrives."""

    def commit(self, type: str = "status", prompt_id: str = JOB, *, stored: bool = True, **data: object) -> Event:
        """Commit an event; it is up to the caller to publish it at a node."""
        seq = self.last[prompt_id] = self.last.get(prompt_id, 0) + 1
        event = Event(prompt_id, seq, type, data)
        if stored:
            self.jobs.setdefault(prompt_id, []).append(event)
        return event

    def erase(self, prompt_id: str) -> None:
        self.jobs.pop(prompt_id, None)
        self.last.pop(prompt_id)


class FakeStore:
    """The bus as one node's store shows it."""

    is_shared = True

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.reads = 0
        self.away = False

    def _check(self) -> None:
        if self.away:
            raise StoreError("away", transient=True)

    async def last_seqs(self, prompt_ids: Iterable[str]) -> dict[str, int]:
        self._check()
        self.reads += 1
        await asyncio.sleep(0)
        return {prompt_id: self._bus.last[prompt_id] for prompt_id in prompt_ids if prompt_id in self._bus.last}

    async def events(self, prompt_id: str, after: int) -> list[Event]:
        self._check()
        await asyncio.sleep(0)
        return [event for event in self._bus.jobs.get(prompt_id, []) if event.seq > after]

    async def notify(self, notes: Sequence[str]) -> None:
        self._check()
        await asyncio.sleep(0)
        for note in notes:
            self._bus.notes.append(note)
            if self._bus.carry(note):
                for on_note, _ in list(self._bus.listeners.values()):
                    on_note(note)

    async def listen(self, on_note: Callable[[str], None], on_listening: Callable[[], None]) -> None:
        self._check()
        cut = asyncio.Event()
        self._bus.listeners[self] = on_note, cut
        try:
            on_listening()
            await cut.wait()
        finally:
            del self._bus.listeners[self]
        raise StoreError("cut", transient=True)

    def cut(self) -> None:
        """Lose the connection that notes come by."""
        self._bus.listeners[self][1].set()


class FeedNode:
    """One node: its feed, its hub, its view of the database."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.store = FakeStore(bus)
        self.hub = Hub()
        self.feed = Feed(self.hub)
        self.feed.attach(self.store)

    def commit(self, type: str = "status", prompt_id: str = JOB, *, stored: bool = True, **data: object) -> Event:
        """Commit an event and publish it here, as the store does."""
        event = self.bus.commit(type, prompt_id, stored=stored, **data)
        self.feed.publish(event)
        return event


@asynccontextmanager
async def nodes(count: int) -> AsyncIterator[list[FeedNode]]:
    """Run the feeds of some nodes."""
    bus = Bus()
    bus.commit("queued")
    found = [FeedNode(bus) for _ in range(count)]
    tasks = [asyncio.create_task(node.feed.run()) for node in found]
    await until(lambda: all(node.feed.listening for node in found))
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read(subscription: Subscription, last: int) -> list[int]:
    """Return the numbers of the events that come, up to the number `last`."""
    numbers: list[int] = []
    async with asyncio.timeout(WAIT_S):
        while last not in numbers:
            event = await subscription.next()
            assert event is not None
            numbers.append(event.seq)
    return numbers


async def test_with_one_node_an_event_is_handed_over_at_once_and_nothing_is_sent() -> None:
    hub = Hub()
    feed = Feed(hub)
    store = FakeStore(Bus())
    store.is_shared = False
    feed.attach(store)
    async with feed.watch(JOB) as subscription:
        feed.publish(Event(JOB, 7, "status", {}))
        feed.send(Signal.WORK)
        assert (await subscription.next()) == Event(JOB, 7, "status", {})
    await feed.run()  # ends at once
    assert not store.reads


async def test_an_event_is_seen_at_every_node() -> None:
    async with nodes(3) as (one, two, three), AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(node.feed.watch(JOB)) for node in (one, two, three)]
        for node in (one, one, two, three):
            event = node.commit(text="🎉 \ud800")
            found = [await read(watcher, event.seq) for watcher in watchers]
            assert found == [[event.seq]] * 3


async def test_what_nobody_has_told_of_is_found_by_a_look() -> None:
    async with nodes(2) as (one, two):
        one.bus.carry = lambda _: False
        async with two.feed.watch(JOB) as watcher:
            one.commit()
            assert await read(watcher, 2) == [2]


async def test_a_look_does_not_pass_over_a_preview_whose_note_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes(2) as (one, two), two.feed.watch(JOB) as watcher:
        late: list[str] = []
        one.bus.carry = lambda note: bool(late.append(note))
        looks = two.store.reads
        one.commit("preview", stored=False)
        one.commit()
        monkeypatch.setattr("faceswap.feed.LOOK_S", WAIT_S)  # after the next look, whose time is set
        await until(lambda: len(late) > 0 and two.store.reads > looks)
        for _ in range(10):  # what a look reads
            await asyncio.sleep(0)
        on_note, _ = one.bus.listeners[two.store]
        for note in late:
            on_note(note)
        assert await read(watcher, 3) == [2, 3]


async def test_a_missing_event_is_read_before_the_next_is_handed_over() -> None:
    async with nodes(2) as (one, two), two.feed.watch(JOB) as watcher:
        one.bus.commit()  # by a node that died before it could tell
        one.commit()
        assert await read(watcher, 3) == [2, 3]


async def test_what_is_not_stored_has_its_place_among_the_others_or_is_dropped() -> None:
    async with nodes(2) as (one, two), two.feed.watch(JOB) as watcher:
        preview = one.bus.commit("preview", stored=False)
        one.bus.commit()
        late = one.bus.commit("preview", stored=False)
        one.bus.commit()
        two.feed.publish(preview)
        assert await read(watcher, 2) == [2]
        one.commit()
        assert await read(watcher, 6) == [3, 5, 6]
        two.feed.publish(late)
        one.commit()
        assert await read(watcher, 7) == [7]


async def test_a_preview_that_comes_before_what_was_committed_before_it_waits() -> None:
    async with nodes(2) as (one, two), two.feed.watch(JOB) as watcher:
        one.bus.commit()
        preview = one.bus.commit("preview", stored=False)
        two.feed.publish(preview)
        assert await read(watcher, 3) == [2, 3]


async def test_after_the_connection_was_lost_everything_new_is_read_and_work_is_looked_for() -> None:
    woken = asyncio.Event()
    async with nodes(2) as (one, two), two.feed.watch(JOB) as watcher:
        two.feed.on(Signal.WORK, lambda _: woken.set())
        two.store.cut()
        await until(lambda: not two.feed.listening)
        one.commit()
        assert await read(watcher, 2) == [2]
        await asyncio.wait_for(woken.wait(), WAIT_S)
        assert two.feed.listening


async def test_a_database_that_is_away_is_waited_for() -> None:
    async with nodes(2) as (one, two), two.feed.watch(JOB) as watcher:
        for node in (one, two):
            node.store.away = True
            node.store.cut()
        await until(lambda: not (one.feed.listening or two.feed.listening))
        one.commit()
        for node in (one, two):
            node.store.away = False
        assert await read(watcher, 2) == [2]
        await until(lambda: one.feed.listening and two.feed.listening)


async def test_a_subscription_misses_nothing_between_it_and_what_it_reads() -> None:
    """The order of `api.stream.follow`: subscribed, then read, then followed."""
    async with nodes(2) as (one, two):
        for _ in range(50):
            first = one.bus.last[JOB]
            committing = asyncio.create_task(commit_some(one))
            async with two.feed.watch(JOB) as watcher:
                for _ in range(random.randrange(5)):
                    await asyncio.sleep(0)
                stored = [event.seq for event in await two.store.events(JOB, first)]
                await committing
                last = one.bus.last[JOB]
                after = stored[-1] if stored else first
                live = await read(watcher, last) if after < last else []
                assert stored + [seq for seq in live if seq > after] == list(range(first + 1, last + 1))


async def commit_some(node: FeedNode) -> None:
    for _ in range(4):
        node.commit()
        for _ in range(random.randrange(3)):
            await asyncio.sleep(0)


async def test_every_watcher_sees_every_stored_event_once_and_in_order_whatever_becomes_of_the_notes() -> None:
    chance = random.Random(8)
    async with nodes(3) as found, AsyncExitStack() as stack:
        found[0].bus.carry = lambda _: chance.random() < 0.5
        watchers = [await stack.enter_async_context(node.feed.watch(JOB)) for node in found]
        reading = [asyncio.create_task(read(watcher, 301)) for watcher in watchers]
        for _ in range(299):
            node = chance.choice(found)
            node.commit("preview" if (hidden := chance.random() < 0.2) else "executing", stored=not hidden)
            if chance.random() < 0.3:
                await asyncio.sleep(0.005)
            if chance.random() < 0.02 and node.store in node.bus.listeners:
                node.store.cut()
        found[0].commit("completed")
        stored = {event.seq for event in found[0].bus.jobs[JOB]} - {1}
        for numbers in await asyncio.gather(*reading):
            assert numbers == sorted(set(numbers))
            assert stored <= set(numbers)


async def test_a_note_is_never_larger_than_the_database_takes() -> None:
    async with nodes(2) as (one, two), two.feed.watch(JOB) as watcher:
        for size in (10, 3000, 3000, 3000, 20_000, 3000):
            one.commit(text="é" * (size // 6))
        for _ in range(200):
            one.commit("executing", text="x" * 200)
        assert await read(watcher, 207) == list(range(2, 208))
        assert max(map(len, one.bus.notes)) <= NOTE_BYTES
        assert len(one.bus.notes) < 30


async def test_signals_reach_the_other_nodes_and_not_the_one_that_sends_them() -> None:
    heard: list[tuple[int, str, str]] = []
    async with nodes(3) as found:
        for number, node in enumerate(found):
            for signal in Signal:
                node.feed.on(signal, lambda prompt_id, at=number, what=signal: heard.append((at, what, prompt_id)))
        found[0].feed.send(Signal.STOP, "a")
        found[0].commit("completed", "b")
        await until(lambda: len(heard) == 4)
        assert sorted(heard) == [(at, what, job) for at in (1, 2) for what, job in (("ended", "b"), ("stop", "a"))]


async def test_what_a_newer_version_tells_is_ignored() -> None:
    async with nodes(2) as (one, two), two.feed.watch(JOB) as watcher:
        await one.store.notify(['["newer", [["weather"], ["news", "job", 5, "more"]]]'])
        one.commit()
        assert await read(watcher, 2) == [2]


async def test_who_watches_a_job_that_is_erased_sees_its_end_or_is_turned_away() -> None:
    async with nodes(2) as (one, two), two.feed.watch(JOB) as watcher:
        one.bus.commit()
        one.commit("cancelled")
        one.bus.erase(JOB)
        assert await read(watcher, 3) == [3]
        with pytest.raises(Lagging):
            await watcher.next(WAIT_S)


async def test_nothing_is_asked_of_the_database_while_nobody_watches() -> None:
    async with nodes(2) as (one, two):
        async with two.feed.watch(JOB) as watcher:
            one.commit()
            await read(watcher, 2)
        assert not (two.feed._cursors or two.feed._held)
        reads = two.store.reads
        for _ in range(HELD_LIMIT + 2):
            one.commit()
        async with one.feed.watch(JOB) as watcher:
            await watcher.next(0.01)
            one.commit()
            await read(watcher, one.bus.last[JOB])
        assert two.store.reads == reads
        assert not (two.feed._cursors or two.feed._held or two.feed._behind)


async def test_what_waits_for_an_event_before_it_is_bounded() -> None:
    async with nodes(1) as (node,), node.feed.watch(JOB):
        node.bus.commit()
        for _ in range(2 * HELD_LIMIT):
            node.feed.publish(node.bus.commit("preview", stored=False))
        assert len(node.feed._held[JOB]) <= HELD_LIMIT
