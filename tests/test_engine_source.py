"""A source is taken as a face alone: without its glasses, its smile and its light, but with its beard."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from media_samples import ASTRONAUT, GRACE_HOPPER, read_image

from faceswap.engine import mesh, source
from faceswap.engine.behind_glasses import cleared
from faceswap.engine.brows import brow_shift
from faceswap.engine.forehead import bared
from faceswap.engine.landmarks import find_faces
from faceswap.engine.pixels import Bitmap
from faceswap.engine.swap import FaceSwapper, SourceFace

BLACK, GOLD = (25, 20, 20), (95, 215, 245)
"""Colours of rims, BGR."""
FOREHEAD = [67, 109, 10, 338, 297, 299, 151, 69]
BELOW_THE_EYE = [111, 118, 101, 100, 47, 121, 120, 119]
BETWEEN_THE_EYES = [8, 193, 417, 168, 9]
TINT = (0.75, 0.85, 0.95)
"""Shares of blue, green and red that lenses let through."""


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """Return a woman who smiles with open lips, and wears no glasses."""
    return read_image(ASTRONAUT)[:300, 100:350]


@pytest.fixture(scope="module")
def landmarks(portrait: np.ndarray) -> np.ndarray:
    return find_faces(portrait)[0].landmarks


@pytest.fixture(scope="module")
def bare(portrait: np.ndarray) -> SourceFace:
    return SourceFace.from_image(portrait)


def with_glasses(
    picture: np.ndarray,
    landmarks: np.ndarray,
    colour: tuple[int, int, int],
    tint: tuple[float, float, float] = (1, 1, 1),
) -> np.ndarray:
    worn = picture.copy()
    right, left = (landmarks[eye, :2].mean(axis=0) for eye in mesh.EYES)
    across = left - right
    radius = 0.42 * np.linalg.norm(across)
    lenses = np.zeros(picture.shape[:2], np.uint8)
    for eye in (right, left):
        cv2.circle(lenses, np.round(eye).astype(int).tolist(), int(radius), 1, -1)
    worn[lenses > 0] = worn[lenses > 0] * np.array(tint)
    for eye in (right, left):
        cv2.circle(worn, np.round(eye * 16).astype(int).tolist(), int(radius * 16), colour, 2, cv2.LINE_AA, 4)
    bridge = [np.round(16 * (right + share * across)).astype(int).tolist() for share in (0.42, 0.58)]
    cv2.line(worn, *bridge, colour, 2, cv2.LINE_AA, 4)
    return worn


def with_beard(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    mask = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillPoly(mask, [landmarks[mesh.BEARD, :2].astype(np.int32)], 255)
    cv2.fillConvexPoly(mask, cv2.convexHull(landmarks[mesh.LIPS_OUTER, :2].astype(np.int32)), 0)
    share = cv2.GaussianBlur(mask, (0, 0), 2)[..., None] / 255
    strands = np.random.default_rng(0).normal(1, 0.2, (*picture.shape[:2], 1))
    return np.clip(picture * (1 - share) + np.array([35, 40, 45]) * strands * share, 0, 255).astype(np.uint8)


def within(face: SourceFace, points: list[int]) -> np.ndarray:
    """Return the texture, relative to the skin in log colour, within the hull of points, (n, 3)."""
    layout = mesh.TEXTURE_UV[points] * np.float32(face.size)
    mask = np.zeros((face.size, face.size), np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(layout).astype(np.int32), 1)
    return face.residual[mask > 0]


def lightness(face: SourceFace, points: list[int]) -> np.ndarray:
    return within(face, points).mean(axis=-1)


def yellowness(face: SourceFace, points: list[int]) -> np.ndarray:
    return within(face, points)[:, 2] - within(face, points)[:, 0]


def mouth(shape: np.ndarray) -> tuple[float, float]:
    """Return the mouth's width as a share of the eyes' distance, and how far its corners lie above its middle, cm."""
    corners = shape[[61, 291]]
    width = np.ptp(corners[:, 0]) / np.ptp(shape[[33, 263], 0])
    return float(width), float(corners[:, 1].mean() - shape[[13, 14], 1].mean())


@pytest.mark.parametrize("colour", [BLACK, GOLD], ids=["black", "golden"])
def test_glasses_of_a_source_are_taken_off(
    portrait: np.ndarray, landmarks: np.ndarray, bare: SourceFace, colour: tuple[int, int, int]
) -> None:
    face = SourceFace.from_image(with_glasses(portrait, landmarks, colour))
    assert not face.brows.any()
    for picture in (lightness, yellowness):
        assert np.ptp(picture(face, BELOW_THE_EYE)) < np.ptp(picture(bare, BELOW_THE_EYE)) + 0.1


def test_skin_behind_tinted_lenses_is_like_the_rest(portrait: np.ndarray, landmarks: np.ndarray) -> None:
    clear, tinted = (
        SourceFace.from_image(with_glasses(portrait, landmarks, BLACK, tint)) for tint in ((1, 1, 1), TINT)
    )
    difference = within(tinted, BELOW_THE_EYE).mean(axis=0) - within(clear, BELOW_THE_EYE).mean(axis=0)
    assert np.abs(difference).max() < 0.04  # the lenses take 0.29, 0.16 and 0.05


def test_no_line_of_a_frame_is_left_between_the_eyes() -> None:
    face = SourceFace.from_image(read_image(GRACE_HOPPER))
    assert lightness(face, BETWEEN_THE_EYES).min() > 0.045  # 0.024 where its upper edge is left


def test_glasses_that_lie_on_the_brows_leave_brows_behind() -> None:
    face = SourceFace.from_image(read_image(GRACE_HOPPER))
    for brow in mesh.BROWS:
        assert np.quantile(lightness(face, brow), 0.1) < -0.45  # 0.5 and 0.6: the hair is thin and light


def test_nothing_of_a_frame_that_lies_on_the_brows_is_left() -> None:
    face = SourceFace.from_image(read_image(GRACE_HOPPER))
    for brow in mesh.BROWS:
        assert np.quantile(lightness(face, brow), 0.02) > -0.9  # 2.0 and 1.7: the frame is black


def test_eyes_that_glasses_shade_have_whites() -> None:
    face = SourceFace.from_image(read_image(GRACE_HOPPER))
    for eye in mesh.EYES:
        pupil, white = np.quantile(lightness(face, eye), (0.02, 0.85))
        assert pupil < -1.8 and white > -0.25  # 0.5 and 0.7 behind the glasses


def test_eyes_that_are_light_enough_are_left_alone(bare: SourceFace) -> None:
    flat = bare.residual + np.float32(0.3)
    layout = mesh.TEXTURE_UV * np.float32(bare.size)
    after = cleared(flat, layout, np.zeros(3, np.float32))
    for eye in mesh.EYES:
        assert np.array_equal(within(replace(bare, residual=after), eye), within(replace(bare, residual=flat), eye))


def test_a_beard_of_a_source_stays_and_is_not_taken_for_shadow(
    portrait: np.ndarray, landmarks: np.ndarray, bare: SourceFace
) -> None:
    face = SourceFace.from_image(with_beard(portrait, landmarks))
    assert np.abs(face.tone - bare.tone).max() < 0.15
    chin = [18, 83, 182, 194, 204, 211, 171, 175, 396, 431, 424, 418, 406, 313]
    assert np.median(lightness(bare, chin)) > -0.2
    assert np.median(lightness(face, chin)) < -0.8


def test_the_beard_of_a_target_makes_no_dark_chin(portrait: np.ndarray, landmarks: np.ndarray) -> None:
    frame = with_beard(portrait, landmarks)
    swapper = FaceSwapper([SourceFace.from_image(read_image(GRACE_HOPPER))])
    assert swapper.apply(Bitmap(frame), swapper.track(Bitmap(frame))) == 1
    chin, cheek = (frame[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4].mean() for x, y, _ in landmarks[[200, 50]])
    assert chin > 0.6 * cheek


def test_a_fringe_of_a_source_does_not_colour_the_forehead(bare: SourceFace) -> None:
    assert np.abs(np.median(within(bare, FOREHEAD), axis=0)).max() < 0.3  # 0.49 in the portrait


def with_lines(steps: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the layout, a forehead with dark lines at `steps` from its middle, and the same bared."""
    layout = mesh.TEXTURE_UV * np.float32(400)
    skin = np.random.default_rng(0).normal(0, 0.02, (400, 400, 3)).astype(np.float32)
    lines = skin.copy()
    top, bottom = layout[[10, 151]].astype(int)
    for x in steps:
        cv2.line(lines, (top[0] + x, top[1]), (bottom[0] + x, bottom[1]), (-0.5,) * 3, 6)
    return layout, lines, bared(lines, layout, np.zeros((400, 400), np.float32), np.zeros(3))


