"""Clips made for the watermark, encoded by the engine with and without it, treated, and read: `make watermark`."""

from __future__ import annotations

import argparse
import collections
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap.engine.frames import Frame
from faceswap.engine.video import Encoding, encode
from faceswap.marker import Marker
from faceswap.marks import Marks
from faceswap.media.examine import read_watermark

Picture = NDArray[np.uint8]
SAMPLES = Path(__file__).parent.parent / "faceswap" / "samples"
SIZES = ((640, 360), (360, 640), (480, 360), (640, 480))
MOTIONS = ("still", "pan", "zoom", "shake", "cut", "turn", "object")
GRAINS = (0.0, 0.0, 0.0, 2.0, 5.0)
RATE = Fraction(24)
CRF = 20
TREATMENTS = {
    "none": None,
    "encoded again": (1, 20),
    "crf 28": (1, 28),
    "half size": (2, 20),
    "half size, crf 28": (2, 28),
}
"""Name → divisor of the size, and crf, of the encoding that a copy gets; None leaves the result as it is."""
LEAST_READ = {"half size, crf 28": 0.9}
"""The share of the clips that are read at least after a treatment: 0.99 after the others."""


@dataclass(frozen=True)
class MadeClip:
    """A clip that is the same for the same seed; a subject that moves, or not, and grain, or none."""

    size: tuple[int, int]
    frames: list[Frame]
    motion: str

    rate = RATE

    @property
    def count(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Frame]:
        return (Frame(frame.planes.copy(), frame.colour) for frame in self.frames)


@dataclass(frozen=True)
class Finding:
    """The treatments after which a clip's watermark was found, and what it cost.

    psnr          decibels between the frames with and without it, of all samples of Y, U and V, before the encoding
    rgb_psnr      the same in RGB, and `encoded_psnr` of all samples after the encoding, which differs by itself too
    false_payload the payload that was read from the clip without a watermark: None is right
    growth        bytes with it / bytes without
    """

    seed: int
    motion: str
    found: dict[str, bool]
    false_payload: str | None
    psnr: float
    rgb_psnr: float
    encoded_psnr: float
    growth: float
    mark_ms: float


def make(seed: int, sizes: Sequence[tuple[int, int]] = SIZES, frames: tuple[int, int] = (96, 145)) -> MadeClip:
    """Make the clip of a seed."""
    rng = np.random.default_rng(seed)
    size = sizes[int(rng.integers(len(sizes)))]
    motion, grain = MOTIONS[seed % len(MOTIONS)], GRAINS[int(rng.integers(len(GRAINS)))]
    pictures = _moved(rng, size, int(rng.integers(*frames)), motion)
    grained = (np.clip(p + rng.normal(0, grain, p.shape), 0, 255).astype(np.uint8) if grain else p for p in pictures)
    return MadeClip(size, [Frame.from_bgr(picture) for picture in grained], motion)


def examine_clip(seed: int, clip: MadeClip | None = None) -> Finding:
    """Encode a clip as the engine does, with and without a watermark, and read it after each treatment."""
    clip = clip or make(seed)
    marks = Marks(np.random.default_rng(seed + 1_000_000).bytes(8))
    marked = [Frame(frame.planes.copy(), frame.colour) for frame in clip.frames]
    marker, started = Marker(marks, clip.size), time.process_time()
    for frame in marked:
        marker.apply(frame.planes)
    mark_ms = (time.process_time() - started) / clip.count * 1000
    with tempfile.TemporaryDirectory(prefix="faceswap-watermark-") as folder:
        plain, with_mark, copy = (Path(folder) / name for name in ("plain.mp4", "marked.mp4", "copy.mp4"))
        for path, encoding in ((plain, Encoding(CRF)), (with_mark, Encoding(CRF, marks=marks))):
            encode(clip, path, RATE, encoding, lambda number, frame: None)
        found = {}
        for name, treatment in TREATMENTS.items():
            read = with_mark if treatment is None else treat(with_mark, copy, *treatment)
            found[name] = read_watermark(read) == marks.payload.hex()
        pairs = list(zip(clip.frames, marked, strict=True))
        return Finding(
            seed,
            clip.motion,
            found,
            read_watermark(plain),
            psnr([(a.planes, b.planes) for a, b in pairs]),
            psnr([(_rgb(a.planes), _rgb(b.planes)) for a, b in pairs]),
            psnr(list(zip(decoded(plain), decoded(with_mark), strict=True))),
            with_mark.stat().st_size / plain.stat().st_size,
            mark_ms,
        )


