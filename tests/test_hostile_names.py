"""No name that a stranger chooses leads anywhere: not of a file, a field, a part, a result, a job or a page."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from clips import make_clip
from processes import dead_url, files_in
from service_rig import ServiceRig, running_service
from yarl import URL

from faceswap import samples

SECRET = b"nobody may read or change this"
NAMES = [
    *("../secret", "../../secret", "../../../../../../../../etc/passwd", "..\\..\\secret", "/etc/passwd", "/secret"),
    *("....//....//secret", "..;/..;/secret", "./../secret", "a/../../secret", "video.mp4/../../../secret", "//secret"),
    *("%2e%2e%2fsecret", "..%2fsecret", "%252e%252e%252fsecret", "..%c0%afsecret", "..%00/secret", "secret%00.mp4"),
    *(
        ".",
        "..",
        "...",
        " ",
        ". .",
        "..\u200b/secret",
        "．．／secret",
        "..／secret",
        "\u2025/secret",
        "\u202e4pm.secret",
    ),
    *(
        "C:\\secret",
        "C:secret",
        "\\\\host\\share\\secret",
        "file:///etc/passwd",
        "http://127.0.0.1/secret",
        "secret::$DATA",
    ),
    *("/proc/self/mem", "/proc/self/environ", "/dev/null", "/dev/stdin", "/dev/fd/0", "~/secret", "~root/secret"),
    *(
        "$HOME/secret",
        "${HOME}",
        "`id`",
        "$(id)",
        "; rm -rf /",
        "| id",
        "& id",
        "-rf",
        "--help",
        "-o/secret",
        "@secret",
    ),
    *("*", "?", "[a-z]", "{a,b}", "%s%n", "%d", "{0.__class__}", "{{7*7}}", "<script>alert(1)</script>", "' OR 1=1 --"),
    *("faceswap.db", "../faceswap.db", "../../faceswap.db-wal", "lock", "../lock", "../work", "../outputs/x.mp4"),
    *("video.part", "image.part", ".upload", "x.upload", "../x.upload", "../x.erasure", ".erasure", "../inputs"),
    *(
        "../../engine/input/x",
        "../../engine/temp/x.upload",
        "con",
        "nul",
        "aux.mp4",
        "lpt1",
        "desktop.ini",
        ".htaccess",
    ),
    *("é" * 100, "😀", "\u0000", "a\u0000b", "\r\nSet-Cookie: a=b", "\n", "\t", "\x7f", "\x1b[31m", '"', '\\"', "a\\"),
    *("x" * 300, "x" * 5000, "../" * 500 + "secret", "/" * 1000, "." * 1000, "a/" * 200 + "b"),
]

DISPOSITIONS = [
    "form-data; name={name}; filename=../secret",
    'form-data; name="{name}"; filename="../secret"; filename="../../secret"',
    "form-data; name=\"{name}\"; filename*=UTF-8''..%2f..%2fsecret",
    'form-data; name="{name}"; filename="x"; filename*=UTF-16\'\'%2e%2e%2fsecret',
    'form-data; name="{name}"; filename*0="../"; filename*1=secret',
    'attachment; name="{name}"; filename="../secret"',
    'form-data; filename="../secret"; name="{name}"; name="../secret"',
    'form-data; filename="../secret"',
    'form-data; name="{name}"; filename="{name}"; path="/secret"; dir="../"',
    'form-data; name="../{name}"; filename="x"',
    'form-data; name="{name}[../../secret]"; filename="x"',
    'form-data; name="{name}"; filename="' + "../" * 2000 + 'secret"',
]
"""Content-Dispositions of parts."""

EXTRA_HEADERS = [
    "Content-Location: /etc/passwd",
    "Content-Transfer-Encoding: base64",
    "Content-Type: multipart/mixed; boundary=x",
    "Content-Type: message/external-body; access-type=local-file; name=/etc/passwd",
    "Content-Type: application/x-tar",
    "X-File-Path: ../secret",
    "Content-Range: bytes 0-5/1000000000000",
]


@contextmanager
def watched(place: Path) -> Iterator[list[str]]:
    """Yield the names outside of a folder that this process opens to write, makes, renames, links or deletes."""
    if not _WATCHES:
        sys.addaudithook(_note)
    found: list[str] = []
    _WATCHES.append((place, found))
    try:
        yield found
    finally:
        _WATCHES[-1] = (place, [])


_WATCHES: list[tuple[Path, list[str]]] = []
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}
_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    place, found = _WATCHES[-1]
    if event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & _TO_WRITE:
        paths = [arguments[0]]
    elif event in _CHANGES:
        paths = [path for path in arguments if isinstance(path, str | bytes | os.PathLike)]
    else:
        return
    for path in map(os.fsdecode, paths):
        if not os.path.realpath(path).startswith(f"{place}/") and not path.startswith("/dev/"):
            found.append(f"{event} {path}")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[ServiceRig]:
    """Yield a service whose jobs stay queued, in a folder beside which something lies."""
    for name in ("secret", "data-secret"):
        (tmp_path / name).write_bytes(SECRET)
    settings = {"queue_limit": 1000, "rate_limit": 0}
    async with running_service(tmp_path / "data", dead_url(), **settings) as service:
        yield service


class Visitor:
    """A stranger with a clip, a face and bad intentions."""

    def __init__(self, service: ServiceRig, folder: Path) -> None:
        self.service = service
        self.video = make_clip(folder / "data-clip.mp4", 2, size=(64, 48)).read_bytes()
        self.image = samples.FACE.read_bytes()
        self.accepted: list[str] = []
        self.refused = 0

    async def post(self, *parts: tuple[str, bytes]) -> int:
        """Post parts, each with the text of its headers; returns the status."""
        boundary = b"--limit"
        body = b"".join(
            b"--" + boundary + b"\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts
        )
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}", "Prefer": "respond-async"}
        body += b"--" + boundary + b"--\r\n"
        async with self.service.client.post("/face-swap", data=body, headers=headers) as response:
            await self._look(response.status, await response.read())
            return response.status

    async def _look(self, status: int, body: bytes) -> None:
        assert status < 500, body
        assert SECRET not in body
        if status == 202:
            self.accepted.append(json.loads(body)["prompt_id"])
        else:
            self.refused += 1

    def inputs(self, video: str, image: str) -> list[tuple[str, bytes]]:
        """Return the parts of both inputs, with these headers."""
        return [(video, self.video), (image, self.image)]

    async def get(self, path: str, method: str = "GET") -> None:
        """Ask for a path as it is written."""
        url = URL(f"http://127.0.0.1:{self.service.client.port}{path}", encoded=True)
        async with self.service.client.session.request(method, url, allow_redirects=False) as response:
            assert response.status in (400, 404, 405, 414, 431), path
            await self._look(response.status, await response.read())


def part(name: str, filename: str | None = None) -> str:
    """Return the header of a part, its name and file name as they are."""
    file = "" if filename is None else f'; filename="{filename}"'
    return f'Content-Disposition: form-data; name="{name}"{file}'


async def test_no_hostile_name_or_part_leads_out_of_the_folder_of_its_job(service: ServiceRig, tmp_path: Path) -> None:
    visitor = Visitor(service, tmp_path)
    plain = visitor.inputs(part("video", "clip.mp4"), part("image", "face.png"))
    with watched(tmp_path / "data") as outside:
        (tmp_path / "seen").touch()
        assert outside == [f"open {tmp_path / 'seen'}"]
        outside.clear()
        before = {name for name in files_in(tmp_path) if not name.startswith("data/")}
        for name in NAMES:
            await visitor.post(*visitor.inputs(part("video", name), part("image", name)))
            if name.strip():
                text = name.encode()
                status = await visitor.post((part("output_name"), text), *plain)
                assert status == 400 or re.fullmatch(r"[A-Za-z0-9_ -][A-Za-z0-9._ -]{0,99}", text.decode())
            assert await visitor.post((part(name), b"x"), *plain) == 400
        for text in DISPOSITIONS:
            heads = [f"Content-Disposition: {text.replace('{name}', name)}" for name in ("video", "image")]
            await visitor.post(*visitor.inputs(*heads))
        for header in EXTRA_HEADERS:
            heads = [f"{part(name, 'x')}\r\n{header}" for name in ("video", "image")]
            await visitor.post(*visitor.inputs(*heads))
        for name in NAMES:
            for encoded in {quote(name, safe=""), quote(name, safe="/%;@:")}:
                for path in (f"/download/{encoded}", f"/web/{encoded}", f"/status/{encoded}", f"/preview/{encoded}"):
                    await visitor.get(path)
                await visitor.get(f"/jobs/{encoded}", "DELETE")
    assert outside == []
    assert len(visitor.accepted) >= 100 and visitor.refused >= 100
    assert {name for name in files_in(tmp_path) if not name.startswith("data/")} == before
    assert {(tmp_path / name).read_bytes() for name in ("secret", "data-secret")} == {SECRET}
    allowed = {f"inputs/{prompt_id}/{name}" for prompt_id in visitor.accepted for name in ("video.mp4", "image.jpg")}
    assert set(service.files()) == allowed
