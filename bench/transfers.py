"""Transfers of whole files over plain sockets, which cost their sender or receiver as little as can be."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from yarl import URL

PIECE_BYTES = 1024 * 1024
TIMEOUT_S = 300.0
_BOUNDARY = "a-boundary-that-is-in-no-file"


def put(url: str, file: str) -> float:
    """Send a file as the body of a PUT; returns the seconds until the answer."""
    return _send(URL(url), "PUT", "application/octet-stream", b"", Path(file), b"")[0]


def post_job(url: str, video: str, image: str) -> tuple[float, str]:
    """Submit a job in one request; returns the seconds until the answer, and that."""
    fields = b"".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
        for name, file, content in (
            ("return_prompt_id_only", "", b"true"),
            ("image", f'; filename="{Path(image).name}"', Path(image).read_bytes()),
        )
    )
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="video"; filename="{Path(video).name}"\r\n\r\n'
    tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
    kind = f"multipart/form-data; boundary={_BOUNDARY}"
    seconds, body = _send(URL(url) / "face-swap", "POST", kind, fields + head.encode(), Path(video), tail)
    return seconds, body.decode()


def _send(url: URL, method: str, kind: str, head: bytes, file: Path, tail: bytes) -> tuple[float, bytes]:
    length = len(head) + file.stat().st_size + len(tail)
    request = (
        f"{method} {url.path} HTTP/1.1\r\nHost: {url.authority}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
    ).encode()
    with file.open("rb") as opened, socket.create_connection((f"{url.host}", url.port or 80), TIMEOUT_S) as connection:
        started = time.perf_counter()
        connection.sendall(request + head)
        connection.sendfile(opened)
        connection.sendall(tail)
        answer = connection.makefile("rb").read()
        seconds = time.perf_counter() - started
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return seconds, answer.partition(b"\r\n\r\n")[2]


def fetch(url: str, at_once: int, repeats: int) -> float:
    """Get a file over several connections at once, and again; returns the bytes a second of all together."""
    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        received = sum(threads.map(_receive, [URL(url)] * at_once * repeats))
    return received / (time.perf_counter() - started)


def _receive(url: URL) -> int:
    piece, received = bytearray(PIECE_BYTES), 0
    with socket.create_connection((f"{url.host}", url.port or 80), TIMEOUT_S) as connection:
        request = f"GET {url.raw_path} HTTP/1.1\r\nHost: {url.authority}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        answer = connection.makefile("rb", buffering=0)
        count = answer.readinto(piece) or 0
        assert piece.startswith(b"HTTP/1.1 200"), bytes(piece[:count])
        while count:
            received += count
            count = answer.readinto(piece) or 0
    return received