def treat(path: Path, out: Path, divisor: int, crf: int) -> Path:
    """Encode a video once more, at a part of its size."""
    with av.open(path) as source, av.open(out, "w") as output:
        picture = source.streams.video[0]
        stream = output.add_stream("libx264", rate=RATE, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height = (side // divisor // 2 * 2 for side in (picture.width, picture.height))
        stream.pix_fmt = "yuv420p"
        for frame in source.decode(picture):
            small = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="BICUBIC")
            plain = av.VideoFrame.from_ndarray(small.to_ndarray(), "yuv420p")
            plain.pts, plain.time_base = frame.pts, frame.time_base
            output.mux(stream.encode(plain))
        output.mux(stream.encode(None))
    return out


def decoded(path: Path) -> Iterator[Picture]:
    with av.open(path) as container:
        for frame in container.decode(video=0):
            yield np.asarray(frame.to_ndarray(), np.uint8)


def psnr(pairs: Sequence[tuple[Picture, Picture]]) -> float:
    """Return the peak signal-to-noise ratio over all samples of all pairs, in decibels."""
    squares = [np.mean(np.square(a.astype(np.float32) - b)) for a, b in pairs]
    return 10 * math.log10(255**2 / float(np.mean(squares)))


def _rgb(planes: Picture) -> Picture:
    return np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420), np.uint8)


def _moved(rng: np.random.Generator, size: tuple[int, int], count: int, motion: str) -> Iterator[Picture]:
    width, height = size
    canvases = _canvas(rng, 2 * width, 2 * height), _canvas(rng, 2 * width, 2 * height)
    thing = cv2.resize(_photograph(rng), (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    speed, spin = rng.uniform(-4, 4, 2), rng.uniform(-0.5, 0.5)
    shaken = np.cumsum(rng.normal(0, 1.2, (count, 2)), axis=0)
    fades = rng.integers(5) == 0
    for i in range(count):
        left, top = width / 2, height / 2
        if motion == "pan":
            left, top = left + speed[0] * (i - count / 2), top + speed[1] * (i - count / 2) / 2
        elif motion in ("shake", "cut"):
            left, top = left + shaken[i, 0], top + shaken[i, 1]
        zoom, turn = 1 + 0.6 * i / count * (motion == "zoom"), spin * i * (motion == "turn")
        matrix = cv2.getRotationMatrix2D((left + width / 2, top + height / 2), turn, zoom)
        matrix[:, 2] -= left, top
        canvas = canvases[motion == "cut" and i >= count // 2]
        picture = cv2.warpAffine(canvas, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        if motion == "object":
            x, y = int(i * abs(speed[0]) * 1.5) % (width // 2), int(i * abs(speed[1])) % (height // 2)
            picture[y : y + height // 2, x : x + width // 2] = thing
        yield np.asarray(cv2.convertScaleAbs(picture, alpha=0.3 + 0.7 * i / count) if fades else picture, np.uint8)


def _photograph(rng: np.random.Generator) -> Picture:
    name = ("astronaut.png", "grace_hopper.jpg")[int(rng.integers(2))]
    picture = cv2.imread(str(SAMPLES / name))
    return np.asarray(picture[:, ::-1] if rng.integers(2) else picture, np.uint8)


def _canvas(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Return a photograph, as it is or in other colours, clouds, or a drawing."""
    kind = int(rng.integers(5))
    if kind < 3:
        picture = cv2.resize(_photograph(rng), (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        if kind == 2:
            picture = cv2.transform(picture, np.abs(np.eye(3) + rng.normal(0, 0.25, (3, 3))).astype(np.float32))
        return np.clip(picture, 0, 255).astype(np.uint8)
    if kind == 3:
        clouds = np.zeros((height, width, 3), np.float32)
        for octave in range(1, 8):
            noise = rng.normal(0, 1, (2**octave, 2**octave, 3)).astype(np.float32)
            clouds += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / 1.6**octave * 60
        return np.clip(clouds + rng.uniform(60, 180, 3), 0, 255).astype(np.uint8)
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([60 + x * 120 // width, 60 + y * 120 // height, 90 + 0 * x], axis=2).astype(np.uint8)
    for _ in range(20):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        centre = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(picture, centre, int(rng.integers(10, height // 4)), colour, -1, cv2.LINE_AA)
        place = int(rng.integers(width // 2)), int(rng.integers(height))
        cv2.putText(picture, "lettering 12345", place, 0, float(rng.uniform(0.5, 3)), colour, 2)
    return picture


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    findings: list[Finding] = []
    seeds = range(options.first, options.first + options.clips)
    with ProcessPoolExecutor(options.processes) as pool:
        for finding in pool.map(examine_clip, seeds):
            findings.append(finding)
            print(json.dumps(asdict(finding)), flush=True)
    found = collections.Counter(name for finding in findings for name, was in finding.found.items() if was)
    wrong = [finding.seed for finding in findings if finding.false_payload is not None]
    print(f"\n{len(findings)} clips")
    for name in TREATMENTS:
        print(f"read after {name}: {found[name]} ({found[name] / len(findings):.1%})")
    print(f"found in unmarked clips: {len(wrong)}")
    for title in ("psnr", "rgb_psnr", "encoded_psnr", "growth", "mark_ms"):
        values = [getattr(finding, title) for finding in findings]
        print(f"{title}: least {min(values):.2f}, median {np.median(values):.2f}, most {max(values):.2f}")
    good = all(found[name] >= LEAST_READ.get(name, 0.99) * len(findings) for name in TREATMENTS) and not wrong
    return 0 if good and min(finding.psnr for finding in findings) >= 42 else 1


if __name__ == "__main__":
    raise SystemExit(main())
