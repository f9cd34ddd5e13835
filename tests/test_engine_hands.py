"""Hands in front of a face are found, followed and left as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from media_samples import ASTRONAUT, FACE_CENTRE, GRACE_HOPPER, astronaut_frames, read_image

from faceswap.engine import hand_mask, hand_tracking, mesh
from faceswap.engine.hand_networks import POINTS, PalmDetector
from faceswap.engine.hand_tracking import DOUBT, LOOK_EVERY, SEARCH_EVERY, HandTracker
from faceswap.engine.hands import Hand, HandFinder, palm_length
from faceswap.engine.networks import Region
from faceswap.engine.pixels import Bitmap
from faceswap.engine.swap import LOOKAHEAD, FaceSwapper, SourceFace, Track
from faceswap.engine.view import View

HAND = Path(__file__).parent / "data" / "hand.png"
TIPS = [4, 8, 12, 16, 20]
AWAY = 400.0
"""Pixels beside the face, out of the frame."""


def put_hand(
    bgr: np.ndarray, place: tuple[float, float], angle: float = 0.0, size: float = 0.7
) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture with a hand of its own skin's colour whose middle is at a place, and the hand's mask, 0–1."""
    hand = cv2.imread(str(HAND), cv2.IMREAD_UNCHANGED)
    height, width = hand.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, size)
    matrix[:, 2] += np.array(place) - (width / 2, height / 2)
    colours = np.clip(hand[..., :3] * np.array([1.15, 1.35, 1.75]), 0, 255).astype(np.uint8)
    shape = bgr.shape[1::-1]
    share = cv2.warpAffine(hand[..., 3], matrix, shape)[..., None] / 255
    drawn = cv2.warpAffine(colours, matrix, shape, borderMode=cv2.BORDER_REPLICATE)
    return np.round(bgr * (1 - share) + drawn * share).astype(np.uint8), share[..., 0]


