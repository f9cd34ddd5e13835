"""The files of jobs, wherever they are kept: the data folder, a folder that nodes share, a bucket on S3."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from file_places import PLACES, SHARED, Place, make_place
from processes import files_in
from s3_servers import KINDS
from stored_jobs import acquire, claim, create, new_job, opened, run_to_success
from waiting import eventually, until

from faceswap.assembly import Assembly
from faceswap.config import ConfigError, Settings, Timeouts
from faceswap.errors import TooLarge
from faceswap.files import ERASURE, UPLOAD, Files, open_files
from faceswap.files import s3 as s3_module
from faceswap.files import shared as shared_module
from faceswap.intake.files import FileSink, Room, new_input_folder
from faceswap.intake.form import Submission
from faceswap.intake.pictures import Pictures
from faceswap.janitor import Janitor
from faceswap.jobs import ImageFile, Inputs, Job, Segment
from faceswap.media import ImageFacts, MediaWorker
from faceswap.options import Options
from faceswap.progress_reporter import ProgressReporter
from faceswap.store import LOCAL_HOLDER, Store, join_lease

MIB = 2**20
VIDEO, FACE = os.urandom(7 * MIB + 3), b"\x89PNG and a face"


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return make_place(request.param, tmp_path, monkeypatch)


@pytest.fixture(params=SHARED)
def shared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return make_place(request.param, tmp_path, monkeypatch)


def inputs_of() -> Inputs:
    return replace(new_job().inputs, video_file="video.mp4", images=(ImageFile("image.png", "b" * 64),))


def a_segment(prompt_id: str, number: int = 0, epoch: int = 1) -> Segment:
    """Return a segment that is done."""
    name = f"{number:05d}-1-{epoch}.mp4"
    values: dict[str, Any] = {"prompt_id": prompt_id, "number": number, "attempt": 1, "epoch": epoch}
    return a_record(Segment, **values, output_file=name)


def a_record(kind: type[Any], **values: Any) -> Any:
    """Make a record of which only some fields matter."""
    record = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(record, name, value)
    return record


def the_job(prompt_id: str, sha256: str) -> Job:
    job: Job = a_record(Job, prompt_id=prompt_id, owner=None, result_file="clip.mp4", result_sha256=sha256)
    return job


async def receive(files: Files, prompt_id: str, video: bytes = VIDEO, limit: int = 2**30) -> None:
    """Receive both inputs of a job, as a request brings them."""
    async with new_input_folder(files, prompt_id, Room(files, 0)) as folder:
        await folder.expect(len(video) + len(FACE))
        for kind, content in (("video", video), ("image", FACE)):
            sink = FileSink(folder, kind, limit)
            for at in range(0, len(content), 100_000):
                await sink.write(content[at : at + 100_000])
            await sink.finish()


async def test_inputs_that_one_node_received_are_there_for_another(place: Place) -> None:
    one, other = await place.started(), await place.started("other")
    await receive(one, "job")
    assert await one.list_marked(UPLOAD) == {"job"}
    await one.accept_upload("job")
    assert await one.list_marked(UPLOAD) == set()
    for files in (one, other):
        assert await files.fetch_inputs("job", inputs_of())
        assert (await files.local_video("job", inputs_of())).read_bytes() == VIDEO
        assert files.images("job", inputs_of())[0].read_bytes() == FACE
    assert not await other.fetch_inputs("another job", inputs_of())


class Converter(MediaWorker):
    """Stands for the media worker: every picture is a HEIC with one face, and a PNG afterwards."""

    async def probe_image(self, path: Path) -> ImageFacts:
        return ImageFacts(64, 64, "heif", 1)

    async def convert_image(self, path: Path, out: Path) -> None:
        out.write_bytes(b"\x89PNG of " + path.read_bytes())


async def test_a_picture_that_was_converted_takes_the_place_of_the_one_received(place: Place) -> None:
    one, other = await place.started(), await place.started("other")
    await receive(one, "job")
    received = ImageFile("image.png", os.urandom(32).hex())
    unused = dict.fromkeys(Submission.__slots__)
    submission: Submission = a_record(Submission, **unused | {"images": (received,), "options": Options()})
    submission, warnings = await Pictures(one, Converter()).check(submission, "job", None, takes_light=True)
    (image,) = submission.images
    png = b"\x89PNG of " + FACE
    assert (image.sha256, warnings) == (hashlib.sha256(png).hexdigest(), ())
    await one.accept_upload("job")
    inputs = replace(inputs_of(), images=(image,))
    for files in (one, other):
        assert await files.fetch_inputs("job", inputs)
        assert files.images("job", inputs)[0].read_bytes() == png
    assert {path.name for path in one.inputs("job").iterdir()} == {"video.mp4", image.file}
    await one.delete_inputs("job")
    assert not [name for name in place.stored() if name.startswith("inputs/")]


async def test_an_input_is_found_where_it_lies(place: Place) -> None:
    one, other = await place.started(), await place.started("other")
    await receive(one, "job")
    name = inputs_of().video_file
    for files in (one, other):
        found = await files.find_input("job", name, "a digest")
        if isinstance(found, Path):
            assert found.read_bytes() == VIDEO
        else:
            assert found is not None
            assert (found.size, found.etag) == (len(VIDEO), "a digest")
            assert b"".join([bytes(piece) async for piece in found.read(5, 1000)]) == VIDEO[5:1000]
        assert await files.find_input("another job", name, "") is None
    await one.delete_inputs("job")
    assert await one.find_input("job", name, "") is None


async def test_many_that_ask_for_an_input_fetch_it_once(shared: Place) -> None:
    one, other = await shared.started(), await shared.started("other")
    await receive(one, "job")
    paths = await asyncio.gather(*(other.local_video("job", inputs_of()) for _ in range(5)))
    assert {path.read_bytes() for path in paths} == {VIDEO}


@pytest.mark.parametrize("size", [100, 20 * MIB])
async def test_of_an_upload_that_is_refused_nothing_is_left(place: Place, size: int) -> None:
    files = await place.started()
    before = place.stored()
    with pytest.raises(TooLarge):
        await receive(files, "job", os.urandom(size), limit=size - 1)
    assert place.stored() == before and place.unfinished() == []
    assert not files.inputs("job").exists()


async def test_of_an_upload_that_is_cut_off_nothing_is_left(place: Place) -> None:
    files = await place.started()
    before = place.stored()
    written = asyncio.Event()

    async def receive_in_vain() -> None:
        async with new_input_folder(files, "job", Room(files, 0)) as folder:
            await folder.expect(12 * MIB)
            sink = FileSink(folder, "video", 2**30)
            for _ in range(12):
                await sink.write(os.urandom(MIB))
            written.set()
            await asyncio.Event().wait()

    receiving = asyncio.create_task(receive_in_vain())
    await written.wait()
    receiving.cancel()
    await asyncio.wait({receiving})
    await until(lambda: place.stored() == before and place.unfinished() == [])
    assert not files.inputs("job").exists()


async def test_segments_that_one_node_made_are_joined_at_another(place: Place) -> None:
    one, other = await place.started(), await place.started("other")
    segments = [a_segment("job", number) for number in range(6)]
    await one.make_scratch("job")
    for segment in segments:
        one.segment(segment).write_bytes(b"part %d" % segment.number)
        await one.keep_segment(segment)
    paths = await other.fetch_segments(segments)
    assert [path.read_bytes() for path in paths] == [b"part %d" % number for number in range(6)]
    await other.delete_scratch("job")
    await one.delete_scratch("job")
    assert not [name for name in place.stored() if "job" in name]


@pytest.mark.parametrize("shared", KINDS, indirect=True)
async def test_a_segment_whose_storing_is_cut_off_is_not_there_at_all(shared: Place) -> None:
    files = await shared.started()
    await files.make_scratch("job")
    files.segment(a_segment("job")).write_bytes(os.urandom(100 * MIB))
    keeping = asyncio.create_task(files.keep_segment(a_segment("job")))
    await until(shared.unfinished)
    keeping.cancel()
    await asyncio.wait({keeping})
    assert keeping.cancelled()
    await until(lambda: shared.stored() == [] and shared.unfinished() == [])


async def keep(files: Files, prompt_id: str, epoch: int, content: bytes) -> str:
    """Keep a joined video as a job's result; return its digest."""
    await files.make_scratch(prompt_id)
    files.joined(prompt_id, epoch).write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    await files.keep_result(prompt_id, epoch, "clip.mp4", sha256)
    return sha256


