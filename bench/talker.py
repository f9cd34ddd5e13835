"""ComfyUI servers that hold a prompt and send `executing` messages: `talker FOLDER 5` for five of them.

Each sends so many a second as the file `go` in the folder says, and none while there is no such file. The name of the
node is `t` and the time of `time.monotonic_ns`, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from common import HERE, MODULE_PATHS
from processes import Child
from service_rig import EngineRig

LOOK_S = 0.05


class Talkers(Child):
    """A process of such servers."""

    def __init__(self, folder: Path, count: int = 1) -> None:
        self._go = folder / "go"
        command = ("talker", str(folder), str(count))
        super().__init__(folder.with_suffix(".log"), *command, cwd=HERE, env={"PYTHONPATH": MODULE_PATHS})

    @property
    def urls(self) -> list[str]:
        """The address of each."""
        return self.url.split(",")

    @asynccontextmanager
    async def talking(self, rate: float) -> AsyncIterator[None]:
        """Let each send so many messages a second meanwhile."""
        fresh = self._go.with_suffix(".new")
        fresh.write_text(str(rate))
        fresh.rename(self._go)
        yield
        self._go.unlink()


async def talk(rig: EngineRig, go: Path, prompt_id: str, place: float) -> None:
    """Send messages for as long as the server runs; `place` is its share of the pause, so that they alternate."""
    due = 0.0
    while True:
        rate = 0.0
        with contextlib.suppress(FileNotFoundError):
            rate = float(go.read_text())
        if not rate:
            due = 0.0
            await asyncio.sleep(LOOK_S)
            continue
        now = time.monotonic()
        due = due + 1 / rate if due else now + place / rate
        await asyncio.sleep(max(0.0, due - now))
        rig.broadcast("executing", {"node": f"t{time.monotonic_ns()}", "prompt_id": rig.running or prompt_id})


async def main(folder: Path, count: int) -> None:
    """Serve until killed, on free ports that are printed."""
    async with AsyncExitStack() as stack:
        rigs: Sequence[EngineRig] = [
            await stack.enter_async_context(EngineRig(folder / str(number), hold_until=str(folder / "never")))
            for number in range(count)
        ]
        urls = ",".join(rig.url for rig in rigs)
        print(f"listening on {urls}", flush=True)  # noqa: T201  # how it tells its ports
        async with asyncio.TaskGroup() as tasks:
            for number, rig in enumerate(rigs):
                tasks.create_task(talk(rig, folder / "go", "none", number / count))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