def changed(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> float:
    """Return the share of the pixels of a hand that are others than before."""
    return float((cv2.absdiff(before, after).max(axis=2)[mask > 0.9] > 16).mean())


@pytest.fixture(scope="module")
def source() -> SourceFace:
    return SourceFace.from_image(read_image(GRACE_HOPPER))


@pytest.mark.parametrize("angle", [0, 70, -160])
def test_a_hand_is_found_however_it_is_turned(angle: float) -> None:
    picture, mask = put_hand(np.full((300, 320, 3), 120, np.uint8), (160, 150), angle, 1.0)
    (points,) = HandFinder().find(Bitmap(picture), Region(160, 150, 400, 0), 2, [])
    x, y = points[:, :2].astype(int).T
    assert (cv2.dilate(mask, np.ones((7, 7)))[y, x] > 0.5).all()
    # the hand points up when it is not turned
    up = np.array([-np.sin(np.radians(angle)), -np.cos(np.radians(angle))])
    assert (points[[8, 12, 16], :2] - points[0, :2]) @ up == pytest.approx(150, abs=25)


def test_a_hand_that_is_known_is_not_found_again() -> None:
    picture, _ = put_hand(np.full((300, 320, 3), 120, np.uint8), (160, 150), 0, 1.0)
    finder, region = HandFinder(), Region(160, 150, 400, 0)
    found = finder.find(Bitmap(picture), region, 2, [])
    assert not finder.find(Bitmap(picture), region, 1, found)


def test_a_face_is_no_hand() -> None:
    x, y = FACE_CENTRE
    assert not HandFinder().find(Bitmap(read_image(ASTRONAUT)), Region(x, y, 280, 0), 2, [])


def test_what_looks_like_a_palm_and_is_no_hand_is_refused() -> None:
    still, detector, finder = Bitmap(read_image(ASTRONAUT)), PalmDetector(), HandFinder()
    for region in (Region(340, 160, 200, 0), Region(340, 200, 200, 0), Region(300, 120, 280, 0)):
        assert detector(still, region) and not finder.find(still, region, 2, [])


def test_the_mask_covers_the_hand_and_little_else() -> None:
    picture, mask = put_hand(np.full((300, 320, 3), 120, np.uint8), (160, 150), 20, 1.0)
    (points,) = HandFinder().find(Bitmap(picture), Region(160, 150, 400, 0), 1, [])
    view = View(20, 10, 310, 290, 2)
    drawn = view.fine(hand_mask.over([Hand(points)], view.to_steps, view.size))
    truth = mask[10:290, 20:310]
    assert (drawn[truth > 0.9] > 0.5).mean() > 0.95
    assert (drawn[cv2.dilate(truth, np.ones((9, 9))) < 0.1] < 0.5).mean() > 0.96
    half = view.fine(hand_mask.over([Hand(points, 0.5)], view.to_steps, view.size))
    assert np.abs(half - drawn / 2).max() < 1e-5


def test_a_hand_before_the_face_of_a_still_stays_as_it_is(source: SourceFace) -> None:
    x, y = FACE_CENTRE
    still, mask = put_hand(read_image(ASTRONAUT), (x, y + 45))
    results = {}
    for seen in (True, False):
        frame = Bitmap(still.copy())
        swapper = FaceSwapper([source])
        (track,) = swapper.track(frame)
        assert [hand.presence for hand in track.hands] == [1.0]
        if not seen:
            track.hands = ()
        assert swapper.apply(frame, [track]) == 1
        results[seen] = changed(still, frame.bgr, mask)
    assert results[True] < 0.03 < 0.2 < results[False]


def test_a_hand_that_comes_and_goes_stays_in_front_without_a_gap(source: SourceFace) -> None:
    made = []
    for number, bgr in enumerate(astronaut_frames(24)):
        reach = max(0, abs(number - 12) - 5) * 45
        made.append(put_hand(bgr, (290 + reach / 2, 320 + reach), size=1.0))
    swapper = FaceSwapper([source], lookahead=LOOKAHEAD)
    frames = [Bitmap(bgr.copy()) for bgr, _ in made]
    tracks = [swapper.track(frame) for frame in frames]
    swapper.finish()
    presence = [max((hand.presence for hand in faces[0].hands), default=0.0) for faces in tracks]
    shown = [number for number, share in enumerate(presence) if share]
    assert shown == list(range(shown[0], shown[-1] + 1)) and shown[0] <= 6 and shown[-1] >= 18
    assert min(presence[shown[0] + 1 : 18]) == 1
    for frame, faces in zip(frames, tracks, strict=True):
        assert swapper.apply(frame, faces) == 1
    shares = [changed(bgr, frame.bgr, mask) for (bgr, mask), frame in zip(made[7:18], frames[7:18], strict=True)]
    assert max(shares) < 0.06 and max(shares[1:]) < 0.03  # it still comes in the first


class Scripted:
    """A finder that sees a hand at the places of the frames it is in, and counts what it is asked."""

    places: tuple[float | None, ...] = ()

    def __init__(self) -> None:
        self.looks: list[int] = []

    def follow(self, picture: Frame, points: np.ndarray) -> np.ndarray | None:
        """Return the hand of a frame."""
        place = self.places[picture.number] if picture.number < len(self.places) else None
        return None if place is None else hand_at(place)

    def find(self, picture: Frame, region: Region, limit: int, known: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the hand of a frame, if it is not known."""
        self.looks.append(picture.number)
        points = self.follow(picture, hand_at(0))
        return [] if points is None or known else [points]


class Frame(Bitmap):
    """A frame that has nothing but its number."""

    def __init__(self, number: int) -> None:
        super().__init__(np.zeros((8, 8, 3), np.uint8))
        object.__setattr__(self, "number", number)

    number: int


def hand_at(x: float) -> np.ndarray:
    """Return a hand beside or before the face of `face`."""
    points = np.zeros((POINTS, 3), np.float32)
    points[:, 0] = x + 50
    points[:, 1] = np.linspace(90, 30, POINTS)
    return points


def face(likeness: float = 1.0) -> list[Track]:
    """Return the tracks of a frame with one face, 100 pixels large."""
    landmarks = np.zeros((478, 3), np.float32)
    landmarks[1, :2] = 100
    return [Track(1, landmarks, landmarks, np.zeros(mesh.VERTICES, np.float32), likeness=likeness)]


def follow(
    monkeypatch: pytest.MonkeyPatch, places: Sequence[float | None], frames: Sequence[list[Track]], lookahead: int = 5
) -> tuple[list[list[float]], list[int]]:
    """Return how present the hands are in each frame, and the frames in which they were looked for."""
    monkeypatch.setattr(Scripted, "places", tuple(places))
    finder = Scripted()
    monkeypatch.setattr(hand_tracking, "HandFinder", lambda: finder)
    tracker = HandTracker(lookahead)
    for number, tracks in enumerate(frames):
        tracker.add(Frame(number), tracks, begins_shot=number == 0)
    return [[hand.presence for track in tracks for hand in track.hands] for tracks in frames], finder.looks


def test_hands_are_looked_for_where_a_face_looks_different_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [face() for _ in range(2 * LOOK_EVERY)]
    frames[5] = frames[6] = face(DOUBT - 0.1)
    _, looks = follow(monkeypatch, [], frames)
    assert looks == [0, 5, 5 + LOOK_EVERY]
    doubtful = [face(DOUBT - 0.1) for _ in range(10)]
    assert follow(monkeypatch, [], doubtful)[1] == list(range(0, 10, SEARCH_EVERY))
    assert not follow(monkeypatch, [0.0] * 20, [[] for _ in range(20)])[1]


def test_a_hand_is_traced_back_to_where_it_came_into_view(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [None] * 12 + [0.0] * 12
    presence, looks = follow(monkeypatch, places, [face() for _ in places])
    assert looks[1] == LOOK_EVERY and presence[11:] == [[], [0.5], *[[1.0]] * 11]
    late, _ = follow(monkeypatch, places, [face() for _ in places], lookahead=0)
    assert late[15:18] == [[], [0.5], [1.0]]


def test_a_hand_that_is_missed_fades_out_and_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = [0.0] * 4 + [None] * 8
    presence, looks = follow(
        monkeypatch, [10.0 * (k % 2) if p is not None else None for k, p in enumerate(gone)], [face() for _ in gone]
    )
    assert presence == [*[[1.0]] * 4, [0.75], [0.5], [0.25], *[[]] * 5] and looks == [0, 4]
    missed = [0.0, 10.0, 0.0, 10.0, None, None, *[20.0, 30.0] * 3]
    presence, _ = follow(monkeypatch, missed, [face() for _ in missed])
    assert presence == [*[[1.0]] * 4, [0.75], [0.5], *[[1.0]] * 6]


def test_a_hand_that_has_gone_far_away_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [0.0, 90.0, AWAY, AWAY, AWAY]
    presence, _ = follow(monkeypatch, places, [face() for _ in places])
    assert presence == [[1.0], [1.0], [], [], []]


def test_a_hand_at_rest_stays_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    length = palm_length(hand_at(0))
    places = [0.0, *(0.03 * length * (-1) ** k for k in range(11))]
    frames = [face() for _ in places]
    follow(monkeypatch, places, frames)
    seen = [track.hands[0].points[0, 0] for tracks in frames for track in tracks]
    assert 0 < np.abs(np.diff(seen)).max() < 0.035 * length