async def content_of(files: Files, job: Job) -> bytes | None:
    """Return a job's result as a download would send it."""
    result = await files.find_result(job)
    if result is None or isinstance(result, Path):
        return result.read_bytes() if result is not None else None
    return b"".join([bytes(piece) async for piece in result.read(0, result.size)])


async def test_a_result_is_there_for_every_node_and_goes_for_all(place: Place) -> None:
    one, other = await place.started(), await place.started("other")
    sha256 = await keep(one, "job", 1, VIDEO)
    assert await content_of(other, the_job("job", sha256)) == VIDEO
    await other.delete_result("job", "clip.mp4")
    assert await content_of(one, the_job("job", sha256)) is None
    await other.delete_result("job", "clip.mp4")


async def test_a_former_holder_never_replaces_a_result(shared: Place) -> None:
    one, other = await shared.started(), await shared.started("other")
    sha256 = await keep(other, "job", 2, b"the committed one")
    await keep(one, "job", 1, b"of a holder that was frozen")
    assert await content_of(one, the_job("job", sha256)) == b"the committed one"
    await one.discard_result("job", 1, "clip.mp4")
    assert await content_of(one, the_job("job", sha256)) == b"the committed one"
    assert len([name for name in shared.stored() if name.endswith(f"{sha256}.mp4")]) == 1


