"""The swap by a network of the models folder: a crop of each face is made anew and put back.

It shares the tracking and the choice of faces with the built-in swap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from . import hand_mask
from .colour import Floats, blur
from .mesh import Image, Points
from .network_crops import (
    REACH,
    box_mask,
    cut,
    divided,
    enlarged,
    fit,
    five_points,
    from_network,
    joined,
    paste,
    scale_of,
    to_network,
)
from .network_files import Network, NetworkError, NetworkFolder, open_network
from .network_kinds import (
    ARCFACE_112_V2,
    CONVERTERS,
    EMBEDDING,
    FACE_CLASSES,
    IMAGENET,
    OCCLUSION,
    PARSING,
    SIGNED,
    UNIT,
    HelperKind,
    SwapKind,
    Template,
    placed,
)
from .network_restore import Boost
from .source import NoFaceError
from .tracking import Track

NUMBERS = 512
"""Of an embedding."""

MOST_PIXELS = 512
"""The side up to which a small network's crop is raised for a large face, in several runs."""

_CLASSES = 19
"""Of parsing."""

_MASK_BLUR = 5.0
"""Of occlusion and parsing: standard deviation in pixels of the crop."""

_LEAST_OPACITY = 0.02


class SwapNetwork:
    """A swap network with those that serve it, opened and checked.

    side    pixels of a crop

    Raises NetworkError for files that are not of their kinds.
    """

    def __init__(self, kind: SwapKind, path: Path, folder: NetworkFolder) -> None:
        self.kind = kind
        self._network = open_network(path)
        self.side = self._network.side(kind.side)
        if not self._network.takes_two:
            raise NetworkError(f"{path.name} takes a picture only, and nothing of the source")
        if kind.source == "emap" and (self._network.emap is None or self._network.emap.shape != (NUMBERS, NUMBERS)):
            raise NetworkError(f"{path.name} does not end with a matrix of {NUMBERS}×{NUMBERS} numbers")
        self._embedding = None if kind.source == "picture" else _needed(folder, EMBEDDING)
        converter = next((helper for helper in CONVERTERS if helper.name == kind.converter), None)
        self._converter = None if converter is None else _needed(folder, converter)
        self._occlusion = _optional(folder, OCCLUSION)
        self._parsing = _optional(folder, PARSING)

    def describe(self, faces: Sequence[tuple[Image, Points]]) -> Floats:
        """Return what the network knows a person by, from pictures and the landmarks of a face in each.

        float32 (1, 512), or (1, 3, h, w) for a kind that is shown the first picture. Raises NoFaceError.
        """
        kind = self.kind
        if not faces:
            raise NoFaceError("No picture shows the face that was asked for")
        if self._embedding is None:
            return to_network(_upright(*faces[0], kind.source_template, kind.source_side), UNIT)
        embeddings = [self._embed(self._embedding, *face) for face in faces]
        embedding: Floats = np.asarray(np.mean(embeddings, axis=0), np.float32)
        if self._converter is not None:
            embedding = self._converter.run(embedding, gives=(NUMBERS,))
        if kind.source != "raw":
            embedding = embedding / np.float32(max(float(np.linalg.norm(embedding)), 1e-6))
        if kind.source == "emap" and self._network.emap is not None:
            embedding = embedding @ self._network.emap
        return np.asarray(embedding, np.float32)

    @staticmethod
    def _embed(network: Network, bgr: Image, landmarks: Points) -> Floats:
        crop = _upright(bgr, landmarks, ARCFACE_112_V2, network.side(EMBEDDING.side))
        return network.run(to_network(crop, SIGNED), gives=(NUMBERS,))

    def swap(self, crop: Image, source: Floats) -> Image:
        """Return a crop, uint8 (n · side, n · side, 3) BGR, with the source's face."""
        times = len(crop) // self.side
        pictures = to_network(divided(crop, times), self.kind.takes)
        made = self._network.run(pictures, source, gives=(3, self.side, self.side))
        return joined(from_network(made, self.kind.gives), times)

    def mask(self, before: Image, after: Image) -> Floats:
        """Return what of a crop is put back, float32 0–1: what lies open within its edge and is, swapped, a face."""
        side = len(after)
        mask = box_mask(side)
        if self._occlusion is not None:
            mask = np.minimum(mask, _hardened(_open_part(self._occlusion, before), side))
        if self._parsing is not None:
            mask = np.minimum(mask, _hardened(_face_part(self._parsing, after), side))
        return mask


