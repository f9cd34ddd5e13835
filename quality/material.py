"""The clips and portraits that are measured on: a user's, or made from the samples of the project."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from faceswap import samples
from faceswap.engine.mesh import Image

from .faces import find

SAMPLES = Path(samples.__file__).parent
"""The portraits that ship with the project."""

_CLIPS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")
_PORTRAITS = (".png", ".jpg", ".jpeg", ".webp")

_SIZE = (480, 480)
_FRAMES, _PERIOD = 75, 75
_FACE = 170
"""Mean width of the face in a made clip, pixels."""


def clips_of(folder: Path) -> list[Path]:
    """Return the clips of a folder, by name. Raises FileNotFoundError when there is none."""
    return _files(folder, _CLIPS)


def portraits_of(folder: Path) -> list[Path]:
    """Return the portraits of a folder, by name. Raises FileNotFoundError when there is none."""
    return _files(folder, _PORTRAITS)


def _files(folder: Path, kinds: tuple[str, ...]) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in kinds)
    if not found:
        raise FileNotFoundError(f"{folder} holds no file named {', '.join(kinds)}")
    return found


def make_clips(folder: Path) -> list[Path]:
    """Make a clip of each sample portrait, moving, turning and coming nearer, and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for portrait in portraits_of(SAMPLES):
        clips.append(folder / f"{portrait.stem}.mp4")
        write_clip(clips[-1], moved(portrait, _FRAMES))
    return clips


def moved(portrait: Path, count: int) -> Iterator[Image]:
    """Yield `count` frames of a portrait that moves before the camera, uint8 (480, 480, 3) BGR."""
    picture = cv2.imread(str(portrait))
    assert picture is not None, portrait
    still = np.asarray(picture, np.uint8)
    points = find(still)[0].landmarks[:, :2]
    (x, y), width = points.mean(axis=0), np.ptp(points[:, 0])
    for number in range(count):
        phase = 2 * np.pi * number / _PERIOD
        matrix = cv2.getRotationMatrix2D(
            (float(x), float(y)), 10 * np.sin(2 * phase), _FACE / width * (1 + 0.2 * np.sin(phase))
        )
        matrix[:, 2] += np.array(_SIZE) * (0.5 + 0.07 * np.cos(phase), 0.5 + 0.04 * np.sin(2 * phase)) - (x, y)
        frame = cv2.warpAffine(still, matrix, _SIZE, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        yield np.asarray(frame, np.uint8)


def write_clip(path: Path, frames: Iterator[Image]) -> None:
    """Write frames, uint8 BGR with even sides, as an MP4 of 25 frames a second."""
    with av.open(path, "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.width, stream.height = _SIZE
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "bgr24")))
        output.mux(stream.encode(None))


def pairs(clips: list[Path], portraits: list[Path], per_clip: int) -> list[tuple[Path, Path]]:
    """Return (clip, portrait) pairs: `per_clip` portraits for each clip (0: all), in turn through all portraits.

    A portrait whose first word, up to `_`, is a word of the clip's name shows the same person and is passed over.
    """
    chosen, start = [], 0
    for clip in clips:
        words = clip.stem.split("_")
        turned = portraits[start % len(portraits) :] + portraits[: start % len(portraits)]
        others = [portrait for portrait in turned if portrait.stem.split("_")[0] not in words]
        chosen += [(clip, portrait) for portrait in others[: per_clip or None]]
        start += per_clip
    return chosen
