"""comfy-toolkit: follows the progress on the socket, reads the history, downloads."""

import sys
from pathlib import Path

from comfy_toolkit import ComfyClient, set_filename_prefix

url, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
client = ComfyClient(url)
assert client.is_online()
workflow = client.load_workflow(folder / "workflow.json")
assert set_filename_prefix(workflow, "toolkit/job", ["VHS_VideoCombine"]) == ["9"]
bars, nodes = [], []
result = client.submit_and_track(
    workflow, on_progress=lambda value, total: bars.append((value, total)), on_node=nodes.append, expect="videos"
)
assert bars[0][0] == 1 and bars[-1][0] == bars[-1][1] and nodes[-1] in (None, "9")
out.write_bytes(client.download(result["videos"][0]))
assert client.queue_status() == {"running": 0, "pending": 0}
