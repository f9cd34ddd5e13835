"""Fine detail: what is painted gets the sharpness of the face that it covers, and the grain of the film.

Brightness is split into bands, each what one blur takes away from the one before. In each band a face has structure
(lids, lips, the rim of the nose) and, where it is flattest, little but grain. Structure is matched by a factor, grain
by adding noise where it is missing: noise that moves with the face as pores do, or another in each frame as on film,
whichever the target has.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from . import mesh
from .colour import Floats
from .mesh import Image, Points

_BLURS_PIXELS = (0.5, 1.0, 2.0)
"""Standard deviation of the blur below each band."""

_BANDS = len(_BLURS_PIXELS)

_GRAINY = np.array([1, 1, 0])
"""The bands that film grain has: noise in the coarsest would look like stains."""

_GAIN = (0.02, 2.0)
"""Least and greatest factor of a band's structure."""

_NOTHING = 0.05
"""Energy of a band, in squared grey levels, that rounding alone makes."""

_FLATTEST = 0.3
_WINDOW_STEP = 3
"""Pixels between two windows that are looked at."""

_WINDOW_STEPS = (3, 3)
"""Grain is the energy of a window of so many steps that is at this quantile of all."""

_LEAST_GRAIN = 0.3
"""Standard deviation, in grey levels, of noise that is not worth adding."""

_LEARNING = 0.5
"""Share of a difference that each comparison makes up for."""

_FIRST_ROUNDS = 5
"""Comparisons of a first frame with itself: it may be the only one."""

_CHEEKS = [50, 280]
_EYE_CORNERS = [33, 263]

_CHEEK_SHARE = 0.16
"""Side of the patch of a cheek that is followed, as a share of the face's size."""

_SEARCH_PIXELS = 3
"""Distance to which a patch is looked for around where its landmark went."""

_STATIC_CORRELATION = (0.15, 0.75)
"""Correlation of a cheek with the frame before, from grain that is new in each frame to skin alone."""

_LEAST_SHARE = 0.03
"""Share of the noise, of either kind, that is not worth adding."""

_STATIC_LEARNING = 0.1
"""Share of each cheek's newest correlation in what is known of them."""

_TILE_PIXELS = 512