@dataclass(frozen=True, eq=False)
class NetworkFace:
    """A person's face as a network puts it in. `source` is what the network knows the person by."""

    network: SwapNetwork
    source: Floats
    boost: Boost | None = None

    def painter(self, strength: float) -> NetworkPainter:
        """Return a painter of one tracked face."""
        return NetworkPainter(self, strength)


class NetworkPainter:
    """A painter of one source onto one tracked face. It remembers only how large a crop the face needs."""

    reach = REACH

    def __init__(self, face: NetworkFace, strength: float) -> None:
        self._network, self._source, self._boost = face.network, face.source, face.boost
        self._strength = strength
        self._times = 1

    def paint(self, frame: Image, track: Track) -> bool:
        """Paint the face of one frame; return False, and leave the frame alone, where it cannot be done."""
        opacity = self._strength * track.presence
        points, side = five_points(track.landmarks), self._network.side
        matrix = fit(points, self._network.kind.points(side))
        if opacity < _LEAST_OPACITY or matrix is None:
            return False
        self._follow_size(scale_of(matrix))
        if self._times > 1:
            side *= self._times
            matrix = fit(points, self._network.kind.points(side))
            assert matrix is not None
        before = cut(frame, matrix, side)
        after = self._network.swap(before, self._source)
        mask = self._network.mask(before, after)
        if track.hands:
            mask = mask * (1 - hand_mask.over(track.hands, matrix, (side, side)))
        if self._boost is not None:
            after = self._boost(after)
            matrix = enlarged(matrix, len(after) / side)
            mask = np.asarray(cv2.resize(mask, after.shape[1::-1], interpolation=cv2.INTER_LINEAR), np.float32)
        paste(frame, after, matrix, mask * np.float32(opacity))
        return True

    def _follow_size(self, scale: float) -> None:
        """Choose the runs along a side by the crop's pixels for one of the frame, and keep to them while they do."""
        wanted = 1 / scale
        if not self._times - 1.1 < wanted < self._times + 0.1:
            self._times = min(math.ceil(wanted), max(1, MOST_PIXELS // self._network.side))


def _needed(folder: NetworkFolder, kind: HelperKind) -> Network:
    path = folder.find_kind(kind)
    if path is None:
        raise NetworkError(f"The models folder has no {kind.name} network")
    return open_network(path)


def _optional(folder: NetworkFolder, kind: HelperKind) -> Network | None:
    path = folder.find_kind(kind)
    return None if path is None else open_network(path)


def _upright(bgr: Image, landmarks: Points, template: Template, side: int) -> Image:
    """Cut a face out, uint8 (1, side, side, 3)."""
    matrix = fit(five_points(landmarks), placed(template, side))
    if matrix is None:
        raise NoFaceError("The face in the source picture is too small")
    return cut(bgr, matrix, side)[None]


def _open_part(network: Network, crop: Image) -> Floats:
    """Return where nothing is in front of the face, float32 (h, w) 0–1."""
    side = network.side(OCCLUSION.side, channels_last=True)
    small = cv2.resize(crop, (side, side)).astype(np.float32) / np.float32(255)
    return network.run(small[None], gives=(side, side, 1))[0, ..., 0].clip(0, 1)


def _face_part(network: Network, crop: Image) -> Floats:
    """Return where a crop shows a face and neither hair nor background, float32 (h, w) 0 or 1."""
    side = network.side(PARSING.side)
    small = np.asarray(cv2.resize(crop, (side, side)), np.uint8)
    classes = network.run(to_network(small[None], IMAGENET), gives=(_CLASSES, side, side))[0].argmax(axis=0)
    return np.isin(classes, FACE_CLASSES).astype(np.float32)


def _hardened(part: Floats, side: int) -> Floats:
    """Return a mask at a crop's side with an edge that lies within it."""
    soft = blur(np.asarray(cv2.resize(part, (side, side)), np.float32), _MASK_BLUR)
    return np.asarray((np.clip(soft, 0.5, 1) - 0.5) * 2, np.float32)
