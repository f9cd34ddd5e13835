"""Faces are followed through clips: fast moves, cuts, losses, and the fades of a swap."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
from crossing import crossing
from media_samples import ASTRONAUT, FACE_CENTRE, GRACE_HOPPER, astronaut_frames, read_image

from faceswap.engine import mesh
from faceswap.engine.landmarks import Finder, find_faces, region_of
from faceswap.engine.pixels import Bitmap
from faceswap.engine.swap import FaceSwapper, SourceFace
from faceswap.engine.tracking import DETECT_EVERY, LOOKAHEAD, Track, Tracker

SIZE = (640, 360)
CENTRE = (320.0, 200.0)
FACE = 109.0
"""Height of the face in astronaut.png, pixels."""

HOPPER_CENTRE = (263.0, 233.0)


portrait = cache(read_image)


@cache
def astronaut_landmarks() -> np.ndarray:
    """Return the landmarks of the still, (468, 2), pixels."""
    return find_faces(portrait(ASTRONAUT))[0].landmarks[: mesh.VERTICES, :2]


@cache
def source() -> SourceFace:
    """Return a face to put in."""
    return SourceFace.from_image(portrait(GRACE_HOPPER))


def shown(
    place: tuple[float, float] = CENTRE, zoom: float = 1.0, *, size: tuple[int, int] = SIZE, hopper: bool = False
) -> np.ndarray:
    """Draw a person with the face at a place."""
    picture, centre = (portrait(GRACE_HOPPER), HOPPER_CENTRE) if hopper else (portrait(ASTRONAUT), FACE_CENTRE)
    matrix = cv2.getRotationMatrix2D(centre, 0, zoom)
    matrix[:, 2] += np.array(place) - centre
    return cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)


def error(track: Track, place: tuple[float, float] = CENTRE, zoom: float = 1.0) -> float:
    """Return how far a track is off the astronaut's landmarks at a place, as a share of the distance of the eyes."""
    true = (astronaut_landmarks() - FACE_CENTRE) * zoom + place
    off = np.linalg.norm(track.landmarks[: mesh.VERTICES, :2] - true, axis=1).mean()
    return float(off / np.linalg.norm(true[33] - true[263]))


def covered(frame: np.ndarray) -> np.ndarray:
    """Draw something dark over the middle of a frame."""
    picture = frame.copy()
    picture[:, 200:440] = (60, 50, 40)
    return picture


def final_tracks(frames: list[np.ndarray]) -> list[list[Track]]:
    """Return the tracks of each frame as they are in the end, when they are painted."""
    swapper = FaceSwapper([source()], lookahead=LOOKAHEAD)
    tracks = [swapper.track(Bitmap(frame)) for frame in frames]
    swapper.finish()
    return tracks


def presences(frames: list[np.ndarray]) -> list[float]:
    """Return the presence of the face in each frame, 0 where none is painted."""
    return [tracks[0].presence if tracks else 0.0 for tracks in final_tracks(frames)]


def test_a_followed_face_keeps_its_identity() -> None:
    tracker = Tracker(1)
    tracks = [tracker(Bitmap(frame)) for frame in astronaut_frames(2 * DETECT_EVERY + 5)]
    assert {track.identity for frame in tracks for track in frame} == {1}
    assert all(len(frame) == 1 for frame in tracks)


def test_tracked_landmarks_are_steadier_than_raw_ones_and_stay_on_the_face() -> None:
    random = np.random.default_rng(0)
    tracker, raw, smooth = Tracker(1), [], []
    for frame in astronaut_frames(40):
        noise = random.normal(0, 6, frame.shape)
        (track,) = tracker(Bitmap(np.clip(frame + noise, 0, 255).astype(np.uint8)))
        raw.append(track.raw[:, :2])
        smooth.append(track.landmarks[:, :2])
    jitter, raw_jitter = (np.abs(np.diff(points, 2, axis=0)).mean() for points in (smooth, raw))
    assert jitter < 0.95 * raw_jitter
    assert np.linalg.norm(np.array(smooth) - np.array(raw), axis=2).mean() < 1.5


def test_a_face_leaves_and_comes_back() -> None:
    frames = list(astronaut_frames(30))
    empty = np.full_like(frames[0], 90)
    tracker = Tracker(1)
    counts = [len(tracker(Bitmap(frame))) for frame in [*frames[:6], *[empty] * 5, *frames[6:12]]]
    assert counts[:6] == [1] * 6
    assert counts[6:11] == [0] * 5
    assert counts[-4:] == [1] * 4


