"""Promises of the store where several nodes share a database of PostgreSQL."""

from __future__ import annotations

import asyncio
import random
import re
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import postgres
import pytest
from stored_jobs import (
    MIGRATIONS,
    QUEUE_LIMIT,
    acquire,
    claim,
    create,
    finish,
    hold,
    learn_costs,
    new_job,
    opened,
    sql,
    try_claim,
)
from system.tcp_proxy import TcpProxy
from waiting import eventually, until

from faceswap import events
from faceswap.errors import Conflict, Gone, NotFound, Unavailable
from faceswap.events import Event
from faceswap.jobs import JobState, SegmentState
from faceswap.progress import Report
from faceswap.store import (
    CommitUnknown,
    LeaseLost,
    NewerDatabase,
    Store,
    StoreError,
    backend_lease,
    database,
    jobs,
    join_lease,
    retry_writes,
)
from faceswap.store import postgres as driver
from faceswap.store.connection import scripts

NEWEST = max(scripts(MIGRATIONS, driver.KIND))
PASSWORD = "correct-horse"


@pytest.fixture
def url() -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with opened(url) as store:
        yield store


@pytest.fixture
async def nodes(url: str) -> AsyncIterator[list[Store]]:
    """Yield three nodes on one database."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(opened(url)) for _ in range(3)]


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[TcpProxy]:
    """Yield the way of one node to the database."""
    async with TcpProxy(urlsplit(url).port or 5432).running() as proxy:
        yield proxy


@pytest.fixture
async def far(url: str, proxy: TcpProxy) -> AsyncIterator[Store]:
    """Yield a node behind the proxy."""
    async with opened(postgres.through(url, proxy.port)) as store:
        yield store


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything that waits for a database wait a short time only."""
    for name in ("CONNECT", "ACQUIRE", "COMMAND", "ROLLBACK"):
        monkeypatch.setattr(driver, f"{name}_TIMEOUT_S", 6.0)
    monkeypatch.setattr(driver, "LISTEN_CHECK_S", 0.1)
    monkeypatch.setattr(database, "RETRY_S", 0.05)


# Several nodes at once.


async def test_of_what_eight_claim_none_is_claimed_twice_and_none_left(nodes: list[Store]) -> None:
    for segments in (1, 1, 1, 40, 1, 30, 1, 1):
        await create(nodes[0], segments=segments)
    claimed = []

    async def work(number: int) -> None:
        store = nodes[number % len(nodes)]
        lease = await acquire(store, backend_lease(f"gpu-{number}"))
        while segment := await store.claim(lease):
            claimed.append((segment.prompt_id, segment.number, segment.backend))

    await asyncio.gather(*(work(number) for number in range(8)))
    assert len(claimed) == len({one[:2] for one in claimed}) == 76
    assert sorted(claimed) == sorted((one.prompt_id, one.number, one.backend) for one in await nodes[0].submitted())


async def test_a_claim_waits_for_a_job_that_another_node_moves_when_nothing_else_is_there(nodes: list[Store]) -> None:
    job = await create(nodes[0], segments=2)
    lease = await hold(nodes[1])
    async with nodes[0]._transaction() as tx:
        await tx.lock_job(job.prompt_id)
        waiting = asyncio.create_task(nodes[1].claim(lease))
        await asyncio.sleep(0.1)
        assert not waiting.done()
    segment = await waiting
    assert segment is not None and segment.number == 0


async def test_a_claim_takes_another_job_than_the_one_that_is_being_moved(nodes: list[Store]) -> None:
    first, second = await create(nodes[0]), await create(nodes[0])
    async with nodes[0]._transaction() as tx:
        await tx.lock_job(first.prompt_id)
        assert (await claim(nodes[1])).prompt_id == second.prompt_id


async def test_of_six_that_want_a_lease_one_gets_it(nodes: list[Store]) -> None:
    for name in ("janitor", "backend:one"):
        got = await asyncio.gather(*(nodes[n % 3].acquire_lease(name, f"node-{n}", 60) for n in range(6)))
        assert len([lease for lease in got if lease is not None]) == 1