async def test_a_former_holder_that_joined_the_same_bytes_deletes_its_own_only(shared: Place) -> None:
    one, other = await shared.started(), await shared.started("other")
    sha256 = await keep(other, "job", 2, b"the same")
    assert await keep(one, "job", 1, b"the same") == sha256
    await one.discard_result("job", 1, "clip.mp4")
    assert await content_of(one, the_job("job", sha256)) == b"the same"


async def test_results_of_former_holders_go_with_the_next(shared: Place) -> None:
    one, other = await shared.started(), await shared.started("other")
    await keep(one, "job", 9, b"of a holder that died")
    sha256 = await keep(other, "job", 10, b"of the next")
    assert len([name for name in shared.stored() if name.endswith(".mp4") and "work" not in name]) == 1
    assert await content_of(one, the_job("job", sha256)) == b"of the next"


async def test_what_a_job_needed_goes_when_its_end_was_not_answered(place: Place, tmp_path: Path) -> None:
    files = await place.started()
    async with opened(tmp_path / "db.sqlite") as store, MediaWorker() as media:
        job = await run_to_success(store)
        await files.make_scratch(job.prompt_id)
        files.segment(a_segment(job.prompt_id)).write_bytes(b"part")
        await files.keep_segment(a_segment(job.prompt_id))
        lease = await acquire(store, join_lease(job.prompt_id))
        assembly = Assembly(store, files, media, ProgressReporter(store, files), Timeouts())
        await assembly.finish(job.prompt_id, lease)
    assert [name for name in place.stored() if job.prompt_id in name] == []
    assert [name for name in files_in(files.root) if job.prompt_id in name] == []


async def test_a_preview_is_seen_at_every_node(shared: Place) -> None:
    one, other = await shared.started(), await shared.started("other")
    assert await other.preview("job") is None
    await one.make_scratch("job")
    for image in (b"first", b"second"):
        await one.put_preview("job", image)
        assert await other.preview("job") == image
    await other.delete_inputs("job")
    assert await one.preview("job") is None


