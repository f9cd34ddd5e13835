"""One clip swapped by one engine, in a process of its own, so that engines of two checkouts can be compared.

Run as a file, this imports nothing but `faceswap`, which `PYTHONPATH` chooses.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faceswap.engine import swap as engine_swap
from faceswap.engine.clip import Clip, Selection, probe
from faceswap.engine.frames import read_picture
from faceswap.engine.swap import FaceSwapper, SourceFace
from faceswap.engine.video import SwapCount, swap_frames


@dataclass(frozen=True)
class Swapped:
    """A clip after the swap.

    planes   uint8 (frames, H · 3/2, W), I420
    tracked  float32 (frames, 478, 3): the landmarks that the swap painted at, NaN where it painted none
    cpu_ms   processor time a frame, decoding included
    """

    planes: NDArray[np.uint8]
    tracked: NDArray[np.float32]
    cpu_ms: float


class _Recorder:
    """A swap that notes the landmarks it paints at."""

    def __init__(self, swapper: FaceSwapper) -> None:
        self._swapper = swapper
        self.painted: list[NDArray[np.float32]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._swapper, name)

    def apply(self, frame: Any, tracks: Sequence[Any]) -> int:
        """Paint the next frame."""
        nowhere = np.full((478, 3), np.nan, np.float32)
        self.painted.append(np.array(tracks[0].raw, np.float32) if tracks else nowhere)
        return self._swapper.apply(frame, tracks)


def swap(clip: Path, portrait: Path, frames: int) -> Swapped:
    """Put the face of a portrait into the first `frames` frames of a clip (0: all), in this process."""
    selected = Clip(probe(clip), Selection(cap=frames))
    source = SourceFace.from_image(read_picture(portrait).bgr)
    # An older engine to compare with looks no frames ahead.
    ahead: dict[str, Any] = {"lookahead": engine_swap.LOOKAHEAD} if hasattr(engine_swap, "LOOKAHEAD") else {}
    recorder = _Recorder(FaceSwapper([source], frame_rate=float(selected.rate), **ahead))
    start = time.process_time()
    planes = [frame.planes for frame in swap_frames(selected, recorder, SwapCount())]
    cpu_ms = 1000 * (time.process_time() - start) / len(planes)
    return Swapped(np.array(planes), np.array(recorder.painted), cpu_ms)


def swap_by(engine: Path, clip: Path, portrait: Path, frames: int) -> Swapped:
    """Do the same with the engine of a checkout. Raises ValueError with the last line of what it said."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "swapped.npz"
        command = [sys.executable, "-P", __file__, str(clip), str(portrait), str(frames), str(result)]
        environment = {**os.environ, "PYTHONPATH": str(engine.resolve())}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            raise ValueError((run.stderr.strip().splitlines() or ["no reason given"])[-1])
        with np.load(result) as kept:
            return Swapped(kept["planes"], kept["tracked"], float(kept["cpu_ms"]))


if __name__ == "__main__":
    done = swap(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), int(sys.argv[3]))
    np.savez(sys.argv[4], planes=done.planes, tracked=done.tracked, cpu_ms=done.cpu_ms)
