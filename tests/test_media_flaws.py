"""The flaws of a face in a picture that is to be a source: small, cut off, turned away, lit from one side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from media_samples import ASTRONAUT, GRACE_HOPPER, read_image
from numpy.typing import NDArray

from faceswap.engine import mesh
from faceswap.engine.landmarks import Face, find_faces
from faceswap.intake.pictures import _flaw_warnings
from faceswap.media.flaws import flaws_of
from faceswap.media.probe import probe_image
from faceswap.options import Options

BETTER = "one of 300 pixels that looks at the camera in even light serves better."


@pytest.fixture(scope="module")
def portrait() -> NDArray[np.uint8]:
    return read_image(GRACE_HOPPER)


def flaws(picture: NDArray[np.uint8]) -> tuple[str, ...]:
    (face,) = find_faces(picture)
    return tuple(flaws_of(picture, face))


def test_good_portraits_have_no_flaws(portrait: NDArray[np.uint8]) -> None:
    assert flaws(portrait) == flaws(read_image(ASTRONAUT)) == ()


def test_a_small_face_is_told(portrait: NDArray[np.uint8]) -> None:
    assert flaws(cv2.resize(portrait, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)) == ("small",)


def test_a_face_that_the_edge_of_the_picture_cuts_off_is_told(portrait: NDArray[np.uint8]) -> None:
    left, _, right, _ = map(int, find_faces(portrait)[0].box)
    assert flaws(np.ascontiguousarray(portrait[:, : right - (right - left) // 8])) == ("cut",)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_light_from_one_side_is_told(share: float, portrait: NDArray[np.uint8]) -> None:
    left, _, right, _ = find_faces(portrait)[0].box
    across = np.clip((np.arange(portrait.shape[1]) - left) / (right - left), 0, 1)
    dimmed = (portrait * (1 - share * across)[None, :, None]).astype(np.uint8)
    assert flaws(dimmed) == (("one_sided",) if share > 0.5 else ())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("degrees", "found"), [(20, ()), (40, ("turned",)), (-40, ("turned",))])
def test_a_face_that_is_turned_away_is_told(axis: int, degrees: int, found: tuple[str, ...]) -> None:
    turn, _ = cv2.Rodrigues(np.radians(degrees) * np.eye(3)[axis])
    points = np.zeros((mesh.LANDMARKS, 3), np.float32)
    points[: mesh.VERTICES] = (mesh.CANONICAL * (1, -1, -1)) @ turn.T
    points = points * 10 + np.float32((200, 200, 0))
    assert tuple(flaws_of(np.full((400, 400, 3), 128, np.uint8), Face(points, 1.0))) == found


def test_each_face_of_a_picture_has_its_own_flaws(portrait: NDArray[np.uint8], tmp_path: Path) -> None:
    small = cv2.resize(portrait, None, fx=0.35, fy=0.35, interpolation=cv2.INTER_AREA)
    both = np.full((len(portrait), portrait.shape[1] + small.shape[1], 3), 110, np.uint8)
    both[: len(small), : small.shape[1]], both[:, small.shape[1] :] = small, portrait
    cv2.imwrite(str(tmp_path / "both.png"), both)
    assert probe_image(tmp_path / "both.png").flaws == ((), ("small",))


def test_the_face_that_is_put_in_is_what_is_told_of() -> None:
    found = [[(), ("small", "one_sided")], [("turned",)]]

    def told(*pictures: int, takes_light: bool = True, **options: object) -> list[str]:
        flaws = [found[picture] for picture in pictures]
        return list(_flaw_warnings(Options.parse(options), flaws, takes_light=takes_light))

    assert told(0) == []
    assert told(0, source_face_index="1") == [f"Face 1 of the picture is small and is lit from one side: {BETTER}"]
    assert told(0, source_face_index="1", takes_light=False) == [f"Face 1 of the picture is small: {BETTER}"]
    assert told(1) == [f"The face in the picture is turned away: {BETTER}"]
    assert told(0, 1) == [f"The face in picture 1 is turned away: {BETTER}"]
    mapping = [{"face": 0, "image": 0}, {"face": 1, "image": 0, "source_face": 1}]
    assert told(0, 1, mapping=mapping, takes_light=False) == [f"Face 1 of picture 0 is small: {BETTER}"]
