"""Paint is as sharp and as grainy as what it covers."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from media_samples import ASTRONAUT, FACE_CENTRE, read_image

from faceswap.engine import mesh
from faceswap.engine.detail import Detail

SIDE = 160
FACE = np.zeros((mesh.LANDMARKS, 3), np.float32) + np.array([SIDE / 2, SIDE / 2, 0], np.float32)
FACE[:2, 1] = 10, 150
FACE[[33, 263, 50, 280], :2] = (50, 60), (110, 60), (45, 100), (115, 100)


def portrait() -> np.ndarray:
    x, y = (int(v) - SIDE // 4 for v in FACE_CENTRE)
    crop = read_image(ASTRONAUT)[y : y + SIDE // 2, x : x + SIDE // 2]
    return cv2.GaussianBlur(cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), (0, 0), 1.0)


def matched(painted: np.ndarray, targets: list[np.ndarray]) -> list[np.ndarray]:
    detail = Detail()
    results = []
    for target in targets:
        detail.compare(target, painted, np.ones(target.shape[:2], bool))
        results.append(detail.match(painted, target, FACE))
    return results


def sharpness(picture: np.ndarray) -> float:
    return float(cv2.Laplacian(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.CV_32F).std())


def grainy(picture: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 8, picture.shape[:2])
    return np.clip(picture + noise[..., None], 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_paint_gets_the_sharpness_of_the_target(sigma: float) -> None:
    painted = portrait()
    target = (
        cv2.GaussianBlur(painted, (0, 0), sigma)
        if sigma
        else cv2.addWeighted(painted, 2.0, cv2.GaussianBlur(painted, (0, 0), 1.5), -1.0, 0)
    )
    (result,) = matched(painted, [target])
    assert 0.85 < sharpness(result) / sharpness(target) < 1.15


def test_paint_on_grainy_film_is_grainy_anew_in_each_frame() -> None:
    painted = portrait()
    targets = [grainy(painted, seed) for seed in range(12)]
    *_, before, last = matched(painted, targets)
    assert 0.85 < sharpness(last) / sharpness(targets[-1]) < 1.15
    moved = cv2.absdiff(before, last).mean() / cv2.absdiff(targets[-2], targets[-1]).mean()
    assert 0.75 < moved < 1.25


def test_grain_that_stays_on_the_face_stays() -> None:
    painted = portrait()
    *_, before, last = matched(painted, [grainy(painted, 1)] * 12)
    assert sharpness(last) > 2 * sharpness(painted)
    assert cv2.absdiff(before, last).mean() < 1.5


def test_the_same_frames_get_the_same_grain() -> None:
    painted = portrait()
    targets = [grainy(painted, seed) for seed in range(3)]
    assert all((a == b).all() for a, b in zip(matched(painted, targets), matched(painted, targets), strict=True))
