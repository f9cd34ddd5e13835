"""Each person of a clip gets the face that is meant for them, in every frame, also where people cross."""

from __future__ import annotations

import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import make_clip
from crossing import PERIOD, Scene, around, crossing
from engine_rig import engine
from identity import distance, embedding
from media_samples import ASTRONAUT, GRACE_HOPPER, astronaut_frames, read_image

from faceswap.engine.faults import Faults
from faceswap.engine.landmarks import find_faces
from faceswap.engine.people import ALL_WAYS, Look, _assign
from faceswap.engine.pixels import Bitmap
from faceswap.engine.source import NoFaceError
from faceswap.engine.swap import FaceSwapper, SourceFace
from faceswap.workflow import Workflow

ROOT = Path(__file__).parent.parent
FRAMES = int(os.environ.get("FACESWAP_CROSSING_FRAMES", "14"))
"""Frames of each clip, which begins shortly before a crossing; `make crossing` takes more."""
FRONTS = ("astronaut", "hopper")[: 1 if FRAMES < PERIOD else 2]
"""Order in which they are drawn: who is numbered second passes in front, so that the first is the one who is lost."""
SIZE = (640, 360)
OTHER = {"astronaut": "hopper", "hopper": "astronaut"}


def by_size(scene: Scene) -> list[str]:
    """Return the people of a frame, large to small, as `/faces` numbers them."""
    middles = [face.landmarks[:468, 0].mean() for face in find_faces(scene.frame)]
    return [min(scene.faces, key=lambda person: abs(scene.faces[person][0] - middle)) for middle in middles]


def test_each_person_keeps_the_right_face_through_a_crossing(tmp_path: Path) -> None:
    """Judge by dlib's embedding: nearest to the person's frame with the right face, not the other face or the own."""
    pictures = {"astronaut": read_image(ASTRONAUT), "hopper": read_image(GRACE_HOPPER)}
    sources = {person: SourceFace.from_image(picture) for person, picture in pictures.items()}
    people = {person: embedding(picture) for person, picture in pictures.items()}
    right = judged = 0
    for front in FRONTS:
        scenes = list(crossing(FRAMES, SIZE, front=front, first=6))
        order = by_size(scenes[0])
        swapper = FaceSwapper([sources[OTHER[person]] for person in order], (0, 1), 24.0)
        wrong, frame = FaceSwapper([sources[person] for person in order], (0, 1), 24.0), scenes[0].frame.copy()
        wrong.apply(Bitmap(frame), wrong.track(Bitmap(frame)))
        outcomes = {
            person: [embedding(around(scenes[0], picture, person)) for picture in (frame, scenes[0].frame)]
            for person in order
        }
        for number, scene in enumerate(scenes):
            frame = scene.frame.copy()
            swapper.apply(Bitmap(frame), swapper.track(Bitmap(frame)))
            crosses = not all(seen for _, _, seen in scenes[max(0, number - 3)].faces.values())
            for person, (_, _, seen) in scene.faces.items():
                if number == 0:
                    meant = embedding(around(scene, frame, person))
                    other, before = people[OTHER[person]], outcomes[person][-1]
                    assert (
                        distance(meant, other) < distance(before, other) - 0.1
                    )  # hopper's own glasses stay, which the network knows her by
                    outcomes[person].insert(0, meant)
                if seen and (crosses or number % 8 == 0):
                    shown = embedding(around(scene, frame, person))
                    judged += 1
                    right += int(np.argmin([distance(shown, outcome) for outcome in outcomes[person]])) == 0
    assert judged >= FRAMES // 2 * len(FRONTS)
    assert right >= 0.98 * judged


