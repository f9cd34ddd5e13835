"""The service with its files on S3: the same promises as with a data folder, and what happens when S3 is away."""

from __future__ import annotations

import asyncio
import io
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest
import pytest_asyncio
from processes import Engine, Service, dead_url, eventually, files_in
from s3_servers import S3Server, s3_server
from system.s3_proxy import S3Proxy
from talk import Api, assert_problem
from test_files import (
    result,  # noqa: F401 - a fixture
    test_a_part_behind_the_end_is_416,  # noqa: F401 - these promises hold here too
    test_a_part_is_answered_with_206,  # noqa: F401
    test_a_result_can_be_played_in_place,  # noqa: F401
    test_a_result_is_downloaded_whole,  # noqa: F401
    test_an_unchanged_result_is_not_sent_again,  # noqa: F401
    test_head_tells_the_headers_alone,  # noqa: F401
    test_if_range_gives_the_part_of_the_same_file_and_the_whole_of_another,  # noqa: F401
    test_jobs_with_the_same_name_get_their_own_files,  # noqa: F401
    test_the_result_of_an_erased_job_is_404,  # noqa: F401
)
from waiting import until

from faceswap import samples
from faceswap.client import FaceSwap
from faceswap.recovery import FILES_AWAY_MESSAGE

MIB = 2**20
LARGE = 160 * MIB
HELD = 96 * MIB
"""The most memory that a transfer of a `LARGE` file may take: what it holds is bounded, whatever its size."""


ON_DISK = pytest.mark.parametrize("server", ["nanio"], indirect=True)
"""For tests that take long: moto's server keeps all in memory."""


def stored(server: S3Server, bucket: str) -> list[str]:
    """Return the keys in a bucket."""
    pages = server.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [item["Key"] for page in pages for item in page.get("Contents", ())]


def kinds(keys: Iterable[str]) -> list[str]:
    """Return what kinds of files are stored below the prefix."""
    return sorted(key.split("/")[1] for key in keys)


