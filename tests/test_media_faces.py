"""Faces are found in pictures and in single frames of videos, numbered as `face_index` counts."""

from __future__ import annotations

import base64
from fractions import Fraction
from pathlib import Path

import clips
import cv2
import numpy as np
import pytest
from face_pictures import LARGE, SMALL, group
from numpy.typing import NDArray

from faceswap import samples
from faceswap.errors import Problem
from faceswap.media.faces import THUMBNAIL_SIDE, look_for_faces
from faceswap.media.facts import FacesFacts

MAX_FRAMES = 1000


def look(path: Path, at: float = 0.0) -> FacesFacts:
    return look_for_faces(path, "video", at, MAX_FRAMES)


def test_faces_are_numbered_from_large_to_small(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "group.png"), group()[..., ::-1])
    found = look(tmp_path / "group.png")
    assert (found.width, found.height, found.frame) == (SMALL + LARGE, LARGE, None)
    assert [face.index for face in found.faces] == [0, 1]
    large, small = (face.box for face in found.faces)
    assert large[0] > SMALL > small[0] + small[2]
    assert large[2] == pytest.approx(2 * small[2], rel=0.1)
    assert all(0.5 <= face.score <= 1 for face in found.faces)


def test_a_thumbnail_shows_the_face_and_little_else(tmp_path: Path) -> None:
    large = cv2.resize(cv2.imread(str(samples.FACE)), None, fx=3, fy=3)
    cv2.imwrite(str(tmp_path / "large.jpg"), large)
    (face,) = look(tmp_path / "large.jpg").faces
    kind, _, data = face.thumbnail.partition(",")
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert kind == "data:image/jpeg;base64"
    assert max(picture.shape) == THUMBNAIL_SIDE
    cv2.imwrite(str(tmp_path / "thumbnail.png"), picture)
    (again,) = look(tmp_path / "thumbnail.png").faces
    assert again.box[2] > THUMBNAIL_SIDE / 3


def test_the_frame_that_is_shown_at_a_time_is_looked_at(tmp_path: Path) -> None:
    """At a variable rate: the two people are there from the third frame, at 1.5 s, to the fourth, at 1.6 s."""

    def draw(number: int, width: int, height: int) -> NDArray[np.uint8]:
        return group() if number in (2, 3) else clips.numbered(number, width, height)

    clip = clips.make_clip(
        tmp_path / "clip.mp4",
        5,
        size=(SMALL + LARGE, LARGE),
        draw=draw,
        times=[0, 100, 150, 160, 200],
        time_base=Fraction(1, 100),
    )
    for at, shown, faces in ((0.0, 0.0, 0), (1.49, 1.0, 0), (1.5, 1.5, 2), (1.99, 1.6, 2), (2.0, 2.0, 0), (99, 2.0, 0)):
        found = look(clip, at)
        assert found.frame is not None
        assert (found.frame.at, len(found.faces)) == (pytest.approx(shown), faces), at
        assert found.frame.frames == 5
        assert found.frame.duration == pytest.approx(2.4, abs=0.4)


def test_a_frame_deep_in_a_long_clip_is_found(tmp_path: Path) -> None:
    def draw(number: int, width: int, height: int) -> NDArray[np.uint8]:
        return group() if number == 70 else clips.numbered(number, width, height)

    clip = clips.make_clip(tmp_path / "clip.mp4", 80, size=(SMALL + LARGE, LARGE), draw=draw, rate=Fraction(25))
    assert [len(look(clip, number / 25).faces) for number in (69, 70, 71)] == [0, 2, 0]


def test_a_video_that_a_player_turns_is_looked_at_upright(tmp_path: Path) -> None:
    clip = clips.make_clip(
        tmp_path / "clip.mp4",
        2,
        size=(LARGE, SMALL + LARGE),
        draw=lambda number, width, height: np.ascontiguousarray(np.rot90(group())),
        rotation=90,
    )
    found = look(clip)
    assert (found.width, found.height, len(found.faces)) == (SMALL + LARGE, LARGE, 2)


def test_what_is_neither_picture_nor_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello" * 100)
    with pytest.raises(Problem) as caught:
        look(tmp_path / "text")
    assert (caught.value.status, caught.value.code) == (415, "not_a_video")
    with pytest.raises(Problem) as caught:
        look_for_faces(clips.make_clip(tmp_path / "clip.mp4", 2), "image", 0.0, MAX_FRAMES)
    assert (caught.value.status, caught.value.code) == (415, "not_an_image")
