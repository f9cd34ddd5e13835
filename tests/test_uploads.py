"""Resumable uploads: by tus over real sockets, cut off, taken up again, used, erased."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any

import postgres
import pytest
import pytest_asyncio
from aiohttp.test_utils import TestClient, TestServer
from clips import make_clip
from described import Described
from file_places import PLACES, Place, make_place
from node_rig import Nodes
from processes import dead_url, files_in
from service_rig import PlainServer, ServiceRig, running_service
from stored_jobs import sql
from tus_clients import Cutter, random_cuts, start_tus_js
from tusclient.client import TusClient
from waiting import WAIT_S, eventually, until

from faceswap import samples
from faceswap.api import keys
from faceswap.errors import BadRequest, NotFound
from faceswap.files import Files
from faceswap.intake import uploads as uploads_module
from faceswap.intake.files import FileSink, KeptFile, Room, StoredFile, new_input_folder
from faceswap.janitor import Janitor
from faceswap.keyring import digest, new_key
from faceswap.metrics import RECEIVED_BYTES
from faceswap.uploads import Part, check_metadata

pytestmark = pytest.mark.asyncio(loop_scope="module")

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {"Content-Type": "application/offset+octet-stream"}
ANN, BOB = new_key(), new_key()


class Client:
    """Someone who uploads, by the words of tus."""

    def __init__(self, rig: ServiceRig, key: str | None = None) -> None:
        self.rig = rig
        self._key = {} if key is None else {"X-API-Key": key}

    async def call(
        self, method: str, path: str, headers: dict[str, str] | None = None, data: Any = None
    ) -> tuple[int, Any, Any]:
        """Send a call; returns status, headers, and the code of a problem or what JSON says."""
        sent = {**TUS, **self._key, **(headers or {})}
        sent = {name: value for name, value in sent.items() if value}
        async with self.rig.client.request(method, path, headers=sent, data=data) as response:
            body = await response.read()
            document = json.loads(body) if body and response.content_type.endswith("json") else None
            return response.status, response.headers, document.get("code", document) if document else None

    async def create(self, length: int, **headers: str) -> str:
        """Create an upload; returns its path."""
        status, answer, document = await self.call("POST", "/uploads", {"Upload-Length": str(length), **headers})
        assert (status, document["length"], document["offset"]) == (201, length, 0)
        assert answer["Location"] == f"/uploads/{document['id']}"
        return str(answer["Location"])

    async def patch(self, path: str, offset: int, data: Any) -> tuple[int, Any, Any]:
        return await self.call("PATCH", path, {**BYTES, "Upload-Offset": str(offset)}, data)

    async def offset(self, path: str) -> int:
        status, answer, _ = await self.call("HEAD", path)
        assert status == 200
        return int(answer["Upload-Offset"])

    async def upload(self, data: bytes, pieces: int = 1) -> str:
        """Upload bytes in requests of their own; returns the id."""
        path = await self.create(len(data))
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            status, answer, _ = await self.patch(path, start, data[start : start + size])
            assert (status, answer["Upload-Offset"]) == (204, str(min(start + size, len(data))))
        return path.rpartition("/")[2]

    async def swap(self, **fields: Any) -> tuple[int, Any]:
        """Ask for a swap by JSON; returns the status, and the job's id or the code of a problem."""
        async with self.rig.client.post(
            "/face-swap", json={"return_prompt_id_only": True, **fields}, headers=self._key
        ) as response:
            document = await response.json()
            return response.status, document["prompt_id"] if response.status == 200 else document["code"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 12, size=(96, 64), sounds=["aac"]).read_bytes()


FACE = samples.FACE.read_bytes()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServiceRig]:
    """Yield a service whose jobs stay queued, with keys for Ann and Bob."""
    folder = tmp_path_factory.mktemp("uploads")
    (folder / "keys").write_text(f"ann:{digest(ANN)}\nbob:{digest(BOB)}\n")
    settings = {"api_keys_file": folder / "keys", "max_upload_mb": 8, "rate_limit": 0}
    async with running_service(
        folder / "data", dead_url(), headers={"X-API-Key": ANN}, server=PlainServer, **settings
    ) as rig:
        yield rig


@pytest.fixture
def ann(rig: ServiceRig) -> Client:
    return Client(rig, ANN)


