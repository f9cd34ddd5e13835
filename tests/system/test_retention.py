"""After DELETE, and after the time limits, no byte of the inputs is left in anything that was written."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import postgres
import pytest
from processes import Service, eventually, files_in
from s3_servers import S3Server
from talk import Api, Media

from faceswap import samples

FRAMES = 8
MARKER = b"the marker that is planted in the picture and in the video"
NAME = "a name that is a persons"
WINDOW_BYTES = 48


@dataclass
class Written:
    """All that the service and its engine write: the data folder, temporary files, those of the store and the database.

    folder       of the test
    environment  of the service
    files        where the store keeps its files, in place of the data folder
    server       of the database, in place of SQLite
    """

    folder: Path
    environment: dict[str, str]
    files: Path | None = None
    server: postgres.Server | None = None

    @property
    def places(self) -> list[Path]:
        also = [self.files, self.server and self.server.data]
        return [self.folder / "data", self.folder / "tmp", *(place for place in also if place)]

    def holds(self, *needles: bytes) -> list[str]:
        """Return the files that hold one of these."""
        found = []
        for place in self.places:
            for name in files_in(place):
                try:
                    content = (place / name).read_bytes()
                except FileNotFoundError:
                    continue
                found += [f"{place.name}/{name}" for needle in needles if needle in content][:1]
        return found

    def remembers(self, text: str) -> bool:
        """Tell whether a record has this text. Of PostgreSQL the rows count: it overwrites what goes in its time."""
        if self.server is None:
            return bool(self.holds(text.encode()))
        tables = postgres.sql(self.server.url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        rows = (postgres.sql(self.server.url, f"SELECT kept::text FROM {table} AS kept") for (table,) in tables)
        return any(text in row for found in rows for (row,) in found)


@pytest.fixture(params=["local", "s3", "postgresql"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Written]:
    (tmp_path / "tmp").mkdir()
    environment = {"TMPDIR": str(tmp_path / "tmp")}
    with ExitStack() as stack:
        if request.param == "s3":
            store = stack.enter_context(S3Server("nanio"))
            environment |= {**store.environment(), "FACESWAP_FILES_URL": f"s3://{store.new_bucket()}/jobs"}
            yield Written(tmp_path, environment, store._folder)
        elif request.param == "postgresql":
            server = postgres.start_server()
            stack.callback(server.remove)
            (shared := tmp_path / "shared").mkdir()
            environment |= {"FACESWAP_DATABASE_URL": server.url, "FACESWAP_FILES_URL": str(shared)}
            yield Written(tmp_path, environment, shared, server)
        else:
            yield Written(tmp_path, environment)


def marked_media(folder: Path) -> Media:
    """Make inputs that hold the marker: in a comment of the JPEG, and in a free box of the video."""
    media = Media(folder)
    samples.make_clip(folder / "source.mp4")
    box = MARKER * 20
    media.video = (folder / "source.mp4").read_bytes() + struct.pack(">I4s", 8 + len(box), b"free") + box
    picture = samples.FACE.read_bytes()
    media.image = picture[:2] + struct.pack(">2sH", b"\xff\xfe", 2 + len(MARKER)) + MARKER + picture[2:]
    return media


def needles(media: Media) -> list[bytes]:
    """Return the marker, and pieces from all over both inputs, as they would be in any copy of them."""
    pieces = [MARKER]
    for content in (media.video, media.image):
        step = len(content) // 12
        pieces += [content[start : start + WINDOW_BYTES] for start in range(step, 11 * step, step)]
    return pieces


async def test_nothing_of_the_inputs_is_left_after_a_delete_and_after_the_limits(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "FRAMES", FRAMES)
    media = marked_media(tmp_path)
    wanted = needles(media)
    service = Service(tmp_path, env=written.environment, log_format="json", access_log=1)
    async with service, aiohttp.ClientSession() as session:
        api = Api(service.url, session, media)
        job = await api.finished(output_name=NAME)
        assert (await api.get(job["result"] + "?signature=hidden")).status == 200
        assert written.holds(MARKER) and written.holds(wanted[3]) and written.holds(wanted[-3])  # the search finds
        assert written.remembers(NAME)

        answer = await api.call("DELETE", f"/jobs/{job['prompt_id']}")
        assert answer.status == 204
        assert written.holds(*wanted) == []
        assert not [name for name in service.files() if NAME in name or job["prompt_id"] in name]

        running = await api.submit()
        assert (await api.call("DELETE", f"/jobs/{running}")).status == 204
        assert written.holds(*wanted) == []
        expiring = await api.finished(output_name=NAME)
        await service.stop()
    check_log(service, job["prompt_id"], expiring["prompt_id"])

    service.set(input_ttl_s=0, output_ttl_s=1, record_ttl_s=1)
    await asyncio.sleep(1)  # the age at which the result expires
    async with service, aiohttp.ClientSession() as session:
        api = Api(service.url, session, media)

        async def is_gone() -> bool:
            return (await api.get(f"/status/{expiring['prompt_id']}")).status == 404

        await eventually(is_gone)
        assert written.holds(*wanted) == []

        async def is_forgotten() -> bool:
            return not written.remembers(NAME)

        await eventually(is_forgotten)  # by SQLite's file and its write-ahead log too
        stored = [name for place in written.places[1:] for name in files_in(place) if expiring["prompt_id"] in name]
        assert [*service.files(), *stored] == ["engine/.lock"]


def check_log(service: Service, *prompt_ids: str) -> None:
    """Check that the log tells of each job and of each request, without names of files and query strings."""
    log = service.log()
    assert NAME not in log and "hidden" not in log
    lines = [json.loads(line) for line in log.splitlines()]
    for prompt_id in prompt_ids:
        moves = [line["event"] for line in lines if line.get("prompt_id") == prompt_id and line["event"] != "request"]
        assert moves == ["accepted", "started", "ended"]
    requests = [(line["method"], line["route"], line["status"]) for line in lines if line.get("event") == "request"]
    assert ("GET", "/download/{filename}", 200) in requests
    assert ("DELETE", "/jobs/{prompt_id}", 204) in requests
    assert {line["address"] for line in lines if line.get("event") == "request"} == {"127.0.0.1"}
