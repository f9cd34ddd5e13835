"""The memory of the engine: what networks take, on a graphics card gigabytes, is no leak and no want of memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import made_networks as made

TAKES_MB, KEEPS_MB = 800, 300
"""The memory that opening a network takes, and its first run. The bound is 512 MB."""

ENGINE = """
import mmap, resource, sys
from pathlib import Path

import numpy as np
import onnxruntime

from faceswap.engine import memory, network_files

PATH, TAKES, KEEPS = Path(sys.argv[1]), int(sys.argv[2]) << 20, int(sys.argv[3]) << 20
real = onnxruntime.InferenceSession


def take(size):
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class Session:
    def __init__(self, data, options, providers):
        self.session, self.taken = real(data, options, providers=["CPUExecutionProvider"]), [take(TAKES)]

    def get_providers(self):
        return onnxruntime.get_available_providers()

    def get_inputs(self):
        return self.session.get_inputs()

    def run(self, outputs, feeds):
        if len(self.taken) == 1:
            self.taken.append(take(KEEPS))
        return self.session.run(outputs, feeds)


def bound():
    return resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20


ways = ["CUDAExecutionProvider", "CPUExecutionProvider"][sys.argv[4] == "cpu":]
onnxruntime.get_available_providers, onnxruntime.InferenceSession = lambda: ways, Session
memory.ENGINE_BYTES = 512 << 20
memory.limit()
first = bound()
network = network_files.open_network(PATH)
for _ in range(2):
    network.run(np.ones((1, 512), np.float32), gives=(512,))
print(bound() - first, memory.has_leaked())
lost = take(200 << 20)
print(memory.has_leaked())
del network, lost
network_files.close_networks()
print(bound() - first, memory.has_leaked())
"""


def run(folder: Path, way: str) -> subprocess.CompletedProcess[str]:
    path = made.write_converter(folder / "crossface_ghost.onnx")
    command = (sys.executable, "-c", ENGINE, str(path), str(TAKES_MB), str(KEEPS_MB), way)
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_a_network_takes_on_a_graphics_card_is_beside_the_bound(tmp_path: Path) -> None:
    done = run(tmp_path, "cuda")
    assert done.returncode == 0, done.stderr
    with_network, with_loss, closed = done.stdout.splitlines()
    raised, leaked = with_network.split()
    assert TAKES_MB + KEEPS_MB <= int(raised) < TAKES_MB + KEEPS_MB + 100 and leaked == "False"
    assert with_loss == "True"
    raised, leaked = closed.split()
    assert int(raised) < 100 and leaked == "False"


def test_on_the_processor_a_network_keeps_to_the_bound_while_it_is_opened(tmp_path: Path) -> None:
    done = run(tmp_path, "cpu")
    assert done.returncode != 0
    assert "NetworkMemoryError: crossface_ghost.onnx cannot be opened: too little memory is free" in done.stderr
