"""The figures of a swap: what is measured on a clip before and after it, and the goal of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap.engine.frames import Frame
from faceswap.engine.mesh import Image, Points, estimate_pose

from .colour_difference import ciede2000
from .faces import expression, eye_distance, find, identity, nearest, outline
from .swapping import Swapped

SAMPLED_EVERY = 4
"""Frames between two whose identity is looked at: it costs 80 ms."""

MISPLACED = 0.12
"""Share of the eye distance from which on a face is misplaced."""

_FRONTAL_YAW_DEGREES, _FRONTAL_PITCH_DEGREES = 38.0, 38.0
"""Up to these a face is to be swapped whole."""

_CHANGED_LEVELS = 1.0
"""Mean difference, 0–255, from which on a face was swapped."""

_FADE = 0.25
"""Change of the swap's share, from one frame to the next, from which on it is a fade."""

_STILL_LEVELS = 1.0
"""Mean difference of two frames, 0–255, that counts as no motion."""

_HIGHEST_DB = 99.0

_SKIN = [9, 151, 50, 280, 117, 346, 205, 425, 6]
"""Landmarks of the mesh on forehead, cheeks and nose."""

_SKIN_RADIUS = 0.09
"""Of a patch of skin, in eye distances."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """A figure of a clip.

    goal     in words, empty where there is none
    met      tells whether a value meets the goal
    badness  orders values: the largest is the worst
    """

    title: str
    goal: str = ""
    met: Callable[[float], bool] = lambda value: True
    badness: Callable[[float], float] = lambda value: value
    digits: int = 2


def _at_most(title: str, goal: float, digits: int = 2) -> Figure:
    return Figure(title, f"≤ {goal:g}", lambda value: value <= goal, lambda value: value, digits)


def _at_least(title: str, goal: float, digits: int = 2) -> Figure:
    return Figure(title, f"≥ {goal:g}", lambda value: value >= goal, lambda value: -value, digits)


FIGURES = {
    "identity": _at_most("dlib distance to the source", 0.5, 3),
    "nearer": _at_least("share of frames nearer to the source than to the target", 0.98),
    "expression": _at_most("blendshape L1 to the target", 0.03, 3),
    "following": Figure("the same without what stays through the clip, like the bones of the brows", digits=3),
    "pose": _at_most("head pose error, degrees", 2),
    "acceleration": _at_most("landmark acceleration against the target's", 1.1),
    "skin": _at_most("skin ΔE2000 against the target's", 6, 1),
    "sharpness": Figure(
        "sharpness of the face against the target's",
        "0.85–1.15",
        lambda value: 0.85 <= value <= 1.15,
        lambda value: abs(float(np.log(max(value, 1e-3)))),
    ),
    "grain": Figure(
        "grain of the skin against the target's", badness=lambda value: abs(float(np.log(max(value, 1e-3))))
    ),
    "background": _at_most("background PSNR lost against encoding only, dB", 0.1),
    "ring": _at_least("PSNR of the ring around the face, dB", 40, 1),
    "tracked": _at_most("frames painted at a place > 12% of the eye distance off", 0, 0),
    "seen": _at_most("frames whose face is seen > 12% of the eye distance off", 0, 0),
    "unswapped": _at_most("frames unswapped between swapped ones", 0, 0),
    "jump": _at_most("change at a fade against the target's own motion", 1.5),
    "cpu_ms": Figure("CPU of decoding and swap, ms a frame", digits=1),
}


@dataclass
class Target:
    """A clip before the swap, with what is seen in it; kept for all portraits that are put into it."""

    frames: list[Image]
    planes: list[Frame]
    rate: float
    faces: list[list[Any]] = field(default_factory=list)
    identities: dict[int, Floats] = field(default_factory=dict)
    encoded: list[Image] = field(default_factory=list)

    @classmethod
    def of(cls, decoded: Sequence[Frame], rate: float) -> Target:
        """Look at every frame of a clip."""
        target = cls([frame.to_bgr() for frame in decoded], list(decoded), rate)
        place: Points | None = None
        for bgr in target.frames:
            found = find(bgr) or (find(bgr, place) if place is not None else [])
            target.faces.append(found)
            place = nearest(found, place) if found else place
        target.encoded = encoded(decoded, rate)
        return target


def measure(target: Target, swapped: Swapped, source: Floats) -> tuple[dict[str, float | None], list[Image]]:
    """Return every figure by its key, None where the clip does not show it, and the frames after the swap, BGR.

    `source` is the embedding of the portrait's face.
    """
    after = [
        Frame(np.ascontiguousarray(planes), frame.colour)
        for planes, frame in zip(swapped.planes, target.planes, strict=True)
    ]
    frames = [frame.to_bgr() for frame in after]
    before = _followed(target, swapped.tracked)
    result = [
        None if points is None else nearest(find(bgr, points), points)
        for bgr, points in zip(frames, before, strict=True)
    ]
    shares = np.array([_changed(*views) for views in zip(target.frames, frames, before, strict=True)])
    values: dict[str, float | None] = {"cpu_ms": swapped.cpu_ms}
    values.update(_identity(target, frames, before, shares, source))
    values.update(_geometry(before, result, shares))
    values.update(_surface(target.frames, frames, before, shares))
    values["background"] = _background(target, encoded(after, target.rate), before)
    values["tracked"] = float(sum(_offset(a, b) > MISPLACED for a, b in zip(before, swapped.tracked, strict=True)))
    values["seen"] = float(sum(_offset(a, b) > MISPLACED for a, b in zip(before, result, strict=True)))
    values["unswapped"] = float(_unswapped(before, shares))
    values["jump"] = _jump(target.frames, frames, before, shares)
    return {key: values[key] for key in FIGURES}, frames


def _followed(target: Target, tracked: NDArray[np.float32]) -> list[Points | None]:
    """Return for each frame the face that was swapped: the one nearest to where it was painted, or to the last."""
    place: Points | None = None
    followed = []
    for faces, painted in zip(target.faces, tracked, strict=True):
        if not np.isnan(painted).any():
            place = painted
        points = nearest(faces, place)
        followed.append(points)
        place = place if points is None else points
    return followed


def _changed(before: Image, after: Image, points: Points | None) -> float:
    """Return the mean difference, 0–255, over the inner face."""
    if points is None:
        return 0.0
    mask = _mask(before.shape, outline(points, 0.8))
    return float(cv2.mean(cv2.absdiff(before, after), mask)[:3] @ np.full(3, 1 / 3))


def _mask(shape: tuple[int, ...], polygon: NDArray[np.int32]) -> Image:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(mask, [polygon], 255)
    return mask


def _offset(a: Points | None, b: Points | None) -> float:
    """Return the distance between the middles of a face at two places, in eye distances; 0 if one is unknown."""
    if a is None or b is None or np.isnan(b).any():
        return 0.0
    return float(np.linalg.norm((a - b)[:, :2].mean(axis=0))) / max(eye_distance(a), 1.0)


def _is_frontal(points: Points) -> bool:
    pose = estimate_pose(points)
    return abs(pose.yaw) < _FRONTAL_YAW_DEGREES and abs(pose.pitch) < _FRONTAL_PITCH_DEGREES


def _identity(
    target: Target, frames: list[Image], before: list[Points | None], shares: Floats, source: Floats
) -> dict[str, float | None]:
    distances, nearer = [], []
    for k in range(0, len(frames), SAMPLED_EVERY):
        points = before[k]
        if points is None or shares[k] < _CHANGED_LEVELS or not _is_frontal(points):
            continue
        if k not in target.identities:
            target.identities[k] = identity(target.frames[k], points)
        seen = identity(frames[k], points)
        distances.append(np.linalg.norm(seen - source))
        nearer.append(distances[-1] < np.linalg.norm(seen - target.identities[k]))
    return {"identity": _mean(distances), "nearer": _mean(nearer)}


def _geometry(before: list[Points | None], result: list[Points | None], shares: Floats) -> dict[str, float | None]:
    """Compare expression, pose and steadiness of what is seen after the swap with what was seen before."""
    expressions, poses, ours, own = [], [], [], []
    for k, (a, b) in enumerate(zip(before, result, strict=True)):
        if a is None or b is None or shares[k] < _CHANGED_LEVELS:
            continue
        one, other = expression(a), expression(b)
        if one is not None and other is not None:
            expressions.append(other - one)
        poses.append(_degrees_between(a, b))
        if 0 < k < len(before) - 1:
            seen = [(before[j], result[j]) for j in (k - 1, k, k + 1)]
            if all(x is not None and y is not None for x, y in seen):
                own.append(_acceleration([x for x, _ in seen]))
                ours.append(_acceleration([y for _, y in seen]))
    differences = np.array(expressions)
    following = differences - np.median(differences, axis=0) if expressions else differences
    ratio = float(np.median(ours) / max(np.median(own), 1e-6)) if own else None
    return {
        "expression": _mean(np.abs(differences)),
        "following": _mean(np.abs(following)),
        "pose": _mean(poses),
        "acceleration": ratio,
    }


def _degrees_between(a: Points, b: Points) -> float:
    turn = estimate_pose(a).rotation.T @ estimate_pose(b).rotation
    return float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))


def _acceleration(three: Sequence[Any]) -> float:
    """Return the mean second difference of the landmarks of three frames, in eye distances."""
    a, b, c = (points[:, :2] for points in three)
    return float(np.linalg.norm(a - 2 * b + c, axis=1).mean()) / eye_distance(three[1])


def _surface(
    before: list[Image], after: list[Image], faces: list[Points | None], shares: Floats
) -> dict[str, float | None]:
    """Compare colour, sharpness, grain and surroundings of the face."""
    colours, sharp, grain, ring = [], [], [], []
    for k, points in enumerate(faces):
        if points is None or shares[k] < _CHANGED_LEVELS:
            continue
        skin = np.zeros(before[k].shape[:2], np.uint8)
        for x, y in points[_SKIN, :2]:
            patch = np.zeros_like(skin)
            cv2.circle(patch, (round(x), round(y)), max(2, round(_SKIN_RADIUS * eye_distance(points))), 255, -1)
            if patch.any():
                colours.append(ciede2000(*(cv2.mean(bgr, patch)[:3] for bgr in (before[k], after[k]))))
            skin |= patch
        inner = _mask(before[k].shape, outline(points, 0.8))
        sharp.append([_detail(bgr, inner) for bgr in (before[k], after[k])])
        grain.append([_grain(bgr, skin) for bgr in (before[k], after[k])])
        around = _mask(before[k].shape, outline(points, 1.55)) & ~_mask(before[k].shape, outline(points, 1.06))
        if around.any():
            ring.append(np.square(before[k][around > 0].astype(float) - after[k][around > 0]).mean())
    return {
        "skin": _mean(colours),
        "sharpness": _ratio(sharp),
        "grain": _ratio(grain),
        "ring": _psnr(float(np.mean(ring))) if ring else None,
    }


def _detail(bgr: Image, mask: Image) -> float:
    """Return the standard deviation of the Laplacian within a mask."""
    laplacian = cv2.Laplacian(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), cv2.CV_32F)
    return float(cv2.meanStdDev(laplacian, mask=mask)[1][0, 0])


def _grain(bgr: Image, mask: Image) -> float:
    """Return the typical size of the finest variation within a mask."""
    grey = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY).astype(np.float32)
    fine = np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 1.0))[mask > 0]
    return float(np.percentile(fine, 60)) if fine.size else 0.0


def _ratio(pairs: list[list[float]]) -> float | None:
    """Return the second of each pair against the first, over all frames."""
    if not pairs:
        return None
    before, after = np.mean(pairs, axis=0)
    return float(after / max(before, 1e-3))


def _background(target: Target, after: list[Image], faces: list[Points | None]) -> float | None:
    """Return how much more the background loses when a clip is swapped and encoded than when it is encoded."""
    losses = []
    for k, points in enumerate(faces):
        if points is None:
            continue
        outside = _mask(after[k].shape, outline(points, 1.6)) == 0
        if outside.any():
            original = target.frames[k][outside].astype(float)
            pictures = (target.encoded[k], after[k])
            losses.append([np.square(original - bgr[outside]).mean() for bgr in pictures])
    if not losses:
        return None
    plain, swapped = (_psnr(float(loss)) for loss in np.mean(losses, axis=0))
    return plain - swapped


def _psnr(squared: float) -> float:
    return min(_HIGHEST_DB, float(10 * np.log10(255**2 / max(squared, 1e-9))))


def _unswapped(faces: list[Points | None], shares: Floats) -> int:
    """Count the frames with a frontal face that was not swapped, after the first and before the last that was."""
    swapped = np.flatnonzero(shares >= _CHANGED_LEVELS)
    if not len(swapped):
        return 0
    between = range(swapped[0], swapped[-1])
    missed = [faces[k] for k in between if shares[k] < _CHANGED_LEVELS]
    return sum(face is not None and _is_frontal(face) for face in missed)


def _jump(before: list[Image], after: list[Image], faces: list[Points | None], shares: Floats) -> float | None:
    """Return the largest change from frame to frame at a fade, against the target's own; None without a fade."""
    whole = float(np.median(shares[shares >= _CHANGED_LEVELS])) if (shares >= _CHANGED_LEVELS).any() else 0.0
    worst = None
    for k in range(1, len(after)):
        points = faces[k] if faces[k] is not None else faces[k - 1]
        if points is None or abs(shares[k] - shares[k - 1]) < _FADE * whole or whole == 0:
            continue
        mask = _mask(after[k].shape, outline(points, 1.0))
        own, ours = (
            float(np.mean(cv2.mean(cv2.absdiff(frames[k], frames[k - 1]), mask)[:3])) for frames in (before, after)
        )
        worst = max(worst or 0.0, ours / max(own, _STILL_LEVELS))
    return worst


def _mean(values: Sequence[Any] | Floats) -> float | None:
    return float(np.mean(values)) if len(values) else None


def encoded(frames: Sequence[Frame], rate: float) -> list[Image]:
    """Return frames as they come back from the encoder, H.264 as the engine encodes it, uint8 BGR."""
    file = BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("libx264", rate=round(rate), options={"crf": "19", "preset": "medium"})
        stream.width, stream.height = frames[0].size
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame.planes, "yuv420p")
            picture.pts = number
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as decoded:
        pictures = [np.asarray(picture.to_ndarray(format="yuv420p"), np.uint8) for picture in decoded.decode(video=0)]
    return [Frame(planes, frame.colour).to_bgr() for planes, frame in zip(pictures, frames, strict=True)]