class Detail:
    """The detail of one tracked face: compared now and then, matched in every frame."""

    def __init__(self) -> None:
        self._gains = np.ones(_BANDS)
        self._grain = np.zeros(_BANDS)
        self._noise = np.zeros((_TILE_PIXELS, _TILE_PIXELS), np.float32)
        self._compared = False
        self._static = 0.5
        self._followed = False
        self._cheeks: list[Floats] = []
        self._size = 0.0
        self._random = np.random.default_rng(0)

    def compare(self, target: Image, painted: Image, inside: NDArray[np.bool_]) -> None:
        """Measure target and paint, uint8 (h, w, 3), where both are the face: `inside`, bool (h, w)."""
        if not _middles(inside).any():
            return
        wanted, wanted_grain = _energies(_grey(target), inside)
        grey = _grey(painted)
        # Bands overlap: what one factor does shows in the next ones, too.
        for _ in range(1 if self._compared else _FIRST_ROUNDS):
            own, own_grain = _energies(grey + self._change(grey), inside)
            structure = np.maximum(0, wanted - wanted_grain) + _NOTHING, np.maximum(0, own - own_grain) + _NOTHING
            self._gains = np.clip(self._gains * np.sqrt(structure[0] / structure[1]) ** _LEARNING, *_GAIN)
        grain = _GRAINY * np.sqrt(np.maximum(0, wanted_grain - own_grain))
        self._grain = self._grain + (_LEARNING if self._compared else 1.0) * (grain - self._grain)
        self._compared = True
        if self._is_grainy:
            self._noise = np.tensordot(self._grain.astype(np.float32), _noise_tiles(), 1)

    @property
    def _is_grainy(self) -> bool:
        return float(self._grain.max()) > _LEAST_GRAIN

    def match(self, painted: Image, target: Image, points: Points) -> Image:
        """Return what is painted, uint8 (h, w, 3), with the target's detail; `points` are its landmarks there."""
        grey = _grey(painted)
        change = self._change(grey)
        if self._is_grainy:
            self._follow_cheeks(target, points)
            for noise, share in ((self._moving_noise, self._static), (self._new_noise, 1 - self._static)):
                if share > _LEAST_SHARE:
                    cv2.scaleAdd(noise(points, grey.shape), float(np.sqrt(share)), change, change)
        return np.asarray(cv2.add(painted, cv2.merge([change] * 3), dtype=cv2.CV_8U), np.uint8)

    def _change(self, grey: Floats) -> Floats:
        """Return what a picture's bands are changed by, float32 (h, w)."""
        change: Floats = grey * np.float32(self._gains[0] - 1)
        for (gain, coarser), blurred in zip(pairwise([*self._gains, 1.0]), _blurs(grey), strict=True):
            cv2.scaleAdd(blurred, float(coarser - gain), change, change)
        return change

    def _follow_cheeks(self, target: Image, points: Points) -> None:
        """Learn whether the detail of the cheeks stays from frame to frame."""
        reach = int(_CHEEK_SHARE * np.ptp(points[: mesh.VERTICES, 1]) / 2)
        places = points[_CHEEKS, :2].astype(int)
        cheeks = [target[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach] for x, y in places]
        bands = [_bands(_grey(cheek))[1] for cheek in cheeks if min(cheek.shape[:2]) > 4 * _SEARCH_PIXELS]
        before, self._cheeks = self._cheeks, bands
        edge = slice(_SEARCH_PIXELS, -_SEARCH_PIXELS)
        for then, now in zip(before, bands, strict=False):
            if then.shape != now.shape:
                continue
            found = float(cv2.matchTemplate(now, then[edge, edge], cv2.TM_CCOEFF_NORMED).max())
            static = float(mesh.smoothstep(found, *_STATIC_CORRELATION))
            share = _STATIC_LEARNING if self._followed else 1.0
            self._static += share * (static - self._static)
            self._followed = True

    def _moving_noise(self, points: Points, shape: tuple[int, ...]) -> Floats:
        """Return the noise as it lies on the face, float32 (h, w)."""
        (x0, y0), (x1, y1) = points[_EYE_CORNERS, :2].astype(float)
        turn = complex(x1 - x0, y1 - y0)
        if not 0.7 < self._size / (abs(turn) + 1e-6) < 1.4:
            self._size = abs(turn)
        back = self._size / turn
        # The eyes look at the middle of the tile: places beyond its edge take several times as long.
        corner = complex(_TILE_PIXELS, _TILE_PIXELS) / 2 - complex(x0 + x1, y0 + y1) / 2 * back
        to_tile = np.array([[back.real, -back.imag, corner.real], [back.imag, back.real, corner.imag]])
        size = shape[1], shape[0]
        # The nearest value, for a mean of several would be softer.
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        noise = cv2.warpAffine(self._noise, to_tile, size, flags=flags, borderMode=cv2.BORDER_WRAP)
        return np.asarray(noise, np.float32)

    def _new_noise(self, points: Points, shape: tuple[int, ...]) -> Floats:
        """Return noise that no other frame has, float32 (h, w)."""
        starts = self._random.integers(0, _TILE_PIXELS, 2)
        rows, columns = (np.arange(start, start + length) for start, length in zip(starts, shape, strict=True))
        return self._noise.take(rows, 0, mode="wrap").take(columns, 1, mode="wrap")


def _energies(grey: Floats, inside: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean energy of each band inside, and that of its grain alone."""
    squares = [band * band for band in _bands(grey)]
    middles = _middles(inside)
    height, width = middles.shape
    whole = np.s_[: height * _WINDOW_STEP, : width * _WINDOW_STEP]
    steps = [cv2.resize(square[whole], (width, height), interpolation=cv2.INTER_AREA) for square in squares]
    grain = [np.quantile(cv2.blur(step, _WINDOW_STEPS)[middles], _FLATTEST) for step in steps]
    return np.array([cv2.mean(square, inside.view(np.uint8))[0] for square in squares]), np.array(grain)


def _middles(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the middles of the whole steps of a mask."""
    height, width = (length // _WINDOW_STEP * _WINDOW_STEP for length in inside.shape)
    return inside[_WINDOW_STEP // 2 : height : _WINDOW_STEP, _WINDOW_STEP // 2 : width : _WINDOW_STEP]


def _grey(picture: Image) -> Floats:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), np.float32)


def _blurs(grey: Floats) -> list[Floats]:
    return [np.asarray(cv2.GaussianBlur(grey, (0, 0), sigma), np.float32) for sigma in _BLURS_PIXELS]


def _bands(grey: Floats) -> list[Floats]:
    return [finer - coarser for finer, coarser in pairwise([grey, *_blurs(grey)])]


@cache
def _noise_tiles() -> Floats:
    """Return a tile of each band of white noise, float32 (bands, n, n), its variance 1; it can be repeated."""
    noise = np.random.default_rng(0).standard_normal((_TILE_PIXELS, _TILE_PIXELS), np.float32)
    margin = 16
    wrapped = cv2.copyMakeBorder(noise, margin, margin, margin, margin, cv2.BORDER_WRAP)
    whole = [band[margin:-margin, margin:-margin] for band in _bands(np.asarray(wrapped, np.float32))]
    return np.stack([band / band.std() for band in whole])
