"""Events reach every watcher in order, and a slow one slows nobody."""

from __future__ import annotations

import asyncio

import pytest
from waiting import WAIT_S

from faceswap.events import Event
from faceswap.hub import QUEUE_LIMIT, Closing, Hub, Lagging, Subscription


def event(seq: int, type: str = "status", prompt_id: str = "job") -> Event:
    return Event(prompt_id, seq, type, {})


async def drain(subscription: Subscription) -> list[int]:
    """Return the numbers of the queued events."""
    numbers = []
    while (found := await subscription.next(0.001)) is not None:
        numbers.append(found.seq)
    return numbers


async def test_every_watcher_of_a_job_gets_its_events_in_order_and_no_others() -> None:
    hub = Hub()
    with hub.subscribe("job") as one, hub.subscribe("job") as two, hub.subscribe("other") as other:
        for seq in range(5):
            hub.publish(event(seq))
        hub.publish(event(9, prompt_id="other"))
        assert await drain(one) == await drain(two) == [0, 1, 2, 3, 4]
        assert await drain(other) == [9]


async def test_a_waiting_watcher_is_woken_by_an_event() -> None:
    hub = Hub()
    with hub.subscribe("job") as subscription:
        waiting = asyncio.create_task(subscription.next())
        await asyncio.sleep(0)
        hub.publish(event(1))
        assert await asyncio.wait_for(waiting, WAIT_S) == event(1)


async def test_an_event_is_handed_over_at_once_unless_others_wait_before_it() -> None:
    hub, handed, takes = Hub(), list[int](), [True]

    def pass_on(event: Event) -> bool:
        if takes[0]:
            handed.append(event.seq)
        return takes[0]

    with hub.subscribe("job") as subscription:
        subscription.pass_on = pass_on
        hub.publish(event(1))
        takes[0] = False
        hub.publish(event(2))
        takes[0] = True
        hub.publish(event(3))
        assert (handed, await drain(subscription)) == ([1], [2, 3])
        hub.publish(event(4))
        assert (handed, await drain(subscription)) == ([1, 4], [])


async def test_silence_is_told_as_none() -> None:
    with Hub().subscribe("job") as subscription:
        assert await subscription.next(0.001) is None


async def test_a_watcher_that_stops_reading_is_told_so_and_the_others_get_everything() -> None:
    hub = Hub()
    with hub.subscribe("job") as slow, hub.subscribe("job") as fast:
        received = []
        for seq in range(QUEUE_LIMIT + 1):
            hub.publish(event(seq))
            received += await drain(fast)
        assert received == list(range(QUEUE_LIMIT + 1))
        with pytest.raises(Lagging):
            await slow.next()
        with pytest.raises(Lagging):  # for good, or it would miss events without knowing
            await slow.next()


async def test_a_watcher_may_lag_behind_by_a_whole_queue() -> None:
    hub = Hub()
    with hub.subscribe("job") as subscription:
        for seq in range(QUEUE_LIMIT):
            hub.publish(event(seq))
        assert await drain(subscription) == list(range(QUEUE_LIMIT))


async def test_unread_progress_is_superseded_and_the_order_is_kept() -> None:
    hub = Hub()
    with hub.subscribe("job") as subscription:
        types = ["progress", "progress", "executing", "progress", "preview", "preview", "progress", "completed"]
        for seq, type in enumerate(types):
            hub.publish(event(seq, type))
        assert await drain(subscription) == [1, 2, 3, 5, 6, 7]


async def test_progress_alone_never_makes_a_watcher_lag() -> None:
    hub = Hub()
    with hub.subscribe("job") as subscription:
        for seq in range(3 * QUEUE_LIMIT):
            hub.publish(event(seq, "progress"))
        assert await drain(subscription) == [3 * QUEUE_LIMIT - 1]


async def test_closing_comes_after_what_is_queued() -> None:
    hub = Hub()
    with hub.subscribe("job") as subscription:
        hub.publish(event(1))
        hub.close()
        assert await subscription.next() == event(1)
        with pytest.raises(Closing):
            await subscription.next()


async def test_closing_wakes_who_waits_and_turns_away_who_comes_later() -> None:
    hub = Hub()
    with hub.subscribe("job") as subscription:
        waiting = asyncio.create_task(subscription.next())
        await asyncio.sleep(0)
        hub.close()
        with pytest.raises(Closing):
            await asyncio.wait_for(waiting, WAIT_S)
    with hub.subscribe("job") as late, pytest.raises(Closing):
        await late.next()


async def test_a_cancelled_wait_loses_no_event() -> None:
    hub = Hub()
    with hub.subscribe("job") as subscription:
        waiting = asyncio.create_task(subscription.next())
        await asyncio.sleep(0)
        hub.publish(event(1))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await subscription.next(1) == event(1)


async def test_unsubscribing_leaves_nothing_behind() -> None:
    hub = Hub()
    with hub.subscribe("job"):
        with pytest.raises(RuntimeError), hub.subscribe("job"):
            assert hub.watchers == 2
            raise RuntimeError
        assert hub.watchers == 1
    assert hub.watchers == 0
    assert not hub._subscriptions
    hub.publish(event(1))
    assert not hub._subscriptions