def test_strands_of_a_fringe_are_taken_off_a_forehead_and_its_grain_stays() -> None:
    layout, strands, after = with_lines(range(-60, 0, 16))  # on one half of the forehead
    half = int(layout[151, 0])
    inside = cv2.fillConvexPoly(np.zeros((400, 400), np.uint8), cv2.convexHull(layout[FOREHEAD].astype(np.int32)), 1)
    other = inside.copy()
    inside[:, half:], other[:, : half + 16] = 0, 0
    assert np.quantile(strands[inside > 0], 0.1) < -0.45
    assert np.quantile(after[inside > 0], 0.1) > -0.15
    assert np.array_equal(after[other > 0], strands[other > 0])


def test_a_few_lines_on_a_forehead_stay() -> None:
    _, lines, after = with_lines(range(-6, 12, 12))
    assert np.median(after[lines < -0.4]) < -0.4


def test_the_white_of_an_eye_is_lit_as_skin_is_and_a_brow_is_not() -> None:
    residual = np.full((40, 80, 3), -0.45, np.float32)
    openings = np.zeros((40, 80), np.float32)
    openings[:, :40] = 1
    skin = source._skin_probability(residual, openings, np.full(3, 0.05), 40)
    assert skin[20, 20] > 0.6 and skin[20, 60] < 0.1


