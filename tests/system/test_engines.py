"""Several embedded engines: a clip's segments are shared out to them, and what they have of a job goes with it."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
from clips import make_clip
from media_samples import ASTRONAUT, read_image
from processes import Service, eventually, files_in

from faceswap import samples
from faceswap.client import FaceSwap

FRAMES = 130
"""So few would be one segment where there is one engine."""


async def test_a_clip_is_shared_out_to_all_embedded_engines(tmp_path: Path, own_database: dict[str, object]) -> None:
    clip = tmp_path / "clip.mp4"
    make_clip(clip, FRAMES, size=(128, 128), draw=_portrait)
    async with (
        Service(tmp_path, engines=2, **own_database) as service,
        FaceSwap(service.url) as client,
    ):
        roots = [service.data_dir / name for name in ("engine", "engine-2")]

        async def all_listen() -> bool:
            backends = (await client.health())["backends"]
            assert [backend["url"].partition(":")[0] for backend in backends] == ["embedded", "embedded-2"]
            return all(backend["listener"] == "connected" for backend in backends)

        await eventually(all_listen)
        prompt_id = await client.submit(clip, samples.FACE, output_name="swapped")
        assert [event async for event in client.events(prompt_id)][-1].type == "completed"
        assert (await client.status(prompt_id))["segments"] == {"total": 2, "done": 2}
        await client.download("swapped.mp4", tmp_path / "result.mp4")
        with av.open(tmp_path / "result.mp4") as container:
            assert len(list(container.decode(video=0))) == FRAMES

        (received,) = (service.data_dir / "inputs" / prompt_id).glob("video*")
        for root in roots:  # both had work, and the clip without a copy of its bytes
            (given,) = (root / "input" / prompt_id).glob("video*")
            assert given.samefile(received)
        assert all(f" {root.name}: faceswap engine: listening" in service.log() for root in roots)
        await client.delete(prompt_id)
        await eventually(lambda: _are_without(roots, prompt_id))


async def _are_without(roots: list[Path], prompt_id: str) -> bool:
    return not any(prompt_id in name for root in roots for name in files_in(root))


def _portrait(number: int, width: int, height: int) -> np.ndarray:
    face = read_image(ASTRONAUT)[20:250, 100 + number // 4 : 330 + number // 4, ::-1]
    return cv2.resize(face, (width, height), interpolation=cv2.INTER_AREA)