@pytest.mark.parametrize("step", [0.25, 0.5, 1.0, 1.5])
def test_a_face_is_followed_through_fast_moves(step: float) -> None:
    """From a quarter of a face on the landmarker is sure of a face on the neck, or sees none."""
    tracker = Tracker(1)
    for x, y in [(0, 0), (0, 0), (0, -1), (0, -1), (1, -1), (1, 0), (0, 0), (-1, 0.2)]:
        place = CENTRE[0] + x * step * FACE * 0.9, CENTRE[1] + y * step * FACE * 0.9
        (track,) = tracker(Bitmap(shown(place)))
        assert error(track, place) < 0.12
        assert track.identity == 1


@pytest.mark.parametrize("off", [-0.3, 0.2])
def test_a_region_beside_a_face_leads_to_it(off: float) -> None:
    """A landmarker that looks there once is sure of a face that is not where it says."""
    region = region_of(Tracker(1)(Bitmap(shown()))[0].raw)
    placed = Finder().place(Bitmap(shown()), region._replace(y=region.y + off * FACE))
    assert placed is not None
    assert error(Track(1, placed.points, placed.points, placed.pattern)) < 0.05


def test_what_is_sure_of_itself_and_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the landmarker look only once: its face above the eyes does not look like the one that was followed."""
    tracker = Tracker(1)
    tracker(Bitmap(shown()))
    monkeypatch.setattr("faceswap.engine.landmarks._ROUNDS", 1)
    place = CENTRE[0], CENTRE[1] + 0.3 * FACE
    (track,) = tracker(Bitmap(shown(place)))
    assert error(track, place) < 0.05


def test_another_person_at_the_same_place_after_a_cut_is_another_face() -> None:
    frames = [*[shown()] * 4, *[shown(zoom=0.55, hopper=True)] * 3]
    tracks = final_tracks(frames)
    assert [[track.identity for track in frame] for frame in tracks] == [[1]] * 4 + [[2]] * 3
    assert all(track.presence == 1 for frame in tracks for track in frame)


def test_a_shot_that_shows_the_face_elsewhere_is_swapped_from_its_first_frame_on() -> None:
    """A cut from a wide shot to a close one, to an empty one, and to a small face."""
    empty = np.full((SIZE[1], SIZE[0], 3), (30, 120, 60), np.uint8)
    small = shown((520, 60), 0.35)
    assert presences([*[shown((150, 200), 0.8)] * 3, *[shown((400, 180), 2.5)] * 3]) == [1] * 6
    assert presences([*[shown()] * 3, *[empty] * 3, *[small] * 3]) == [1] * 3 + [0] * 3 + [1] * 3


def test_a_face_that_comes_into_view_fades_in_from_where_it_does() -> None:
    """Nobody is there at first, so that only every second frame is looked at."""
    hidden = covered(shown())
    seen = presences([*[hidden] * 3, *[shown()] * 7])
    assert seen == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_a_face_that_is_lost_has_faded_out_before() -> None:
    hidden = covered(shown())
    assert presences([*[shown()] * 6, hidden]) == [1, 1, 1, 0.75, 0.5, 0.25, 0]


def test_a_face_that_was_only_missed_is_swapped_all_the_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame in which the face is not found in time is filled in from the next one that shows it."""
    frames = [shown() for _ in range(9)]
    place = Finder.place
    blind = [id(frame) for frame in frames[4:6]]
    monkeypatch.setattr(
        Finder, "place", lambda self, frame, at: None if id(frame.bgr) in blind else place(self, frame, at)
    )
    trace_back = Tracker.trace_back

    def see_again(self: Tracker, track: Track, frames: int) -> tuple[list[Track], bool]:
        blind.clear()
        return trace_back(self, track, frames)

    monkeypatch.setattr(Tracker, "trace_back", see_again)
    tracks = final_tracks(frames)
    assert [[(track.identity, track.presence) for track in frame] for frame in tracks] == [[(1, 1.0)]] * 9


def test_a_face_that_comes_back_is_at_once_as_it_was() -> None:
    hidden = covered(shown())
    tracks = final_tracks([*[shown()] * 3, *[hidden] * 8, *[shown()] * 2])
    assert [track.identity for frame in tracks for track in frame] == [1] * 5
    assert tracks[-1][0].presence == tracks[-2][0].presence == 1


def test_a_small_face_is_followed_and_found_again() -> None:
    zoom = 40 / FACE
    hidden = covered(shown(zoom=zoom))
    tracker = Tracker(1)
    for k in range(4):
        (track,) = tracker(Bitmap(shown((300 + 8 * k, 200), zoom)))
        assert error(track, (300 + 8 * k, 200), zoom) < 0.12
    assert tracker(Bitmap(hidden)) == []
    assert [track.identity for track in tracker(Bitmap(shown((340, 190), zoom)))] == [1]


