"""The feed: carries what one node has committed to the watchers, and to the schedulers, of all nodes.

With one node it hands each event to the hub, and does nothing else. Where nodes share a database, each sends notes over
it after its commits, and hears those of the others. A note only makes things quick: an event is handed to the hub in
the order of its number, and where one is missing the database is read. It is looked at once a second besides.
"""

from __future__ import annotations

import asyncio
import enum
import json
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from . import metrics
from .clock import monotonic
from .events import Event
from .hub import Hub, Subscription
from .store import StoreError

log = logging.getLogger(__name__)

NOTE_BYTES = 7_900
"""The largest note; PostgreSQL takes less than 8,000 bytes."""
BATCH_S = 0.05
"""Between two batches of notes."""
LOOK_S = 1.0
"""Between two looks at all jobs that are watched here: notes may be lost, events are not.

What a look finds may have been committed a moment ago, with its note on the way: only what the look before it found as
well is read, for with it all that is not stored, like previews, would be passed over.
"""
RECONNECT_S = 0.5
"""Before the notes are listened to again, after the connection was lost."""
UNSENT_LIMIT = 10_000
"""Items that wait to be sent, at most; the oldest are dropped, and found by the others' looks."""
HELD_LIMIT = 256
"""Events of a job that wait for one before them, at most; others are read from the database."""


class Signal(enum.StrEnum):
    """A message of a node to the schedulers of the others."""

    WORK = "work"
    """Something may wait to be claimed."""
    STOP = "stop"
    """The prompts of a job are to be stopped."""
    ENDED = "ended"
    """A job has ended."""
    ERASED = "erased"
    """A job was erased: no copy of its files may stay."""


class SharedStore(Protocol):
    """The methods of the store that the feed uses. Every coroutine raises `StoreError`."""

    @property
    def is_shared(self) -> bool:
        """True where several nodes may use the database."""

    async def last_seqs(self, prompt_ids: Iterable[str]) -> dict[str, int]:
        """Return the number of the last event of each of these jobs that exists."""

    async def events(self, prompt_id: str, after: int) -> list[Event]:
        """Return the stored events of a job with a number above `after`, in order."""

    async def notify(self, notes: Sequence[str]) -> None:
        """Send notes to all nodes."""

    async def listen(self, on_note: Callable[[str], None], on_listening: Callable[[], None]) -> None:
        """Hear notes until the connection is lost."""


