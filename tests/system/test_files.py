"""Results and previews, out again: whole, in ranges, conditionally, and gone."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from processes import Engine, Service, eventually
from talk import Api, assert_problem


@pytest.fixture
async def result(api: Api) -> dict[str, Any]:
    """Return a finished job's status."""
    return await api.finished(output_name="my result")


async def test_a_result_is_downloaded_whole(api: Api, result: dict[str, Any]) -> None:
    answer = await api.get(result["result"])
    assert (answer.status, len(answer.body)) == (200, result["bytes"])
    assert hashlib.sha256(answer.body).hexdigest() == result["sha256"]
    assert answer.headers["Content-Type"] == "video/mp4"
    assert answer.headers["Content-Length"] == str(result["bytes"])
    assert answer.headers["Accept-Ranges"] == "bytes"
    filename = f"{result['output_prefix']}.mp4"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{filename}"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_result_can_be_played_in_place(api: Api, result: dict[str, Any]) -> None:
    answer = await api.get(f"{result['result']}?inline=1")
    assert answer.headers["Content-Disposition"].startswith("inline;")


async def test_head_tells_the_headers_alone(api: Api, result: dict[str, Any]) -> None:
    whole, head = await api.get(result["result"]), await api.call("HEAD", result["result"])
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Length", "Content-Type", "ETag", "Content-Disposition", "Accept-Ranges"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-99", 0, 99), ("bytes=100-", 100, None), ("bytes=-50", -50, None), ("bytes=10-9999999", 10, None)],
)
async def test_a_part_is_answered_with_206(
    api: Api, result: dict[str, Any], asked: str, first: int, last: int | None
) -> None:
    whole = (await api.get(result["result"])).body
    answer = await api.get(result["result"], headers={"Range": asked})
    start = first % len(whole)
    end = len(whole) - 1 if last is None else last
    assert (answer.status, answer.body) == (206, whole[start : end + 1])
    assert answer.headers["Content-Range"] == f"bytes {start}-{end}/{len(whole)}"
    assert answer.headers["Content-Length"] == str(end + 1 - start)


async def test_a_part_behind_the_end_is_416(api: Api, result: dict[str, Any]) -> None:
    answer = await api.get(result["result"], headers={"Range": "bytes=99999999-"})
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{result['bytes']}")


async def test_if_range_gives_the_part_of_the_same_file_and_the_whole_of_another(
    api: Api, result: dict[str, Any]
) -> None:
    whole = await api.get(result["result"])
    etag, modified = whole.headers["ETag"], whole.headers["Last-Modified"]
    part = {"Range": "bytes=5-9"}
    for same in (etag, modified):
        answer = await api.get(result["result"], headers={**part, "If-Range": same})
        assert (answer.status, answer.body) == (206, whole.body[5:10])
    for other in ('"other"', f"W/{etag}", "Sat, 01 Jan 2000 00:00:00 GMT"):
        answer = await api.get(result["result"], headers={**part, "If-Range": other})
        assert (answer.status, answer.body) == (200, whole.body)


async def test_an_unchanged_result_is_not_sent_again(api: Api, result: dict[str, Any]) -> None:
    etag = (await api.get(result["result"])).headers["ETag"]
    answer = await api.get(result["result"], headers={"If-None-Match": etag})
    assert (answer.status, answer.body) == (304, b"")


async def test_jobs_with_the_same_name_get_their_own_files(api: Api) -> None:
    prompt_ids = await asyncio.gather(*(api.submit(output_name="taken") for _ in range(4)))
    results = [(await api.done(prompt_id))["result"] for prompt_id in prompt_ids]
    assert sorted(results) == [f"/download/taken{suffix}.mp4" for suffix in ("-2", "-3", "-4", "")]
    assert {(await api.get(result)).status for result in results} == {200}


async def test_a_result_that_is_gone_from_disk_is_410(api: Api, service: Service, result: dict[str, Any]) -> None:
    assert (await api.get(result["result"])).status == 200
    (service.data_dir / "outputs" / f"{result['output_prefix']}.mp4").unlink()
    problem = assert_problem(await api.get(result["result"]), 410, "result_expired")
    assert problem["prompt_id"] == result["prompt_id"]


async def test_the_result_of_an_erased_job_is_404(api: Api, result: dict[str, Any]) -> None:
    assert (await api.call("DELETE", f"/jobs/{result['prompt_id']}")).status == 204
    assert_problem(await api.get(result["result"]), 404, "unknown_file")


async def test_a_running_job_has_a_preview_and_an_ended_one_none(api: Api, engine: Engine) -> None:
    await engine.hold()
    other, prompt_id = await api.submit(), await api.submit()
    previews = []
    async with api.watching(prompt_id) as events:
        await api.post(f"/jobs/{other}/cancel")
        async for event in events:
            if event.type == "preview":
                previews.append(event.data["url"])
                engine.release()
    assert previews and set(previews) == {f"/preview/{prompt_id}"}
    assert_problem(await api.get(f"/preview/{prompt_id}"), 404, "no_preview")


async def test_a_preview_is_a_jpeg_that_nobody_keeps(api: Api, engine: Engine) -> None:
    await engine.hold()
    prompt_id = await api.submit()

    async def preview() -> Any:
        answer = await api.get(f"/preview/{prompt_id}")
        return answer if answer.status == 200 else None

    answer = await eventually(preview)
    assert answer.body.startswith(b"\xff\xd8\xff") and answer.body.endswith(b"\xff\xd9")
    assert (answer.headers["Content-Type"], answer.headers["Cache-Control"]) == ("image/jpeg", "no-store")
    assert (await api.call("DELETE", f"/jobs/{prompt_id}")).status == 204


async def test_a_queued_job_has_no_preview(idle: Api) -> None:
    assert_problem(await idle.get(f"/preview/{await idle.submit()}"), 404, "no_preview")