def test_a_small_face_in_a_clip_is_found_after_a_while_and_in_the_first_frame_at_once() -> None:
    canvas = shown((1550, 630), 0.25, size=(1920, 1080))
    assert [track.raw.tolist() for track in Tracker(1)(Bitmap(canvas))] == [
        face.landmarks.tolist() for face in find_faces(canvas)
    ]
    tracker = Tracker(1)
    tracker(Bitmap(np.zeros_like(canvas)))
    assert any(tracker(Bitmap(canvas)) for _ in range(120))


def tracked(places: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Track], int]:
    """Return the astronaut's track in a frame for each place, and how often the landmarker looked."""
    tracker, looked = Tracker(1, lookahead=LOOKAHEAD), []
    place = Finder.place
    monkeypatch.setattr(Finder, "place", lambda self, frame, region: looked.append(1) or place(self, frame, region))
    frames = [frame for at in places for frame in tracker.follow(Bitmap(shown(at)))] + list(tracker.finish())
    assert len(frames) == len(places)
    return [track for _, (track,) in frames], len(looked)


@pytest.mark.parametrize(
    ("moves", "keeps_its_course"),
    [([1.0] * 16, True), ([4.0] * 16, True), ([8.0, 8.0, -8.0, -8.0] * 4, False), ([9.0, -2.0, -7.0] * 6, False)],
)
def test_landmarks_of_frames_in_which_a_face_keeps_its_course_are_interpolated(
    moves: list[float], keeps_its_course: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count the frames that the landmarker looks at: every second one of a steady face, all of one that is not.

    `moves` are those between two frames in pixels; the eyes are 60 pixels apart.
    """
    places = [(CENTRE[0] + float(x), CENTRE[1]) for x in np.cumsum(moves)]
    tracks, looked = tracked(places, monkeypatch)
    for at, track in zip(places, tracks, strict=True):
        assert error(replace(track, landmarks=track.raw), at) < 0.015
    assert (looked < 0.8 * len(places)) == keeps_its_course


def test_a_face_that_hardly_moves_goes_straight_from_one_look_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parabola through three looks would bend with their noise."""
    tracks, _ = tracked([(CENTRE[0] + number, CENTRE[1]) for number in range(16)], monkeypatch)
    straight = [
        np.allclose(middle.raw, (before.raw + after.raw) / 2, atol=1e-3)
        for before, middle, after in zip(tracks, tracks[1:], tracks[2:], strict=False)
    ]
    assert sum(straight) >= 5


def test_a_frame_that_is_shown_twice_is_not_taken_for_half_a_move(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = [4.0] * 9 + [0.0, 8.0] * 6
    places = [(CENTRE[0] - 60 + float(x), CENTRE[1]) for x in np.cumsum(moves)]
    tracks, _ = tracked(places, monkeypatch)
    for at, track in zip(places, tracks, strict=True):
        assert error(replace(track, landmarks=track.raw), at) < 0.015


def test_a_second_face_is_swapped_from_the_frame_on_that_shows_it() -> None:
    """The first face is calm all the while, so that few frames are looked at."""
    alone = shown((160, 200))
    both = alone.copy()
    both[:, 320:] = shown((480, 180), 0.5, hopper=True)[:, 320:]
    swapper = FaceSwapper([source()], (0, 1), lookahead=LOOKAHEAD)
    came = DETECT_EVERY + 1
    tracks = [swapper.track(Bitmap(frame.copy())) for frame in [alone] * came + [both] * (DETECT_EVERY + 1)]
    swapper.finish()
    assert [len(frame) for frame in tracks] == [1] * came + [2] * (DETECT_EVERY + 1)
    assert [min(track.presence for track in frame) for frame in tracks[came:]] == [0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_a_face_stays_with_its_person_when_another_passes_in_front() -> None:
    """Swap only the larger of two faces, which is hidden for a few frames by the other."""
    scenes = list(crossing(16, SIZE, front="astronaut", first=6))
    tracks = final_tracks([scene.frame for scene in scenes])
    hidden = 0
    for scene, found in zip(scenes, tracks, strict=True):
        off = {name: [abs(track.raw[:468, 0].mean() - x) for track in found] for name, (x, *_) in scene.faces.items()}
        hidden += not found
        assert all(hopper < 15 or hopper < astronaut for hopper, astronaut in zip(*off.values(), strict=True)), off
    assert hidden < 8
