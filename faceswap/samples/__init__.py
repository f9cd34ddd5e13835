"""The sample media, from public-domain pictures: a face, and a clip that is made when it is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HERE = Path(__file__).parent

FACE = _HERE / "grace_hopper.jpg"
"""The face of the demo's swap."""

SCENE = _HERE / "astronaut.png"
"""The picture that the clip pans over."""

SIZE = 512
FRAME_RATE = 25
FRAMES = 150
SAMPLE_RATE = 44_100

_FACE_CENTRE = (226.0, 118.0)
_BEATS = 12
_MELODY = (440.0, 554.37, 659.25, 554.37, 587.33, 739.99, 659.25, 493.88, 554.37, 659.25, 493.88, 440.0)
_HARMONICS = ((1, 0.30), (2, 0.09), (3, 0.03))


def make_clip(path: Path) -> None:
    """Write the sample clip: 6 s, 512×512, 25 fps, H.264 with AAC sound, the same one every time.

    The camera pans, zooms (×1.55 to ×2.35) and turns (±7°) over the picture; the face stays whole and in the frame.
    """
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "veryfast", "crf": "18"})
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        video.thread_count = 2  # fixed, because the encoder's choices depend on it
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for picture in _pictures():
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(_sound(), format="flt", layout="mono")
        sound.sample_rate = SAMPLE_RATE
        container.mux(audio.encode(sound))
        container.mux(audio.encode())


def _pictures() -> Iterator[Any]:
    """Yield the frames, uint8 (512, 512, 3) BGR."""
    import cv2

    scene = cv2.imread(str(SCENE))
    if scene is None:
        raise FileNotFoundError(SCENE)
    for frame in range(FRAMES):
        phase = 2 * math.pi * frame / FRAMES
        zoom = 1.95 - 0.4 * math.cos(phase)
        angle = 7.0 * math.sin(2 * phase)
        centre = (_FACE_CENTRE[0] + 24 * math.sin(phase), _FACE_CENTRE[1] + 8 * math.sin(2 * phase) + 75 / zoom)
        camera = cv2.getRotationMatrix2D(centre, angle, zoom)
        camera[0, 2] += SIZE / 2 - centre[0]
        camera[1, 2] += SIZE / 2 - centre[1]
        yield cv2.warpAffine(scene, camera, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def _sound() -> NDArray[np.float32]:
    """Synthesise the melody, a bell-like tone a beat: float32 (1, samples), −1…1."""
    import numpy as np

    samples = FRAMES * SAMPLE_RATE // FRAME_RATE
    sound = np.zeros(samples)
    for beat, pitch in enumerate(_MELODY):
        start = beat * samples // _BEATS
        seconds = np.arange(samples - start) / SAMPLE_RATE
        swell = np.minimum(seconds / 0.01, 1) * np.exp(-3.5 * seconds)
        for multiple, loudness in _HARMONICS:
            sound[start:] += loudness * swell * np.sin(2 * np.pi * multiple * pitch * seconds)
    fade = np.minimum(np.arange(samples)[::-1] / (0.2 * SAMPLE_RATE), 1)
    return np.asarray(sound * fade, dtype=np.float32)[np.newaxis]
