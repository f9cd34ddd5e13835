"""A node knows its name, tells that it is alive, and finds out who else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import postgres
import pytest
from stored_jobs import opened
from waiting import WAIT_S, eventually, until

from faceswap.comfy.backend import BackendPool
from faceswap.config import ConfigError, Settings, Timeouts
from faceswap.leaseholder import Leaseholder
from faceswap.node import NEWCOMER_BEATS, NameTaken, Node, node_name
from faceswap.store import LOCAL_HOLDER, Store

URL = "postgresql://somewhere/faceswap"


@pytest.fixture
def url() -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with opened(url) as store:
        yield store


def node(store: Store, name: str, gone_s: float = 60.0, *, shares_files: bool = True) -> Node:
    return Node(store, name, BackendPool(), gone_s, shares_files=shares_files)


def test_the_name_is_the_one_that_is_set_or_one_that_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert node_name(Settings(folder, database_url=URL, node="mine")) == "mine"
    assert not folder.exists()
    made = node_name(Settings(folder, database_url=URL))
    assert made == node_name(Settings(folder, database_url=URL)) != node_name(Settings(tmp_path, database_url=URL))
    assert Settings.load({"FACESWAP_NODE": made, "HOME": "/"}).node == made


def test_a_node_that_has_its_database_alone_has_no_name_of_its_own(tmp_path: Path) -> None:
    assert node_name(Settings(tmp_path, node="mine")) == LOCAL_HOLDER
    assert not list(tmp_path.iterdir())


def test_only_nodes_that_share_a_database_hurry(tmp_path: Path) -> None:
    assert Timeouts.of(Settings(tmp_path)) == Timeouts()
    assert Timeouts.of(Settings(tmp_path, database_url=URL)).lease_s == 10.0


async def test_alone_with_its_database_a_node_tells_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "faceswap.db") as store:
        alone = node(store, LOCAL_HOLDER, 0.01)
        await alone.join()
        await alone.run()
        await alone.leave()
        assert alone.others == []
        assert await store.nodes(60.0) == []


async def test_nodes_see_each_other_until_they_leave_or_are_gone(store: Store) -> None:
    one, two = node(store, "one", WAIT_S), node(store, "two", WAIT_S)
    await two.join()
    await one.join()
    assert [row.name for row in one.others] == ["two"]
    one._gone_s = 1.0
    running = asyncio.create_task(one.run())
    await until(lambda: not one.others)  # two has told nothing any more

    async def is_seen_again() -> bool:
        await two.join()
        return bool(one.others)

    await eventually(is_seen_again)
    await two.leave()
    await until(lambda: not one.others)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_of_two_processes_with_one_name_the_one_that_was_frozen_ends(store: Store) -> None:
    frozen, replacement = node(store, "one"), node(store, "one")
    await frozen.join()
    for _ in range(NEWCOMER_BEATS):
        await frozen._beat()
    frozen._beaten_at = float("-inf")
    await replacement.join()
    with pytest.raises(NameTaken, match="FACESWAP_NODE"):
        await frozen._beat()
    await replacement._beat()


async def test_of_two_processes_with_one_name_the_newcomer_ends(store: Store) -> None:
    old, new = node(store, "one"), node(store, "one")
    await old.join()
    for _ in range(NEWCOMER_BEATS):
        await old._beat()
    await new.join()
    await old._beat()
    with pytest.raises(NameTaken, match="FACESWAP_NODE"):
        await new._beat()
    await old._beat()


async def test_a_process_that_was_started_anew_keeps_its_name(store: Store) -> None:
    for _ in range(2):
        again = node(store, "one")
        await again.join()
        await again._beat()


async def test_nodes_with_files_of_their_own_do_not_work_together(store: Store) -> None:
    await node(store, "one").join()
    with pytest.raises(ConfigError, match="this node keeps its files"):
        await node(store, "two", shares_files=False).join()


async def test_a_node_gives_a_backend_to_one_that_holds_two_fewer_and_knows_it(store: Store) -> None:
    one, two = node(store, "one"), node(store, "two")
    two._pool.backends.append(Known("a"))  # type: ignore[arg-type]
    await two.join()
    await one.join()
    for held, given in (({"a"}, False), ({"a", "b"}, True)):
        one.held = frozenset(held)
        assert one.may_give_back("a") == given
        assert not one.may_give_back("b")  # the other does not know it
    assert (one.named_elsewhere(), two.named_elsewhere()) == ({"a"}, set())
    assert (one.hesitation_s(0.5), two.hesitation_s(0.5)) == (1.0, 0.0)


class Known:
    """A backend as far as a node tells of it."""

    healthy = True

    def __init__(self, name: str) -> None:
        self._name = name

    def describe(self) -> dict[str, object]:
        return {"url": self._name}


async def test_a_node_that_stops_leaves_its_leases_to_the_others(store: Store) -> None:
    held = asyncio.Event()

    async def work() -> None:
        async with Leaseholder(store, "first", 3600.0).hold("backend:one"):
            held.set()
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await held.wait()
    assert await store.acquire_lease("backend:one", "second", 60.0) is None
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert await store.acquire_lease("backend:one", "second", 60.0) is not None


async def test_a_lease_that_is_given_back_is_free_once_the_work_has_ended(store: Store) -> None:
    async with Leaseholder(store, "first", 3600.0).hold("backend:one") as held:
        held.give_back()
        assert held.ending
        await asyncio.Event().wait()
    assert held.given_back and not held.lost
    assert await store.acquire_lease("backend:one", "second", 60.0) is not None
