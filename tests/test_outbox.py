"""Deliveries: stored with the end of a job, sent until they arrive, disturbed by no receiver."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import postgres
import pytest
from clips import make_clip
from file_places import PLACES, make_place
from processes import dead_url
from receivers import OLD_SECRET, SECRET, Receiver, receiving
from service_rig import EngineRig, running_service
from standardwebhooks import WebhookVerificationError
from stored_jobs import acquire, claim, create, opened, run_to_success, sql
from waiting import WAIT_S, eventually, until
from yarl import URL

from faceswap import outbox as outbox_module
from faceswap.api import keys
from faceswap.config import Settings
from faceswap.deliveries import GIVE_UP_S, LONGEST_PAUSE_S, Delivery, DeliveryKind, DeliveryState, pause_s
from faceswap.files import Files
from faceswap.jobs import Job, JobState
from faceswap.outbox import AT_ONCE, AT_ONCE_EACH, Outbox
from faceswap.samples import FACE
from faceswap.store import Store, StoreError, join_lease
from faceswap.url_guard import UrlGuard

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
HOOK = "https://example.com/hook?secret=1"
WEBHOOK, RESULT = DeliveryKind.WEBHOOK, DeliveryKind.RESULT


@pytest.fixture(params=["sqlite", "postgresql"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """Yield where a database is to be, or is: each test is for both kinds."""
    if request.param == "sqlite":
        yield tmp_path / "faceswap.db"
    else:
        with postgres.database() as url:
            yield url


on_sqlite = pytest.mark.parametrize("path", ["sqlite"], indirect=True)
"""For what does not depend on the kind of database."""


@pytest.fixture
async def store(path: Path | str) -> AsyncIterator[Store]:
    async with opened(path) as store:
        yield store


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the outbox look for work more often, and pause for a moment only."""
    monkeypatch.setattr(outbox_module, "LOOK_S", 0.02)
    monkeypatch.setattr(outbox_module, "pause_s", lambda failures, chance: 0.02)


