"""comfy-api-simplified: uploads, queues, waits on the socket, downloads."""

import sys
from pathlib import Path

from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper

url, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
api = ComfyApiWrapper(url)
workflow = ComfyWorkflowWrapper(str(folder / "workflow.json"))
for title, name, file in (
    ("Load Video (Upload) 🎥🅥🅗🅢", "video", "clip.mp4"),
    ("Load Image", "image", "face.png"),
):
    uploaded = api.upload_image(folder / file, "simplified")
    workflow.set_node_param(title, name, f"{uploaded['subfolder']}/{uploaded['name']}")
files = api.queue_and_wait_images(workflow, "Video Combine 🎥🅥🅗🅢")
out.write_bytes(files["fastfaceswap_00001-audio.mp4"])
assert set(api.get_object_info("LoadImage")) == {"LoadImage"}
assert api.get_queue() == {"queue_running": [], "queue_pending": []}
