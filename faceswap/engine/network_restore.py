"""The restoring of faces by a network of the models folder: a crop of each swapped face is sharpened and put back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from . import hand_mask
from .mesh import Image
from .network_crops import REACH, box_mask, cut, fit, five_points, from_network, paste, to_network
from .network_files import open_network
from .network_kinds import FFHQ_512, SIGNED, HelperKind, placed
from .swap import Painter, Source, painter_of
from .tracking import Track

INTERPOLATIONS = {
    "Nearest": cv2.INTER_NEAREST,
    "Bilinear": cv2.INTER_LINEAR,
    "Bicubic": cv2.INTER_CUBIC,
    "Lanczos": cv2.INTER_LANCZOS4,
}


class Restorer:
    """A restoring network, opened and checked. Raises NetworkError for a file that is none.

    weight      0–1, the share of the picture that is kept; for a network that asks for it
    visibility  0–1, the share of the restored face in the result
    """

    def __init__(self, kind: HelperKind, path: Path, weight: float, visibility: float) -> None:
        self._network = open_network(path)
        self.side = self._network.side(kind.side)
        self._weight = np.full((1,) * self._network.other_rank, weight) if self._network.takes_two else None
        self.visibility = visibility

    def __call__(self, crop: Image) -> Image:
        """Return a crop, uint8 (side, side, 3) BGR, restored."""
        made = self._network.run(to_network(crop[None], SIGNED), self._weight, gives=(3, self.side, self.side))
        return np.asarray(from_network(made, SIGNED)[0])


@dataclass(frozen=True)
class Boost:
    """A restorer at work on what a swap network made, before that is put back: ReActor's face boost."""

    restorer: Restorer
    interpolation: int = cv2.INTER_CUBIC

    def __call__(self, crop: Image) -> Image:
        """Return a crop, uint8 BGR, at the restorer's side."""
        side, share = self.restorer.side, self.restorer.visibility
        large = np.asarray(cv2.resize(crop, (side, side), interpolation=self.interpolation), np.uint8)
        restored = self.restorer(large)
        return np.asarray(cv2.addWeighted(restored, share, large, 1 - share, 0), np.uint8)


@dataclass(frozen=True, eq=False)
class RestoredFace:
    """A face to put in that is restored in the frame, after it was painted by whatever way."""

    source: Source
    restorer: Restorer

    def painter(self, strength: float) -> Painter:
        """Return a painter of one tracked face."""
        return _RestoringPainter(painter_of(self.source, strength), self.restorer)


class _RestoringPainter:
    def __init__(self, painter: Painter, restorer: Restorer) -> None:
        self._painter, self._restorer = painter, restorer
        self.reach = max(painter.reach, REACH)

    def paint(self, frame: Image, track: Track) -> bool:
        """Paint the face of one frame, and restore it where that was done."""
        if not self._painter.paint(frame, track):
            return False
        side = self._restorer.side
        matrix = fit(five_points(track.landmarks), placed(FFHQ_512, side))
        if matrix is not None:
            restored = self._restorer(cut(frame, matrix, side))
            opacity = self._restorer.visibility * track.presence
            mask = box_mask(side) * np.float32(opacity)
            if track.hands:
                mask = mask * (1 - hand_mask.over(track.hands, matrix, (side, side)))
            paste(frame, restored, matrix, mask)
        return True
