"""Access over the API: keys, owners, signed links, limits; and the service that refuses to be open by accident."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from clips import make_clip
from described import Described
from processes import dead_url
from service_rig import service_and_engines
from stored_jobs import acquire, claim, create, opened
from waiting import eventually
from yarl import URL

from faceswap import samples
from faceswap.api import keys
from faceswap.api.address import client_address
from faceswap.api.openapi import routes
from faceswap.api.rate_limit import RateLimit
from faceswap.app import create_app
from faceswap.cli import main
from faceswap.config import ConfigError, Settings
from faceswap.jobs import Job
from faceswap.keyring import digest, new_key, read_keys
from faceswap.links import signed
from faceswap.store import Store, join_lease

ANN, BOB = new_key(), new_key()
OPEN = {"/", "/web/{name}", "/livez", "/readyz", "/docs", "/openapi.json"}


@dataclass
class Rig:
    """A service whose jobs stay queued, and what was posted to it."""

    app: web.Application
    client: TestClient[Any, Any]

    @property
    def store(self) -> Store:
        return self.app[keys.STORE]

    async def call(
        self, method: str, path: str, key: str | None = None, headers: Mapping[str, str] | None = None, **more: Any
    ) -> tuple[int, Any]:
        """Send a call; returns status and body, of which JSON is parsed."""
        sent = {**({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
        url = URL(path, encoded=True)
        async with self.client.request(method, url, headers=sent, allow_redirects=False, **more) as response:
            is_json = response.content_type.endswith("json")
            return response.status, await response.json(content_type=None) if is_json else await response.read()

    async def code(self, method: str, path: str, key: str | None = None, **more: Any) -> tuple[int, str]:
        """Send a call that is refused; returns status and code."""
        status, document = await self.call(method, path, key, **more)
        return status, document["code"]

    async def finished(self, owner: str | None, content: bytes = b"a result") -> Job:
        """Make a job that has ended with a result, and its inputs."""
        job = await create(self.store, owner=owner)
        files = self.app[keys.FILES]
        files.inputs(job.prompt_id).mkdir(parents=True)
        files.video(job.prompt_id, job.inputs).write_bytes(b"the video")
        files.images(job.prompt_id, job.inputs)[0].write_bytes(b"the image")
        # First, and for another: the service, which has only just started, may look for what is to be joined.
        lease = await acquire(self.store, join_lease(job.prompt_id), "another")
        await self.store.finish_segment(await claim(self.store), "0.mp4", 1.0)
        await files.make_scratch(job.prompt_id)
        files.joined(job.prompt_id, lease.epoch).write_bytes(content)
        await files.keep_result(job.prompt_id, lease.epoch, job.stored_result, "")
        assert await self.store.succeed(
            job, lease, result_file=f"{job.output_name}.mp4", size=len(content), sha256="c" * 64, warnings=()
        )
        return await self.store.job(job.prompt_id)


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[Rig]:
    """Yield a service without an engine. All its answers are to be as the API's description has them."""
    app = create_app(Settings(folder, comfyui_urls=(URL(dead_url()),), min_free_mb=0, **settings))
    described = Described(app)
    async with TestClient(TestServer(app)) as client:
        yield Rig(app, client)
    assert not described.faults


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# who may\nann:{digest(ANN)}\n\nbob : {digest(BOB).upper()}\n")
    return path


@pytest.fixture
async def rig(tmp_path: Path, key_file: Path) -> AsyncIterator[Rig]:
    async with serving(tmp_path / "data", api_keys_file=key_file) as rig:
        yield rig


