"""All that the service knows of ComfyUI.

`messages` turns frames into a small typed union and `failures` turns errors into a `JobFailure`. `client` makes the
HTTP calls, `listener` holds the one WebSocket, and `embedded` runs the engine of our own as a child process. `backend`
keeps the prompts that are `in_flight` at one ComfyUI, `capacity` knows its speed and its memory, `inputs` uploads the
files of jobs, and `inspection` finds nodes and models that a workflow misses. The socket is for progress only:
`/history` and `/queue` decide.
"""