async def test_of_six_that_want_a_lease_that_ran_out_one_gets_it(nodes: list[Store], url: str) -> None:
    await acquire(nodes[0], "janitor")
    sql(url, "UPDATE lease SET expires_at = 1")
    got = await asyncio.gather(*(nodes[n % 3].acquire_lease("janitor", f"node-{n}", 60) for n in range(6)))
    [winner] = [lease for lease in got if lease is not None]
    assert winner.epoch == 2


async def test_a_take_over_waits_for_the_move_that_is_under_way_and_stops_the_next(nodes: list[Store]) -> None:
    job = await create(nodes[0])
    lease = await hold(nodes[0])
    async with nodes[0]._transaction() as tx:
        await nodes[0]._check_lease(tx, lease)
        taken = asyncio.create_task(nodes[1].acquire_lease(lease.name, lease.holder, 60))
        await asyncio.sleep(0.1)
        assert not taken.done()
        await tx.run("UPDATE job SET step = 'in time'")
    assert await taken is not None
    with pytest.raises(LeaseLost):
        await nodes[0].claim(lease)
    assert (await nodes[1].job(job.prompt_id)).step == "in time"


async def test_the_queue_limit_holds_for_all_nodes_together(nodes: list[Store]) -> None:
    results = await asyncio.gather(
        *(nodes[n % 3].create(new_job(), queue_limit=5) for n in range(20)), return_exceptions=True
    )
    assert len([one for one in results if isinstance(one, Unavailable)]) == 15
    assert (await nodes[0].counts())[JobState.QUEUED] == 5
    positions = [
        (await nodes[0].events(one[0].prompt_id, 0))[0].data["queue_position"]
        for one in results
        if isinstance(one, tuple)
    ]
    assert sorted(positions) == [1, 2, 3, 4, 5]


async def test_names_that_nodes_give_at_once_are_all_different(nodes: list[Store]) -> None:
    given = await asyncio.gather(*(create(nodes[n % 3], output_name="clip") for n in range(12)))
    assert sorted(job.output_name for job in given) == sorted(["clip", *(f"clip-{n}" for n in range(2, 13))])


async def test_requests_with_one_key_make_one_job_whichever_nodes_they_reach(nodes: list[Store]) -> None:
    given = await asyncio.gather(
        *(nodes[n % 3].create(new_job(idempotency_key="k", request_digest="d"), QUEUE_LIMIT) for n in range(6))
    )
    assert len({job.prompt_id for job, _ in given}) == 1
    assert [is_new for _, is_new in given].count(True) == 1


async def test_moves_of_the_same_jobs_by_all_nodes_never_wait_for_each_other_in_a_circle(url: str) -> None:
    """A storm: nodes that claim, finish, split, cancel, retry, report, take over and end, all at once."""
    told: defaultdict[str, list[int]] = defaultdict(list)
    unexpected: list[BaseException] = []
    async with AsyncExitStack() as stack:
        published: list[list[Event]] = [[], [], []]
        nodes = [await stack.enter_async_context(opened(url, heard)) for heard in published]
        ids = [(await create(nodes[0], segments=3)).prompt_id for _ in range(4)]

        async def storm(number: int) -> None:
            store, chance = nodes[number % 3], random.Random(number)
            for _ in range(40):
                prompt_id = chance.choice(ids)
                try:
                    await move(store, chance, prompt_id, f"node-{number}")
                except (Conflict, Gone, NotFound, LeaseLost):
                    pass
                except StoreError as error:
                    unexpected.append(error)

        await asyncio.gather(*(storm(number) for number in range(9)))
        assert not unexpected
        for heard in published:
            for event in heard:
                told[event.prompt_id].append(event.seq)
        for numbers in told.values():
            assert len(numbers) == len(set(numbers))
        for prompt_id in ids:
            job, segments = await nodes[0].job(prompt_id), await nodes[0].segments(prompt_id)
            states = [segment.state for segment in segments]
            assert job.segments_done == states.count(SegmentState.DONE)
            assert (sum(segment.frame_count for segment in segments), len(segments)) == (30, job.segments_total)
            assert (await nodes[0].events(prompt_id, 0))[-1].terminal == (job.state not in ("QUEUED", "PROCESSING"))
    assert sql(url, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]


