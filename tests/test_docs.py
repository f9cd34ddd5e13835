"""README and docs/: every example runs, against one service; the tables are whole; the links lead somewhere.

Programs that would change the machine, or are on another one, are stood in for: they want the files they are given.
"""

from __future__ import annotations

import ast
import asyncio
import configparser
import ipaddress
import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

import postgres
import pytest
import pytest_asyncio
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from browser import chromium
from clips import make_clip
from machine import program
from service_rig import EngineRig, ServiceRig, running_service
from stored_jobs import opened
from waiting import WAIT_S, eventually

from faceswap import samples
from faceswap.config import Settings
from faceswap.files import Files

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
NEEDED = {"curl": "curl", "jq": "jq", "openssl": "openssl"}
"""Programs that examples call, and their packages of Debian."""
STAND_INS = ("git", "pip", "make", "docker", "aws", "systemctl", "journalctl", "nginx", "caddy", "sudo")
OTHER_MACHINE = "python3"
"""A program that is stood in for where an example is for another machine, or for root."""

STAND_IN = r"""#!/bin/bash
set -eu
case "$(basename "$0") ${1:-}" in
"git clone") # makes what a checkout of ComfyUI or of a custom node has
	folder=${3:-$(basename "$2" .git)}
	mkdir -p "$folder"
	touch "$folder/requirements.txt" "$folder/install.py" "$folder/main.py"
	exit ;;
"python3 -m")
	mkdir -p "$3/bin"
	for name in pip python; do ln -sf "$STAND_IN" "$3/bin/$name"; done
	exit ;;
esac
for word in "$@"; do
	case $word in
	*.py | *.txt | *.conf | *.service | *Caddyfile) [ -f "$word" ] || { echo "$0: there is no $word" >&2; exit 1; } ;;
	esac
done
"""
SERVE = r"""#!/bin/bash
# `serve` is stopped once it listens.
[ "${1:-}" = serve ] || exec "$FACESWAP" "$@"
coproc service { exec "$FACESWAP" "$@"; }
pid=$!
read -r line <&"${service[0]}" && [[ $line == *"listening on"* ]] || exit 1
kill "$pid" && wait "$pid"
"""


