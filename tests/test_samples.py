"""The sample clip is what the demo and the README promise."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from faceswap import samples


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "clip.mp4"
    samples.make_clip(path)
    return path


def test_the_clip_is_six_seconds_of_moving_picture_with_sound(clip: Path) -> None:
    with av.open(str(clip)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.average_rate) == (512, 512, 25)
        pictures = [frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)]
    assert len(pictures) == 150
    assert all(np.abs(one - next_one).mean() > 0.5 for one, next_one in itertools.pairwise(pictures))


def test_the_sound_is_as_long_as_the_picture_and_can_be_heard(clip: Path) -> None:
    with av.open(str(clip)) as container:
        sound = np.concatenate([frame.to_ndarray().ravel() for frame in container.decode(audio=0)])
    assert len(sound) / samples.SAMPLE_RATE == pytest.approx(6, abs=0.05)
    assert 0.03 < np.sqrt(np.mean(sound**2)) < 0.3
    assert np.abs(sound).max() < 1


def test_the_clip_is_the_same_every_time(clip: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.mp4"
    samples.make_clip(again)
    assert again.read_bytes() == clip.read_bytes()


def test_the_face_is_a_picture_that_comes_with_the_package() -> None:
    with av.open(str(samples.FACE)) as container:
        picture = next(container.decode(video=0))
    assert min(picture.width, picture.height) >= 256