@pytest.fixture
def one_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no minute end while submissions are counted."""
    still = SimpleNamespace(time=lambda: 1_795_000_010.0)
    for module in ("limits.aio.storage.memory", "limits.aio.strategies", "faceswap.api.rate_limit"):
        monkeypatch.setattr(f"{module}.time", still)


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def calls(app: web.Application, job: Job) -> list[tuple[str, str, str]]:
    """Return the method, the route and the path of every operation, about this job."""
    values = {"prompt_id": job.prompt_id, "filename": f"{job.result_file}", "name": "app.js", "upload_id": "none"}
    return [(method, path, path.format(**values)) for method, path, _ in routes(app)]


async def test_nothing_but_what_tells_of_no_job_is_answered_without_a_key(rig: Rig) -> None:
    job = await rig.finished("ann")
    for method, route, path in calls(rig.app, job):
        for refused, code in ((None, "missing_key"), ("no-such-key", "invalid_key")):
            status, document = await rig.call(method, path, refused)
            if route in OPEN:
                assert status in (200, 503), path
            elif route == "/health" and refused is None:
                assert (status, set(document)) == (200, {"status", "database"})
            else:
                assert (status, document["code"]) == (401, code), (method, path)
    async with rig.client.get("/jobs") as response:
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert await rig.store.job(job.prompt_id) == job


async def test_the_jobs_of_others_are_not_there_at_any_route(rig: Rig) -> None:
    job = await rig.finished("ann")
    asked = [
        (method, path) for method, route, path in calls(rig.app, job) if "{prompt_id}" in route or "{file" in route
    ]
    assert len(asked) >= 10
    for method, path in asked:
        assert (await rig.call(method, path, BOB))[0] == 404, (method, path)
    assert (await rig.call("GET", "/jobs", BOB))[1]["jobs"] == []
    async with rig.client.ws_connect("/face-swap-ws", headers={"X-API-Key": BOB}) as socket:
        await socket.send_json({"action": "subscribe", "prompt_id": job.prompt_id})
        assert (await socket.receive_json())["data"]["code"] == "unknown_prompt_id"
    assert await rig.store.job(job.prompt_id) == job
    async with rig.client.ws_connect("/face-swap-ws", headers={"X-API-Key": ANN}) as socket:
        await socket.send_json({"action": "subscribe", "prompt_id": job.prompt_id})
        assert (await socket.receive_json())["event"] == "queued"


async def test_the_job_of_a_key_goes_its_whole_way(tmp_path: Path, key_file: Path) -> None:
    settings = {"api_keys_file": key_file, "headers": {"Authorization": f"Bearer {ANN}"}}
    async with service_and_engines(tmp_path, settings=settings, paint=True) as (service, _):
        prompt_id = await service.post(make_clip(tmp_path / "clip.mp4", 3))
        status = await service.ended(prompt_id)
        name = status["result"].removeprefix("/download/")
        result = await service.download(status, tmp_path / "result.mp4")
        assert f"outputs/ann/{name}" in service.files()
        assert digest_of(result) == status["sha256"]
        events = await service.client.app[keys.STORE].events(prompt_id, 0)
        assert (events[-1].data["filename"], events[-1].data["download_url"]) == (name, status["result"])
        async with service.client.delete(f"/jobs/{prompt_id}") as response:
            assert response.status == 204
        assert not [path for path in service.files() if "ann" in path or prompt_id in path]


async def test_a_start_keeps_the_results_of_owners_and_erases_what_was_never_committed(
    tmp_path: Path, key_file: Path
) -> None:
    async with serving(tmp_path / "data", api_keys_file=key_file) as rig:
        kept = await rig.finished("ann")
        half = await create(rig.store, owner="bob")
        left = rig.app[keys.FILES].result(half.stored_result)
        left.parent.mkdir()
        left.write_bytes(b"half")
        stray = rig.app[keys.FILES].result("carl/of another database.mp4")
        stray.parent.mkdir()
        stray.write_bytes(b"stray")
    async with serving(tmp_path / "data", api_keys_file=key_file) as rig:
        assert await rig.call("GET", f"/download/{kept.result_file}", ANN) == (200, b"a result")
        assert not left.exists()
        assert not stray.exists()
        [found] = (tmp_path / "data" / "lost+found").rglob("*.mp4")
        assert found.read_bytes() == b"stray"


async def test_each_owner_has_names_of_their_own(rig: Rig) -> None:
    for owner in ("ann", "bob", None):
        await rig.finished(owner, f"of {owner}".encode())
    for key, owner in ((ANN, "ann"), (BOB, "bob")):
        assert await rig.call("GET", "/download/clip.mp4", key) == (200, f"of {owner}".encode())
        for path in ("/download/bob%2Fclip.mp4", "/download/ann%2Fclip.mp4", "/download/..%2Fann%2Fclip.mp4"):
            assert (await rig.call("GET", path, key))[0] == 404
    [listed] = (await rig.call("GET", "/jobs", ANN))[1]["jobs"]
    assert (listed["output_prefix"], listed["result"]) == ("clip", "/download/clip.mp4")
    assert (await rig.call("DELETE", f"/jobs/{listed['prompt_id']}", ANN))[0] == 204
    assert await rig.code("GET", "/download/clip.mp4", ANN) == (404, "unknown_file")
    assert await rig.call("GET", "/download/clip.mp4", BOB) == (200, b"of bob")


async def test_a_key_comes_in_a_header_and_never_in_the_address(rig: Rig) -> None:
    assert (await rig.call("GET", "/jobs", headers={"X-API-Key": ANN}))[0] == 200
    assert (await rig.call("GET", "/jobs", headers={"Authorization": f"bearer {ANN}"}))[0] == 200
    basic = {"Authorization": "Basic YTpi"}  # for a proxy in between
    assert (await rig.call("GET", "/jobs", headers={**basic, "X-API-Key": ANN}))[0] == 200
    assert await rig.code("GET", "/jobs", headers=basic) == (401, "invalid_authorization")
    for name in ("key", "api_key", "access_token"):
        assert await rig.code("GET", f"/jobs?{name}={ANN}") == (401, "missing_key")
    assert await rig.code("GET", "/jobs", digest(ANN)) == (401, "invalid_key")


async def test_a_running_service_notices_keys_of_both_sources(rig: Rig, tmp_path: Path, key_file: Path) -> None:
    eve = new_key()

    def replace(text: str) -> None:
        new = key_file.with_suffix(".new")
        new.write_text(text)
        new.replace(key_file)

    async def is_let_in(key: str) -> bool:
        return (await rig.call("GET", "/jobs", key))[0] == 200

    async def is_kept_out(key: str) -> bool:
        return not await is_let_in(key)

    async with opened(tmp_path / "data" / "faceswap.db") as other_process:
        await other_process.add_key(digest(eve), "eve")
        await eventually(lambda: is_let_in(eve))
        replace(f"bob:{digest(BOB)}\n")
        await eventually(lambda: is_kept_out(ANN))
        replace("nonsense\n")
        assert await other_process.revoke_keys("eve") == 1
        await eventually(lambda: is_kept_out(eve))
        assert await is_let_in(BOB)  # what cannot be read takes nobody's key away


async def test_once_there_was_a_key_nobody_is_let_in_without_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        assert (await rig.call("GET", "/jobs"))[0] == 200
        await rig.store.add_key(digest(ANN), "ann")

        async def is_closed() -> bool:
            return (await rig.call("GET", "/jobs"))[0] == 401

        await eventually(is_closed)
        await rig.store.revoke_keys("ann")
    async with serving(tmp_path) as rig:
        assert await rig.code("GET", "/jobs") == (401, "missing_key")
        assert await rig.code("GET", "/jobs", ANN) == (401, "invalid_key")


async def test_a_link_lets_in_to_one_thing_of_one_job_for_a_time(rig: Rig) -> None:
    job, other = await rig.finished("ann"), await rig.finished("ann")
    status, document = await rig.call("POST", f"/jobs/{job.prompt_id}/links?expires_in=60", ANN)
    links = document["links"]
    assert (status, set(links)) == (200, {"result", "video", "image", "thumbnail", "events", "preview"})
    assert await rig.call("GET", links["result"]) == (200, b"a result")
    assert await rig.call("GET", links["video"] + "&inline=1", headers={"Range": "bytes=4-"}) == (206, b"video")
    assert (await rig.call("HEAD", links["image"]))[0] == 200
    assert b"event: completed" in (await rig.call("GET", links["events"]))[1]
    assert await rig.code("GET", links["preview"]) == (404, "no_preview")

    query = URL(links["result"]).query_string
    for path in (f"/download/{other.result_file}?{query}", f"/status/{job.prompt_id}?{query}", f"/jobs?{query}"):
        assert (await rig.call("GET", path))[0] in (401, 403), path
    assert await rig.code("GET", links["video"].replace("/video", "/image")) == (403, "invalid_link")
    assert await rig.code("GET", re.sub(r"expires=\d", "expires=9", links["video"])) == (403, "invalid_link")
    assert await rig.code("GET", links["video"][:-1] + "%C3%A9") == (403, "invalid_link")
    assert await rig.code("DELETE", f"/jobs/{job.prompt_id}?{query}") == (401, "missing_key")
    expired = signed(rig.app[keys.LINK_SECRET], f"/jobs/{job.prompt_id}/video", job.prompt_id, int(time.time()))
    assert await rig.code("GET", expired) == (403, "link_expired")
    for wrong in ("0", "604801", "x", "-1", "1.5"):
        path = f"/jobs/{job.prompt_id}/links?expires_in={wrong}"
        assert await rig.code("POST", path, ANN) == (400, "invalid_expires_in")

    await rig.call("DELETE", f"/jobs/{job.prompt_id}", ANN)
    await rig.finished("ann", b"of the same name")  # which that link does not lead to
    assert await rig.code("GET", links["result"]) == (403, "invalid_link")


async def test_links_begin_with_the_public_address(tmp_path: Path, key_file: Path) -> None:
    public = URL("https://faces.example.org/swap/")
    async with serving(tmp_path / "data", api_keys_file=key_file, public_url=public) as rig:
        job = await rig.finished("ann")
        _, document = await rig.call("POST", f"/jobs/{job.prompt_id}/links", ANN)
        link = document["links"]["result"]
        assert link.startswith("https://faces.example.org/swap/download/clip.mp4?expires=")
        assert (await rig.call("GET", link.removeprefix("https://faces.example.org/swap")))[0] == 200


async def test_inputs_are_sent_whole_and_in_part_until_they_are_erased(rig: Rig) -> None:
    job = await rig.finished("ann")
    for kind, media_type in (("video", "video/mp4"), ("image", "image/png")):
        path = f"/jobs/{job.prompt_id}/{kind}"
        async with rig.client.get(path, headers={"X-API-Key": ANN}) as response:
            assert (response.status, await response.text()) == (200, f"the {kind}")
            assert response.content_type == media_type
            assert response.headers["Content-Disposition"].startswith("attachment")
        assert await rig.call("GET", path, ANN, headers={"Range": "bytes=0-2"}) == (206, b"the")
        assert (await rig.call("GET", path, ANN, headers={"Range": "bytes=99-"}))[0] == 416
    await rig.store.mark_inputs_erased(job.prompt_id)  # the file goes a little later
    for kind in ("video", "image"):
        assert await rig.code("GET", f"/jobs/{job.prompt_id}/{kind}", ANN) == (410, "inputs_erased")


def form(video: bytes) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("video", video, filename="clip.mp4")
    form.add_field("image", samples.FACE.read_bytes(), filename="face.png")
    form.add_field("return_prompt_id_only", "true")
    return form


@pytest.mark.usefixtures("one_minute")
async def test_submissions_and_waiting_jobs_of_a_key_are_limited(tmp_path: Path, key_file: Path) -> None:
    video = make_clip(tmp_path / "clip.mp4", 3).read_bytes()
    limits = {"rate_limit": 4, "queue_limit_per_key": 2}
    async with serving(tmp_path / "data", api_keys_file=key_file, **limits) as rig:
        statuses = []
        for left in (3, 2, 1, 0, 0):
            async with rig.client.post("/face-swap", data=form(video), headers={"X-API-Key": ANN}) as response:
                statuses.append((response.status, (await response.json()).get("code")))
                assert response.headers["RateLimit-Policy"] == '"submissions";q=4;w=60'
                assert re.fullmatch(rf'"submissions";r={left};t=\d+', response.headers["RateLimit"])
                assert ("Retry-After" in response.headers) == (response.status == 429)
        full, fast = (429, "key_queue_full"), (429, "rate_limited")
        assert statuses == [(200, None), (200, None), full, full, fast]
        async with rig.client.ws_connect("/face-swap-ws", headers={"X-API-Key": ANN}) as socket:
            await socket.send_json({"video_url": "http://a.example/v", "image_url": "http://a.example/i"})
            assert (await socket.receive_json())["data"]["code"] == "rate_limited"
        assert (await rig.call("POST", "/face-swap", BOB, data=form(video)))[0] == 200
        picture = aiohttp.FormData()
        picture.add_field("image", samples.FACE.read_bytes(), filename="face.png")
        async with rig.client.post("/faces", data=picture, headers={"X-API-Key": ANN}) as response:
            assert response.status == 200  # looks for faces are counted by themselves
            assert response.headers["RateLimit-Policy"] == '"faces";q=40;w=60'
            assert response.headers["RateLimit"].startswith('"faces";r=39;')
        length = {"Tus-Resumable": "1.0.0", "Upload-Length": "1", "X-API-Key": ANN}
        async with rig.client.post("/uploads", headers=length) as response:
            assert response.status == 201  # and so are uploads
            assert response.headers["RateLimit-Policy"] == '"uploads";q=40;w=60'
            assert response.headers["RateLimit"].startswith('"uploads";r=39;')


@pytest.mark.usefixtures("one_minute")
async def test_without_keys_each_address_behind_a_trusted_proxy_has_a_limit(tmp_path: Path) -> None:
    proxies = Settings.load({"FACESWAP_TRUSTED_PROXIES": "127.0.0.0/8"}).trusted_proxies
    async with serving(tmp_path, rate_limit=1, trusted_proxies=proxies, allow_anonymous=True) as rig:

        async def submit(**headers: str) -> int:
            return (await rig.call("POST", "/face-swap", headers=headers, json={}))[0]

        forwarded = [{"X-Forwarded-For": address} for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1")]
        assert [await submit(**headers) for headers in forwarded] == [400, 400, 400]
        assert await submit(**{"X-Forwarded-For": "2001:db8::ffff:1"}) == 429  # of the same network
        assert await submit(**{"X-Forwarded-For": "6.6.6.6, 192.0.2.1"}) == 429  # what a client writes itself
        assert [await submit() for _ in range(3)] == [400, 400, 400]  # a user of this machine


@pytest.mark.usefixtures("one_minute")
async def test_a_flood_of_addresses_is_counted_as_one_and_takes_nothing_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("faceswap.api.rate_limit.MOST_COUNTERS", 2)
    limit = RateLimit(1)
    assert [(await limit.take(who))[0] for who in ("a", "b", "c", "d", "key x", "key y", "e", "a")] == [
        *(True, True, True, False, True, True, False, False)
    ]
    generous = RateLimit(9)
    for who in ("a", "b", "c"):
        await generous.take(who)
    assert (await generous.take("a"))[1].left == 7


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["6.6.6.6, 192.0.2.7, 10.0.0.2"], "192.0.2.7"),
        ("10.0.0.1", ["6.6.6.6", "192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["10.0.0.3"], "10.0.0.3"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.7, unknown"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("192.0.2.9", ["6.6.6.6"], "192.0.2.9"),
        ("::ffff:10.0.0.1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("10.0.0.1", ["192.0.2.7:4711"], "192.0.2.7"),
        ("", ["192.0.2.7"], "None"),
    ],
)
def test_only_trusted_proxies_tell_another_address(peer: str, forwarded: list[str], address: str) -> None:
    settings = Settings.load({"FACESWAP_TRUSTED_PROXIES": "10.0.0.0/8"})
    headers = [("X-Forwarded-For", text) for text in forwarded]
    request = make_mocked_request("GET", "/").clone(headers=headers, remote=peer)
    assert str(client_address(request, settings)) == address


@pytest.mark.parametrize(
    "settings", [{"host": "0.0.0.0"}, {"host": "::"}, {"public_url": URL("https://faces.example.org")}], ids=str
)
async def test_a_service_that_others_reach_does_not_start_without_keys(
    settings: dict[str, Any], tmp_path: Path, key_file: Path
) -> None:
    refused = web.AppRunner(create_app(Settings(tmp_path / "data", comfyui_urls=(URL(dead_url()),), **settings)))
    with pytest.raises(ConfigError, match="there are no API keys"):
        await refused.setup()
    await refused.cleanup()
    async with serving(tmp_path / "data", allow_anonymous=True, **settings) as rig:
        await rig.store.add_key(digest(ANN), "ann")
    for more in ({}, {"api_keys_file": key_file}):
        async with serving(tmp_path / "data", **settings, **more):
            pass


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ann", "line 1"),
        (f"\n# x\na b:{'0' * 64}", "line 3"),
        (f"../x:{'0' * 64}", "line 1"),
        (f"x.mp4:{'0' * 64}", "line 1"),
        (f"ann:{'0' * 63}", "line 1"),
        (f"ann:{'0' * 64}\nbob:{'0' * 64}", "line 2"),
    ],
)
def test_a_wrong_line_in_the_file_of_keys_is_told(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"FACESWAP_API_KEYS_FILE=.*{reason}"):
        read_keys(path)


def test_a_file_of_keys_that_is_none_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="is not there, or is not a file"):
            read_keys(path)


def test_keys_are_made_listed_and_revoked_on_the_command_line(
    tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACESWAP_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("FACESWAP_API_KEYS_FILE", str(key_file))
    made = []
    for note in ("it is made now", ""):
        assert main(["key", "add", "carl"]) == 0
        out, err = capsys.readouterr()
        made.append(out.strip())
        assert note in err and made[-1] not in err
    assert main(["key", "add", "../x"]) == 2
    assert main(["key", "list"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == ["NAME", "carl", "carl", "ann", "bob"]
    assert not [key for key in made if key in listed]
    assert main(["key", "revoke", "carl", "--id", digest(made[0])[:12]]) == 0
    assert main(["key", "list"]) == 0
    ends = {line.split()[1]: line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert ends[digest(made[0])[:12]] != "-" == ends[digest(made[1])[:12]]
    assert main(["key", "revoke", "carl"]) == 0
    assert main(["key", "revoke", "carl"]) == 1
    assert main(["key", "revoke", "ann"]) == 1
    assert "removing its line" in capsys.readouterr().err
    assert digest(made[0]).encode() in (tmp_path / "data" / "faceswap.db").read_bytes()
    assert made[0].encode() not in b"".join(path.read_bytes() for path in (tmp_path / "data").glob("faceswap.db*"))