def test_a_later_part_of_a_clip_knows_the_people_of_its_beginning() -> None:
    """The people of the first frame are told to a swap that begins when they have changed sides and sizes."""
    scenes = list(crossing(PERIOD // 2 + 1, SIZE))
    order = by_size(scenes[0])
    known = [Look.of(Bitmap(scenes[0].frame), face.landmarks) for face in find_faces(scenes[0].frame)]
    turned = cv2.flip(cv2.resize(scenes[-1].frame, None, fx=1.2, fy=1.2), 1)
    for looks in (known, known[::-1]):
        swapper = FaceSwapper([SourceFace.from_image(read_image(ASTRONAUT))], (0,), 24.0, known=looks)
        (track,) = swapper.track(Bitmap(turned))
        person = order[0] if looks is known else order[1]
        x = turned.shape[1] - 1.2 * scenes[-1].faces[person][0]
        assert abs(track.raw[:468, 0].mean() - x) < 30


def test_a_stranger_is_not_taken_for_who_is_there() -> None:
    scene = next(crossing(1, SIZE))
    faces = find_faces(scene.frame)
    known = [Look.of(Bitmap(scene.frame), face.landmarks) for face in faces[:1]]
    swapper = FaceSwapper([SourceFace.from_image(read_image(ASTRONAUT))], (0,), 24.0, known=known)
    (track,) = swapper.track(Bitmap(scene.frame))
    assert abs(track.raw[:468, 0].mean() - faces[0].landmarks[:468, 0].mean()) < 5


@pytest.mark.parametrize("count", [2, ALL_WAYS, ALL_WAYS + 3])
def test_faces_are_named_by_the_least_doubt_in_all(count: int) -> None:
    doubts = np.random.default_rng(count).uniform(0.5, 1, (count, count))
    names = np.random.default_rng(count).permutation(count)
    doubts[np.arange(count), names] = 0.1
    assert _assign(doubts) == list(names)
    assert _assign(doubts[:, :-1]) == [None if name == count - 1 else name for name in names]
    assert _assign(doubts[:-1]) == list(names[:-1])
    assert _assign(np.empty((count, 0))) == [None] * count


def test_a_likest_pair_does_not_leave_the_others_with_the_unlikest() -> None:
    assert _assign(np.array([[0.1, 0.2], [0.2, 0.9]])) == [1, 0]


def test_several_pictures_of_one_person_give_one_face() -> None:
    astronaut = read_image(ASTRONAUT)
    frames = [frame for number, frame in enumerate(astronaut_frames(30)) if number in (0, 12, 20)]
    blank = np.full((64, 64, 3), 128, np.uint8)
    alone = SourceFace.from_image(astronaut)
    person = SourceFace.from_images([*frames, blank])
    bones = [SourceFace.from_image(frame).shape for frame in frames]
    spread = np.mean([np.abs(shape - alone.shape).mean() for shape in bones])
    assert np.abs(person.shape - alone.shape).mean() < spread
    assert any(np.array_equal(person.residual, SourceFace.from_image(frame).residual) for frame in frames)
    with pytest.raises(NoFaceError):
        SourceFace.from_images([blank, blank])


async def test_a_graph_with_a_swap_for_each_picture_swaps_both_people(tmp_path: Path) -> None:
    scenes = list(crossing(6, SIZE))
    clip = make_clip(
        tmp_path / "two.mp4",
        len(scenes),
        size=SIZE,
        draw=lambda number, width, height: cv2.cvtColor(scenes[number].frame, cv2.COLOR_BGR2RGB),
    )
    order = by_size(scenes[0])
    files = [ASTRONAUT if person == "hopper" else GRACE_HOPPER for person in order]
    async with engine(tmp_path, Faults()) as rig:
        names = [(await rig.upload(file))["name"] for file in files]
        video = (await rig.upload(clip))["name"]
        options = {"mapping": [{"face": face, "image": face, "source_face": 0} for face in (0, 1)], "crf": 10}
        graph = Workflow.load(ROOT / "workflows" / "FaceSwap-Reactor-API.json").build(
            video=video, images=names, output_prefix="two", options=options
        )
        out = await rig.swap(graph)
        one = {**options, "one_person": True, "mapping": [{"face": 1, "image": 0, "source_face": 0}]}
        graph = Workflow.load(ROOT / "workflows" / "FaceSwap-Reactor-API.json").build(
            video=video, images=[names[1], names[1]], output_prefix="one", options=one
        )
        person = await rig.swap(graph, "one")
    people = {"astronaut": embedding(read_image(ASTRONAUT)), "hopper": embedding(read_image(GRACE_HOPPER))}
    for path, changed in ((out, order), (person, order[1:])):
        with av.open(path) as container:
            frame = list(container.decode(video=0))[-1].to_ndarray(format="bgr24")
        for name in order:
            before, shown = (embedding(around(scenes[-1], picture, name)) for picture in (scenes[-1].frame, frame))
            nearer = distance(before, people[OTHER[name]]) - distance(shown, people[OTHER[name]])
            assert (nearer > 0.1) == (name in changed)