async def test_a_preview_that_is_stored_after_its_job_was_erased_does_not_stay(
    shared: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = await shared.started()
    storing, erased = asyncio.Event(), asyncio.Event()
    put = files.put_preview

    async def put_late(prompt_id: str, image: bytes) -> None:
        storing.set()
        await erased.wait()
        await files.make_scratch(prompt_id)
        await put(prompt_id, image)

    monkeypatch.setattr(files, "put_preview", put_late)
    async with opened(tmp_path / "db.sqlite") as store:
        job = await create(store)
        before = shared.stored()
        reporter = ProgressReporter(store, files)
        reporter.progress(job)
        reporter.take_preview(job.prompt_id, b"a face")
        running = asyncio.create_task(reporter.run())
        await storing.wait()
        reporter.close(job.prompt_id)
        await files.delete_inputs(job.prompt_id)
        erased.set()
        deleted = asyncio.Event()
        delete = files.delete_preview

        async def delete_and_tell(prompt_id: str) -> None:
            await delete(prompt_id)
            deleted.set()

        monkeypatch.setattr(files, "delete_preview", delete_and_tell)
        await until(deleted.is_set)
        assert shared.stored() == before
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_erased_is_everything_under_a_job(place: Place) -> None:
    files = await place.started()
    before = place.stored()
    await files.mark_erasure("job")
    await receive(files, "job")
    await files.make_scratch("job")
    files.segment(a_segment("job")).write_bytes(b"part")
    await files.keep_segment(a_segment("job"))
    await files.put_preview("job", b"a face")
    await keep(files, "job", 1, VIDEO)
    await files.accept_upload("job")
    await files.delete_inputs("job")
    await files.delete_result("job", "clip.mp4")
    assert await files.list_marked(ERASURE) == {"job"}
    await files.unmark_erasure("job")
    assert place.stored() == before
    assert [name for name in files_in(files.root) if "job" in name] == []


async def test_copies_go_that_this_node_does_not_need(shared: Place) -> None:
    files = await shared.started()
    if shared.kind == "folder":
        copies = [files.engine / "input" / name for name in ("kept", "gone")]
        for copy in copies:
            copy.mkdir(parents=True)
        assert await files.copied_jobs() == {"kept", "gone"}
        await files.delete_copies({"gone"})
        assert [copy.exists() for copy in copies] == [True, False]
        return
    for name in ("kept", "gone", "being received"):
        await receive(files, name)
    await files.accept_upload("kept")
    await files.accept_upload("gone")
    assert await files.copied_jobs() == {"kept", "gone"}
    await files.delete_copies({"gone"})
    assert [files.inputs(name).exists() for name in ("kept", "gone", "being received")] == [True, False, True]
    assert await files.fetch_inputs("gone", inputs_of())
    assert not (await shared.started()).inputs("kept").exists()  # at a start nothing is kept


async def test_room_is_that_of_the_disk(place: Place) -> None:
    files = await place.started()
    assert await files.free_bytes() > 0 and await eventually(files.is_available)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path / "faceswap.db") as store:
        yield store


def janitor(store: Store, files: Files, holder: str = LOCAL_HOLDER) -> Janitor:
    return Janitor(Settings(files.root), store, files, holder)