@pytest.fixture
def bob(rig: ServiceRig) -> Client:
    return Client(rig, BOB)


def inputs(rig: ServiceRig, prompt_id: str) -> dict[str, bytes]:
    """Return the files in a job's input folder."""
    folder = rig.client.app[keys.FILES].inputs(prompt_id)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def uploaded(rig: ServiceRig, upload_id: str) -> list[str]:
    """Return the files of an upload."""
    return files_in(rig.folder / "uploads" / upload_id)


@pytest.mark.parametrize("pieces", [1, 3])
async def test_an_upload_serves_several_jobs_and_what_is_deleted_is_no_jobs_input(
    ann: Client, clip: bytes, pieces: int
) -> None:
    video, face = await ann.upload(clip, pieces), await ann.upload(FACE)
    jobs = []
    for _ in range(2):
        status, prompt_id = await ann.swap(video_upload=video, image_upload=[face, face])
        assert status == 200
        jobs.append(prompt_id)
    for upload_id in (video, face):
        assert (await ann.call("DELETE", f"/uploads/{upload_id}"))[0] == 204
        assert not uploaded(ann.rig, upload_id)
        assert (await ann.call("HEAD", f"/uploads/{upload_id}"))[0] == 404
    for prompt_id in jobs:
        assert inputs(ann.rig, prompt_id) == {"video.mp4": clip, "image.jpg": FACE, "image-1.jpg": FACE}
        job = await ann.rig.client.app[keys.STORE].job(prompt_id)
        assert (job.inputs.video_bytes, job.inputs.frames) == (len(clip), 12)
    assert await ann.swap(video_upload=video, image_upload=face) == (404, "unknown_upload")


async def test_a_repeated_request_makes_one_job_though_its_upload_is_another(ann: Client, clip: bytes) -> None:
    again = Client(ann.rig)
    again._key = {**ann._key, "Idempotency-Key": "once"}
    answers = [
        await again.swap(video_upload=await ann.upload(clip, pieces), image_upload=await ann.upload(FACE))
        for pieces in (1, 3)
    ]
    assert answers[0] == answers[1]
    other = await again.swap(video_upload=await ann.upload(clip + b"more"), image_upload=await ann.upload(FACE))
    assert other == (422, "idempotency_key_reused")


async def test_an_upload_in_one_go_is_not_copied(ann: Client, clip: bytes) -> None:
    video, face = await ann.upload(clip), await ann.upload(FACE)
    _, prompt_id = await ann.swap(video_upload=video, image_upload=face)
    [name] = uploaded(ann.rig, video)
    folder = ann.rig.client.app[keys.FILES].inputs(prompt_id)
    assert (ann.rig.folder / "uploads" / video / name).samefile(folder / "video.mp4")


async def test_inputs_that_are_not_given_are_taken_from_a_job(ann: Client, bob: Client, clip: bytes) -> None:
    video, face = await ann.upload(clip), await ann.upload(FACE)
    _, first = await ann.swap(video_upload=video, image_upload=face)
    status, again = await ann.swap(from_job=first, options={"crf": 30})
    assert status == 200
    assert inputs(ann.rig, again) == inputs(ann.rig, first)
    _, other_face = await ann.swap(from_job=first, image_upload=[face, face])
    assert inputs(ann.rig, other_face) == {**inputs(ann.rig, first), "image-1.jpg": FACE}
    first_job, second_job = [await ann.rig.client.app[keys.STORE].job(prompt_id) for prompt_id in (first, again)]
    assert first_job.inputs == second_job.inputs
    assert await bob.swap(from_job=first) == (404, "unknown_prompt_id")
    assert await ann.swap(from_job="nobody") == (404, "unknown_prompt_id")
    assert await ann.swap(video_upload=video) == (400, "missing_image")
    assert await ann.swap(from_job=first, video_upload=video, video_url="http://a.example/") == (400, "duplicate_video")
    await ann.rig.client.app[keys.STORE].request_cancel(first, "ann")
    assert await ann.rig.client.app[keys.STORE].mark_inputs_erased(first)
    assert await ann.swap(from_job=first) == (410, "inputs_erased")


