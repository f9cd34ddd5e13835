"""The swap: the source's face, lit like the target's, drawn over every frame of a clip.

Each frame is handled in two calls that may run in two threads: `FaceSwapper.track` finds the faces, `FaceSwapper.apply`
paints them. Nothing is shared between the two but the tracks handed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from . import colour, mask, mesh
from .colour import Floats
from .landmarks import Face, Track, Tracker, find_faces
from .mesh import Image, Points, Pose, smoothstep
from .people import Look, People
from .source import NoFaceError, SourceFace, Texture

__all__ = ["Face", "FaceSwapper", "NoFaceError", "SourceFace", "Track", "find_faces"]

_MAX_FACES = 16

_MORPH = 0.8
"""Share of the source's bones that the target takes on."""

_YAW_FADE = (38.0, 60.0)
_PITCH_FADE = (38.0, 55.0)
"""Degrees over which the swap fades out."""

_LEAST_OPACITY = 0.02
_WARP_STEP = 4
"""Pixels between two points of the map that warps the surroundings."""

_COMPARE_EVERY = 6
"""Frames between two comparisons of the target's bones with the source's."""

_SHAPE_MEMORY = 0.999
_LIGHT_MEMORY = 0.85
_TONE_MEMORY = 0.4
_VARIATION_MEMORY = 0.9
"""Share of the past in running means, for each frame."""


class FaceSwapper:
    """A swapper of the faces in the frames of one clip.

    sources          faces to put in
    target_indices   which faces of a frame are replaced: 0 is the largest when faces come into view (ReActor's
                     input_faces_index). The k-th gets the k-th source, or the last. A face keeps its source for as
                     long as it is followed, also when another becomes larger; where several are replaced, each keeps
                     it for the whole clip, by its looks.
    frame_rate       frames a second
    strength         0–1, opacity
    known            the looks of people who came into view before this clip, or part of one, begins
    """

    def __init__(
        self,
        sources: Sequence[SourceFace],
        target_indices: Sequence[int] = (0,),
        frame_rate: float = 25.0,
        strength: float = 1.0,
        known: Sequence[Look] = (),
    ) -> None:
        if not sources:
            raise ValueError("A swap needs at least one source face")
        self._sources = list(sources)
        self._strength = strength
        self._indices = list(target_indices)
        self._people = People(known) if known or len(self._indices) > 1 else None
        # One more than is replaced, where people are told apart: a stranger is not to be taken for who is missing.
        followed = max(self._indices, default=-1) + (1 if self._people is None else 2)
        self._tracker = Tracker(min(followed, _MAX_FACES), frame_rate, is_later_part=bool(known))
        self._targets = _Targets(target_indices, timeouts=round(frame_rate / 2))
        self._first_tracks: dict[int, int] = {}
        self._painters: dict[int, _FacePainter] = {}

    def track(self, bgr: Image) -> list[Track]:
        """Find the faces to replace in the next frame, uint8 (H, W, 3) BGR."""
        tracks = self._tracker(bgr)
        if self._people is None:
            return self._targets.choose(tracks)
        named = zip(self._people.name(bgr, tracks), tracks, strict=True)
        return [self._as_person(track, person) for person, track in named if person in self._indices]

    def _as_person(self, track: Track, person: int) -> Track:
        """Return the track of a known person; who comes back is handed over at once."""
        returned = self._first_tracks.setdefault(person, track.identity) != track.identity
        presence = 1.0 if returned else track.presence
        return replace(track, identity=person, presence=presence, target=self._indices.index(person))

    def apply(self, bgr: Image, tracks: Sequence[Track]) -> int:
        """Replace the tracked faces of the next frame in place; return how many changed."""
        changed = 0
        for track in tracks:
            if track.identity not in self._painters:
                source = self._sources[min(track.target, len(self._sources) - 1)]
                self._painters[track.identity] = _FacePainter(source, self._strength)
            changed += self._painters[track.identity].paint(bgr, track)
        if len(self._painters) > 2 * _MAX_FACES:
            current = {track.identity for track in tracks}
            self._painters = {key: painter for key, painter in self._painters.items() if key in current}
        return changed