async def move(store: Store, chance: random.Random, prompt_id: str, holder: str) -> None:
    """Make one move of a job, or of several."""
    backend = f"gpu-{chance.randrange(2)}"
    match chance.randrange(9):
        case 0 | 1:
            # A holder that is started anew takes what it holds at once: all take it from each other.
            lease = await store.acquire_lease(backend_lease(backend), "holder", 60)
            assert lease is not None
            for segment in await store.adopt(lease):
                await store.requeue(segment)
            segment = await store.claim(lease)
            if segment is not None:
                await (
                    store.finish_segment(segment, "x.mp4", 1.0) if chance.random() < 0.6 else store.split(segment, 2)
                )
        case 2:
            await store.request_cancel(prompt_id, None)
        case 3 | 4:
            await store.retry(prompt_id, None)
        case 5:
            some = chance.sample([job.prompt_id for job in await store.unfinished()] + [prompt_id], 1)
            reports = {one: Report(chance.random() * 99, 1, 30, None, None) for one in some}
            await store.record_progress(reports, {prompt_id: events.preview(prompt_id, 1)})
        case 6:
            await store.add_status(prompt_id, "storm")
        case 7:
            await store.fail(prompt_id, "code", "sentence")
        case 8:
            for job in await store.unfinished():
                if lease := await store.acquire_lease(join_lease(job.prompt_id), holder, 60):
                    await store.succeed(job, lease, result_file="x.mp4", size=1, sha256="c" * 64, warnings=())
            await learn_costs(store, "key", {chance.choice("abc"): 1.0, chance.choice("def"): 2.0})


# The clock, texts, notes.


