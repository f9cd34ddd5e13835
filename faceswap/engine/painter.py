"""The painter: one source's face, lit like the target's, drawn over one tracked face frame by frame."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from . import colour, hand_mask, mask, mesh
from .colour import Floats
from .detail import Detail
from .eyewear import Eyewear
from .light import Light
from .mesh import Image, Points, Pose, smoothstep
from .source import SourceFace, Texture
from .tracking import Track
from .view import View

_YAW_FADE = (38.0, 60.0)
_PITCH_FADE = (38.0, 55.0)
"""Degrees over which the swap fades out."""

_ASIDE = (0.10, 0.16)
"""Offsets of the irises over which the target's own eyes come in: the white beside the source's would be stretched."""

_LEAST_OPACITY = 0.02
_COMPARE_EVERY = 6
"""Frames between two comparisons of the target's bones with the source's."""

_COMPARE_DETAIL_EVERY = 6
"""Frames between two looks at the sharpness and grain of the target."""

_OPEN_EYE = 0.25
"""Gap between the lids of an open eye, as a share of its width, before anything is known of it."""

_OPEN_LEARNING = 0.05
_CLOSED_LEARNING = 0.005
"""Share that is learned from each frame, of open eyes and of ones that close."""

_CLOSED = (0.5, 0.8)
"""Gap, as a share of that of the open eye, from one whose lids are all the target's to one with the source's."""

_LAYOUT = 64
"""Side of the moves of the target's bones in the layout of the texture, in pixels."""

_SHAPE_MEMORY = 0.999
"""Share of the past in the running mean of the target's bones, for each frame."""


class FacePainter:
    """A painter of one source onto one tracked face, which remembers the face from frame to frame."""

    reach = 1.0
    """Size of the part of a frame that is painted on, in multiples of the face's box."""

    def __init__(self, source: SourceFace, strength: float) -> None:
        self._source = source
        self._strength = strength
        self._light = Light(source.trusted)
        self._painted = 0
        self._shape = np.zeros((mesh.VERTICES, 3), np.float32)
        self._shape_weight = 0.0
        self._shift = self._wanted_shift = self._shape
        self._moves = self._wanted_moves = np.zeros((_LAYOUT, _LAYOUT, 3), np.float32)
        """The shift as each point of the mesh follows it, in the layout of the texture."""
        self._texture: Texture | None = None
        self._texture_tone = source.tone
        self._lids = Lids()
        self._eyewear = Eyewear()
        self._detail = Detail()

    def paint(self, frame: Image, track: Track) -> bool:
        """Paint the face of one frame; return False, and leave the frame alone, where it cannot be done."""
        landmarks = track.landmarks
        pose = mesh.estimate_pose(landmarks)
        opacity = self._strength * track.presence * _share_of_pose(pose)
        if opacity < _LEAST_OPACITY:
            return False
        face = float(np.ptp(landmarks[: mesh.VERTICES, :2], axis=0).max())
        step = 2 if face < 240 else 3 if face < 400 else 4
        view = View.around(landmarks[: mesh.VERTICES], frame, step)
        if view.is_too_small:
            return False
        target = view.of(frame)
        picture = view.coarse(target)
        if not self._light.follow(view, picture, landmarks):
            return False
        self._learn_shape(landmarks, pose)
        self._eyewear.follow(self._painted, frame, landmarks, pose)
        moved = mesh.morph(landmarks, pose, self._shift * np.float32(opacity))
        place, _ = view.draw(moved, mesh.TEXTURE_UV)
        light = self._light.at(place)
        own = self._own(view, landmarks, face / step, colour.to_log(picture) - light)
        if track.hands:
            own *= 1 - hand_mask.over(track.hands, view.to_steps, view.size)
        inside = own * mask.oval(_steps(view, moved), view.size, face / step)
        kept = self._kept(view, moved, landmarks, face / step)
        cover = view.fine(inside * (1 - kept) * np.float32(opacity))
        painted = self._draw(view, place, light, face)
        if self._painted % _COMPARE_DETAIL_EVERY == 0:
            self._detail.compare(target, painted, cover > 0.9 * opacity)
        painted = self._detail.match(painted, target, landmarks - np.array([view.left, view.top, 0], np.float32))
        moves = mesh.look_up(self._moves, place) * np.float32(opacity)
        beneath = _warp(view, target, pose, moves, inside)
        view.replace(frame, np.asarray(cv2.blendLinear(painted, beneath, cover, 1 - cover), np.uint8))
        self._painted += 1
        return True

    def _learn_shape(self, landmarks: Points, pose: Pose) -> None:
        """Average the target's bones over frames with a closed mouth and a frontal view, and compare now and then."""
        weight = float(np.exp(-mesh.mouth_opening(landmarks) / 0.08 - abs(pose.yaw) / 20)) + 1e-3
        self._shape_weight = self._shape_weight * _SHAPE_MEMORY + weight
        canonical = pose.to_canonical(landmarks[: mesh.VERTICES])
        self._shape = self._shape + (canonical - self._shape) * np.float32(weight / self._shape_weight)
        if self._painted % _COMPARE_EVERY == 0:
            self._wanted_shift = mesh.identity_shift(self._source.shape, self._shape) + self._source.brows
            self._wanted_moves = mesh.lay_out(mesh.followed(self._wanted_shift), _LAYOUT)
        step = np.float32(1 if self._painted == 0 else 1 / _COMPARE_EVERY)
        self._shift = self._shift + (self._wanted_shift - self._shift) * step
        self._moves = self._moves + (self._wanted_moves - self._moves) * step

    def _draw(self, view: View, place: Floats, light: Floats, face: float) -> Image:
        """Return the source's face as it looks in this frame, uint8, of the view's size in pixels."""
        scale, picture = self._lit_texture().fitting(face / self._source.height)
        pixels = place * np.float32(self._source.size * scale) - np.float32(0.5)
        painted: Any = cv2.remap(picture, view.fine(pixels), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)  # type: ignore[call-overload]  # the stubs lack map2=None
        gains = np.clip(np.exp(light - self._texture_tone), 0.2, 4)
        return np.asarray(cv2.multiply(painted, view.fine(gains), dtype=cv2.CV_8U), np.uint8)

    def _lit_texture(self) -> Texture:
        """Return the texture for the target's skin, made anew while that becomes known and when it changes much."""
        tone = self._light.tone
        changed = np.abs(tone - self._texture_tone).max() > 0.1
        if self._texture is None or self._painted in (2, 7) or (self._painted % 25 == 24 and changed):
            self._texture = self._source.lit(tone, self._light.variation)
            self._texture_tone = tone
        return self._texture

    def _kept(self, view: View, points: Points, landmarks: Points, face: float) -> Floats:
        """Return the mask of the target's own parts: mouth, closing lids, eyes that look far aside or all eyes.

        `face` is the face's extent in steps, here and below.
        """
        mouth = float(smoothstep(mesh.mouth_opening(landmarks), 0.03, 0.10))
        eyes = float(smoothstep(mesh.gaze_aside(landmarks), *_ASIDE)) if self._source.has_eyes else 1.0
        return mask.kept(_steps(view, points), view.size, face, mouth, eyes, self._lids.follow(landmarks))

    def _own(self, view: View, landmarks: Points, face: float, residual: Floats) -> Floats:
        """Return the probability that a place shows the target's face and nothing in front of it, one pixel a step."""
        own = mask.skin(_steps(view, landmarks), face, residual, self._light.variation, self._light.bearded)
        glasses = self._eyewear.over(view, landmarks)
        return own if glasses is None else own * (1 - glasses)


