"""People get the faces that a request maps to them, from the upload to the result, whatever the engine is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from aiohttp import web
from clips import make_clip
from crossing import Scene, around, crossing
from identity import distance, embedding
from media_samples import ASTRONAUT, GRACE_HOPPER, read_image
from service_rig import EngineRig, Handler, ServiceRig, service_and_engines
from waiting import until

from faceswap.api import keys
from faceswap.engine.landmarks import find_faces
from faceswap.engine.server import ENGINE
from faceswap.media.faces import PORTRAIT_SIDE, cut_portrait

SEGMENT = 8
SIZE = (640, 360)
EXCHANGE = [{"face": 0, "image": 1}, {"face": 1, "image": 0}]
"""Each of the two gets the other's face: the first is Grace Hopper, whose picture is sent first."""
PORTRAITS = {"astronaut": ASTRONAUT, "hopper": GRACE_HOPPER}


@pytest.fixture
async def rigs(tmp_path: Path) -> AsyncIterator[tuple[ServiceRig, EngineRig]]:
    async with service_and_engines(tmp_path, settings={"segment_frames": SEGMENT}) as (service, [engine]):
        yield service, engine


def graphs(engine: EngineRig) -> list[dict[str, Any]]:
    """Return the graph of each prompt that has ended."""
    return [entry["prompt"][2] for entry in engine._app[ENGINE].prompts.history.values()]


def clip(path: Path, scenes: list[Scene]) -> Path:
    def draw(number: int, width: int, height: int) -> np.ndarray:
        return cv2.cvtColor(scenes[number].frame, cv2.COLOR_BGR2RGB)

    return make_clip(path, len(scenes), size=SIZE, draw=draw, crf=16)


def assert_exchanged(scenes: list[Scene], frames: list[np.ndarray]) -> None:
    """Assert that both people have come nearer to each other; Hopper keeps her glasses, by which she is known.

    In the mean over the frames: the network sees the watermark too, which is of the job's own id.
    """
    for person, other in (("hopper", "astronaut"), ("astronaut", "hopper")):
        wanted = embedding(read_image(PORTRAITS[other]))
        nearer = [
            distance(embedding(around(scene, scene.frame, person)), wanted)
            - distance(embedding(around(scene, frame, person)), wanted)
            for scene, frame in zip(scenes, frames, strict=True)
        ]
        assert np.mean(nearer) > 0.09, nearer


async def test_people_keep_their_faces_over_the_segments_of_a_job(
    rigs: tuple[ServiceRig, EngineRig], tmp_path: Path
) -> None:
    """The second segment begins while one of the two is hidden behind the other: first comes who was second."""
    service, engine = rigs
    scenes = list(crossing(2 * SEGMENT, SIZE, front="astronaut", first=4))
    assert [round(face.landmarks[:468, 0].mean()) // 320 for face in find_faces(scenes[0].frame)] == [1, 0]
    assert len(find_faces(scenes[SEGMENT].frame)) == 1
    job = await service.post(clip(tmp_path / "two.mp4", scenes), GRACE_HOPPER, ASTRONAUT, mapping=EXCHANGE)
    status = await service.ended(job)
    assert status["status"] == "SUCCESS", status
    assert status["segments"] == {"done": 2, "total": 2}
    with av.open(await service.download(status, tmp_path / "result.mp4")) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    for end in (slice(3), slice(-3, None)):
        assert_exchanged(scenes[end], frames[end])
    # Faces are not for everybody who looks at what the engine has done.
    assert "people" not in json.dumps(engine.extra_data)


async def test_people_in_a_picture_get_their_faces_too(rigs: tuple[ServiceRig, EngineRig], tmp_path: Path) -> None:
    service, _ = rigs
    (scene,) = crossing(1, SIZE, first=4)
    cv2.imwrite(str(tmp_path / "two.png"), scene.frame)
    status = await service.ended(await service.post(tmp_path / "two.png", GRACE_HOPPER, ASTRONAUT, mapping=EXCHANGE))
    assert status["status"] == "SUCCESS", status
    assert_exchanged([scene], [read_image(await service.download(status, tmp_path / "result.png"))])


async def test_pictures_of_one_person_are_cut_to_one_size_and_blended(
    rigs: tuple[ServiceRig, EngineRig], tmp_path: Path
) -> None:
    service, engine = rigs
    engine.set_faults(paint=True)
    job = await service.post(make_clip(tmp_path / "clip.mp4", 4), GRACE_HOPPER, ASTRONAUT, one_person=True)
    status = await service.ended(job)
    assert status["status"] == "SUCCESS", status
    (graph,) = graphs(engine)
    assert graph["3"]["inputs"]["face_model"] == ["one person", 0]
    pictures = [node["inputs"]["image"] for node in graph.values() if node["class_type"] == "LoadImage"]
    assert len(pictures) == 2
    for name in pictures:
        portrait = read_image(engine.folder / "input" / name)
        assert portrait.shape == (PORTRAIT_SIDE, PORTRAIT_SIDE, 3)
        assert len(find_faces(portrait)) == 1


async def test_one_person_is_refused_and_a_mapping_warned_of_where_the_engine_is_such(tmp_path: Path) -> None:
    """A ComfyUI that lacks the nodes of face models, and numbers the faces of each frame anew."""

    async def without_face_models(request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.json_response({}) if request.path.endswith("/ReActorBuildFaceModel") else await handler(request)

    options = {"lie": without_face_models, "paint": True, "streams": False}
    async with service_and_engines(tmp_path, **options) as (service, _):
        [backend] = service.client.app[keys.SCHEDULER].backends
        await until(lambda: backend.person_problem is not None)
        form = service.form(make_clip(tmp_path / "clip.mp4", 4), GRACE_HOPPER, ASTRONAUT, one_person=True)
        async with service.client.post("/face-swap", data=form) as response:
            problem = await response.json()
        assert (response.status, problem["code"]) == (422, "one_person_unavailable")
        assert "ComfyUI has no node class ReActorBuildFaceModel" in problem["detail"]
        status = await service.ended(await service.post(tmp_path / "clip.mp4", GRACE_HOPPER, ASTRONAUT))
        assert status["status"] == "SUCCESS", status
        assert [warning for warning in status["warnings"] if "ReActor numbers the faces of each frame anew" in warning]


@pytest.mark.parametrize("index", [0, 1, 5])
def test_a_portrait_shows_the_face_that_is_meant_whole_and_alone(tmp_path: Path, index: int) -> None:
    both = np.hstack([read_image(ASTRONAUT), read_image(GRACE_HOPPER)[:512]])
    cv2.imwrite(str(tmp_path / "both.png"), both)
    faces = find_faces(both)
    cut_portrait(tmp_path / "both.png", tmp_path / "portrait.png", index)
    portrait = read_image(tmp_path / "portrait.png")
    (face,) = find_faces(portrait)
    left, top, right, bottom = face.box
    assert 0.4 < (bottom - top) / PORTRAIT_SIDE < 0.6
    expected = faces[min(index, 1)].box
    assert (right - left) / (bottom - top) == pytest.approx(
        (expected[2] - expected[0]) / (expected[3] - expected[1]), 0.05
    )
