"""comfykit: once over the socket and once by polling; both find the video."""

import asyncio
import sys
import urllib.request
from pathlib import Path

from comfykit import ComfyKit

url, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])


for kind in ("websocket", "http"):
    result = asyncio.run(ComfyKit(comfyui_url=url, executor_type=kind).execute(str(folder / "workflow.json")))
    assert result.status == "completed", result.msg
    (video,) = result.videos
    with urllib.request.urlopen(video) as response:
        out.write_bytes(response.read())