@pytest.fixture(scope="module", params=["moto", "nanio"])
def server(request: pytest.FixtureRequest) -> S3Server:
    return s3_server(request.param)


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    return server.new_bucket()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def processes(
    server: S3Server, bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Service, Engine]]:
    folder = tmp_path_factory.mktemp("s3")
    env = dict(server.environment())
    async with (
        Engine(folder, paint=True) as engine,
        Service(folder, engine.url, env=env, files_url=f"s3://{bucket}/prefix", max_upload_mb=LARGE // MIB) as service,
    ):
        yield service, engine


async def test_of_an_erased_job_nothing_is_left(api: Api, service: Service, server: S3Server, bucket: str) -> None:
    status = await api.finished()
    prompt_id = status["prompt_id"]
    await until(
        lambda: kinds(name for name in stored(server, bucket) if prompt_id in name) == ["inputs", "inputs", "results"]
    )
    assert (await api.call("DELETE", f"/jobs/{prompt_id}")).status == 204
    await until(lambda: not [name for name in stored(server, bucket) if prompt_id in name])
    assert not [name for name in files_in(service.data_dir) if prompt_id in name]


async def test_the_tag_of_a_result_is_its_digest_and_a_part_of_another_is_not_sent(api: Api) -> None:
    status = await api.finished()
    whole = await api.get(status["result"])
    assert whole.headers["ETag"] == f'"{status["sha256"]}"'  # the same at every node
    for condition, expected in ((whole.headers["ETag"], 206), ('"other"', 200)):
        answer = await api.get(status["result"], headers={"Range": "bytes=5-9", "If-Range": condition})
        assert answer.status == expected
    for header, expected in (("If-Match", 412), ("If-None-Match", 200)):
        assert (await api.get(status["result"], headers={header: '"other"'})).status == expected


async def test_a_result_that_is_gone_from_the_bucket_is_410(api: Api, server: S3Server, bucket: str) -> None:
    status = await api.finished()
    [key] = [name for name in stored(server, bucket) if f"results/{status['prompt_id']}/" in name]
    server.client.delete_object(Bucket=bucket, Key=key)
    assert_problem(await api.get(status["result"]), 410, "result_expired")


@ON_DISK
async def test_a_large_upload_is_bounded_in_memory_and_leaves_nothing(
    api: Api, service: Service, server: S3Server, bucket: str
) -> None:
    # What an earlier job made is erased after its end was told.
    await until(lambda: not any("/segments/" in name or "/previews/" in name for name in stored(server, bucket)))
    before, peak = stored(server, bucket), peak_memory(service.pid)
    answer = await api.post("/face-swap", data=api.form(video=io.BytesIO(os.urandom(LARGE - MIB)).getvalue()))
    assert_problem(answer, 415, "not_a_video")
    assert peak_memory(service.pid) - peak < HELD
    assert stored(server, bucket) == before and server.unfinished(bucket) == []


def peak_memory(pid: int) -> int:
    """Return the most memory that a process ever held, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@ON_DISK
async def test_a_large_result_is_read_no_faster_than_it_is_taken(
    api: Api, service: Service, server: S3Server, bucket: str
) -> None:
    status = await api.finished()
    [key] = [name for name in stored(server, bucket) if f"results/{status['prompt_id']}/" in name]
    server.client.put_object(Bucket=bucket, Key=key, Body=os.urandom(LARGE))  # as if it were that large
    peak = peak_memory(service.pid)
    async with api.session.get(api.url + status["result"]) as answer:
        size = len(await answer.content.readexactly(MIB))
        for _ in range(50):  # the service could go on sending meanwhile
            await api.get("/livez")
        assert peak_memory(service.pid) - peak < HELD
        async for piece in answer.content.iter_chunked(MIB):
            size += len(piece)
    assert size == LARGE
    assert peak_memory(service.pid) - peak < HELD


async def test_a_download_may_be_redirected_to_a_signed_address(
    tmp_path: Path, server: S3Server, bucket: str, api_of: Callable[[Service], Api]
) -> None:
    url = f"s3://{bucket}/redirected"
    async with (
        Engine(tmp_path, paint=True) as engine,
        Service(tmp_path, engine.url, env=dict(server.environment()), files_url=url, download_redirect=1) as service,
    ):
        api = api_of(service)
        status = await api.finished()
        answer = await api.get(status["result"])
        assert answer.status == 307
        async with api.session.get(answer.headers["Location"]) as signed:
            assert signed.status == 200 and len(await signed.read()) == status["bytes"]
            assert "attachment" in signed.headers["Content-Disposition"]
        assert (await api.call("HEAD", status["result"])).status == 200
        assert (await api.get(f"{status['result']}?inline=1")).status == 200


async def test_while_s3_is_away_jobs_wait_and_nothing_is_taken_in(
    tmp_path: Path, server: S3Server, api_of: Callable[[Service], Api]
) -> None:
    bucket = server.new_bucket()
    async with S3Proxy(server.url, random.Random(1)).running() as s3, Engine(tmp_path, paint=True) as engine:
        env = dict(server.environment(s3.url))
        async with Service(tmp_path, engine.url, env=env, files_url=f"s3://{bucket}") as service:
            api = api_of(service)
            done = await api.finished()
            await engine.hold()
            prompt_id = await api.submit()
            s3.available = False
            engine.release()

            async def waits() -> bool:
                return bool((await api.status(prompt_id))["progress"]["step"] == FILES_AWAY_MESSAGE)

            await eventually(waits)
            ready = await api.get("/readyz")
            assert ready.status == 503 and ready.json["checks"]["files"] is False
            refused = await api.swap()
            assert_problem(refused, 503, "files_unavailable")
            assert int(refused.headers["Retry-After"]) > 0
            assert_problem(await api.get(done["result"]), 503, "files_unavailable")
            assert_problem(await api.call("DELETE", f"/jobs/{done['prompt_id']}"), 503, "files_unavailable")
            s3.available = True
            assert (await api.done(prompt_id))["status"] == "SUCCESS"
            assert (await api.call("DELETE", f"/jobs/{done['prompt_id']}")).status == 204

            async def no_mark_is_left() -> bool:
                return not [name for name in stored(server, bucket) if name.startswith("marks/")]

            await eventually(no_mark_is_left)

            async def is_ready() -> bool:
                return bool((await api.get("/readyz")).json["checks"]["files"])

            await eventually(is_ready)


@ON_DISK
async def test_with_the_embedded_engine_a_face_is_swapped(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "FRAMES", 18)
    bucket = server.new_bucket()
    source, result_file = tmp_path / "source.mp4", tmp_path / "result.mp4"
    samples.make_clip(source)
    env = dict(server.environment())
    async with (
        Service(tmp_path, env=env, files_url=f"s3://{bucket}/prefix", segment_frames=8) as service,
        FaceSwap(service.url) as client,
    ):
        prompt_id = await client.submit(source, samples.FACE, output_name="swapped")
        events = [event async for event in client.events(prompt_id)]
        assert events[-1].type == "completed", events[-1]
        await client.download("swapped.mp4", result_file, sha256=events[-1].data["sha256"])
        await until(lambda: kinds(stored(server, bucket)) == ["inputs", "inputs", "results"])
        assert not [name for name in files_in(service.data_dir) if name.startswith("outputs/")]


@pytest.mark.parametrize("wrong", ["bucket", "key"])
async def test_what_is_wrong_with_s3_is_told_at_the_start(tmp_path: Path, wrong: str) -> None:
    server = s3_server("nanio")
    bucket = server.new_bucket() if wrong != "bucket" else "no-such-bucket"
    env = dict(server.environment())
    if wrong == "key":
        env["AWS_SECRET_ACCESS_KEY"] = "another"
    service = Service(tmp_path, env=env, files_url=f"s3://{bucket}/prefix")
    with pytest.raises(AssertionError):
        await service.start()
    assert await service.ended() == 2
    sentence = {"bucket": "there is no bucket", "key": "refuses the credentials"}
    [line] = [line for line in service.log().splitlines() if line.startswith("faceswap:")]
    assert "FACESWAP_FILES_URL" in line and sentence[wrong] in line


async def test_a_server_that_starts_later_is_waited_for(tmp_path: Path) -> None:
    with S3Server("nanio") as server:
        url, env = f"s3://{server.new_bucket()}", dict(server.environment())
        server.stop()
        service = Service(tmp_path, dead_url(), env=env, files_url=url)
        log, starting = tmp_path / "service.log", asyncio.create_task(service.start())
        try:
            await until(lambda: log.exists() and "trying again until they can" in log.read_text())
        finally:
            server.start()
            await starting
            assert await service.stop() == 0