async def test_a_websocket_takes_uploads_and_inputs_of_jobs_too(ann: Client, clip: bytes) -> None:
    video, face = await ann.upload(clip), await ann.upload(FACE)
    prompt_id = ""
    for fields in ({"video_upload": video, "image_upload": [face]}, {"image_upload": face}):
        first = {**fields, "from_job": prompt_id or None}
        async with ann.rig.client.ws_connect("/face-swap-ws", headers={"X-API-Key": ANN}) as socket:
            await socket.send_json(first)
            event = await socket.receive_json()
            assert event["event"] == "queued", event
            prompt_id = event["data"]["prompt_id"]
        assert inputs(ann.rig, prompt_id) == {"video.mp4": clip, "image.jpg": FACE}


async def test_an_upload_is_another_owners_in_no_way(ann: Client, bob: Client, clip: bytes) -> None:
    video, face = await ann.upload(clip), await bob.upload(FACE)
    path = f"/uploads/{video}"
    for method in ("HEAD", "GET", "DELETE"):
        assert (await bob.call(method, path))[0] == 404
    assert (await bob.patch(path, len(clip), b""))[2] == "unknown_upload"
    assert await bob.swap(video_upload=video, image_upload=face) == (404, "unknown_upload")
    assert await ann.offset(path) == len(clip)


async def test_what_is_not_whole_serves_no_job(ann: Client, clip: bytes) -> None:
    path = await ann.create(len(clip))
    assert (await ann.patch(path, 0, clip[:-1]))[0] == 204
    face = await ann.upload(FACE)
    unfinished = path.rpartition("/")[2]
    assert await ann.swap(video_upload=unfinished, image_upload=face) == (409, "upload_unfinished")


async def test_clients_are_told_the_version_the_metadata_and_the_end(ann: Client) -> None:
    status, answer, _ = await ann.call("OPTIONS", "/uploads", {"Tus-Resumable": ""})
    assert (status, answer["Tus-Version"], answer["Tus-Max-Size"]) == (204, "1.0.0", str(8 << 20))
    assert answer["Tus-Extension"] == "creation,expiration,termination"
    metadata = f"filename {base64.b64encode('Ünser Film.mp4'.encode()).decode()},is_confidential"
    path = await ann.create(5, **{"Upload-Metadata": metadata})
    status, answer, _ = await ann.call("HEAD", path)
    assert (status, answer["Upload-Metadata"], answer["Upload-Length"]) == (200, metadata, "5")
    assert (answer["Tus-Resumable"], answer["Cache-Control"]) == ("1.0.0", "no-store")
    left_s = (parsedate_to_datetime(answer["Upload-Expires"]) - datetime.now(UTC)).total_seconds()
    assert 86_000 < left_s <= 86_400
    status, _, document = await ann.call("GET", path, {"Tus-Resumable": ""})
    assert (status, document["offset"], document["length"]) == (200, 0, 5)