class _Targets:
    """The choice of the tracked faces to replace.

    A place whose face is lost goes to a face that has just come into view, or after `timeouts` frames to any.
    """

    def __init__(self, indices: Sequence[int], timeouts: int) -> None:
        self._indices = indices
        self._timeouts = timeouts
        self._holders: dict[int, int] = {}
        self._missing: dict[int, int] = {}
        self._known: set[int] = set()

    def choose(self, tracks: list[Track]) -> list[Track]:
        """Return the tracks to replace, each with its `target`."""
        by_identity = {track.identity: track for track in tracks}
        ranked = sorted(by_identity, key=lambda identity: by_identity[identity].area, reverse=True)
        for target, index in enumerate(self._indices):
            if self._holders.get(target) in by_identity:
                self._missing[target] = 0
                continue
            self._missing[target] = self._missing.get(target, 0) + 1
            if 0 <= index < len(ranked) and self._may_take(ranked[index], target):
                self._holders[target] = ranked[index]
        self._known |= by_identity.keys()
        return [
            replace(by_identity[identity], target=target)
            for target, identity in self._holders.items()
            if identity in by_identity
        ]

    def _may_take(self, identity: int, target: int) -> bool:
        if identity in self._holders.values():
            return False
        is_new = identity not in self._known
        return target not in self._holders or is_new or self._missing[target] > self._timeouts