async def test_a_start_leaves_what_another_node_is_writing_in_a_shared_folder(store: Store, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    one, other = (shared_module.SharedFolder(tmp_path / node, tmp_path / "shared", node) for node in ("one", "other"))
    for files in (one, other):
        await files.start()
    job = await create(store)
    await other.make_scratch(job.prompt_id)
    (segment,) = await store.segments(job.prompt_id)
    begun = other.segment(segment).with_name(f".{other.segment(segment).name}.part")
    begun.write_bytes(b"half of it")
    await janitor(store, one).clear_debris()
    assert begun.exists()


async def test_a_start_clears_the_uploads_of_its_own_node_only(
    shared: Place, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await shared.started(), await shared.started("other")
    job = await create(store)
    for files, name in ((one, "mine"), (other, "theirs"), (other, job.prompt_id)):
        await receive(files, name)
    await janitor(store, one).clear_debris()
    assert await one.list_marked(UPLOAD) == {"theirs"}
    assert [await one.fetch_inputs(name, inputs_of()) for name in ("mine", "theirs", job.prompt_id)] == [
        False,
        True,
        True,
    ]
    monkeypatch.setattr(shared_module, "ABANDONED_S", -60.0)
    monkeypatch.setattr(s3_module, "ABANDONED_S", -60.0)
    await janitor(store, one).clear_debris()  # the other did not come back
    assert await one.list_marked(UPLOAD) == set()
    assert not [name for name in shared.stored() if "theirs" in name]


async def test_what_a_node_that_does_not_come_back_took_in_or_erased_goes_without_a_start(
    shared: Place, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await shared.started(), await shared.started("other")
    kept, erased = await create(store), await create(store)
    for name in ("theirs", kept.prompt_id, erased.prompt_id):
        await receive(other, name)
    await other.accept_upload(erased.prompt_id)
    await other.mark_erasure(erased.prompt_id)
    await store.begin_erasure(erased.prompt_id)
    await janitor(store, one).run_round()
    assert await one.list_marked(UPLOAD) == {"theirs", kept.prompt_id}
    assert await one.list_marked(ERASURE) == {erased.prompt_id}
    monkeypatch.setattr(shared_module, "ABANDONED_S", -60.0)
    monkeypatch.setattr(s3_module, "ABANDONED_S", -60.0)
    await janitor(store, one).run_round()
    assert await one.list_marked(UPLOAD) == await one.list_marked(ERASURE) == set()
    assert await store.known(["theirs", kept.prompt_id, erased.prompt_id]) == {kept.prompt_id}
    assert await one.fetch_inputs(kept.prompt_id, inputs_of())
    assert not [name for name in shared.stored() if "theirs" in name or erased.prompt_id in name]


async def test_a_start_clears_results_without_a_commit_and_leaves_what_is_unknown(
    shared: Place, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    files = await shared.started()
    done, undone = await create(store), await create(store)
    await store.finish_segment(await claim(store), "00000-1-1.mp4", 1.0)
    lease = await acquire(store, join_lease(done.prompt_id))
    sha256 = await keep(files, done.prompt_id, lease.epoch, b"committed")
    assert await store.succeed(done, lease, result_file="clip.mp4", size=9, sha256=sha256, warnings=())
    await keep(files, undone.prompt_id, 1, b"not committed")
    await keep(files, "stranger", 1, b"of another database")
    await receive(files, "unknown")
    await files.accept_upload("unknown")
    await janitor(store, files).clear_debris()
    assert await content_of(files, await store.job(done.prompt_id)) == b"committed"
    assert await content_of(files, the_job(undone.prompt_id, hashlib.sha256(b"not committed").hexdigest())) is None
    assert await files.fetch_inputs("unknown", inputs_of())
    assert [name for name in shared.stored() if "stranger" in name]
    assert "the database knows nothing of 2 jobs" in caplog.text


async def test_an_erasure_that_was_cut_off_is_ended_by_the_next_start(shared: Place, store: Store) -> None:
    one, other = await shared.started(), await shared.started("other")
    jobs = [await create(store) for _ in range(2)]
    for files, job in ((one, jobs[0]), (other, jobs[1])):
        await files.mark_erasure(job.prompt_id)
        await store.begin_erasure(job.prompt_id)
        await receive(files, job.prompt_id)
        await files.accept_upload(job.prompt_id)
    await janitor(store, one).clear_debris()
    assert await one.list_marked(ERASURE) == {jobs[1].prompt_id}  # which another node is still at
    assert await store.known([job.prompt_id for job in jobs]) == {jobs[1].prompt_id}
    assert not [name for name in shared.stored() if name.startswith("inputs/") and "video" in name]


@pytest.mark.parametrize("shared", KINDS, indirect=True)
async def test_what_a_frozen_node_stored_of_an_erased_job_goes_once_it_looks(shared: Place, store: Store) -> None:
    frozen, other = await shared.started("frozen"), await shared.started("other")
    job = await create(store)
    await receive(other, job.prompt_id)
    await other.accept_upload(job.prompt_id)
    assert await frozen.fetch_inputs(job.prompt_id, inputs_of())
    await other.delete_inputs(job.prompt_id)
    await store.erase(job.prompt_id)
    await frozen.make_scratch(job.prompt_id)
    frozen.segment(a_segment(job.prompt_id)).write_bytes(b"a face")
    await frozen.keep_segment(a_segment(job.prompt_id))
    await keep(frozen, job.prompt_id, 1, b"a face")
    await janitor(store, other).delete_copies()
    assert [name for name in shared.stored() if job.prompt_id in name]
    await janitor(store, frozen).delete_copies()
    assert not [name for name in shared.stored() if job.prompt_id in name]
    assert await frozen.copied_jobs() == set()


async def test_more_than_a_page_is_listed_and_deleted_in_pages(shared: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faceswap.files.objects.PAGE", 7)
    files = await shared.started()
    names = {f"job-{number:02}" for number in range(20)}
    for name in names:
        await files.mark_erasure(name)
        await keep(files, name, 1, b"a result")
    for number in range(20):
        files.segment(a_segment("job-00", number)).write_bytes(b"part")
        await files.keep_segment(a_segment("job-00", number))
    assert await files.list_marked(ERASURE) == names
    pages = [page async for page in files.list_results()]
    assert set.union(*pages) == names and (shared.kind == "folder" or max(map(len, pages)) <= 7)
    await files.delete_inputs("job-00")
    assert not [name for name in shared.stored() if name.startswith(("segments/job-00/", "work/job-00/"))]
    assert {name for page in [page async for page in files.list_results()] for name in page} == names


def test_without_the_client_for_s3_it_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faceswap.files.s3", None)
    with pytest.raises(ConfigError, match=r"pip install 'faceswap\[cluster\]'"):
        open_files(Settings(tmp_path, files_url="s3://bucket"), "one")


async def test_a_folder_that_is_not_mounted_is_told(tmp_path: Path) -> None:
    files = open_files(Settings(tmp_path / "data", files_url=str(tmp_path / "missing")), "one")
    with pytest.raises(ConfigError, match="is it mounted"):
        await files.start()
