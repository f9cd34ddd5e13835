"""`python -m faceswap.demo`: swap the sample face into the sample clip through the API of a private service."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from . import samples
from .cli.batch import swap_one
from .cli.clips import Clip
from .cli.common import DONE, run, say
from .cli.display import display
from .cli.private import private_service

MOMENTS = (0.1, 0.45, 0.8)
"""The frames that the picture shows, as shares of the clip."""

_TILE = 360
_LABEL = 40
_GAP = 8


def main() -> int:
    """Write source.mp4, result.mp4 and before_after.png to a folder and print their paths; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m faceswap.demo", description="Swap the sample face into a clip.")
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder for the results (demo)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    source, result, picture = out / "source.mp4", out / "result.mp4", out / "before_after.png"
    started = time.monotonic()
    samples.make_clip(source)
    if status := run(_swap(source, result)):
        return status
    before_after(samples.FACE, source, result, picture)
    print(source, result, picture, f"Done in {time.monotonic() - started:.1f} s.", sep="\n")
    return 0


async def _swap(source: Path, result: Path) -> int:
    say("starting the service with its embedded engine")
    with display(sys.stderr) as shown:
        async with private_service() as client:
            outcome = await swap_one(client, Clip(str(source), (str(samples.FACE),)), result, shown)
        outcome.tell(shown)
    return DONE


def before_after(face: Path, source: Path, result: Path, picture: Path) -> None:
    """Write a PNG: the face, then each of `MOMENTS` before (upper row) and after (lower row) the swap."""
    import cv2
    import numpy as np

    portrait = cv2.imread(str(face))
    if portrait is None:
        raise FileNotFoundError(face)
    height, width = portrait.shape[:2]
    side = min(height, width)
    rows = []
    for name, clip in (("before", source), ("after", result)):
        frames = _frames_at(clip, MOMENTS)
        rows.append([_tile(frame, f"{name}, {second:.1f} s") for second, frame in frames])
    grid = _stack([_stack(row, axis=1) for row in rows], axis=0)
    first = _tile(portrait[:side, (width - side) // 2 :][:, :side], "the face")
    column = np.full((grid.shape[0], first.shape[1], 3), 255, np.uint8)
    top = (grid.shape[0] - first.shape[0]) // 2
    column[top : top + first.shape[0]] = first
    if not cv2.imwrite(str(picture), _stack([column, grid], axis=1)):
        raise OSError(f"The picture {picture} could not be written.")


def _frames_at(clip: Path, shares: tuple[float, ...]) -> list[tuple[float, Any]]:
    """Decode the frame at each share of the clip's length: its time in seconds, and uint8 (H, W, 3) BGR."""
    import av

    with av.open(str(clip)) as container:
        last = container.streams.video[0].frames - 1
        wanted = {int(share * last) for share in shares}
        frames = (frame for number, frame in enumerate(container.decode(video=0)) if number in wanted)
        return [(frame.time or 0.0, frame.to_ndarray(format="bgr24")) for frame in frames]


def _tile(frame: Any, label: str) -> Any:
    """Scale a frame to the tile's width, under a white bar with its label."""
    import cv2

    height = round(frame.shape[0] * _TILE / frame.shape[1])
    tile = cv2.resize(frame, (_TILE, height), interpolation=cv2.INTER_AREA)
    tile = cv2.copyMakeBorder(tile, _LABEL, 0, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    cv2.putText(tile, label, (6, _LABEL - 12), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (40, 40, 40), 1, cv2.LINE_AA)
    return tile


def _stack(pictures: list[Any], axis: int) -> Any:
    """Join pictures side by side (axis 1) or one above the other (axis 0), with a white gap between."""
    import numpy as np

    gap = np.full_like(pictures[0][:, :_GAP] if axis else pictures[0][:_GAP], 255)
    parts = [part for picture in pictures for part in (picture, gap)][:-1]
    return np.concatenate(parts, axis=axis)


if __name__ == "__main__":
    sys.exit(main())