@asynccontextmanager
async def sending(store: Store, files: Files, holder: str = "local", **settings: Any) -> AsyncIterator[Outbox]:
    """Yield an outbox that runs."""
    values = {"webhook_secret": (base64.b64decode(SECRET.removeprefix("whsec_")),), **settings}
    outbox = Outbox(Settings(files.root, **values), store, files, UrlGuard(LOOPBACK), holder)
    running = asyncio.create_task(outbox.run())
    yield outbox
    assert not running.done(), running.exception()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a receiver that hangs be waited for as long as a test lasts."""
    for name in ("WEBHOOK_S", "STALL_S"):
        monkeypatch.setattr(outbox_module, name, WAIT_S)


@pytest.fixture
async def files(tmp_path: Path) -> Files:
    files = Files(tmp_path / "data")
    await files.start()
    return files


async def ended(store: Store, state: JobState, **changes: Any) -> Job:
    """Store a job that has ended."""
    if state is JobState.SUCCESS:
        return await run_to_success(store, **changes)
    job = await create(store, **changes)
    if state is JobState.FAILED:
        assert await store.fail(job.prompt_id, "out_of_memory", "Too large.")
    else:
        await store.request_cancel(job.prompt_id, None)
    return await store.job(job.prompt_id)


async def only(store: Store, job: Job) -> Delivery:
    """Return the one delivery of a job."""
    [delivery] = await store.deliveries(job.prompt_id)
    return delivery


async def in_state(store: Store, job: Job, state: DeliveryState) -> Delivery:
    """Wait until the one delivery of a job is in a state."""

    async def found() -> Delivery | None:
        delivery = await only(store, job)
        return delivery if delivery.state is state else None

    delivery: Delivery = await eventually(found)
    return delivery


def owed(path: Path | str) -> int:
    """Return the number of deliveries that wait."""
    return int(sql(path, "SELECT count(*) FROM delivery WHERE state = 'waiting'")[0][0])


# Stored


@pytest.mark.parametrize(
    ("state", "type_"),
    [
        (JobState.SUCCESS, "job.completed"),
        (JobState.FAILED, "job.failed"),
        (JobState.CANCELLED, "job.cancelled"),
    ],
)
async def test_the_end_of_a_job_stores_its_webhook(store: Store, state: JobState, type_: str) -> None:
    job = await ended(store, state, webhook_url=HOOK)
    delivery = await only(store, job)
    assert (delivery.kind, delivery.url, delivery.origin) == (WEBHOOK, HOOK, "https://example.com")
    assert (delivery.state, delivery.attempts) == (DeliveryState.WAITING, 0)
    body = json.loads(delivery.body)
    assert body == {"type": type_, "timestamp": job.status()["finished_at"], "data": job.status()}


async def test_a_result_is_owed_by_success_only(store: Store) -> None:
    address = "https://bucket.example.com/a%2Fb.mp4?X-Sig=ab%2Bcd%3D"
    for state in (JobState.SUCCESS, JobState.FAILED, JobState.CANCELLED):
        job = await ended(store, state, result_put_url=address)
        kinds = [(delivery.kind, delivery.url) for delivery in await store.deliveries(job.prompt_id)]
        assert kinds == ([(RESULT, address)] if state is JobState.SUCCESS else [])


async def test_a_job_without_addresses_owes_nothing(store: Store, path: Path | str) -> None:
    for state in (JobState.SUCCESS, JobState.FAILED, JobState.CANCELLED):
        await ended(store, state)
    assert owed(path) == 0


async def test_a_job_does_not_end_without_its_delivery(store: Store, path: Path | str) -> None:
    job = await create(store, webhook_url=HOOK)
    sql(path, "ALTER TABLE delivery RENAME TO hidden")
    try:
        with pytest.raises(StoreError):
            await store.fail(job.prompt_id, "out_of_memory", "Too large.")
        assert (await store.job(job.prompt_id)).state is JobState.QUEUED
    finally:
        sql(path, "ALTER TABLE hidden RENAME TO delivery")


async def test_each_end_of_a_job_that_was_retried_is_told(store: Store) -> None:
    job = await ended(store, JobState.FAILED, webhook_url=HOOK)
    await store.retry(job.prompt_id, None)
    await store.request_cancel(job.prompt_id, None)
    types = [json.loads(delivery.body)["type"] for delivery in await store.deliveries(job.prompt_id)]
    assert sorted(types) == ["job.cancelled", "job.failed"]


async def test_what_a_job_owed_goes_with_it(store: Store, path: Path | str) -> None:
    job = await ended(store, JobState.SUCCESS, webhook_url=HOOK)
    await store.begin_erasure(job.prompt_id)
    await store.erase(job.prompt_id)
    assert sql(path, "SELECT count(*) FROM delivery") == [(0,)]


# Claimed


async def test_each_delivery_is_claimed_once(store: Store, path: Path | str) -> None:
    for _ in range(6):
        await ended(store, JobState.FAILED, webhook_url=HOOK)
    async with opened(path) as other:
        claims = [each.claim_delivery(WEBHOOK, "one", 60.0) for each in (store, other) * 6]
        claimed = [delivery.id for delivery in await asyncio.gather(*claims) if delivery is not None]
    assert len(claimed) == len(set(claimed))
    while delivery := await store.claim_delivery(WEBHOOK, "one", 60.0):  # who came at the same time went by
        claimed.append(delivery.id)
    assert len(claimed) == len(set(claimed)) == 6


async def test_a_claim_that_ran_out_is_anothers_and_the_first_changes_nothing(store: Store) -> None:
    job = await ended(store, JobState.FAILED, webhook_url=HOOK)
    first = await store.claim_delivery(WEBHOOK, "one", 0.0)
    assert first is not None and first.attempts == 1
    second = await store.claim_delivery(WEBHOOK, "two", 60.0)
    assert second is not None and (second.id, second.attempts, second.holder) == (first.id, 2, "two")
    assert not await store.keep_delivery(first, 60.0)
    await store.end_delivery(first, DeliveryState.FAILED, 410)
    await store.postpone_delivery(first, 0.0, 500, "No.")
    assert await store.claim_delivery(WEBHOOK, "three", 60.0) is None
    assert await store.keep_delivery(second, 60.0)
    await store.end_delivery(second, DeliveryState.DELIVERED, 204)
    delivery = await only(store, job)
    assert (delivery.state, delivery.last_status, delivery.holder) == (DeliveryState.DELIVERED, 204, None)


async def test_a_node_that_starts_again_takes_up_at_once_what_it_was_sending(store: Store) -> None:
    await ended(store, JobState.FAILED, webhook_url=HOOK)
    await ended(store, JobState.FAILED, webhook_url=HOOK)
    mine, others = await store.claim_delivery(WEBHOOK, "one", 60.0), await store.claim_delivery(WEBHOOK, "two", 60.0)
    assert mine is not None and others is not None
    await store.release_deliveries("one")
    again = await store.claim_delivery(WEBHOOK, "one", 60.0)
    assert again is not None and again.id == mine.id
    assert await store.claim_delivery(WEBHOOK, "one", 60.0) is None
    assert await store.keep_delivery(others, 60.0)


async def test_an_owner_that_is_busy_is_passed_over(store: Store) -> None:
    for owner in ("ann", "bob", None):
        await ended(store, JobState.FAILED, webhook_url=HOOK, owner=owner)
    claimed = [await store.claim_delivery(WEBHOOK, "one", 60.0, [], ["ann"]) for _ in range(3)]
    assert [delivery and delivery.owner for delivery in claimed] == ["bob", None, None]
    assert claimed[1] is not None and claimed[2] is None


async def test_what_a_clock_that_was_ahead_has_put_off_is_due_now(store: Store, path: Path | str) -> None:
    await ended(store, JobState.FAILED, webhook_url=HOOK)
    sql(path, "UPDATE delivery SET due_at = due_at + 31536000000")
    assert await store.claim_delivery(WEBHOOK, "one", 60.0) is not None
    assert await store.claim_delivery(WEBHOOK, "one", 60.0) is None


async def test_what_was_just_sent_is_not_sent_again_on_request(store: Store, path: Path | str) -> None:
    job = await ended(store, JobState.FAILED, webhook_url=HOOK)
    delivery = await store.claim_delivery(WEBHOOK, "one", 60.0)
    assert delivery is not None and not await store.redeliver(job.prompt_id)
    await store.end_delivery(delivery, DeliveryState.DELIVERED, 204)
    assert not await store.redeliver(job.prompt_id)
    sql(path, "UPDATE delivery SET attempted_at = attempted_at - 60000")
    assert await store.redeliver(job.prompt_id)
    again = await only(store, job)
    assert (again.state, again.attempts, again.delivered_at) == (DeliveryState.WAITING, 0, None)


async def test_an_origin_that_is_busy_is_passed_over(store: Store) -> None:
    await ended(store, JobState.FAILED, webhook_url="https://busy.example.com/a")
    free = await ended(store, JobState.FAILED, webhook_url="https://busy.example.com:8443/a")
    delivery = await store.claim_delivery(WEBHOOK, "one", 60.0, ["https://busy.example.com"])
    assert delivery is not None and delivery.prompt_id == free.prompt_id
    assert await store.claim_delivery(RESULT, "one", 60.0) is None


async def test_the_last_attempt_is_made_when_the_time_is_over(store: Store, path: Path | str) -> None:
    job = await ended(store, JobState.FAILED, webhook_url=HOOK)
    fresh = await only(store, job)
    assert fresh.give_up_at - fresh.due_at == GIVE_UP_S * 1000
    sql(path, "UPDATE delivery SET give_up_at = give_up_at - 23 * 3600000")
    delivery = await store.claim_delivery(WEBHOOK, "one", 60.0)
    assert delivery is not None
    assert await store.postpone_delivery(delivery, 10 * GIVE_UP_S, 500, "No.") is DeliveryState.WAITING
    waiting = await only(store, job)
    assert waiting.due_at == waiting.give_up_at
    assert await store.claim_delivery(WEBHOOK, "one", 60.0) is None
    sql(path, "UPDATE delivery SET due_at = due_at - 90000000, give_up_at = give_up_at - 90000000")
    last = await store.claim_delivery(WEBHOOK, "one", 60.0)
    assert last is not None
    assert await store.postpone_delivery(last, 1.0, None, "No answer.") is DeliveryState.FAILED
    assert await store.claim_delivery(WEBHOOK, "one", 60.0) is None
    assert (await only(store, job)).last_error == "No answer."


def test_the_pauses_grow_have_a_bound_and_are_not_the_same_for_all() -> None:
    middle = [pause_s(failures, 0.5) for failures in range(1, 40)]
    assert middle == sorted(middle) and middle[0] == 5.0 and middle[-1] == LONGEST_PAUSE_S
    assert pause_s(3, 0.0) < pause_s(3, 0.5) < pause_s(3, 1.0) <= 1.25 * pause_s(3, 0.5)
    attempts = next(count for count in range(1, 40) if sum(middle[:count]) >= GIVE_UP_S)
    assert 12 <= attempts <= 20
    assert pause_s(10**6, 0.5) == LONGEST_PAUSE_S


# Sent


async def test_a_webhook_is_what_standard_webhooks_says(store: Store, files: Files, receiver: Receiver) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    secrets = tuple(base64.b64decode(secret.removeprefix("whsec_")) for secret in (SECRET, OLD_SECRET))
    async with sending(store, files, webhook_secret=secrets):
        job = await ended(store, JobState.SUCCESS, webhook_url=f"{receiver.url}/hook", traceparent=trace)
        [received] = await receiver.came("hook")
        delivery = await in_state(store, job, DeliveryState.DELIVERED)
    for secret in (SECRET, OLD_SECRET):
        assert received.verified(secret) == {
            "type": "job.completed",
            "timestamp": job.status()["finished_at"],
            "data": job.status(),
        }
    with pytest.raises(WebhookVerificationError):
        received.verified("whsec_" + "A" * 32)
    assert (received.method, received.headers["content-type"]) == ("POST", "application/json")
    assert (received.id, received.headers["traceparent"]) == (delivery.id, trace)
    assert (delivery.attempts, delivery.last_status, delivery.last_error) == (1, 204, None)
    assert not {"cookie", "authorization"} & received.headers.keys()


@on_sqlite
async def test_without_a_secret_a_webhook_is_not_signed(store: Store, files: Files, receiver: Receiver) -> None:
    async with sending(store, files, webhook_secret=()):
        await ended(store, JobState.FAILED, webhook_url=f"{receiver.url}/hook")
        [received] = await receiver.came("hook")
    assert "webhook-signature" not in received.headers and received.id.startswith("msg_")


@on_sqlite
async def test_links_begin_with_the_public_address(store: Store, files: Files, receiver: Receiver) -> None:
    async with sending(store, files, public_url=URL("https://faces.example.org/swap/")):
        job = await ended(store, JobState.SUCCESS, webhook_url=f"{receiver.url}/hook")
        await ended(store, JobState.FAILED, webhook_url=f"{receiver.url}/failed")
        [received], [failed] = await receiver.came("hook"), await receiver.came("failed")
    assert received.verified()["data"]["result"] == f"https://faces.example.org/swap{job.status()['result']}"
    assert failed.verified()["data"]["result"] is None


@pytest.mark.parametrize("statuses", [(500, 204), (404, 503, 200), (302, 299)])
async def test_what_is_not_taken_is_sent_again_under_the_same_id(
    store: Store, files: Files, receiver: Receiver, statuses: tuple[int, ...]
) -> None:
    receiver.answers["hook"] = receiver.status(*statuses, Location=f"{receiver.url}/elsewhere")
    async with sending(store, files):
        job = await ended(store, JobState.FAILED, webhook_url=f"{receiver.url}/hook")
        delivery = await in_state(store, job, DeliveryState.DELIVERED)
    received = receiver.to("hook")
    assert len(received) == delivery.attempts == len(statuses)
    assert {one.id for one in received} == {delivery.id}
    assert all(one.verified() == received[0].verified() for one in received)
    assert not receiver.to("elsewhere")


async def test_410_stops_a_delivery(store: Store, files: Files, receiver: Receiver) -> None:
    receiver.answers["hook"] = receiver.status(500, 410, 204)
    async with sending(store, files):
        job = await ended(store, JobState.FAILED, webhook_url=f"{receiver.url}/hook")
        delivery = await in_state(store, job, DeliveryState.FAILED)
    assert (delivery.attempts, delivery.last_status) == (2, 410)
    assert delivery.last_error == "The receiver answered with HTTP status 410."


@on_sqlite
async def test_a_private_address_is_never_called(store: Store, files: Files) -> None:
    async with receiving("127.0.0.3") as private:
        allowed = UrlGuard((ipaddress.ip_network("127.0.0.2/32"),))
        running = asyncio.create_task(Outbox(Settings(files.root), store, files, allowed).run())
        jobs = [
            await ended(store, JobState.SUCCESS, webhook_url=f"{private.url}/hook"),
            await ended(store, JobState.SUCCESS, result_put_url=f"{private.url}/put", output_name="other"),
        ]
        files.result("other.mp4").write_bytes(b"video")
        for job in jobs:
            delivery = await in_state(store, job, DeliveryState.FAILED)
            assert (delivery.attempts, delivery.last_error) == (1, "The URL leads to a non-public address.")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert private.begun == 0


@on_sqlite
async def test_a_receiver_that_is_away_is_tried_again(store: Store, files: Files) -> None:
    async with sending(store, files):
        job = await ended(store, JobState.FAILED, webhook_url=f"{dead_url()}/hook")
        await until_attempts(store, job, 3)
    delivery = await only(store, job)
    assert (delivery.state, delivery.last_status) == (DeliveryState.WAITING, None)
    assert delivery.last_error == "The receiver cannot be reached."


async def until_attempts(store: Store, job: Job, count: int) -> None:
    async def made() -> bool:
        return (await only(store, job)).attempts >= count

    await eventually(made)


# Results


@pytest.mark.parametrize("kind", PLACES)
async def test_a_result_is_put_whole_wherever_it_lies(
    kind: str, tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = bytes(range(256)) * 12_345
    place_files = await make_place(kind, tmp_path, monkeypatch).started()
    async with opened(tmp_path / "jobs.db") as store:
        job = await create(store, result_put_url=f"{receiver.url}/put?sv=2026&sig=ab%2Bcd%3D")
        await store.finish_segment(await claim(store), "0.mp4", 1.0)
        lease = await acquire(store, join_lease(job.prompt_id))
        await place_files.make_scratch(job.prompt_id)
        place_files.joined(job.prompt_id, lease.epoch).write_bytes(video)
        await place_files.keep_result(job.prompt_id, lease.epoch, "clip.mp4", "c" * 64)
        await store.succeed(job, lease, result_file="clip.mp4", size=len(video), sha256="c" * 64, warnings=())
        async with sending(store, place_files):
            await in_state(store, job, DeliveryState.DELIVERED)
    [received] = receiver.received
    await place_files.close()
    assert (received.method, received.path) == ("PUT", "/put?sv=2026&sig=ab%2Bcd%3D")
    assert received.body == video
    assert received.headers["content-length"] == str(len(video)) and "transfer-encoding" not in received.headers
    assert (received.headers["content-type"], received.headers["x-ms-blob-type"]) == ("video/mp4", "BlockBlob")


@on_sqlite
async def test_a_result_that_is_gone_is_given_up(store: Store, files: Files, receiver: Receiver) -> None:
    async with sending(store, files):
        job = await ended(store, JobState.SUCCESS, result_put_url=f"{receiver.url}/put")
        delivery = await in_state(store, job, DeliveryState.FAILED)
    assert delivery.last_error == "The result was erased before it could be sent."
    assert receiver.begun == 0


@on_sqlite
async def test_a_receiver_that_takes_nothing_is_given_up_and_tried_again(
    store: Store, files: Files, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "STALL_S", 0.3)
    receiver.answers["put"] = receiver.never_read
    files.result("clip.mp4").write_bytes(bytes(30_000_000))
    async with sending(store, files):
        job = await ended(store, JobState.SUCCESS, result_put_url=f"{receiver.url}/put")
        await until_attempts(store, job, 3)
    assert (await only(store, job)).last_error == "The receiver did not answer in time."


@on_sqlite
async def test_a_result_that_is_erased_while_it_is_sent_is_not_sent_on(
    store: Store, files: Files, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "RENEW_S", 0.05)
    receiver.answers["put"] = receiver.hang
    files.result("clip.mp4").write_bytes(b"video")
    async with sending(store, files):
        job = await ended(store, JobState.SUCCESS, result_put_url=f"{receiver.url}/put")
        await until(lambda: receiver.begun)
        await store.begin_erasure(job.prompt_id)
        await store.erase(job.prompt_id)
        await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("delivery")])


@on_sqlite
async def test_a_claim_is_kept_for_as_long_as_an_attempt_lasts(
    patient: None, store: Store, files: Files, receiver: Receiver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "RENEW_S", 0.05)
    receiver.answers["put"] = receiver.hang
    files.result("clip.mp4").write_bytes(b"video")
    async with sending(store, files):
        job = await ended(store, JobState.SUCCESS, result_put_url=f"{receiver.url}/put")
        await until(lambda: receiver.begun)
        sql(path, "UPDATE delivery SET due_at = due_at - 2000")
        before = (await only(store, job)).due_at

        async def renewed() -> bool:
            return (await only(store, job)).due_at > before

        await eventually(renewed)
    assert receiver.begun == 1


# Bad receivers


async def test_many_receivers_of_one_owner_keep_nobody_else_waiting(
    patient: None, store: Store, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "AT_ONCE", {WEBHOOK: 4})
    async with AsyncExitStack() as stack:
        bad = [await stack.enter_async_context(receiving(f"127.0.0.{number}")) for number in range(2, 8)]
        good = await stack.enter_async_context(receiving())
        await stack.enter_async_context(sending(store, files))
        for receiver in bad:
            receiver.answers["hang"] = receiver.hang
            await ended(store, JobState.FAILED, webhook_url=f"{receiver.url}/hang", owner="mallory")
        await until(lambda: sum(receiver.begun for receiver in bad) == 2)
        await ended(store, JobState.FAILED, webhook_url=f"{good.url}/hook", owner="ann")
        await good.came("hook")
        assert sum(receiver.begun for receiver in bad) == 2


async def test_a_receiver_that_hangs_keeps_nobody_waiting(
    patient: None, store: Store, files: Files, receiver: Receiver
) -> None:
    receiver.answers["hang"] = receiver.hang
    async with receiving() as good, sending(store, files):
        for _ in range(AT_ONCE[WEBHOOK]):
            await ended(store, JobState.FAILED, webhook_url=f"{receiver.url}/hang")
        await until(lambda: receiver.begun == AT_ONCE_EACH)
        jobs = [await ended(store, JobState.FAILED, webhook_url=f"{good.url}/hook") for _ in range(20)]
        await good.came("hook", 20)
        for job in jobs:
            await in_state(store, job, DeliveryState.DELIVERED)
        assert receiver.begun == AT_ONCE_EACH, "more at a time than one origin gets"


@on_sqlite
async def test_of_a_long_answer_only_the_status_is_read(store: Store, files: Files, receiver: Receiver) -> None:
    receiver.answers["flood"] = receiver.flood
    async with sending(store, files):
        job = await ended(store, JobState.FAILED, webhook_url=f"{receiver.url}/flood")
        delivery = await in_state(store, job, DeliveryState.DELIVERED)
    assert delivery.last_status == 200
    assert receiver.sent_bytes < 10_000_000


@on_sqlite
@pytest.mark.parametrize("name", ["hang", "drip"])
async def test_an_answer_that_does_not_come_is_not_waited_for(
    store: Store, files: Files, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(outbox_module, "WEBHOOK_S", 0.3)
    receiver.answers[name] = getattr(receiver, name)
    async with sending(store, files):
        job = await ended(store, JobState.FAILED, webhook_url=f"{receiver.url}/{name}")
        await until_attempts(store, job, 2)
    assert (await only(store, job)).last_error == "The receiver did not answer in time."


@on_sqlite
@pytest.mark.parametrize(
    "answer",
    [
        b"220 mail.example.com ESMTP\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10_000_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1_000_000 + b"\r\n",
        b"HTTP/1.1 999999 OK\r\n\r\n",
    ],
    ids=["mail", "nothing", "long header", "many headers", "no status"],
)
async def test_what_is_no_http_is_a_failure(store: Store, files: Files, answer: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server, sending(store, files):
        port = server.sockets[0].getsockname()[1]
        job = await ended(store, JobState.FAILED, webhook_url=f"http://127.0.0.1:{port}/")
        await until_attempts(store, job, 2)
    delivery = await only(store, job)
    assert (delivery.state, delivery.last_status) == (DeliveryState.WAITING, None)
    assert delivery.last_error == "The connection broke, or what the receiver answered is no HTTP."


async def test_what_was_being_sent_at_a_crash_is_sent_again(
    patient: None, store: Store, files: Files, receiver: Receiver
) -> None:
    receiver.answers["hook"] = receiver.hang
    async with sending(store, files):
        job = await ended(store, JobState.FAILED, webhook_url=f"{receiver.url}/hook")
        await until(lambda: receiver.begun)
    assert (await only(store, job)).holder == "local"
    del receiver.answers["hook"]
    async with sending(store, files):
        delivery = await in_state(store, job, DeliveryState.DELIVERED)
    assert delivery.attempts == 2 and receiver.to("hook")[0].verified()["type"] == "job.failed"


# Through the service


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 12, size=(96, 64))


async def test_a_job_calls_back_and_sends_its_result(tmp_path: Path, clip: Path, receiver: Receiver) -> None:
    settings: dict[str, Any] = {"url_allow": LOOPBACK, "webhook_secret": (base64.b64decode(SECRET[6:]),)}
    async with EngineRig(tmp_path / "engine", paint=True) as engine:  # noqa: SIM117 - the service asks for its address
        async with running_service(tmp_path / "data", engine, **settings) as service:
            form = aiohttp.FormData()
            form.add_field("webhook_url", f"{receiver.url}/hook?token=secret")
            form.add_field("result_put_url", f"{receiver.url}/put?X-Sig=secret")
            form.add_field("return_prompt_id_only", "true")
            form.add_field("video", clip.read_bytes(), filename="clip.mp4")
            form.add_field("image", FACE.read_bytes(), filename="face.png")
            async with service.client.post("/face-swap", data=form) as response:
                prompt_id = (await response.json())["prompt_id"]
            [hook], [put] = await receiver.came("hook"), await receiver.came("put")
            status = await service.status(prompt_id)
            assert hook.verified()["data"] == status and status["status"] == "SUCCESS"
            assert put.body == (await service.download(status, tmp_path / "result.mp4")).read_bytes()

            async def arrived() -> dict[str, Any] | None:
                answer = await service.get(f"/jobs/{prompt_id}/deliveries")
                return answer if all(each["state"] == "delivered" for each in answer["deliveries"]) else None

            listed = (await eventually(arrived))["deliveries"]
            assert [(each["kind"], each["url"]) for each in listed] == [
                ("webhook", f"{receiver.url}/hook"),
                ("result", f"{receiver.url}/put"),
            ]
            assert "secret" not in json.dumps(listed)
            assert all(each["attempts"] == 1 and each["next_attempt_at"] is None for each in listed)
            sql(tmp_path / "data" / "faceswap.db", "UPDATE delivery SET attempted_at = attempted_at - 60000")
            async with service.client.post(f"/jobs/{prompt_id}/deliveries/redeliver") as response:
                assert response.status == 202
                again = (await response.json())["deliveries"]
            assert [each["id"] for each in again] == [each["id"] for each in listed]
            hooks, puts = await receiver.came("hook", 2), await receiver.came("put", 2)
            assert hooks[1].id == hooks[0].id and hooks[1].verified() == hooks[0].verified()
            assert puts[1].body == puts[0].body
            await eventually(arrived)


async def test_deliveries_are_their_owners(tmp_path: Path) -> None:
    async with running_service(tmp_path / "data", url_allow=LOOPBACK) as service:
        store = service.client.app[keys.STORE]
        anns, plain = await create(store, owner="ann", webhook_url=HOOK), await create(store)
        for prompt_id, get, post in ((anns.prompt_id, 404, 404), (plain.prompt_id, 200, 409), ("none", 404, 404)):
            async with service.client.get(f"/jobs/{prompt_id}/deliveries") as response:
                assert response.status == get
            async with service.client.post(f"/jobs/{prompt_id}/deliveries/redeliver") as response:
                assert response.status == post
                code = (await response.json())["code"]
                assert code == ("nothing_to_deliver" if post == 409 else "unknown_prompt_id")