@dataclass(frozen=True)
class _View:
    """A box of a frame, in pixels, looked at in steps of `step` pixels."""

    left: int
    top: int
    right: int
    bottom: int
    step: int

    @classmethod
    def around(cls, points: Points, frame: Image, step: int) -> _View:
        """Return the box around points, with a margin, inside the frame."""
        low = np.floor(points[:, :2].min(axis=0)).astype(int) - 3
        high = np.ceil(points[:, :2].max(axis=0)).astype(int) + 4
        height, width = frame.shape[:2]
        return cls(max(0, low[0]), max(0, low[1]), min(width, high[0]), min(height, high[1]), step)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in steps, rounded up."""
        return -(-(self.right - self.left) // self.step), -(-(self.bottom - self.top) // self.step)

    @property
    def is_too_small(self) -> bool:
        return self.right - self.left < 8 or self.bottom - self.top < 8

    def of(self, frame: Image) -> Image:
        """Return the box of a frame, not copied."""
        return frame[self.top : self.bottom, self.left : self.right]

    def replace(self, frame: Image, content: Image) -> None:
        """Put the box back into the frame."""
        frame[self.top : self.bottom, self.left : self.right] = content

    def coarse(self, picture: Image) -> Image:
        """Shrink the box's content to one pixel a step."""
        return np.asarray(cv2.resize(picture, self.size, interpolation=cv2.INTER_AREA), np.uint8)

    def points(self, points: Points) -> Points:
        """Turn points of the frame into steps; the first step spans 0–1. Depth stays."""
        steps = points.copy()
        steps[:, :2] = (points[:, :2] - np.array([self.left, self.top], np.float32) + 0.5) / self.step
        return steps

    def draw(self, points: Points, values: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Draw values at the mesh's points, one pixel a step; also return the mask of the mesh."""
        return mesh.rasterize(self.points(points), values, self.size)

    def fine(self, values: Floats) -> Floats:
        """Enlarge a drawing to the box's own pixels."""
        size = self.size[0] * self.step, self.size[1] * self.step
        large = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
        return np.ascontiguousarray(large[: self.bottom - self.top, : self.right - self.left], np.float32)


class _FacePainter:
    """A painter of one source onto one tracked face, which remembers the face from frame to frame."""

    def __init__(self, source: SourceFace, strength: float) -> None:
        self._source = source
        self._strength = strength
        self._light = _Light(source.trusted)
        self._painted = 0
        self._shape = np.zeros((mesh.VERTICES, 3), np.float32)
        self._shape_weight = 0.0
        self._shift = self._wanted_shift = self._shape
        self._texture: Texture | None = None
        self._texture_tone = source.tone
        self._softness = 0.0

    def paint(self, frame: Image, track: Track) -> bool:
        """Paint the face of one frame; return False, and leave the frame alone, where it cannot be done."""
        landmarks = track.landmarks
        pose = mesh.estimate_pose(landmarks)
        opacity = self._strength * track.presence * _share_of_pose(pose)
        if opacity < _LEAST_OPACITY:
            return False
        face = float(np.ptp(landmarks[: mesh.VERTICES, :2], axis=0).max())
        step = 2 if face < 240 else 3 if face < 400 else 4
        before = _View.around(landmarks[mesh.OVAL], frame, step)
        if before.is_too_small or not self._light.follow(before, frame, landmarks):
            return False
        self._learn_shape(landmarks, pose)
        moved = mesh.morph(landmarks, pose, self._shift * np.float32(_MORPH * opacity))
        view = _View.around(moved[mesh.OVAL], frame, step)
        if view.is_too_small:
            return False
        _warp(frame, mesh.with_rings(landmarks), moved)
        target = view.of(frame)
        light, _ = view.draw(moved, self._light.over_mesh())
        painted = self._draw(view, moved, light, target, face)
        cover = view.fine(self._cover(view, moved, landmarks, light, target) * np.float32(opacity))
        view.replace(frame, np.asarray(cv2.blendLinear(painted, target, cover, 1 - cover), np.uint8))
        self._painted += 1
        return True

    def _learn_shape(self, landmarks: Points, pose: Pose) -> None:
        """Average the target's bones over frames with a closed mouth and a frontal view, and compare now and then."""
        weight = float(np.exp(-mesh.mouth_opening(landmarks) / 0.08 - abs(pose.yaw) / 20)) + 1e-3
        self._shape_weight = self._shape_weight * _SHAPE_MEMORY + weight
        canonical = pose.to_canonical(landmarks[: mesh.VERTICES])
        self._shape = self._shape + (canonical - self._shape) * np.float32(weight / self._shape_weight)
        if self._painted % _COMPARE_EVERY == 0:
            self._wanted_shift = mesh.identity_shift(self._source.shape, self._shape)
        step = 1.0 if self._painted == 0 else 1 / _COMPARE_EVERY
        self._shift = self._shift + (self._wanted_shift - self._shift) * np.float32(step)

    def _draw(self, view: _View, points: Points, light: Floats, target: Image, face: float) -> Image:
        """Return the source's face as it looks in this frame, uint8, of the view's size in pixels."""
        scale, picture = self._lit_texture().fitting(face / self._source.height)
        # pixel centres are whole numbers in both pictures
        place = self._source.texture_points * np.float32(scale) + np.float32((scale - 1) / 2)
        drawn, _ = view.draw(points, place)
        flags = cv2.INTER_CUBIC if scale == 1 and face >= self._source.height else cv2.INTER_LINEAR
        painted: Any = cv2.remap(picture, view.fine(drawn), None, flags, borderMode=cv2.BORDER_REFLECT)  # type: ignore[call-overload]  # the stubs lack map2=None
        if self._painted % 4 == 0:
            self._match_softness(target, painted)
        if self._softness > 0.25:
            painted = colour.blur(painted, self._softness)
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

    def _match_softness(self, target: Image, painted: Image) -> None:
        """Choose the blur, in pixels, that makes what is painted as soft as the target."""
        ratio = _detail(target) / (_detail(painted) + 1e-3)
        wanted = float(np.clip(1.2 * np.sqrt(max(0.0, -np.log(np.clip(ratio * 1.15, 1e-3, 1)))), 0, 2.5))
        self._softness = wanted if self._painted == 0 else 0.7 * self._softness + 0.3 * wanted

    def _cover(self, view: _View, points: Points, landmarks: Points, light: Floats, target: Image) -> Floats:
        """Return the mask of the source's face, 0–1, one pixel a step."""
        steps = view.points(points)[:, :2] - np.float32(0.5)
        face = float(np.ptp(steps[: mesh.VERTICES], axis=0).max())
        mouth = float(smoothstep(mesh.mouth_opening(landmarks), 0.03, 0.10))
        residual = colour.to_log(view.coarse(target)) - light
        cover = mask.oval(steps, view.size, face)
        cover *= 1 - mask.kept(steps, view.size, face, mouth, self._kept_eyes(landmarks))
        return cover * mask.skin(steps, face, residual, self._light.variation)

    def _kept_eyes(self, landmarks: Points) -> tuple[float, float]:
        """Return the share to keep of each of the target's own eyes: of closed ones, of both if the source has none."""
        if not self._source.has_eyes:
            return 1.0, 1.0
        right, left = (
            float(1 - smoothstep(opening / max(0.05, own), 0.25, 0.6))
            for opening, own in zip(mesh.eye_openings(landmarks), self._source.openings, strict=True)
        )
        return right, left


class _Light:
    """The light on a target's skin: a field that follows each frame, steadied over time."""

    def __init__(self, trusted: Floats) -> None:
        self._trusted = trusted
        self._seen = False
        self.field = np.zeros((colour.MESH_TERMS.shape[1], 3), np.float32)
        self._limits = np.zeros((2, 3))
        self.variation = np.zeros((3, 3), np.float32)

    @property
    def tone(self) -> Floats:
        """Mean log colour of the skin, float32 (3,)."""
        return np.asarray(colour.SAMPLE_TERMS.mean(axis=0) @ self.field, np.float32)

    def over_mesh(self) -> Floats:
        """Return the field at the mesh's points, float32 (586, 3), held within what was seen on skin."""
        return np.asarray(np.clip(colour.MESH_TERMS @ self.field, *self._limits), np.float32)

    def follow(self, view: _View, frame: Image, landmarks: Points) -> bool:
        """Look at the skin of the next frame; return False while no skin has been seen."""
        places = view.points(colour.sample(landmarks[: mesh.VERTICES]))[:, :2] - np.float32(0.5)
        colours = colour.read(view.coarse(view.of(frame)), places)
        inside = ((places > 0) & (places < np.array(view.size) - 1)).all(axis=1)
        weights = _without_outliers(colours, self._trusted * inside * (colour.facing(landmarks) > 0.2))
        if weights.sum() <= colour.MIN_SAMPLES:
            return self._seen
        logs = colour.to_log(colours)
        field = colour.fit_light(logs, weights)
        seen = weights > 0
        if self._seen:
            memory = np.array([_TONE_MEMORY] + [_LIGHT_MEMORY] * (len(field) - 1), np.float32)[:, None]
            field = memory * self.field + (1 - memory) * field
        fitted = (colour.SAMPLE_TERMS @ field)[seen]
        variation = colour.covariance(logs[seen] - fitted)
        if self._seen:
            variation = _VARIATION_MEMORY * self.variation + (1 - _VARIATION_MEMORY) * variation
        self.field, self.variation, self._seen = field, variation, True
        self._limits = np.quantile(fitted, (0.01, 0.97), axis=0) + np.array([[-0.03], [0.02]])
        return True


def _without_outliers(colours: Floats, weights: Floats) -> Floats:
    """Take the weight from samples that are far from the median colour."""
    seen = weights > 0
    if seen.sum() <= colour.MIN_SAMPLES:
        return weights
    distance = np.linalg.norm(colours - np.median(colours[seen], axis=0), axis=1)
    return np.asarray(weights * (distance < 2.8 * np.median(distance[seen]) + 4), np.float32)


def _share_of_pose(pose: Pose) -> float:
    """Return 1 for a face that looks at the camera, 0 for one turned away."""
    return float((1 - smoothstep(abs(pose.yaw), *_YAW_FADE)) * (1 - smoothstep(abs(pose.pitch), *_PITCH_FADE)))


def _detail(picture: Image) -> float:
    """Return how much fine detail the middle of a face has: the standard deviation of its Laplacian."""
    height, width = picture.shape[:2]
    middle = picture[int(height * 0.3) : int(height * 0.75), int(width * 0.3) : int(width * 0.7)]
    return float(cv2.Laplacian(cv2.cvtColor(middle, cv2.COLOR_BGR2GRAY), cv2.CV_32F).std())


def _warp(frame: Image, before: Points, after: Points) -> None:
    """Move the face and its surroundings in place; the outermost ring and all beyond it stay."""
    view = _View.around(after, frame, _WARP_STEP)
    drawn, covered = view.draw(after, before[:, :2] - after[:, :2])
    drawn[~covered] = 0
    place = view.fine(drawn)
    place[..., 0] += np.arange(place.shape[1], dtype=np.float32)
    place[..., 1] += np.arange(place.shape[0], dtype=np.float32)[:, None]
    content = cv2.remap(view.of(frame), place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]  # the stubs lack map2=None
    view.replace(frame, np.asarray(content, np.uint8))
