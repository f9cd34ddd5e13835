"""Each move of a job leaves an audit line in its own transaction, and a line in the log after it."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import postgres
import pytest
from stored_jobs import acquire, claim, create, finish, opened, run_to_success, sql

from faceswap.config import Settings
from faceswap.jobs import JobState
from faceswap.log_setup import JsonFormatter, configure
from faceswap.store import Store, StoreError, join_lease

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(params=["sqlite", "postgresql"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """Yield where a database is to be, or is: each test is for both kinds."""
    if request.param == "sqlite":
        yield tmp_path / "faceswap.db"
    else:
        with postgres.database() as url:
            yield url


@pytest.fixture
async def store(path: Path | str) -> AsyncIterator[Store]:
    async with opened(path) as store:
        yield store


async def lines(store: Store, prompt_id: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    return [(line.what, line.data) async for line in store.audit_lines(prompt_id=prompt_id)]


async def test_the_whole_life_of_a_job_stands_in_the_record_without_content(store: Store) -> None:
    job = await create(store, owner="ann", consent="form 12", output_name="anna at the beach", options={"crf": 18})
    await store.finish_segment(await claim(store), "00000-1.mp4", 1.0)
    assert await finish(store, job)
    assert await store.mark_inputs_erased(job.prompt_id)
    await store.mark_result_erased(job.prompt_id)
    await store.erase(job.prompt_id)
    found = [line async for line in store.audit_lines()]
    assert {(line.prompt_id, line.owner) for line in found} == {(job.prompt_id, "ann")}
    assert [(line.what, line.data) for line in found] == [
        (
            "accepted",
            {
                "video_sha256": "a" * 64,
                "image_sha256": ["b" * 64],
                "options": {"crf": 18, "priority": 0},
                "workflow": "FaceSwap-Reactor-API",
                "consent": "form 12",
            },
        ),
        ("ended", {"state": "SUCCESS", "code": None, "result_sha256": "c" * 64, "attempts": 1}),
        ("inputs_erased", {"reason": "time"}),
        ("result_erased", {"reason": "time"}),
        ("erased", {"reason": "request"}),
    ]
    assert "beach" not in json.dumps([line.data for line in found])
    assert [line.at for line in found] == sorted(line.at for line in found)


async def test_a_failure_and_a_retry_stand_in_the_record(store: Store) -> None:
    job = await create(store)
    await claim(store)
    await store.fail(job.prompt_id, "engine_error", "It broke.")
    assert not await store.fail(job.prompt_id, "engine_error", "It broke again.")
    await store.retry(job.prompt_id, None)
    await store.request_cancel(job.prompt_id, None)
    found = await lines(store)
    assert [what for what, _ in found] == ["accepted", "ended", "retried", "ended"]
    assert (found[1][1]["state"], found[1][1]["code"], found[1][1]["result_sha256"]) == ("FAILED", "engine_error", None)
    assert found[3][1]["state"] == "CANCELLED"


async def test_a_move_that_was_told_twice_is_recorded_once(store: Store) -> None:
    job = await run_to_success(store)
    lease = await acquire(store, join_lease(job.prompt_id))
    again = {"result_file": job.result_file or "", "size": 99, "sha256": "c" * 64, "warnings": ()}
    assert await store.succeed(job, lease, **again)
    for _ in range(2):
        await store.mark_inputs_erased(job.prompt_id)
        await store.mark_result_erased(job.prompt_id)
        await store.erase(job.prompt_id)
    assert [what for what, _ in await lines(store)] == ["accepted", "ended", "inputs_erased", "result_erased", "erased"]


async def test_the_end_of_a_running_job_that_is_erased_stands_before_its_erasure(store: Store) -> None:
    job = await create(store)
    await store.begin_erasure(job.prompt_id)
    await store.erase(job.prompt_id)
    assert [what for what, _ in await lines(store)] == ["accepted", "ended", "erased"]


async def test_what_is_undone_leaves_no_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await create(store)

    async def broken(*_: object, **__: object) -> None:
        raise StoreError("the disk is full", transient=True)

    with monkeypatch.context() as fault:
        fault.setattr("faceswap.store.transaction.Transaction.add_event", broken)
        with pytest.raises(StoreError):
            await store.fail(job.prompt_id, "code", "sentence")
    assert [what for what, _ in await lines(store)] == ["accepted"]
    assert (await store.job(job.prompt_id)).state == JobState.QUEUED


async def test_lines_can_be_asked_for_by_job_and_by_time_a_page_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faceswap.store.audit.BATCH", 2)
    one, two = await create(store), await create(store)
    for _ in range(3):
        await store.request_cancel(one.prompt_id, None)
        await store.retry(one.prompt_id, None)
    assert len(await lines(store)) == 8
    assert [what for what, _ in await lines(store, two.prompt_id)] == ["accepted"]
    now = await store.now_ms()
    assert [line async for line in store.audit_lines(since_ms=now + 60_000)] == []
    assert len([line async for line in store.audit_lines(since_ms=now - 60_000)]) == 8


async def test_lines_cannot_be_changed_or_deleted(store: Store, path: Path | str) -> None:
    await create(store)
    for statement in ("UPDATE audit SET what = 'x'", "DELETE FROM audit"):
        with pytest.raises(Exception, match="audit lines are only added"):
            sql(path, statement)
    assert len(await lines(store)) == 1


async def test_the_log_has_one_line_for_each_move_with_its_facts(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "faceswap.store.database")
    job = await create(store, owner="ann", consent="a secret", traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
    await claim(store, "http://gpu:8188")
    await store.fail(job.prompt_id, "engine_error", "It broke.")
    await store.retry(job.prompt_id, "ann")
    formatter = JsonFormatter()
    documents = [json.loads(formatter.format(record)) for record in caplog.records]
    assert [document["event"] for document in documents] == ["accepted", "started", "ended", "retried"]
    for document in documents:
        assert (document["prompt_id"], document["key"], document["trace_id"]) == (job.prompt_id, "ann", TRACE)
        assert document["message"].startswith(f"job {job.prompt_id} {document['event']}: ")
        assert document["message"].endswith(f", key ann, trace {TRACE}")
    ended = documents[2]
    assert (ended["engine"], ended["state"], ended["code"], ended["attempts"]) == (
        "http://gpu:8188",
        "FAILED",
        "engine_error",
        1,
    )
    assert ended["duration_s"] >= 0 and documents[1]["engine"] == "http://gpu:8188"
    assert "secret" not in caplog.text


async def test_a_second_segment_is_no_second_start(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "faceswap.store.database")
    await create(store, segments=2)
    await claim(store)
    await claim(store)
    assert [message.split()[2] for message in caplog.messages] == ["accepted:", "started:"]


def test_the_log_is_text_where_nothing_else_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure(Settings(Path("unused")))
        logging.getLogger("faceswap.test").info("a line", extra={"fields": {"prompt_id": "x"}})
    finally:
        root.handlers[:], root.level = before, level
    assert capsys.readouterr().err.endswith(" INFO faceswap.test: a line\n")