async def test_times_are_those_of_the_server(store: Store, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = time.time_ns() + 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: lost)
    [(now,)] = sql(url, "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
    job = await create(store)
    assert 0 <= job.created_at - now < 1800_000
    assert 0 <= await store.now_ms() - now < 1800_000


async def test_a_move_that_had_to_wait_is_dated_after_the_one_that_it_waited_for(nodes: list[Store], url: str) -> None:
    job = await create(nodes[0])
    async with nodes[0]._transaction() as tx:
        await tx.lock_job(job.prompt_id)
        cancelling = asyncio.create_task(nodes[1].request_cancel(job.prompt_id, None))

        async def waits() -> bool:
            return bool(sql(url, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))

        await eventually(waits)
        [(released_at,)] = sql(url, "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
    cancelled = await cancelling
    assert cancelled.finished_at is not None and cancelled.finished_at >= released_at


async def test_a_text_that_postgresql_cannot_store_is_stored_without_what_it_cannot(store: Store) -> None:
    job = await create(store)
    await store.add_status(job.prompt_id, "a\0b", step="c\0d")
    assert (await store.job(job.prompt_id)).step == "c\N{REPLACEMENT CHARACTER}d"
    assert (await store.events(job.prompt_id, 0))[-1].data["message"] == "a\0b"


async def listening(store: Store, heard: list[str]) -> asyncio.Task[None]:
    """Begin to listen to notes."""
    ready = asyncio.Event()
    task = asyncio.create_task(store.listen(heard.append, ready.set))
    await ready.wait()
    return task


async def test_notes_reach_every_node_that_listens_and_only_their_database(nodes: list[Store]) -> None:
    heard: list[list[str]] = [[], [], []]
    tasks = [await listening(node, notes) for node, notes in zip(nodes, heard, strict=True)]
    with postgres.database() as other:
        async with opened(other) as stranger:
            await stranger.notify(["not ours"])
    await nodes[0].notify(["one", "two"])
    await nodes[1].notify(["three", "x" * 7999])
    await until(lambda: all(len(notes) == 4 for notes in heard))
    assert heard == [["one", "two", "three", "x" * 7999]] * 3
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("how", ["drop_connections", "hold"])
async def test_a_connection_that_hears_nothing_any_more_is_told(
    hasty: None, far: Store, proxy: TcpProxy, how: str
) -> None:
    task = await listening(far, [])
    getattr(proxy, how)()
    with pytest.raises(StoreError) as lost:
        await task
    assert lost.value.transient
    proxy.heal()


# What goes wrong underneath.


async def test_a_database_that_is_restarted_is_waited_for(hasty: None) -> None:
    server = await asyncio.to_thread(postgres.start_server)
    try:
        async with opened(server.url) as store:
            job = await create(store)
            segment = await claim(store)
            await asyncio.to_thread(server.stop)
            for ask in (store.counts, store.check_writable, lambda: store.add_status(job.prompt_id, "away")):
                with pytest.raises(StoreError) as away:
                    await ask()
                assert away.value.transient
            finishing = asyncio.create_task(retry_writes(lambda: store.finish_segment(segment, "0.mp4", 1.0)))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(server.start)
            finished = await finishing
            assert finished is not None and finished.segments_done == 1
            assert await finish(store, job)
            await asyncio.to_thread(server.stop)
            with pytest.raises(StoreError) as gone:
                await Store.open(server.url, MIGRATIONS, lambda event: None)
            assert gone.value.transient
            await asyncio.to_thread(server.start)
            assert (await store.job(job.prompt_id)).state == JobState.SUCCESS
    finally:
        await asyncio.to_thread(server.remove)


async def test_a_server_that_lets_nobody_write_is_waited_for(url: str) -> None:
    """As a standby does until it is promoted."""
    setting = f"ALTER DATABASE {urlsplit(url).path[1:]} SET default_transaction_read_only ="
    sql(postgres.server_url(), f"{setting} on")
    try:
        async with opened(url) as store:
            with pytest.raises(StoreError, match="read-only") as refused:
                await store.check_writable()
            assert refused.value.transient
            assert await store.counts() == {"QUEUED": 0, "PROCESSING": 0}
    finally:
        sql(postgres.server_url(), f"{setting} off")


async def test_what_cannot_pass_is_not_waited_for_and_tells_no_password() -> None:
    server = await asyncio.to_thread(postgres.start_server, PASSWORD)
    try:
        async with opened(server.url) as store:
            await create(store)
        refused = {
            server.url.replace(PASSWORD, "wrong-battery"): "password authentication failed",
            server.url.removesuffix("postgres") + "missing": "does not exist",
            f"postgresql://postgres:{PASSWORD}/x@127.0.0.1:{server.port}/postgres": "cannot be read",
            f"{server.url}?statement_cache_size={PASSWORD}": "cannot be read",
        }
        for url, sentence in refused.items():
            with pytest.raises(StoreError, match=sentence) as error:
                await Store.open(url, MIGRATIONS, lambda event: None)
            assert not error.value.transient
            told = "".join(traceback.format_exception(error.value))
            assert PASSWORD not in told and "wrong-battery" not in told
    finally:
        await asyncio.to_thread(server.remove)


async def test_a_statement_that_cannot_be_executed_is_not_repeated(store: Store) -> None:
    tries = 0

    async def ask() -> None:
        nonlocal tries
        tries += 1
        await store._read("SELECT no_such_column FROM job")

    with pytest.raises(StoreError, match="no_such_column"):
        await retry_writes(ask)
    assert tries == 1


@pytest.mark.parametrize("how", ["cut", "hold"])
async def test_a_node_that_is_cut_off_is_told_and_goes_on_when_it_is_not(
    hasty: None, far: Store, proxy: TcpProxy, how: str
) -> None:
    job = await retry_writes(lambda: create(far))
    getattr(proxy, how)()
    asked = (lambda: far.job(job.prompt_id), lambda: far.add_status(job.prompt_id, "x"), lambda: far.notify(["x"]))
    for ask in asked:
        with pytest.raises(StoreError) as away:
            await ask()
        assert away.value.transient
    proxy.heal()
    await retry_writes(lambda: far.add_status(job.prompt_id, "back"))
    assert (await far.events(job.prompt_id, 0))[-1].data["message"] == "back"


async def test_a_node_that_freezes_in_a_transaction_keeps_others_waiting_for_a_short_time_only(
    hasty: None, url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await create(store)
    async with opened(url) as frozen:
        with pytest.raises(StoreError) as ended:
            async with AsyncExitStack() as stack:
                with monkeypatch.context() as short:
                    short.setattr(driver, "_BEGIN", re.sub(r"\d+", "300", driver._BEGIN))
                    # Another bound, of newer servers, which would help later.
                    short.setattr(driver, "_BOUND_TRANSACTION", driver._BOUND_TRANSACTION.replace("30000", "3000000"))
                    tx = await stack.enter_async_context(frozen._transaction())
                await tx.lock_job(job.prompt_id)
                await retry_writes(lambda: store.add_status(job.prompt_id, "goes on"))
                await tx.run("UPDATE job SET step = 'thawed'")
        assert ended.value.transient
        assert (await frozen.job(job.prompt_id)).step == "Queued"


async def test_a_node_that_freezes_within_a_statement_keeps_others_waiting_for_a_bounded_time_only(
    hasty: None, url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await create(store)
    async with opened(url) as frozen:
        with pytest.raises(StoreError) as ended:
            async with AsyncExitStack() as stack:
                with monkeypatch.context() as short:
                    short.setattr(driver, "_BOUND_TRANSACTION", driver._BOUND_TRANSACTION.replace("30000", "600"))
                    tx = await stack.enter_async_context(frozen._transaction())
                await tx.lock_job(job.prompt_id)
                assert isinstance(tx._statements, driver.PostgresConnection)
                # A whole statement, but for the message that ends it: the server waits for that without a bound.
                parse = b"P" + (17).to_bytes(4, "big") + b"\0SELECT 1;\0\0\0"
                bind = b"B" + (12).to_bytes(4, "big") + bytes(8)
                execute = b"E" + (9).to_bytes(4, "big") + bytes(5)
                tx._statements.raw._con._transport.write(parse + bind + execute)
                await retry_writes(lambda: store.add_status(job.prompt_id, "goes on"))
                await tx.run("UPDATE job SET step = 'thawed'")
        assert ended.value.transient
        assert (await frozen.job(job.prompt_id)).step == "Queued"


async def test_the_server_notices_a_silent_network_on_every_connection(url: str) -> None:
    async with opened(url) as store, store._transaction() as tx:
        for setting in ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout"):
            row = await tx.one(f"SHOW {setting}")
            assert row is not None
            assert row[0] not in ("0", "")


async def test_a_transfer_may_take_longer_than_other_transactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(6); RETURN NEW; END $$"
    with postgres.empty_database() as url:
        async with opened(url):
            for statement in (slow, "CREATE TRIGGER wait BEFORE INSERT ON job FOR EACH ROW EXECUTE FUNCTION wait()"):
                postgres.sql(url, statement)
        monkeypatch.setattr(driver, "_BOUND_TRANSACTION", driver._BOUND_TRANSACTION.replace("30000", "300"))
        monkeypatch.setattr(driver, "_BEGIN", re.sub(r"\d+", "300", driver._BEGIN))
        monkeypatch.setattr(driver, "COMMAND_TIMEOUT_S", 5.0)
        async with opened(tmp_path / "jobs.db") as source, opened(url) as target:
            job = await create(source)

            def tell(_table: str, _rows: int) -> None:
                time.sleep(0.4)  # between two statements: longer than others may

            await target.copy_from(source, tell)
            assert (await target.job(job.prompt_id)).prompt_id == job.prompt_id


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"),
        asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
    ],
    ids=type,
)
async def test_a_connection_that_its_driver_is_at_a_loss_with_is_dropped(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    with pytest.raises(StoreError) as lost:
        async with store._transaction() as tx:
            row = await tx.one("SELECT pg_backend_pid()")
            with monkeypatch.context() as patch:
                patch.setattr(asyncpg.Connection, "fetch", fail)
                await tx.run("SELECT 1")
    assert lost.value.transient
    assert row is not None

    async def gone() -> bool:
        return sql(url, "SELECT 1 FROM pg_stat_activity WHERE pid = ?", row[0]) == []

    await eventually(gone)
    assert await store.counts()


async def test_who_waits_for_a_connection_in_vain_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(driver.POOL_SIZE):
            await stack.enter_async_context(store._transaction())
        monkeypatch.setattr(driver, "ACQUIRE_TIMEOUT_S", 0.2)  # from here on: to connect may take longer than that
        with pytest.raises(StoreError) as told:
            await store.counts()
        assert told.value.transient
    monkeypatch.undo()
    assert await store.counts()


async def test_nothing_of_a_closed_store_stays_with_the_server(url: str) -> None:
    async with opened(url) as store:
        await asyncio.gather(*(create(store) for _ in range(5)))
        listener = await listening(store, [])
    listener.cancel()
    await asyncio.gather(listener, return_exceptions=True)
    others = "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"

    async def gone() -> bool:
        return sql(url, f"SELECT count(*) FROM pg_stat_activity WHERE {others}") == [(0,)]

    assert await eventually(gone)


async def test_without_the_driver_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "faceswap.store.postgres")
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(StoreError, match=r"pip install 'faceswap\[cluster\]'") as missing:
        await Store.open("postgresql://nowhere", MIGRATIONS, lambda event: None)
    assert not missing.value.transient


async def test_a_pooler_that_keeps_no_statements_is_served_too(url: str) -> None:
    async with opened(f"{url}?statement_cache_size=0&application_name=faceswap-test") as store:
        job = await create(store, segments=2)
        while segment := await try_claim(store):
            await store.finish_segment(segment, "x.mp4", None)
        assert await finish(store, job)
        names = {row[0] for row in await store._read("SELECT application_name FROM pg_stat_activity")}
        assert "faceswap-test" in names


# Commits whose answer is lost.


class LostAnswers:
    """A database that commits, and a network that loses the answers to that, once."""

    def __init__(self, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> None:
        self._commit = driver.PostgresConnection.commit
        self._proxy = proxy
        self._monkeypatch = monkeypatch

    def of(self, is_committed: Callable[[], bool]) -> None:
        """Lose the answer to the next commit after which `is_committed` holds."""

        async def commit(connection: driver.PostgresConnection) -> None:
            self._monkeypatch.setattr(driver.PostgresConnection, "commit", self._commit)
            self._proxy.lose_answers()
            committing = asyncio.create_task(self._commit(connection))
            await until(is_committed)
            self._proxy.heal()
            await committing

        self._monkeypatch.setattr(driver.PostgresConnection, "commit", commit)


@pytest.fixture
def lost(hasty: None, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> LostAnswers:
    return LostAnswers(proxy, monkeypatch)


async def test_a_commit_whose_answer_is_lost_cannot_be_told(far: Store, url: str, lost: LostAnswers) -> None:
    job = await create(far)
    lost.of(lambda: sql(url, "SELECT step FROM job") == [("new",)])
    with pytest.raises(CommitUnknown) as unknown:
        await far.add_status(job.prompt_id, "x", step="new")
    assert unknown.value.transient


async def test_a_job_that_was_accepted_without_an_answer_is_accepted_once(
    far: Store, url: str, lost: LostAnswers
) -> None:
    lost.of(lambda: sql(url, "SELECT count(*) FROM job") == [(1,)])
    asked = new_job()
    job, is_new = await far.create(asked, QUEUE_LIMIT)
    assert (job.prompt_id, is_new) == (asked.prompt_id, True)
    assert sql(url, "SELECT prompt_id FROM job") == [(asked.prompt_id,)]


async def test_a_job_of_which_it_cannot_be_told_whether_it_was_accepted_is_not_called_refused(
    far: Store, url: str, proxy: TcpProxy, lost: LostAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SETTLE_S", 0.5)

    def committed_and_cut() -> bool:
        committed = sql(url, "SELECT count(*) FROM job") == [(1,)]
        if committed:
            monkeypatch.setattr(proxy, "heal", proxy.cut)
        return committed

    lost.of(committed_and_cut)
    with pytest.raises(CommitUnknown):
        await create(far)
    monkeypatch.undo()
    proxy.heal()


async def test_a_segment_that_was_claimed_without_an_answer_is_given_out_all_the_same(
    far: Store, url: str, lost: LostAnswers
) -> None:
    job = await create(far)
    lease = await hold(far)
    lost.of(lambda: sql(url, "SELECT state FROM segment") == [("submitted",)])
    segment = await far.claim(lease)
    assert segment is not None and await far.segments(job.prompt_id) == [segment]


async def test_a_claim_without_an_answer_that_another_node_has_taken_over_is_not_given_out(
    far: Store, store: Store, url: str, lost: LostAnswers
) -> None:
    job = await create(far)
    lease = await hold(far)

    def taken_over() -> bool:
        return sql(url, "UPDATE segment SET epoch = epoch + 1 WHERE state = 'submitted' RETURNING 1") == [(1,)]

    lost.of(taken_over)
    with pytest.raises(CommitUnknown):
        await far.claim(lease)
    assert (await store.segments(job.prompt_id))[0].state == SegmentState.SUBMITTED


async def test_a_claim_without_an_answer_is_not_given_out_where_another_backend_has_the_segment(
    far: Store, store: Store, url: str, lost: LostAnswers
) -> None:
    job = await create(far)
    lease = await hold(far)

    def taken_elsewhere() -> bool:  # as the same attempt, under an epoch of the same number
        return sql(url, "UPDATE segment SET backend = 'other' WHERE state = 'submitted' RETURNING 1") == [(1,)]

    lost.of(taken_elsewhere)
    with pytest.raises(CommitUnknown):
        await far.claim(lease)
    assert (await store.segments(job.prompt_id))[0].backend == "other"


async def test_a_segment_that_is_finished_again_after_a_lost_answer_leads_to_its_job(
    far: Store, url: str, lost: LostAnswers
) -> None:
    await create(far)
    segment = await claim(far)
    lost.of(lambda: sql(url, "SELECT state FROM segment") == [("done",)])
    moved = await retry_writes(lambda: far.finish_segment(segment, "0.mp4", 1.0))
    assert moved is not None and moved.segments_done == moved.segments_total == 1


async def test_a_result_that_is_stored_again_after_a_lost_answer_is_the_jobs(
    far: Store, url: str, lost: LostAnswers
) -> None:
    job = await create(far)
    await far.finish_segment(await claim(far), "0.mp4", 1.0)
    lease = await acquire(far, join_lease(job.prompt_id))
    result: dict[str, Any] = {"result_file": "clip.mp4", "size": 99, "sha256": "c" * 64, "warnings": ()}
    lost.of(lambda: sql(url, "SELECT state FROM job") == [("SUCCESS",)])
    assert await retry_writes(lambda: far.succeed(job, lease, **result))
    assert [event.type for event in await far.events(job.prompt_id, 0)] == ["queued", "progress", "completed"]
    assert not await far.succeed(job, lease, **{**result, "sha256": "d" * 64})


async def test_other_moves_that_are_repeated_after_a_lost_answer_count_once(
    far: Store, url: str, lost: LostAnswers
) -> None:
    job = await create(far)
    segment = await claim(far)
    lost.of(lambda: sql(url, "SELECT failures FROM segment") == [(1,)])
    await retry_writes(lambda: far.requeue(segment, failed=True))
    segment = await claim(far)
    lost.of(lambda: sql(url, "SELECT count(*) FROM segment") == [(2,)])
    await retry_writes(lambda: far.split(segment, 5, unsent=True))
    assert [(one.failures, one.frame_count) for one in await far.segments(job.prompt_id)] == [(1, 5), (1, 5)]
    assert (await far.job(job.prompt_id)).attempts == 1


# Migrations.


async def test_a_migration_has_succeeded_however_long_the_database_takes_to_say_goodbye() -> None:
    class Late(asyncpg.Connection):
        async def close(self, *, timeout: float | None = None) -> None:
            raise TimeoutError

    with postgres.empty_database() as url:
        await driver.migrate(lambda: asyncpg.connect(url, connection_class=Late), MIGRATIONS)
        assert await driver.find_version(url, MIGRATIONS) == (NEWEST, NEWEST)


async def test_nodes_that_start_at_once_migrate_once() -> None:
    with postgres.empty_database() as url:
        stores = await asyncio.gather(*(Store.open(url, MIGRATIONS, lambda event: None) for _ in range(4)))
        job = await create(stores[0])
        assert await stores[3].job(job.prompt_id) == job
        assert sql(url, "SELECT version FROM schema_version") == [(NEWEST,)]
        for store in stores:
            await store.close()


@pytest.mark.parametrize(("ahead", "accepted"), [(0, True), (1, True), (2, False)])
async def test_a_database_may_be_one_version_newer_while_nodes_are_upgraded(ahead: int, accepted: bool) -> None:
    with postgres.empty_database() as url:
        async with opened(url) as store:
            await create(store)
        sql(url, "UPDATE schema_version SET version = ?", NEWEST + ahead)
        if accepted:
            async with opened(url) as store:
                await claim(store)
        else:
            with pytest.raises(
                NewerDatabase, match=rf"version {NEWEST + 2}, newer than this program's {NEWEST}; upgrade"
            ):
                await Store.open(url, MIGRATIONS, lambda event: None)
        assert sql(url, "SELECT version FROM schema_version") == [(NEWEST + ahead,)]


@pytest.mark.parametrize("failing", ["SELECT no_such_column;", "CREATE TABLE job (a TEXT);", "nonsense"])
@pytest.mark.parametrize("empty", [True, False])
async def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path: Path, failing: str, empty: bool) -> None:
    more = tmp_path / f"{NEWEST + 1:04d}_next.postgresql.sql"
    for path in MIGRATIONS.glob("*.sql"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    with postgres.empty_database() as url:
        if not empty:
            async with opened(url) as store:
                await create(store)
        before = sql(url, tables)
        more.write_text(f"CREATE TABLE more (a TEXT); DELETE FROM job;\n{failing}")
        with pytest.raises(StoreError):
            await Store.open(url, tmp_path, lambda event: None)
        assert sql(url, tables) == before
        more.write_text("CREATE TABLE more (a TEXT);")
        await (await Store.open(url, tmp_path, lambda event: None)).close()
        assert sql(url, "SELECT version FROM schema_version") == [(NEWEST + 1,)]
        assert sql(url, "SELECT count(*) FROM job") == [(0 if empty else 1,)]


def test_statements_are_numbered() -> None:
    assert driver.numbered("SELECT ? WHERE a = ? AND b = ?") == "SELECT $1 WHERE a = $2 AND b = $3"
    assert driver.numbered("SELECT 1") == "SELECT 1"


@pytest.mark.parametrize("turns", range(5))
async def test_a_session_that_the_server_ends_between_two_statements_is_a_connection_that_was_lost(
    turns: int, url: str
) -> None:
    async with opened(url) as store:
        with pytest.raises(StoreError) as caught:
            async with store._transaction() as tx:
                await tx.now_ms()
                (pid,) = await tx.one("SELECT pg_backend_pid()")
                # This process stands still meanwhile, then hears of it in so many turns of its loop.
                sql(url, "SELECT pg_terminate_backend(?, 10000)", pid)
                for _ in range(turns):
                    await asyncio.sleep(0)
                await tx.run("SELECT 1")
        assert caught.value.transient
        await store.now_ms()
