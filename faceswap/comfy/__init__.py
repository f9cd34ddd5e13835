"""ComfyUI from the service's side: what it says, how it is asked, how it is listened to, how our own one is kept alive.

`messages` turns frames into a small typed union, `failures` its errors into a `JobFailure`, `client` makes the HTTP
calls, `listener` holds the one WebSocket, `embedded` looks after the engine that runs as a child process. The socket
makes it lively; `/history` and `/queue`, asked by the client, decide.
"""
