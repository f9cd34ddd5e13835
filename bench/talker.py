"""A ComfyUI that holds a prompt and sends so many `executing` messages a second: `talker FOLDER 25`.

It begins once there is a file `go` in the folder. The name of the node is `t` and the time of `time.monotonic_ns`,
which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from service_rig import EngineRig


async def main(folder: Path, rate: float) -> None:
    """Serve until killed, on a free port that is printed."""
    async with EngineRig(folder, hold_until=str(folder / "never")) as rig:
        print(f"listening on {rig.url}", flush=True)  # noqa: T201  # how it tells its port
        while True:
            await asyncio.sleep(1 / rate)
            if rig.running is not None and (folder / "go").exists():
                rig.broadcast("executing", {"node": f"t{time.monotonic_ns()}", "prompt_id": rig.running})


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2])))
