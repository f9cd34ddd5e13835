"""A ten-minute 1080p clip through the service, killed in the middle: `python -m system.long_video`, from `tests`.

Too long for the suite. Prints peak memory of service and engine, frames, and how far sound and picture are apart at the
end, and fails where a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
from clips import frame_times, make_clip, sound_packets
from processes import Engine, Service

from faceswap.client import FaceSwap
from faceswap.samples import FACE

FRAME_RATE = 24
SERVICE_LIMIT_MB, ENGINE_LIMIT_MB = 200, 700


def picture(number: int, width: int, height: int) -> np.ndarray:
    """Draw a gradient and a bar that moves: cheap to encode, and no two frames alike."""
    frame = np.empty((height, width, 3), np.uint8)
    frame[:] = np.linspace(40, 200, width, dtype=np.uint8)[None, :, None]
    left = number * 8 % (width - 64)
    frame[height // 4 : height // 3, left : left + 64] = 230
    return frame


class Peaks:
    """The most memory each process held, MiB, children of the service apart."""

    def __init__(self) -> None:
        self.mb: dict[str, float] = {}

    async def watch(self, **processes: Service | Engine) -> None:
        while True:
            for name, process in processes.items():
                if process.running:
                    self.mb[name] = max(self.mb.get(name, 0), process.memory_mb())
            await asyncio.sleep(0.1)


async def run(folder: Path, minutes: float) -> list[str]:
    """Run the whole scenario; returns the faults."""
    frames = round(minutes * 60 * FRAME_RATE)
    clip = await asyncio.to_thread(
        make_clip,
        folder / "long.mp4",
        frames,
        rate=Fraction(FRAME_RATE),
        size=(1920, 1080),
        draw=picture,
        sounds=["aac"],
        gop=FRAME_RATE * 2,
    )
    peaks = Peaks()
    async with Engine(folder, paint=True) as engine, Service(folder, engine.url) as service:
        watching = asyncio.create_task(peaks.watch(service=service, engine=engine))
        started = time.monotonic()
        async with FaceSwap(service.url) as client:
            prompt_id = await client.submit(clip, FACE)
            done = await segments_done(client, prompt_id, share=0.5)
        await service.kill()
        await engine.kill()
        await engine.start()
        await service.start()
        async with FaceSwap(service.url) as client:
            await segments_done(client, prompt_id, share=1.0)
            async for _ in client.events(prompt_id):
                pass
            status = await client.status(prompt_id)
            watching.cancel()
            if status["status"] != "SUCCESS":
                return [json.dumps(status)]
            result = folder / "result.mp4"
            await client.download(status["result"].removeprefix("/download/"), result, sha256=status["sha256"])
    times, sound = frame_times(result), sound_packets(result)[0]
    source_times, source_sound = frame_times(clip), sound_packets(clip)[0]
    drift_s = abs((sound[-1][1] - times[-1]) - (source_sound[-1][1] - source_times[-1]))
    figures = {
        "seconds": round(time.monotonic() - started),
        "frames": f"{len(times)} of {frames}",
        "segments": status["segments"]["total"],
        "finished before the kill": done,
        "attempts": status["attempts"],
        "sound off at the end, frames": round(drift_s * FRAME_RATE, 3),
        "peak memory, MiB": {name: round(mb) for name, mb in peaks.mb.items()},
    }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    checks = {
        "the frames are all there": len(times) == frames,
        "the sound is the clip's": [data for data, _ in sound] == [data for data, _ in source_sound],
        "the sound is in time": drift_s < 1 / FRAME_RATE,
        "no finished segment was done again": status["attempts"] <= status["segments"]["total"] + 2,
        "the service stays small": peaks.mb["service"] < SERVICE_LIMIT_MB,
        "the engine stays small": peaks.mb["engine"] < ENGINE_LIMIT_MB,
    }
    return [check for check, holds in checks.items() if not holds]


async def segments_done(client: FaceSwap, prompt_id: str, share: float) -> int:
    """Wait until so many segments are finished; returns how many."""
    while True:
        status = await client.status(prompt_id)
        done, total = status["segments"]["done"], status["segments"]["total"]
        if done >= share * total or status["status"] in ("FAILED", "CANCELLED"):
            return int(done)
        await asyncio.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faceswap-long-"))
    sys.stdout.write(f"logs in {folder}\n")
    wrong = asyncio.run(run(folder, arguments.minutes))
    sys.stdout.writelines(f"WRONG: {what}\n" for what in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
