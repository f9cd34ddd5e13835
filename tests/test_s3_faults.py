"""An S3 server that is away, says 503, is silent or cuts connections: told, bounded, and nothing half is left."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from file_places import Place
from s3_servers import S3Server, s3_server
from system.s3_proxy import S3Proxy
from system.tcp_proxy import TcpProxy
from test_stored_files import FACE, MIB, VIDEO, a_segment, content_of, inputs_of, keep, receive, the_job
from waiting import WAIT_S, eventually, until

from faceswap.files import Files, FilesUnavailable, objects, s3


@pytest.fixture
def server() -> S3Server:
    return s3_server("nanio")


@pytest.fixture
def place(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    for module, name, seconds in ((objects, "RETRY_S", 1.0), (s3, "AGAIN_S", 0.1)):
        monkeypatch.setattr(module, name, seconds)
    return Place("nanio", tmp_path, f"s3://{server.new_bucket()}/prefix")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a silent server for a short time only."""
    monkeypatch.setattr(objects, "REQUEST_S", 6.0)


@pytest.fixture
async def s3_proxy(server: S3Server, place: Place, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Proxy]:
    async with S3Proxy(server.url, random.Random(7)).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
async def way(server: S3Server, place: Place, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(server.port).running() as way:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{way.port}")
        yield way


async def make_segment(files: Files, prompt_id: str = "job") -> None:
    await files.make_scratch(prompt_id)
    files.segment(a_segment(prompt_id)).write_bytes(VIDEO)


async def test_what_s3_cannot_take_now_is_told_and_taken_later(place: Place, s3_proxy: S3Proxy) -> None:
    files = await place.started()
    await make_segment(files)
    s3_proxy.available = False
    with pytest.raises(FilesUnavailable):
        await files.keep_segment(a_segment("job"))
    with pytest.raises(FilesUnavailable):
        await files.fetch_inputs("job", inputs_of())  # which is not the same as that they are gone
    assert not await files.is_available()
    s3_proxy.available = True
    await files.keep_segment(a_segment("job"))
    assert place.stored() == [f"segments/job/{a_segment('job').output_file}"]
    assert await eventually(files.is_available) and not await files.fetch_inputs("job", inputs_of())


async def test_what_cannot_be_deleted_now_is_deleted_when_it_can_be(place: Place, s3_proxy: S3Proxy) -> None:
    files = await place.started()
    await receive(files, "job")
    await keep(files, "job", 1, VIDEO)
    s3_proxy.available = False
    with pytest.raises(FilesUnavailable):
        await files.delete_inputs("job")
    with pytest.raises(FilesUnavailable):
        await files.delete_result("job", "clip.mp4")
    await files.accept_upload("job")
    assert not files.inputs("job").exists()
    s3_proxy.available = True
    await until(lambda: place.stored() == [])
    await files.close()


async def test_an_upload_during_which_s3_goes_away_leaves_nothing(place: Place, s3_proxy: S3Proxy) -> None:
    files = await place.started()

    async def go_away() -> None:
        await until(place.unfinished)
        s3_proxy.available = False

    going = asyncio.create_task(go_away())
    with pytest.raises(FilesUnavailable):
        for _ in range(50):  # until it is away in the middle of one
            await receive(files, "job", os.urandom(30 * MIB))
            await files.delete_upload("job")
    await going
    assert not files.inputs("job").exists()
    s3_proxy.available = True
    await until(lambda: place.stored() == [])
    await files.close()


async def test_with_lost_answers_all_is_there_in_the_end_and_whole(place: Place, s3_proxy: S3Proxy) -> None:
    one, other = await place.started(), await place.started("other")
    s3_proxy.mischief = 0.2
    async with asyncio.timeout(WAIT_S):
        for number in range(4):
            job = f"job-{number}"
            await insist(lambda job=job: receive(one, job))
            sha256 = await insist(lambda job=job: keep(one, job, 1, VIDEO))
            await insist(lambda job=job, sha256=sha256: check_whole(other, job, sha256))
    assert s3_proxy.counts["503 though S3 did it"] and s3_proxy.counts["503 from S3"]
    for files in (one, other):
        await files.close()


async def insist(work: Callable[[], Awaitable[Any]]) -> Any:
    """Do something as often as S3 cannot be asked."""
    while True:
        with suppress(FilesUnavailable):
            return await work()


async def check_whole(files: Files, job: str, sha256: str) -> None:
    """Check that everything of a job has arrived."""
    assert await files.fetch_inputs(job, inputs_of())
    assert files.video(job, inputs_of()).read_bytes() == VIDEO
    assert files.images(job, inputs_of())[0].read_bytes() == FACE
    assert await content_of(files, the_job(job, sha256)) == VIDEO


async def test_a_copy_that_is_cut_off_is_not_there_at_all(place: Place, way: TcpProxy) -> None:
    one, other = await place.started(), await place.started("other")
    await receive(one, "job", os.urandom(40 * MIB))
    fetching = asyncio.create_task(other.fetch_inputs("job", inputs_of()))
    await until(lambda: other.inputs("job").exists())
    way.cut()
    with pytest.raises(FilesUnavailable):
        await fetching
    assert list(other.inputs("job").iterdir()) == []
    way.heal()
    assert await insist(lambda: other.fetch_inputs("job", inputs_of()))


async def test_a_server_that_is_silent_is_waited_for_no_longer_than_the_bound(
    hasty: None, place: Place, way: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = await place.started()
    await make_segment(files)
    way.hold()
    assert not await files.is_available()
    for request in (files.keep_segment(a_segment("job")), files.preview("job"), files.mark_erasure("job")):
        with pytest.raises(FilesUnavailable):
            await request
    monkeypatch.setattr(s3, "PREVIEW_S", 0.5)
    with pytest.raises(TimeoutError):
        await files.put_preview("job", b"missed")
    way.heal()
    await insist(lambda: files.keep_segment(a_segment("job")))
    assert await eventually(files.is_available)
    await files.close()


async def test_a_server_that_is_slow_does_its_work(place: Place, way: TcpProxy) -> None:
    files = await place.started()
    await make_segment(files)
    way.hold()
    keeping = asyncio.create_task(files.keep_segment(a_segment("job")))
    await until(lambda: way.connections)
    way.heal()
    await keeping
    assert place.stored()


async def test_while_s3_takes_nothing_an_upload_holds_no_more_than_its_bound(
    hasty: None, place: Place, way: TcpProxy
) -> None:
    files = await place.started()
    upload = files._objects.upload("large", 200 * MIB)  # type: ignore[attr-defined]
    way.hold()
    written = 0

    async def write() -> None:
        nonlocal written
        for _ in range(200):
            await upload.write(bytes(MIB))
            written += 1

    with pytest.raises(FilesUnavailable):
        await write()
    parts = objects.SMALLEST_PART_BYTES * (objects.PARTS_AT_A_TIME + 2)
    assert written * MIB <= parts + objects.PIECES_WAITING * MIB
    way.heal()
    await upload.abort()


async def test_an_upload_that_is_unknown_at_its_end_is_to_be_begun_again(place: Place, server: S3Server) -> None:
    files = await place.started()
    upload = files._objects.upload("large", 200 * MIB)  # type: ignore[attr-defined]
    for _ in range(12):
        await upload.write(bytes(MIB))
    await until(place.unfinished)
    [begun] = server.client.list_multipart_uploads(Bucket=place.bucket)["Uploads"]
    server.client.abort_multipart_upload(Bucket=place.bucket, Key=begun["Key"], UploadId=begun["UploadId"])
    with pytest.raises(FilesUnavailable):
        await upload.finish()
