"""Ids, states and names of jobs, and the text of events."""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_jobs import create, opened

from faceswap.events import Event
from faceswap.jobs import TERMINAL, TRANSITIONS, JobState, comfy_prompt_id, default_output_name, iso, new_prompt_id
from faceswap.options import check_output_name


def test_the_default_name_tells_the_time_and_is_allowed() -> None:
    name = default_output_name(datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert name == check_output_name("faceswap_20250102_030405")


def test_times_are_utc_with_milliseconds() -> None:
    assert iso(None) is None
    assert iso(0) == "1970-01-01T00:00:00.000Z"
    assert iso(1_735_787_045_007) == "2025-01-02T03:04:05.007Z"


@given(st.integers(0, 4_102_444_800_000))
def test_times_lose_nothing(milliseconds: int) -> None:
    text = iso(milliseconds)
    assert text is not None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert round(datetime.fromisoformat(text).timestamp() * 1000) == milliseconds


def test_the_moves_cover_all_states_and_only_a_retry_leaves_an_end() -> None:
    assert set(TRANSITIONS) == set(JobState)
    for state in TERMINAL:
        assert TRANSITIONS[state] <= {JobState.QUEUED}
    assert not TRANSITIONS[JobState.SUCCESS]
    reachable = {JobState.QUEUED}
    while more := {target for state in reachable for target in TRANSITIONS[state]} - reachable:
        reachable |= more
    assert reachable == set(JobState)
    for state in set(JobState) - TERMINAL:
        assert TRANSITIONS[state] & TERMINAL


def test_the_id_of_an_attempt_is_the_same_in_every_process_and_its_own() -> None:
    assert comfy_prompt_id("job", 0, 1) == "35fa42fb-4c20-59c9-b7ab-c7e4246e67bf"
    ids = {comfy_prompt_id(job, segment, attempt) for job in "ab" for segment in range(12) for attempt in range(12)}
    assert len(ids) == 2 * 12 * 12
    assert {uuid.UUID(id).version for id in ids} == {5}


def test_public_ids_cannot_be_guessed() -> None:
    assert uuid.UUID(new_prompt_id()).version == 4
    assert new_prompt_id() != new_prompt_id()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_an_event_is_one_block_of_server_sent_events(message: str) -> None:
    event = Event("job", 7, "status", {"message": message})
    text = event.sse().decode()
    assert re.split("\r\n|\n|\r", text)[:2] == ["id: 7", "event: status"]
    assert len(re.split("\r\n|\n|\r", text)) == 5
    assert text.endswith("\n\n")
    assert json.loads(text.split("data: ", 1)[1]) == event.data


@pytest.mark.parametrize(
    ("type", "terminal"), [("completed", True), ("error", True), ("cancelled", True), ("status", False)]
)
def test_a_stream_ends_with_the_end_of_its_job(type: str, terminal: bool) -> None:
    assert Event("job", 1, type, {}).terminal is terminal


async def test_the_status_document_has_the_fields_of_the_contract(tmp_path: Any) -> None:
    async with opened(tmp_path / "faceswap.db") as store:
        job = await create(store, segments=2, options={"crf": 30})
    document = job.status(queue_position=4)
    assert set(document) == {
        "prompt_id",
        "status",
        "progress",
        "created_at",
        "updated_at",
        "result",
        "error",
        "code",
        "queue_position",
        "wait_seconds",
        "eta_seconds",
        "started_at",
        "finished_at",
        "output_prefix",
        "options",
        "consent",
        "media",
        "label",
        "segments",
        "attempts",
        "warnings",
        "sha256",
        "bytes",
        "trace_id",
    }
    assert set(document["progress"]) == {"percentage", "step", "current", "total", "fps"}
    assert (document["status"], document["result"], document["queue_position"]) == ("QUEUED", None, 4)
    assert document["segments"] == {"done": 0, "total": 2}
    assert document["created_at"] == iso(job.created_at)
    assert json.loads(json.dumps(document)) == document