@dataclass(frozen=True, slots=True)
class Example:
    """A fenced block: the page, its line there, its language, a note on where it is to be run, its text."""

    page: str
    line: int
    language: str
    note: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples() -> list[Example]:
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for fence in FENCE.finditer(text):
            language, _, note = fence[2].partition(" ")
            line = text.count("\n", 0, fence.start()) + 1
            body = re.sub(rf"^{fence[1]}", "", fence[3], flags=re.MULTILINE)
            found.append(Example(path.name, line, language, note, body))
    return found


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody who follows the pages: a folder with their files, a service, and the web."""

    folder: Path
    service: ServiceRig
    engine: EngineRig
    web: str

    @property
    def url(self) -> str:
        return str(self.service.client.make_url("")).rstrip("/")

    def adapted(self, text: str) -> str:
        """Return an example with the addresses and folders that stand for those it names."""
        for name, own in {
            "http://127.0.0.1:8000": self.url,
            "https://example.org": self.web,
            "https://bucket.s3.amazonaws.com": self.web,
            "s3://bucket/prefix": str(self.folder / "shared"),
            "/var/lib/faceswap": str(self.folder / "own"),
            "/etc/": f"{self.folder}/etc/",
            "/opt/": f"{self.folder}/opt/",
        }.items():
            text = text.replace(name, own)
        return text

    async def run(self, *command: str, elsewhere: bool = False) -> str:
        """Run a command in the folder; returns all it printed."""
        tools = [self.folder / "bin", Path(sys.executable).parent]
        environment = {
            **os.environ,
            "PATH": ":".join(map(str, ([self.folder / "elsewhere"] if elsewhere else []) + tools))
            + f":{os.environ['PATH']}",
            "HOME": str(self.folder / "home"),
            "STAND_IN": str(self.folder / "bin" / "git"),
            "FACESWAP": str(Path(sys.executable).parent / "faceswap"),
            "FACESWAP_URL": self.url,
            "FACESWAP_PORT": "0",
            "FACESWAP_MIN_FREE_MB": "0",
            "FACESWAP_DATA_DIR": str(self.folder / "own"),
            "DATA": str(self.folder / "own"),
            "SHARED": str(self.folder / "shared"),
        }
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.folder,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(WAIT_S):
            printed, _ = await process.communicate()
        assert process.returncode == 0, printed.decode()
        return printed.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reader(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    _fill(folder)
    own = Files(folder / "own")  # examples of other pages make it too, but any may be the first at its worker
    own.create()
    async with opened(own.database):
        pass

    async def serve(request: web.Request) -> web.StreamResponse:
        await request.read()
        path = folder / request.path.lstrip("/")
        return web.FileResponse(path) if request.method == "GET" and path.is_file() else web.Response()

    pages = web.Application(client_max_size=1 << 26)
    pages.router.add_route("*", "/{path:.*}", serve)
    (folder / "service").mkdir()
    async with TestServer(pages) as server, EngineRig(folder / "service", paint=True) as engine:
        allowed = (ipaddress.ip_network("127.0.0.0/8"),)
        async with running_service(folder / "service" / "data", engine, url_allow=allowed, rate_limit=0) as service:
            yield Reader(folder, service, engine, str(server.make_url("")).rstrip("/"))


def _fill(folder: Path) -> None:
    """Make what a reader has: a checkout, clips and pictures."""
    for name in ("faceswap", "migrations", "workflows", "faceswap.service", "docs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    for name in (
        *("bin", "elsewhere", "clips", "demo", "shared", ".venv", "etc/systemd/system", "etc/nginx/conf.d"),
        *("home/.local/share/bash-completion/completions", "home/.zfunc", "home/.config/fish/completions"),
    ):
        (folder / name).mkdir(parents=True)
    clip = make_clip(folder / "clip.mp4", 50, rate=Fraction(25), sounds=("aac",))
    for name in ("two.mp4", "clips/a.mp4", "clips/b.mp4", "demo/source.mp4"):
        shutil.copy(clip, folder / name)
    for name in ("face.jpg", "me.png", "anna.png", "ben.png"):
        shutil.copy(samples.FACE, folder / name)
    for path, text in (("bin/git", STAND_IN), ("bin/faceswap", SERVE)):
        (folder / path).write_text(text)
        (folder / path).chmod(0o755)
    for name in STAND_INS[1:]:
        (folder / "bin" / name).symlink_to(folder / "bin" / "git")
    (folder / "elsewhere" / OTHER_MACHINE).symlink_to(folder / "bin" / "git")
    (folder / ".venv" / "bin").symlink_to(folder / "bin")
    # What an example further up the page has made: any may be the first at its worker.
    (manifest,) = (example.text for example in examples() if example.language == "toml")
    (folder / "batch.toml").write_text(manifest)
    (folder / "ComfyUI" / ".venv" / "bin").mkdir(parents=True)
    (folder / "ComfyUI" / ".venv" / "bin" / "python").symlink_to(folder / "bin" / "git")
    (folder / "ComfyUI" / "main.py").touch()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("example", examples(), ids=str)
async def test_every_example_runs(reader: Reader, example: Example) -> None:
    text = reader.adapted(example.text)
    match example.language:
        case "sh":
            await _run_shell(reader, text, elsewhere=bool(example.note))
        case "python":
            await reader.run(sys.executable, "-c", text)
        case "javascript":
            await _run_in_browser(reader, text)
        case "json":
            json.loads(text)
        case "toml":
            tomllib.loads(text)
        case "yaml":
            assert yaml.safe_load(text)
        case "ini":
            _read_settings(text)
        case language:
            assert language == "text", "an example names its language; `text` is what a program prints"


async def _run_shell(reader: Reader, text: str, *, elsewhere: bool) -> None:
    for name, package in NEEDED.items():
        if re.search(rf"\b{name}\b", text):
            program(name, package)
    prompt_ids = set(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", text))
    if prompt_ids:
        text = await _with_jobs(reader, text, prompt_ids.pop())
    if "postgresql://" in text:
        with postgres.empty_database() as url:
            named = re.compile(r"postgresql://[\w:]+@db\.example/\w+")
            await reader.run("bash", "-euo", "pipefail", "-c", named.sub(url, text))
        return
    printed = await reader.run("bash", "-euo", "pipefail", "-c", text, elsewhere=elsewhere)
    reader.engine.release()
    if "curl -N" in text or "curl -sN" in text:
        assert "event: completed" in printed


async def _with_jobs(reader: Reader, text: str, named: str) -> str:
    """Return commands on a job, each with the id of one that it can be done to."""
    lines = []
    for line in text.splitlines():
        if named in line:
            line = line.replace(named, await _job_for(reader, line))
        lines.append(line)
    return "\n".join(lines)


async def _job_for(reader: Reader, command: str) -> str:
    """Return a job that runs, for `cancel`; one that was cancelled, for `retry`; for all else one that is done."""
    service = reader.service
    if "cancel" in command:
        reader.engine.hold()
    prompt_id = await service.post(reader.folder / "clip.mp4", samples.FACE)
    if "retry" in command:
        async with service.client.post(f"/jobs/{prompt_id}/cancel") as response:
            assert response.status == 202
    if "cancel" not in command:
        await service.ended(prompt_id)
    return prompt_id


async def _run_in_browser(reader: Reader, text: str) -> None:
    async with chromium() as browser:
        page = await browser.new_page()
        page.set_default_timeout(WAIT_S * 1000)
        await page.goto(f"{reader.url}/")
        await page.evaluate(
            """() => document.body.replaceChildren(...["video", "image"].map((name) =>
                Object.assign(document.createElement("input"), {type: "file", name})))"""
        )
        await page.locator("input[name=video]").set_input_files(reader.folder / "clip.mp4")
        await page.locator("input[name=image]").set_input_files(reader.folder / "face.jpg")
        url = await page.evaluate(f"async () => {{ {text}\nreturn result.download_url; }}")
        async with reader.service.client.get(url) as response:
            assert response.status == 200


def _read_settings(text: str) -> None:
    """Check that an environment file is one that a start takes."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as the module's documentation says
    parser.read_string(f"[environment]\n{text}")
    environment = dict(parser["environment"])
    known = {f"FACESWAP_{field.name.upper()}" for field in fields(Settings)}
    assert set(environment) <= known
    Settings.load(environment)


