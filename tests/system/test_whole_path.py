"""The main job, whole and real: the embedded engine puts the sample face into the sample clip."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import frame_times, sound_packets
from identity import distance, embedding
from processes import Service
from waiting import WAIT_S

from faceswap import samples
from faceswap.client import FaceSwap, JobEvent

SAMPLED = 8
SHORT = 25
"""Frames of the clip for what is shown of the whole one elsewhere."""
TOLD = "The embedded engine has no use for face_boost: it has no network for that."
"""The warning of the one option that was chosen."""


@dataclass(frozen=True)
class Swapped:
    source: Path
    result: Path
    events: list[JobEvent]
    status: dict[str, object]


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> Swapped:
    return asyncio.run(swap(tmp_path_factory.mktemp("whole")))


async def swap(folder: Path) -> Swapped:
    source, result = folder / "source.mp4", folder / "result.mp4"
    samples.make_clip(source)
    async with Service(folder) as service, FaceSwap(service.url) as client:
        prompt_id = await client.submit(source, samples.FACE, output_name="swapped", options={"face_boost": True})
        events = [event async for event in client.events(prompt_id)]
        assert events[-1].type == "completed", events[-1]
        await client.download("swapped.mp4", result, sha256=events[-1].data["sha256"])
        return Swapped(source, result, events, await client.status(prompt_id))


def sampled_frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frames[i].to_ndarray(format="bgr24") for i in np.linspace(0, len(frames) - 1, SAMPLED).astype(int)]


def test_the_story_is_told_from_queued_to_completed(swapped: Swapped) -> None:
    types = [event.type for event in swapped.events]
    assert types[0] == "queued" and types[-1] == "completed"
    assert swapped.events[0].data["warnings"] == swapped.events[-1].data["warnings"] == [TOLD]
    assert "preview" in types
    titles = {event.data["title"] for event in swapped.events if event.type == "executing"}
    assert "ReActor 🌌 Fast Face Swap" in titles
    percentages = [event.data["percentage"] for event in swapped.events if event.type == "progress"]
    assert percentages == sorted(percentages)
    assert percentages[0] < 10 and percentages[-1] == 100
    assert len(percentages) > 2


def test_the_result_has_the_frames_the_length_and_the_very_sound_of_the_clip(swapped: Swapped) -> None:
    before, after = frame_times(swapped.source), frame_times(swapped.result)
    assert len(after) == len(before)
    assert np.allclose(after, before, atol=0.002)
    (sound_before,), (sound_after,) = sound_packets(swapped.source), sound_packets(swapped.result)
    assert [data for data, _ in sound_after] == [data for data, _ in sound_before]
    assert np.allclose([at for _, at in sound_after], [at for _, at in sound_before], atol=0.002)


def test_the_face_in_the_result_is_nearer_to_the_picture_than_to_the_clip(swapped: Swapped) -> None:
    wanted = embedding(cv2.imread(str(samples.FACE)))
    for before, after in zip(sampled_frames(swapped.source), sampled_frames(swapped.result), strict=True):
        found = embedding(after)
        assert distance(found, wanted) < distance(found, embedding(before))


def test_what_is_not_the_face_stays_as_it_was(swapped: Swapped) -> None:
    before, after = sampled_frames(swapped.source)[0], sampled_frames(swapped.result)[0]
    border = np.abs(before[:, :60].astype(int) - after[:, :60])
    assert border.mean() < 3


def test_faceswap_swap_does_the_same_with_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "FRAMES", SHORT)
    source, out = tmp_path / "source.mp4", tmp_path / "out.mp4"
    samples.make_clip(source)
    command = [sys.executable, "-m", "faceswap", "swap", "--image", samples.FACE, "--video", source, "-o", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert len(frame_times(out)) == SHORT and np.allclose(frame_times(out), frame_times(source), atol=0.002)
    before, after = sampled_frames(source)[0], sampled_frames(out)[0]
    assert distance(embedding(after), embedding(cv2.imread(str(samples.FACE)))) < distance(
        embedding(after), embedding(before)
    )


def test_status_shows_the_same_end(swapped: Swapped) -> None:
    assert swapped.status["status"] == "SUCCESS"
    assert swapped.status["result"] == "/download/swapped.mp4"
    assert swapped.status["warnings"] == [TOLD]
    assert json.dumps(swapped.status)