class Feed:
    """Hands events to the hub, each once and in the order of their numbers, whichever node has committed them."""

    def __init__(self, hub: Hub) -> None:
        self.listening = False
        """True while the notes of the other nodes are heard."""
        self._hub = hub
        self._store: SharedStore | None = None
        self._sender = secrets.token_hex(4)
        self._handlers: dict[str, Callable[[str], None]] = {}
        self._cursors: dict[str, int] = {}
        """The number of the last event that was handed over, of each job that is watched here."""
        self._held: dict[str, dict[int, Event]] = {}
        self._behind: set[str] = set()
        self._found: dict[str, int] = {}
        """The number of the last event of each of these jobs, as the last look at all of them found it."""
        self._look_wanted = asyncio.Event()
        self._unsent: deque[str] = deque(maxlen=UNSENT_LIMIT)
        self._send_wanted = asyncio.Event()

    def attach(self, store: SharedStore) -> None:
        """Begin to carry the events of a store that several nodes share, one that calls `publish`."""
        if store.is_shared:
            self._store = store

    @property
    def is_shared(self) -> bool:
        """True where there may be other nodes."""
        return self._store is not None

    def on(self, signal: Signal, handler: Callable[[str], None]) -> None:
        """Have a function called, with the id of the job, whenever another node sends a signal."""
        self._handlers[signal] = handler

    def publish(self, event: Event) -> None:
        """Take an event that this node has committed. Never waits."""
        metrics.count_event(event)
        if self._store is None:
            self._hub.publish(event)
            return
        item = json.dumps(["event", event.prompt_id, event.seq, event.type, event.data])
        if len(item) > NOTE_BYTES // 2:
            item = json.dumps(["news", event.prompt_id])
        self._put(item)
        self._take(event)

    def send(self, signal: Signal, prompt_id: str = "") -> None:
        """Send a signal to the other nodes. Never waits."""
        if self._store is not None:
            self._put(json.dumps([signal, prompt_id]))

    @asynccontextmanager
    async def watch(self, prompt_id: str) -> AsyncIterator[Subscription]:
        """Watch a job for as long as the context lasts.

        Every event with a number above that of the job's last one, as the body begins, comes. Raises `StoreError`.
        """
        try:
            with self._hub.subscribe(prompt_id) as subscription:
                if self._store is not None and prompt_id not in self._cursors:
                    last = await self._store.last_seqs([prompt_id])
                    self._cursors.setdefault(prompt_id, last.get(prompt_id, 0))
                yield subscription
        finally:
            if not self._hub.is_watched(prompt_id):
                self._cursors.pop(prompt_id, None)
                self._held.pop(prompt_id, None)

    async def run(self) -> None:
        """Send and hear notes, for as long as the service runs."""
        if self._store is None:
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(self._store), name="notes heard")
            tasks.create_task(self._send(self._store), name="notes sent")
            tasks.create_task(self._look(self._store), name="events of other nodes")

    # Sent

    def _put(self, item: str) -> None:
        self._unsent.append(item)
        self._send_wanted.set()

    async def _send(self, store: SharedStore) -> None:
        while True:
            await self._send_wanted.wait()
            self._send_wanted.clear()
            items, self._unsent = self._unsent, deque(maxlen=UNSENT_LIMIT)
            try:
                await store.notify(list(_notes(self._sender, items)))
            except StoreError as error:
                if not error.transient:
                    raise
                log.warning("other nodes could not be told at once: %s", error)
            await asyncio.sleep(BATCH_S)

    # Heard

    async def _listen(self, store: SharedStore) -> None:
        while True:
            try:
                await store.listen(self._hear, self._begin_listening)
            except StoreError as error:
                if not error.transient:
                    raise
                if self.listening:
                    log.warning("other nodes are not heard: %s", error)
            finally:
                self.listening = False
            await asyncio.sleep(RECONNECT_S)

    def _begin_listening(self) -> None:
        """Look at everything, for what was sent before was not heard."""
        self.listening = True
        for prompt_id in self._cursors:
            self._look_soon(prompt_id)
        self._handle(Signal.WORK, "")

    def _hear(self, note: str) -> None:
        """Take a note. What it has that this version does not know is left to the look at the database."""
        sender, items = json.loads(note)
        if sender == self._sender:
            return
        for kind, *content in items:
            if kind == "event":
                event = Event(*content[:4])
                self._take(event)
                if event.terminal:
                    self._handle(Signal.ENDED, event.prompt_id)
            elif kind == "news":
                self._look_soon(content[0])
            elif kind in self._handlers:
                self._handle(kind, content[0])

    def _handle(self, signal: str, prompt_id: str) -> None:
        if signal in self._handlers:
            self._handlers[signal](prompt_id)

    # Handed over

    def _take(self, event: Event) -> None:
        """Hand an event over, once those before it were; one whose place is past is dropped."""
        cursor = self._cursors.get(event.prompt_id)
        if cursor is None or event.seq <= cursor:
            return
        held = self._held.setdefault(event.prompt_id, {})
        if event.seq == cursor + 1 or len(held) < HELD_LIMIT:
            held[event.seq] = event
        self._hand_over_held(event.prompt_id)

    def _hand_over_held(self, prompt_id: str) -> None:
        """Hand over what was held and follows without a gap; read what is missing before the rest."""
        held = self._held.get(prompt_id, {})
        while (event := held.pop(self._cursors[prompt_id] + 1, None)) is not None:
            self._hand_over(event)
        if held:
            self._look_soon(prompt_id)

    def _hand_over(self, event: Event) -> None:
        self._cursors[event.prompt_id] = event.seq
        self._hub.publish(event)

    def _look_soon(self, prompt_id: str) -> None:
        if prompt_id in self._cursors:
            self._behind.add(prompt_id)
            self._look_wanted.set()

    async def _look(self, store: SharedStore) -> None:
        """Read what is missing, at once where something is known to be, else once a second."""
        look_at, readable = monotonic(), True
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(look_at - monotonic(), 0)):
                    await self._look_wanted.wait()
            self._look_wanted.clear()
            behind, self._behind = self._behind, set()
            try:
                await self._catch_up(store, behind & self._cursors.keys())
                if monotonic() >= look_at:
                    look_at = monotonic() + LOOK_S
                    await self._look_at_all(store)
                readable = True
            except StoreError as error:
                if not error.transient:
                    raise
                if readable:
                    log.warning("the events of other nodes cannot be read: %s", error)
                readable = False
                await asyncio.sleep(RECONNECT_S)

    async def _look_at_all(self, store: SharedStore) -> None:
        """Hand over what no note has told of since the last look."""
        watched = set(self._cursors)
        before, self._found = self._found, await store.last_seqs(watched) if watched else {}
        untold = {prompt_id for prompt_id in watched if before.get(prompt_id, 0) > self._cursors.get(prompt_id, 0)}
        await self._catch_up(store, untold | (watched - self._found.keys()) if self.listening else watched)

    async def _catch_up(self, store: SharedStore, prompt_ids: set[str]) -> None:
        """Hand over what is stored and new of these jobs, with the held events at their place."""
        if not prompt_ids:
            return
        last = await store.last_seqs(prompt_ids)
        for prompt_id in prompt_ids:
            cursor = self._cursors.get(prompt_id)
            if cursor is None:
                continue
            if prompt_id not in last:
                self._end(prompt_id)
            elif last[prompt_id] > cursor:
                self._merge(prompt_id, await store.events(prompt_id, cursor), last[prompt_id])

    def _merge(self, prompt_id: str, stored: Sequence[Event], last: int) -> None:
        """Hand over the stored events and the held ones between them; all that were stored up to `last` are there."""
        if prompt_id not in self._cursors:  # nobody watches it any more
            return
        last = max(last, stored[-1].seq if stored else 0)
        held = self._held.get(prompt_id, {})
        known = {seq: held.pop(seq) for seq in list(held) if seq <= last} | {event.seq: event for event in stored}
        for seq in sorted(known):
            if seq > self._cursors[prompt_id]:
                self._hand_over(known[seq])
        self._cursors[prompt_id] = max(self._cursors[prompt_id], last)
        self._hand_over_held(prompt_id)

    def _end(self, prompt_id: str) -> None:
        """Hand over the rest of a job that was erased; who still waits then is turned away."""
        held = self._held.pop(prompt_id, {})
        for seq in sorted(held):
            self._hand_over(held[seq])
        if not held:
            self._hub.turn_away(prompt_id)


def _notes(sender: str, items: Iterable[str]) -> Iterator[str]:
    """Pack items into as few notes as they fit into, in order."""
    packed: list[str] = []
    size = 0
    for item in items:
        if packed and size + len(item) + 2 > NOTE_BYTES:
            yield _note(sender, packed)
            packed, size = [], 0
        size = (size or len(_note(sender, []))) + len(item) + 2
        packed.append(item)
    if packed:
        yield _note(sender, packed)


def _note(sender: str, items: Iterable[str]) -> str:
    return f'["{sender}", [{", ".join(items)}]]'