@pytest.mark.parametrize(
    ("method", "headers", "refusal"),
    [
        ("POST", {"Tus-Resumable": "", "Upload-Length": "5"}, (412, "unsupported_tus_version")),
        ("POST", {"Tus-Resumable": "0.2.2", "Upload-Length": "5"}, (412, "unsupported_tus_version")),
        ("POST", {}, (400, "invalid_upload_length")),
        ("POST", {"Upload-Length": "-1"}, (400, "invalid_upload_length")),
        ("POST", {"Upload-Defer-Length": "1"}, (400, "invalid_upload_length")),
        ("POST", {"Upload-Length": str((8 << 20) + 1)}, (413, "too_large")),
        ("POST", {"Upload-Length": "5", "Upload-Metadata": "name nö"}, (400, "invalid_upload_metadata")),
        ("PATCH", {**BYTES, "Upload-Offset": "0", "Tus-Resumable": ""}, (412, "unsupported_tus_version")),
        ("PATCH", {**BYTES}, (400, "invalid_upload_offset")),
        ("PATCH", {**BYTES, "Upload-Offset": "1"}, (409, "upload_offset_mismatch")),
        ("PATCH", {"Upload-Offset": "0", "Content-Type": "video/mp4"}, (415, "unsupported_content_type")),
        ("DELETE", {"Tus-Resumable": ""}, (412, "unsupported_tus_version")),
    ],
)
async def test_a_wrong_call_is_refused(
    ann: Client, method: str, headers: dict[str, str], refusal: tuple[int, str]
) -> None:
    path = "/uploads" if method == "POST" else await ann.create(5)
    status, answer, code = await ann.call(method, path, headers, data=None if method == "POST" else b"12345")
    assert (status, code) == refusal
    assert answer["Tus-Resumable"] == "1.0.0"
    assert status != 412 or answer["Tus-Version"] == "1.0.0"
    assert method == "POST" or await ann.offset(path) == 0


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_more_bytes_than_are_missing_are_refused(ann: Client, is_chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"123"
        yield b"456"

    path = await ann.create(5)
    status, _, code = await ann.patch(path, 0, pieces() if is_chunked else b"123456")
    assert (status, code) == (413, "too_large")
    assert await ann.offset(path) <= 5


@pytest.mark.parametrize("text", ["a,a", "a b c", "ä YQ==", "a YQ", ",", "a YQ==,", "x" * 5000])
async def test_metadata_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        check_metadata(text)


@asynccontextmanager
async def sending(client: Client, path: str, offset: int, length: int, data: bytes) -> AsyncIterator[None]:
    """Begin a `PATCH` that announces `length` bytes, send some, and leave it there; it is cut off at the end."""
    url = client.rig.client.make_url(path)
    _, writer = await asyncio.open_connection(url.host, url.port)
    lines = {**TUS, **BYTES, "Host": url.host, "X-API-Key": ANN, "Upload-Offset": offset, "Content-Length": length}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"PATCH {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
    await writer.drain()
    try:
        yield
    finally:
        writer.close()


async def test_what_arrived_before_a_cut_is_kept_and_the_rest_follows(ann: Client, clip: bytes) -> None:
    path = await ann.create(len(clip))
    sent = 0
    while sent < len(clip):
        part = clip[sent : sent + len(clip) // 3 + 1]
        expected = received() + len(part)
        async with sending(ann, path, sent, len(clip) - sent, part):
            await until(lambda expected=expected: received() >= expected)
        sent += len(part)

        async def kept(wanted: int = sent) -> bool:
            return await ann.offset(path) == wanted

        await eventually(kept)
    face = await ann.upload(FACE)
    _, prompt_id = await ann.swap(video_upload=path.rpartition("/")[2], image_upload=face)
    assert inputs(ann.rig, prompt_id)["video.mp4"] == clip


def received() -> float:
    """Return the bytes of inputs that this process has ever received."""
    return next(sample.value for metric in RECEIVED_BYTES.collect() for sample in metric.samples)


async def test_of_two_that_add_to_the_same_upload_one_is_told_so(ann: Client) -> None:
    path = await ann.create(3)
    store = ann.rig.client.app[keys.STORE]
    upload = await store.upload(path.rpartition("/")[2], "ann")
    assert await store.grow_upload(upload, [Part("a", 2)], None, 60) is not None
    assert await store.grow_upload(upload, [Part("b", 3)], None, 60) is None
    assert (await store.upload(upload.id, "ann")).parts == (Part("a", 2),)


async def begins(client: Client, path: str) -> None:
    """Wait until a request adds to an upload."""
    turns = client.rig.client.app[keys.SUBMITTER].uploads._turns

    async def has_begun() -> bool:
        return path.rpartition("/")[2] in turns

    await eventually(has_begun)


async def test_one_request_at_a_time_adds_to_an_upload(ann: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads_module, "SILENCE_S", WAIT_S)
    path = await ann.create(10)
    async with sending(ann, path, 0, 10, b"123"):
        await begins(ann, path)
        status, _, code = await ann.patch(path, 0, b"0123456789")
        assert (status, code) == (423, "upload_locked")
        # Of a client that sends nothing any more the connection may be lost without a word.
        monkeypatch.setattr(uploads_module, "SILENCE_S", 0.0)
        assert (await ann.patch(path, 0, b"0123456789"))[0] == 204
    assert await ann.offset(path) == 10


async def test_a_lock_of_another_node_counts(ann: Client) -> None:
    path = await ann.create(3)
    store = ann.rig.client.app[keys.STORE]
    lease = await store.acquire_lease(f"upload:{path.rpartition('/')[2]}", "another node", 60)
    assert (await ann.patch(path, 0, b"123"))[::2] == (423, "upload_locked")
    await store.release_lease(lease)
    assert (await ann.patch(path, 0, b"123"))[0] == 204


async def test_bytes_are_kept_while_more_arrive(ann: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads_module, "STORE_BYTES", 1000)
    path = await ann.create(5000)
    async with sending(ann, path, 0, 5000, bytes(3000)):

        async def kept() -> bool:
            return await ann.offset(path) >= 1000

        await eventually(kept)
        await ann.call("DELETE", path)
        assert not uploaded(ann.rig, path.rpartition("/")[2])


async def test_a_method_that_cannot_be_sent_may_be_named(ann: Client) -> None:
    path = await ann.create(3)
    override = {"X-HTTP-Method-Override": "PATCH", **BYTES, "Upload-Offset": "0"}
    assert (await ann.call("POST", path, override, b"123"))[0] == 204
    assert (await ann.call("POST", path))[2] == "invalid_method_override"
    assert (await ann.call("POST", path, {"X-HTTP-Method-Override": "DELETE"}))[0] == 204
    assert (await ann.call("HEAD", path))[0] == 404


async def test_an_upload_that_expired_is_gone_with_its_bytes(ann: Client, clip: bytes) -> None:
    video, other = await ann.upload(clip), await ann.upload(b"other")
    sql(ann.rig.folder / "faceswap.db", "UPDATE upload SET expires_at = 1 WHERE id = ?", video)
    assert (await ann.call("HEAD", f"/uploads/{video}"))[0] == 404
    stray = ann.rig.folder / "uploads" / "stored-after-the-end"
    stray.mkdir()
    os.utime(stray, (1, 1))
    app = ann.rig.client.app
    await Janitor(app[keys.SETTINGS], app[keys.STORE], app[keys.FILES]).sweep()
    assert not (ann.rig.folder / "uploads" / video).exists() and not stray.exists()
    assert uploaded(ann.rig, other)
    assert await app[keys.STORE].known_uploads([video, other]) == {other}


async def test_an_upload_that_cannot_be_erased_keeps_no_other(
    ann: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, other = await ann.upload(b"stuck"), await ann.upload(b"other")
    expire = "UPDATE upload SET expires_at = 1 + (id = ?) WHERE id IN (?, ?)"  # the stuck one first
    sql(ann.rig.folder / "faceswap.db", expire, other, stuck, other)
    app = ann.rig.client.app
    store, files = app[keys.STORE], app[keys.FILES]
    delete = files.delete_parts

    async def refuse(upload_id: str) -> None:
        if upload_id == stuck:
            raise PermissionError("no")
        await delete(upload_id)

    with monkeypatch.context() as fault:
        fault.setattr(files, "delete_parts", refuse)
        await Janitor(app[keys.SETTINGS], store, files).sweep()
    assert await store.known_uploads([stuck, other]) == {stuck}
    assert f"upload {stuck} cannot be erased yet: no" in caplog.text
    await Janitor(app[keys.SETTINGS], store, files).sweep()
    assert not await store.known_uploads([stuck]) and not uploaded(ann.rig, stuck)


async def test_an_upload_has_no_more_parts_than_are_quickly_read(ann: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads_module, "MOST_PARTS", 2)
    path = await ann.create(3)
    assert [(await ann.patch(path, offset, b"x"))[0] for offset in range(2)] == [204, 204]
    status, _, code = await ann.patch(path, 2, b"x")
    assert (status, code) == (409, "too_many_parts")
    assert await ann.offset(path) == 2


async def test_an_owner_has_no_more_uploads_than_allowed(bob: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refusal(length: int) -> Any:
        return (await bob.call("POST", "/uploads", {"Upload-Length": str(length)}))[::2]

    await bob.create(1)
    monkeypatch.setattr(uploads_module, "MOST_LARGEST", 1)
    assert await refusal(8 << 20) == (429, "too_many_uploads")
    monkeypatch.setattr(uploads_module, "MOST_UPLOADS", 1)
    assert await refusal(1) == (429, "too_many_uploads")


async def test_what_is_created_needs_room_on_the_disk(ann: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def few() -> int:
        return 1000

    path = await ann.create(1001)
    monkeypatch.setattr(ann.rig.client.app[keys.FILES], "free_bytes", few)
    assert (await ann.call("POST", "/uploads", {"Upload-Length": "1001"}))[::2] == (503, "disk_low")
    assert (await ann.patch(path, 0, bytes(1001)))[::2] == (503, "disk_low")
    assert await ann.offset(path) == 0


async def test_an_upload_goes_on_after_a_restart_that_came_in_the_middle(tmp_path: Path) -> None:
    async with AsyncExitStack() as connections, running_service(tmp_path, dead_url(), server=PlainServer) as rig:
        path = await Client(rig).create(10)
        await Client(rig).patch(path, 0, b"01234")
        expected = received() + 2
        await connections.enter_async_context(sending(Client(rig), path, 5, 5, b"56"))
        await until(lambda: received() >= expected)
    async with running_service(tmp_path, dead_url()) as rig:
        client = Client(rig)
        assert await client.offset(path) == 7
        assert (await client.patch(path, 7, b"789"))[0] == 204
        upload = await rig.client.app[keys.STORE].upload(path.rpartition("/")[2], None)
        files = rig.client.app[keys.FILES]
        assert b"".join([bytes(piece) async for piece in files.read_parts(upload.id, upload.parts)]) == b"0123456789"


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return make_place(request.param, tmp_path, monkeypatch)


async def test_parts_that_nodes_stored_are_read_by_any(place: Place) -> None:
    one, other = await place.started(), await place.started("other")
    data = os.urandom(7 << 20)
    parts = list[Part]()
    for files, start, end in ((one, 0, 6 << 20), (other, 6 << 20, len(data))):
        writer = files.new_part_writer("an-upload")
        assert await writer.store() == []
        for at in range(start, end, 100_000):
            await writer.write(data[at : min(at + 100_000, end)])
            if at == start + 500_000:
                assert sum(part.size for part in await writer.store()) == 600_000
        await writer.write(b"") if end == len(data) else None
        parts += await writer.store()
        await writer.write(b"what is not stored is lost")
        await writer.close()
    assert sum(part.size for part in parts) == len(data)
    for files in (one, other):
        assert b"".join([bytes(piece) async for piece in files.read_parts("an-upload", parts)]) == data
    assert place.unfinished() == []
    with pytest.raises(FileNotFoundError):
        _ = [piece async for piece in one.read_parts("an-upload", [Part("none", 1)])]
    assert [ids async for ids in one.list_parted(datetime(2020, 1, 1, tzinfo=UTC))][:1] in ([], [set()])
    assert {"an-upload"} in [ids async for ids in one.list_parted(datetime(2100, 1, 1, tzinfo=UTC))]
    await other.delete_parts("an-upload")
    assert not [name for name in place.stored() if "an-upload" in name]
    for files in (one, other):
        await files.close()


async def test_inputs_are_taken_from_an_upload_and_from_a_job_wherever_files_are(place: Place) -> None:
    one, other = await place.started(), await place.started("other")
    data = os.urandom(6 << 20)
    writer = one.new_part_writer("an-upload")
    await writer.write(data)
    [part] = await writer.store()
    await writer.close()
    gone = NotFound("It is gone.", code="unknown_upload")
    of_upload = KeptFile(len(data), writer.sha256, partial(other.read_parts, "an-upload", [part]), None, gone)
    whole = replace(of_upload, link=partial(other.link_part, "an-upload", part))
    sha256 = hashlib.sha256(data).hexdigest()
    for prompt_id, kept in (("first", of_upload), ("second", whole)):
        assert await take(other, prompt_id, kept) == StoredFile("video.mp4", len(data), sha256)
    of_job = partial(one.read_input, "second", "video.mp4")
    kept = KeptFile(None, sha256, of_job, partial(one.link_input, "second", "video.mp4"), gone)
    await take(one, "third", kept)
    await one.delete_parts("an-upload")
    await one.delete_inputs("second")
    for prompt_id in ("first", "third"):
        assert b"".join([bytes(piece) async for piece in other.read_input(prompt_id, "video.mp4")]) == data
        assert other.input(prompt_id, "video.mp4").is_file() or await other.find_input(prompt_id, "video.mp4", sha256)
    for lost in (whole, kept):
        with pytest.raises(NotFound):
            await take(one, "fourth", lost)
    assert not [name for name in place.stored() if "fourth" in name]
    for files in (one, other):
        await files.close()


async def take(files: Files, prompt_id: str, kept: KeptFile) -> StoredFile:
    """Make a file that is here already the video of a new job."""
    async with new_input_folder(files, prompt_id, Room(files, 0)) as folder:
        await folder.expect(0)
        stored = await FileSink(folder, "video", 2**30).take(kept)
    await files.accept_upload(prompt_id)
    return stored


async def test_a_page_of_another_site_may_upload_where_that_is_allowed(tmp_path: Path) -> None:
    site = "https://films.example"
    asking = {
        "Origin": site,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "tus-resumable",
    }
    async with running_service(tmp_path, dead_url(), cors_origins=(site,)) as rig:
        client = Client(rig)
        status, answer, _ = await client.call("OPTIONS", "/uploads/any", asking)
        assert (status, "PATCH" in answer["Access-Control-Allow-Methods"]) == (204, True)
        path = await client.create(3, Origin=site)
        status, answer, _ = await client.call("HEAD", path, {"Origin": site})
        exposed = answer["Access-Control-Expose-Headers"].split(", ")
        assert {"Location", "Upload-Offset", "Upload-Length", "Tus-Resumable"} <= set(exposed)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file that takes a while to upload."""
    path = tmp_path_factory.mktemp("large") / "large.bin"
    path.write_bytes(random.Random(10).randbytes(8 << 20))
    return path


async def content(rig: ServiceRig, upload_id: str) -> bytes:
    """Return the bytes of an upload of Ann's."""
    upload = await rig.client.app[keys.STORE].upload(upload_id, "ann")
    return b"".join([bytes(part) async for part in rig.client.app[keys.FILES].read_parts(upload_id, upload.parts)])


async def test_tus_js_client_goes_on_after_each_of_twenty_cuts(rig: ServiceRig, large: Path, tmp_path: Path) -> None:
    cuts = random_cuts(random.Random(20), large.stat().st_size, 20)
    async with Cutter(rig.client.port, cuts).running() as way:
        process = await start_tus_js(large, f"http://127.0.0.1:{way.port}/uploads", tmp_path / "state", ANN)
        async with asyncio.timeout(WAIT_S):
            printed, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    assert way.cuts == 20
    assert await content(rig, printed.decode().strip().rpartition("/")[2]) == large.read_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
async def test_tuspy_goes_on_after_cuts(rig: ServiceRig, large: Path) -> None:
    cuts = random_cuts(random.Random(5), large.stat().st_size, 5)
    async with Cutter(rig.client.port, cuts).running() as way:
        client = TusClient(f"http://127.0.0.1:{way.port}/uploads", headers={"X-API-Key": ANN})

        def upload() -> str:
            uploader = client.uploader(str(large), metadata={"filename": "ä.mp4"}, retries=100, retry_delay=0.05)
            uploader.upload()
            return str(uploader.url)

        url = await asyncio.to_thread(upload)
    gc.collect()  # tuspy leaves its files to the collector, which would find them in another test
    assert way.cuts == 5
    assert await content(rig, url.rpartition("/")[2]) == large.read_bytes()


async def test_an_upload_goes_on_at_another_node_and_serves_a_job_at_a_third(tmp_path: Path, clip: bytes) -> None:
    with postgres.database() as url:
        nodes = Nodes(tmp_path, url)
        async with AsyncExitStack() as stack:
            rigs = [await stack.enter_async_context(running_node(nodes, name)) for name in ("one", "two", "three")]
            one, two, three = map(Client, rigs)
            path = await one.create(len(clip))
            assert (await one.patch(path, 0, clip[:1000]))[0] == 204
            assert await two.offset(path) == 1000
            assert (await two.patch(path, 1000, clip[1000:]))[0] == 204
            face = await two.upload(FACE)
            status, prompt_id = await three.swap(video_upload=path.rpartition("/")[2], image_upload=face)
            assert (status, inputs(rigs[0], prompt_id)) == (200, {"video.mp4": clip, "image.jpg": FACE})
            assert (await three.call("DELETE", path))[0] == 204
            assert (await one.call("HEAD", path))[0] == 404


@asynccontextmanager
async def running_node(nodes: Nodes, name: str) -> AsyncIterator[ServiceRig]:
    """Yield a node without an engine."""
    app = nodes.app(name, dead_url())
    described = Described(app)
    async with TestClient(TestServer(app)) as client:
        yield ServiceRig(client, nodes.folder / name, described)
    assert not described.faults
