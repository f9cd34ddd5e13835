"""Runs clients written for ComfyUI, unmodified from PyPI, against the embedded engine.

    python tests/compat/run.py

Makes a virtual environment in a temporary folder, starts an engine, lets every client run the seed workflow on a short
clip, checks what each of them got, prints a table and exits 1 when one of them failed. Needs network for the install.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

import faceswap

CLIENTS = {
    "simplified": ["comfy-api-simplified==1.6.0"],
    "toolkit": ["comfy-toolkit[ws]==0.1.0"],
    "kit": ["comfykit==0.1.12"],
}
FRAMES = 24
TIMEOUT_S = 120

HERE = Path(__file__).parent
PACKAGE = Path(faceswap.__file__).parent


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="faceswap-compat-") as name:
        folder = Path(name)
        python = _environment(folder / "venv")
        _prepare(folder)
        with _engine(folder / "engine") as url:
            _upload(python, url, folder)
            results = {client: _run(python, client, url, folder) for client in CLIENTS}
    width = max(len(packages[0]) for packages in CLIENTS.values())
    for client, error in results.items():
        sys.stdout.write(f"{CLIENTS[client][0]:{width}}  {error or 'ok'}\n")
    return 1 if any(results.values()) else 0


def _environment(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    packages = [package for client in CLIENTS.values() for package in client]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def _prepare(folder: Path) -> None:
    """Return a clip that pans over one sample, the other sample as the face, and the seed workflow that names both."""
    face = cv2.imread(str(PACKAGE / "samples" / "astronaut.png"))
    person = cv2.imread(str(PACKAGE / "samples" / "grace_hopper.jpg"))
    assert face is not None and person is not None
    cv2.imwrite(str(folder / "face.png"), face)
    scaled = cv2.resize(person, (400, 400 * person.shape[0] // person.shape[1]))
    with av.open(folder / "clip.mp4", "w") as output:
        video = output.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 320, 320, "yuv420p"
        sound = output.add_stream("aac", rate=48000, layout="mono")
        for number in range(FRAMES):
            picture = np.ascontiguousarray(scaled[number : number + 320, number : number + 320])
            output.mux(video.encode(av.VideoFrame.from_ndarray(picture, "bgr24")))
        tone = np.sin(np.arange(48000, dtype=np.float32) / 20)[None] * np.float32(0.2)
        for start in range(0, tone.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            output.mux(sound.encode(frame))
        output.mux(video.encode(None))
        output.mux(sound.encode(None))
    workflow = json.loads((PACKAGE.parent / "workflows" / "FaceSwap-Reactor-API.json").read_text("utf-8"))
    workflow["8"]["inputs"]["video"] = "clip.mp4"
    workflow["10"]["inputs"]["image"] = "face.png"
    (folder / "workflow.json").write_text(json.dumps(workflow), "utf-8")


@contextmanager
def _engine(data: Path) -> Iterator[str]:
    options = ("--no-token", "--watch-stdin", "--port", "0", "--data-dir", str(data))
    command = [sys.executable, "-m", "faceswap.engine", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def _upload(python: Path, url: str, folder: Path) -> None:
    """Return the files for those clients that cannot upload."""
    code = (
        "import sys, requests\n"
        "for path in sys.argv[2:]:\n"
        "    requests.post(sys.argv[1] + '/upload/image', files={'image': open(path, 'rb')}).raise_for_status()\n"
    )
    files = [folder / "clip.mp4", folder / "face.png"]
    subprocess.run([python, "-c", code, url, *files], check=True)


def _run(python: Path, client: str, url: str, folder: Path) -> str:
    """Run one client; returns its faults, or nothing."""
    out = folder / f"{client}.mp4"
    command = [python, HERE / "clients" / f"{client}.py", url, folder, out]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"not done within {TIMEOUT_S} s"
    if done.returncode:
        return (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
    with av.open(out) as container:
        count = sum(1 for _ in container.decode(video=0))
        return "" if count == FRAMES and container.streams.audio else f"{count} frames, {FRAMES} wanted"


if __name__ == "__main__":
    sys.exit(main())