def test_what_lies_beyond_the_edge_of_a_picture_is_not_taken_for_skin(
    portrait: np.ndarray, landmarks: np.ndarray, bare: SourceFace
) -> None:
    cut = portrait[: int(landmarks[200, 1])].copy()  # through the chin
    cut[-1] = cut[-1] // 2
    chin = [211, 171, 175, 396, 431, 148, 377]
    assert np.median(lightness(SourceFace.from_image(cut), chin)) > np.median(lightness(bare, chin)) - 0.15


def test_the_band_of_a_brow_is_widened_to_the_brow(portrait: np.ndarray, landmarks: np.ndarray) -> None:
    drawn = portrait.copy()
    for brow in mesh.BROWS:
        upper, lower = landmarks[brow[:5], :2], landmarks[brow[:4:-1], :2]
        outline = np.concatenate([upper, (lower + 0.6 * (lower - upper))[::-1]])
        cv2.fillPoly(drawn, [np.round(outline * 16).astype(np.int32)], (30, 30, 35), cv2.LINE_AA, 4)
    lower_edges = [brow[7] for brow in mesh.BROWS]
    assert not brow_shift(portrait, landmarks).any()
    shift = brow_shift(drawn, landmarks)
    assert (shift[lower_edges, 1] < -0.1).all()
    moved = mesh.estimate_pose(landmarks).to_canonical(landmarks)[: mesh.VERTICES] + shift
    for column in ([52, 223, 27, 159], [55, 221, 56, 157], [282, 443, 257, 386], [285, 441, 286, 384]):
        assert (np.diff(moved[column, 1]) < 0).all()  # no row has passed another
    assert np.allclose(SourceFace.from_image(drawn).brows[lower_edges, 1], shift[lower_edges, 1], atol=0.15)


def test_eyes_that_look_aside_stay_the_targets(portrait: np.ndarray) -> None:
    wearer = SourceFace.from_image(read_image(GRACE_HOPPER))
    assert wearer.has_eyes
    large = cv2.resize(portrait, None, fx=2, fy=2)
    (track,) = FaceSwapper([wearer]).track(Bitmap(large))
    for aside, own in ((0.0, False), (0.25, True)):
        landmarks = track.landmarks.copy()
        for iris, right, left in ((slice(468, 473), 33, 133), (slice(473, 478), 362, 263)):
            landmarks[iris] += aside * (landmarks[left] - landmarks[right])
        frames = [large.copy(), large.copy()]
        for frame, face in zip(frames, (wearer, replace(wearer, has_eyes=False)), strict=True):
            FaceSwapper([face]).apply(Bitmap(frame), [replace(track, landmarks=landmarks)])
        assert np.array_equal(*frames) == own


def test_parted_lips_of_a_source_are_closed(portrait: np.ndarray, landmarks: np.ndarray, bare: SourceFace) -> None:
    assert mesh.mouth_opening(landmarks) > 0.1
    between = lightness(bare, mesh.LIPS_INNER)
    lips = lightness(bare, mesh.LIPS_OUTER)
    assert between.max() < np.quantile(lips, 0.9)  # no teeth
    assert between.min() > np.median(lips) - 0.5  # no gap


def test_the_smile_of_a_source_is_taken_back(landmarks: np.ndarray, bare: SourceFace) -> None:
    smiling = mesh.estimate_pose(landmarks).to_canonical(landmarks)
    widths, lifts = zip(*[mouth(shape) for shape in (smiling, bare.shape)], strict=True)
    assert widths[0] > 0.67 > 0.64 > widths[1]
    assert lifts[1] < 0.6 * lifts[0]
    assert bare.shape[152, 1] > smiling[152, 1] + 0.2
    fold = [203, 206, 216, 207, 205, 36]
    assert lightness(bare, fold).std() < 0.09  # twice as much in the portrait


def test_a_face_at_rest_is_left_as_it_is() -> None:
    picture = read_image(GRACE_HOPPER)
    landmarks = find_faces(picture)[0].landmarks
    shape = mesh.estimate_pose(landmarks).to_canonical(landmarks)[: mesh.VERTICES]
    assert np.abs(SourceFace.from_image(picture).shape - shape).max() < 0.15