def test_every_setting_stands_in_the_table_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `FACESWAP_(\w+)` \| (.*?) \|", page, re.MULTILINE))
    assert set(rows) == {field.name.upper() for field in fields(Settings)}
    for field in fields(Settings):
        if isinstance(field.default, int):
            assert rows[field.name.upper()] == str(int(field.default))
        elif isinstance(field.default, str) and field.default:
            assert rows[field.name.upper()] == field.default


WAITED_FOR = {"disk_full", "engine_disk_full"}
"""Failures that end no job."""
PASSED_ON = {"no_face_in_image", "undecodable"}
"""Problems of a picture that is looked at again when its face is cut out."""


def codes_of_failures() -> Iterator[str]:
    """Yield the codes of the failures that the code makes."""
    for path in (ROOT / "faceswap").rglob("*.py"):
        makers = {"JobFailure", "cls"} if path.name == "failures.py" else {"JobFailure"}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in makers:
                match node.args:
                    case [ast.Constant(value=str(code)), *_]:
                        yield code
                    case [ast.Name(id="code") | ast.Attribute(attr="code"), *_]:  # passed on from where it was made
                        pass
                    case other:
                        raise AssertionError(list(map(ast.unparse, other)))


def test_every_code_that_a_job_can_fail_with_is_explained_and_no_other() -> None:
    table = (ROOT / "docs/reference.md").read_text().partition("## Why a job failed")[2]
    explained = re.findall("[a-z_]+", " ".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert set(explained) == (set(codes_of_failures()) - WAITED_FOR) | PASSED_ON
    assert len(explained) == len(set(explained))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", text):
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{target}#{heading}"


def test_every_page_is_listed_in_readme_and_every_chore_it_names_is_there() -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    assert {path.name for path in PAGES[1:]} == set(re.findall(r"\(docs/(\w+\.md)\)", readme))
    chores = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= chores


def test_the_models_of_the_guide_are_those_of_the_workflow() -> None:
    guide = (ROOT / "docs" / "comfyui.md").read_text(encoding="utf-8")
    workflow = (ROOT / "workflows" / "FaceSwap-Reactor-API.json").read_text(encoding="utf-8")
    models = set(re.findall(r'"([^"]+\.(?:onnx|pth))"', workflow))
    assert models and all(f"`{model}`" in guide for model in models)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_dashboard_asks_for_what_is_measured(reader: Reader) -> None:
    board = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"faceswap_\w+", target["expr"])
    }
    assert asked

    async def are_known() -> bool:  # a figure that takes too long to be found is left out
        async with reader.service.client.get("/metrics") as response:
            known = set(re.findall(r"^# TYPE (\S+)", await response.text(), re.MULTILINE))
        return asked <= known | {f"{name}_bucket" for name in known}

    await eventually(are_known)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
