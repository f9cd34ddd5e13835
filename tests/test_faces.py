"""Faces in the pictures of requests: refused where there is none, told where there are several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import aiohttp
import clips
import face_pictures
import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from numpy.typing import NDArray
from processes import files_in
from service_rig import ServiceRig, service_and_engines

from faceswap import samples
from faceswap.api import keys
from faceswap.config import Settings
from faceswap.errors import BadRequest
from faceswap.intake.form import LookForm
from faceswap.media.stills import read_still
from faceswap.options import Options

ONE_LOOP = pytest.mark.asyncio(loop_scope="module")

FACE = samples.FACE.read_bytes()
GROUP = face_pictures.png(face_pictures.group())
NOBODY = face_pictures.nobody()
TOLD = "The picture shows 2 faces: the largest is taken, which is number 0."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServiceRig]:
    """Yield a service whose one engine paints, and which may fetch from this machine."""
    local = Settings.load({"FACESWAP_URL_ALLOW": "127.0.0.0/8"}).url_allow
    folder = tmp_path_factory.mktemp("faces")
    async with service_and_engines(folder, settings={"url_allow": local}, paint=True) as (service, _):
        yield service


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return clips.make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 4).read_bytes()


def form(clip: bytes, images: Sequence[bytes], **options: Any) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("video", clip, filename="clip.mp4")
    for image in images:
        form.add_field("image", image, filename="face.png")
    form.add_field("options", json.dumps(options))
    form.add_field("return_prompt_id_only", "true")
    return form


async def submit(rig: ServiceRig, clip: bytes, *images: bytes, **options: Any) -> tuple[int, dict[str, Any]]:
    async with rig.client.post("/face-swap", data=form(clip, images, **options)) as response:
        return response.status, await response.json()


async def kept(rig: ServiceRig) -> tuple[list[str], set[str]]:
    """Return the files that requests have left, and the ids of the jobs."""
    received = [name for name in rig.files() if name.startswith(("inputs/", "looks/"))]
    return received, {job["prompt_id"] for job in (await rig.get("/jobs"))["jobs"]}


@ONE_LOOP
async def test_a_picture_without_a_face_is_refused_whichever_way_it_comes(rig: ServiceRig, clip: bytes) -> None:
    before = await kept(rig)
    status, problem = await submit(rig, clip, NOBODY)
    assert (status, problem["code"]) == (422, "no_face_in_image")
    assert problem["detail"].startswith("The picture shows no face")
    status, problem = await submit(rig, clip, FACE, NOBODY)
    assert (status, problem["code"]) == (422, "no_face_in_image")
    assert problem["detail"].startswith("Picture 1 shows no face")

    async def send(request: web.Request) -> web.Response:
        return web.Response(body=clip if request.path == "/clip" else NOBODY)

    app = web.Application()
    app.add_routes([web.get("/clip", send), web.get("/nobody", send)])
    async with TestServer(app) as elsewhere:
        urls = {"video_url": str(elsewhere.make_url("/clip")), "image_url": str(elsewhere.make_url("/nobody"))}
        async with rig.client.post("/face-swap", json=urls) as response:
            assert (response.status, (await response.json())["code"]) == (422, "no_face_in_image")

    async with rig.client.ws_connect("/face-swap-ws") as socket:
        await socket.send_json({"video": {"size": len(clip)}, "image": {"size": len(NOBODY)}})
        await socket.send_bytes(clip)
        await socket.send_bytes(NOBODY)
        event = await socket.receive_json()
        assert (event["event"], event["data"]["code"]) == ("error", "no_face_in_image")
        assert (await socket.receive()).data == 1008
    assert await kept(rig) == before


@ONE_LOOP
async def test_a_face_that_is_not_there_is_refused(rig: ServiceRig, clip: bytes) -> None:
    refused: list[tuple[list[bytes], dict[str, Any], str]] = [
        ([FACE], {"source_face_index": "1"}, "The picture shows one face, number 0; there is no face 1 in it."),
        ([GROUP], {"source_face_index": "0,2"}, "The picture shows 2 faces, counted from 0; there is no face 2 in it."),
        ([GROUP, FACE], {"source_face_index": "1"}, "Picture 1 shows one face, number 0; there is no face 1 in it."),
        (
            [GROUP, FACE],
            {"mapping": [{"face": 0, "image": 0, "source_face": 1}, {"face": 1, "image": 1, "source_face": 1}]},
            "Picture 1 shows one face, number 0; there is no face 1 in it.",
        ),
    ]
    for images, options, detail in refused:
        status, problem = await submit(rig, clip, *images, **options)
        assert (status, problem["code"], problem["detail"]) == (422, "no_such_source_face", detail)
    status, problem = await submit(rig, clip, FACE, mapping=[{"face": 0, "image": 1}])
    assert (status, problem["code"]) == (400, "invalid_option")
    assert problem["detail"] == "Option 'mapping' names picture 1; only one was given."


@ONE_LOOP
async def test_several_faces_of_which_none_is_chosen_are_told_everywhere(rig: ServiceRig, clip: bytes) -> None:
    status, answer = await submit(rig, clip, GROUP)
    assert (status, answer["warnings"]) == (200, [TOLD])
    prompt_id = answer["prompt_id"]
    assert (await rig.status(prompt_id))["warnings"] == [TOLD]
    ended = await rig.ended(prompt_id)
    assert ended["status"] == "SUCCESS"
    assert ended["warnings"][0] == TOLD
    events = {event.type: event.data for event in await rig.client.app[keys.STORE].events(prompt_id, 0)}
    assert events["queued"]["warnings"] == [TOLD]
    assert events["completed"]["warnings"] == ended["warnings"]
    assert (await submit(rig, clip, FACE))[1]["warnings"] == []
    # The second of the group is chosen, and its face is small.
    assert (await submit(rig, clip, GROUP, source_face_index="1"))[1]["warnings"] == [
        "Face 1 of the picture is small: one of 300 pixels that looks at the camera in even light serves better."
    ]


@ONE_LOOP
async def test_faces_that_a_still_picture_does_not_show_are_told_at_once(rig: ServiceRig) -> None:
    missing = "The picture that is to be changed shows one face, number 0; face {} was not found in it."
    asked: list[tuple[bytes, dict[str, Any], list[str]]] = [
        (NOBODY, {}, ["No face was found in the picture that is to be changed."]),
        (FACE, {}, []),
        (FACE, {"face_index": "0,2"}, [missing.format(2)]),
        (FACE, {"mapping": [{"face": 1, "image": 0}, {"face": 0, "image": 0}]}, [missing.format(1)]),
        (GROUP, {"face_index": "1"}, []),
    ]
    for target, options, told in asked:
        status, answer = await submit(rig, target, FACE, **options)
        assert (status, answer["warnings"]) == (200, told), answer


@ONE_LOOP
async def test_people_who_are_named_and_not_found_are_told(rig: ServiceRig, clip: bytes) -> None:
    for faces, told in (("0,1", True), ("0", False)):
        status, answer = await submit(rig, clip, FACE, face_index=faces)
        assert status == 200, answer
        ended = await rig.ended(answer["prompt_id"])
        assert ended["status"] == "SUCCESS", ended
        assert any("shows 2 faces: face 1 is whoever" in warning for warning in ended["warnings"]) is told


@ONE_LOOP
async def test_a_picture_that_was_looked_at_is_not_looked_at_again(
    rig: ServiceRig, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(path: Path) -> None:
        raise AssertionError

    picture = face_pictures.png(face_pictures.group()[:, ::-1])
    status, first = await submit(rig, clip, picture)
    assert (status, first["warnings"]) == (200, [TOLD])
    monkeypatch.setattr(rig.client.app[keys.MEDIA], "probe_image", refuse)
    status, again = await submit(rig, clip, picture)
    assert (status, again["warnings"]) == (200, [TOLD])


@ONE_LOOP
async def test_a_heic_is_a_png_to_the_engine_and_to_its_owner(rig: ServiceRig, clip: bytes) -> None:
    photo = face_pictures.heic(face_pictures.group())
    status, answer = await submit(rig, clip, photo, source_face_index=1)
    assert status == 200, answer
    prompt_id = answer["prompt_id"]
    kept = [name for name in files_in(rig.folder) if f"inputs/{prompt_id}/" in name]
    assert sorted(Path(name).suffix for name in kept) == [".mp4", ".png"]
    async with rig.client.get(f"/jobs/{prompt_id}/image") as response:
        assert (response.status, response.content_type) == (200, "image/png")
        png = await response.read()
    assert png.startswith(b"\x89PNG")
    job = await rig.client.app[keys.STORE].job(prompt_id)
    (image,) = job.inputs.images
    assert image.sha256 == hashlib.sha256(png).hexdigest()
    assert (await rig.ended(prompt_id))["status"] == "SUCCESS"


@ONE_LOOP
@pytest.mark.parametrize(("kind", "media_type"), [("HEIF", "image/heic"), ("AVIF", "image/avif")])
async def test_a_photograph_of_a_telephone_is_a_target_and_comes_back_upright(
    rig: ServiceRig, tmp_path: Path, kind: str, media_type: str
) -> None:
    sideways = np.ascontiguousarray(np.rot90(face_pictures.group()))
    status, answer = await submit(rig, face_pictures.photograph(sideways, kind, 6), FACE)
    assert status == 200, answer
    ended = await rig.ended(answer["prompt_id"])
    assert (ended["status"], ended["media"]) == ("SUCCESS", "image"), ended
    assert ended["result"].endswith(".jpg")
    found, picture = read_still(await rig.download(ended, tmp_path / "result"))
    assert (found, picture.shape[1::-1]) == ("jpeg", face_pictures.GROUP_SIZE)
    async with rig.client.get(f"/jobs/{answer['prompt_id']}/video") as response:
        assert (response.status, response.content_type) == (200, media_type)


def test_what_means_nothing_to_the_embedded_engine_is_told() -> None:
    assert Options().embedded_warnings() == ()
    assert Options(detect_gender="female", face_boost=False, face_restore_model="none").embedded_warnings() == ()
    chosen = Options(swap_model="inswapper_128.onnx", face_restore_visibility=0.5)
    (warning,) = chosen.embedded_warnings()
    assert (
        warning == "The embedded engine has no use for swap_model, face_restore_visibility: it has no network for that."
    )
    (warning,) = chosen.embedded_warnings({"swap_model", "face_boost"})
    assert warning == "The embedded engine has no use for swap_model: it has no network for that."


async def look(rig: ServiceRig, **fields: bytes | str) -> tuple[int, dict[str, Any]]:
    form = aiohttp.FormData()
    for name, value in fields.items():
        form.add_field(name, value, **({"filename": "a"} if isinstance(value, bytes) else {}))
    async with rig.client.post("/faces", data=form) as response:
        assert response.content_type in ("application/json", "application/problem+json")
        return response.status, await response.json()


@ONE_LOOP
async def test_faces_are_found_and_nothing_is_kept(rig: ServiceRig, tmp_path: Path) -> None:
    before = await kept(rig)
    status, found = await look(rig, image=GROUP)
    assert status == 200, found
    assert (found["width"], found["height"]) == face_pictures.GROUP_SIZE
    assert set(found) == {"width", "height", "faces"}
    assert [face["index"] for face in found["faces"]] == [0, 1]
    assert all(face["thumbnail"].startswith("data:image/jpeg;base64,") for face in found["faces"])

    def draw(number: int, width: int, height: int) -> NDArray[np.uint8]:
        return face_pictures.group() if number == 2 else clips.numbered(number, width, height)

    clip = clips.make_clip(tmp_path / "clip.mp4", 5, size=face_pictures.GROUP_SIZE, draw=draw, rate=Fraction(10))
    for at, shown, faces in ((None, 0.0, 0), ("0.25", 0.2, 2), ("99", 0.4, 0)):
        status, found = await look(rig, video=clip.read_bytes(), **({} if at is None else {"at": at}))
        assert status == 200, found
        assert (found["at"], len(found["faces"])) == (pytest.approx(shown), faces)
        assert (found["frames"], found["frame_rate"], found["duration"]) == (5, 10, 0.5)
    status, found = await look(rig, video=face_pictures.heic(face_pictures.group()))
    assert (status, len(found["faces"]), "at" in found) == (200, 2, False)
    assert await look(rig, image=NOBODY) == (200, {"width": 128, "height": 96, "faces": []})

    for fields, refused in (
        ({"video": b"hello" * 99}, (415, "not_a_video")),
        ({"image": clip.read_bytes()}, (415, "not_an_image")),
    ):
        status, problem = await look(rig, **fields)
        assert (status, problem["code"]) == refused
    assert await kept(rig) == before


@ONE_LOOP
async def test_a_look_that_cannot_be_had_is_refused_before_its_file_is_received(
    rig: ServiceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faceswap.media.worker.MOST_LOOKS", 0)
    async with rig.client.post("/faces", json={}) as response:  # nothing to look at, which nobody has read
        assert (response.status, (await response.json())["code"]) == (503, "too_busy")


def test_a_number_that_python_does_not_read_is_a_wrong_one() -> None:
    with pytest.raises(BadRequest, match="whole number below"):
        LookForm.checks["number"]("number", "0" * 5000)