class Lids:
    """The lids of a target, which are its own wherever they close: a source's lashes would be squeezed to a smudge."""

    def __init__(self) -> None:
        self._open = np.full(2, _OPEN_EYE)

    def follow(self, landmarks: Points) -> Floats:
        """Return the share of each eye's lids that shows in the next frame, float32 (2,)."""
        openings = np.array(mesh.eye_openings(landmarks))
        learning = np.where(openings > _CLOSED[1] * self._open, _OPEN_LEARNING, _CLOSED_LEARNING)
        self._open += learning * (openings - self._open)
        return 1 - smoothstep(openings / self._open, *_CLOSED)


def _share_of_pose(pose: Pose) -> float:
    """Return 1 for a face that looks at the camera, 0 for one turned away."""
    return float((1 - smoothstep(abs(pose.yaw), *_YAW_FADE)) * (1 - smoothstep(abs(pose.pitch), *_PITCH_FADE)))


def _steps(view: View, points: Points) -> Floats:
    """Return points in the view's steps, a whole number being the middle of one."""
    return view.points(points)[:, :2] - np.float32(0.5)


def _warp(view: View, target: Image, pose: Pose, moves: Floats, share: Floats) -> Image:
    """Return the target with its face moved by the share, one a step, that each place follows of canonical moves."""
    back = -pose.to_image(np.eye(3, dtype=np.float32))[:, :2].T
    shifts = view.fine(cv2.transform(moves, back) * share[..., None])
    flags = cv2.INTER_LINEAR | cv2.WARP_RELATIVE_MAP
    moved = cv2.remap(target, shifts, None, flags, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]  # the stubs lack map2=None
    return np.asarray(moved, np.uint8)
