"""The files for containers, as they stand: no engine for containers is needed to read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from faceswap.cli import main
from faceswap.config import Settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<kind>:[-?])(?P<rest>[^}]*))?\}")
SECRETS = {"POSTGRES_PASSWORD", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"}


def example() -> dict[str, str]:
    """Return the variables of `.env.example`."""
    lines = (DEPLOY / ".env.example").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return dict(pairs)


def composed(**filled_in: str) -> dict[str, Any]:
    """Return compose.yaml with its variables put in, the secrets as `filled_in` or by their names."""
    values = {**example(), **{name: name.lower().replace("_", "") for name in SECRETS}, **filled_in}

    def value_of(match: re.Match[str]) -> str:
        value = values.get(match["name"], "")
        assert value or match["kind"] == ":-", f"{match['name']} has to be filled in"
        return value or match["rest"]

    composed: dict[str, Any] = yaml.safe_load(VARIABLE.sub(value_of, COMPOSE))
    return composed


def instructions() -> Iterator[tuple[str, list[str]]]:
    """Yield the Dockerfile's instructions with their words."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, rest.split()


def nodes() -> dict[str, dict[str, Any]]:
    """Return the services of compose.yaml that are nodes."""
    return {name: service for name, service in composed()["services"].items() if service["image"] == "faceswap"}


def test_two_nodes_share_a_database_and_files_and_differ_in_their_names_and_folders() -> None:
    first, second = nodes().values()
    names = [node["environment"].pop("FACESWAP_NODE") for node in (first, second)]
    folders = [node.pop("volumes") for node in (first, second)]
    assert first == second
    assert len(set(names)) == 2 and folders == [[f"{name}:/data"] for name in names]
    settings = Settings.load(first["environment"])
    assert settings.database_url == "postgresql://faceswap:postgrespassword@postgres/faceswap"
    assert settings.files_url == "s3://faceswap/files" and settings.comfyui_urls == ()


def test_nobody_is_let_in_without_a_key_and_the_proxy_is_believed() -> None:
    document = composed()
    [subnet] = document["networks"]["front"]["ipam"]["config"]
    for node in nodes().values():
        settings = Settings.load(node["environment"])
        assert settings.api_keys_file == Path("/run/secrets/api_keys") and node["secrets"] == ["api_keys"]
        assert [str(network) for network in settings.trusted_proxies] == [subnet["subnet"]]
    assert document["secrets"] == {"api_keys": {"file": "./api_keys"}}
    assert "deploy/api_keys" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_every_setting_that_is_named_exists() -> None:
    known = {f"FACESWAP_{name.upper()}" for name in Settings.__dataclass_fields__}
    files = ("Dockerfile", "deploy/compose.yaml", "deploy/.env.example", "deploy/Caddyfile", "deploy/nginx.conf")
    named = {name for file in files for name in re.findall(r"FACESWAP_\w+", (ROOT / file).read_text(encoding="utf-8"))}
    assert named and named <= known


def test_no_secret_has_a_value_before_an_operator_gives_it_one() -> None:
    assert {name for name, value in example().items() if not value} == SECRETS | {"FACESWAP_COMFYUI_URLS", "PUBLIC_URL"}
    for match in VARIABLE.finditer(COMPOSE):
        assert match["name"] in example()
        assert match["kind"] == (":?" if match["name"] in SECRETS else ":-")
    with pytest.raises(AssertionError, match="POSTGRES_PASSWORD"):
        composed(POSTGRES_PASSWORD="")
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"deploy/.env", "deploy/api_keys"} <= set(ignored)


def test_only_the_proxy_is_reached_from_outside_and_at_first_from_this_machine_alone() -> None:
    services = composed()["services"]
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "proxy": ["127.0.0.1:8080:8080"]
    }
    assert composed()["networks"]["back"] == {"internal": True}
    assert {name: service["networks"] for name, service in services.items()} == {
        **{name: ["front", "back"] for name in nodes()},
        "postgres": ["back"],
        "s3": ["back"],
        "proxy": ["front"],
    }


def test_who_waits_for_another_waits_until_that_is_healthy() -> None:
    services = composed()["services"]
    for service in services.values():
        for awaited, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[awaited] or services[awaited]["image"] == "faceswap"
    assert "HEALTHCHECK" in dict(instructions())


def test_everything_that_is_mounted_exists() -> None:
    document = composed()
    for service in document["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in document["volumes"]


def test_the_proxy_knows_every_node() -> None:
    caddyfile = (DEPLOY / "Caddyfile").read_text(encoding="utf-8")
    upstreams = re.search(r"\{\$NODES:([^}]+)\}", caddyfile)
    assert upstreams and upstreams[1].split() == [f"{name}:8000" for name in nodes()]


@pytest.mark.parametrize(
    ("file", "limit", "unit"),
    [("Caddyfile", r"max_size (\d+)MB", 1_000_000), ("nginx.conf", r"max_body_size (\d+)m", 2**20)],
)
def test_a_proxy_takes_uploads_as_large_as_the_service_does(file: str, limit: str, unit: int) -> None:
    found = re.search(limit, (DEPLOY / file).read_text(encoding="utf-8"))
    assert found and int(found[1]) * unit > Settings(Path()).max_upload_bytes + 2**20


def test_the_image_is_made_of_what_the_repository_has_and_what_the_package_needs() -> None:
    copied = [words[:-1] for name, words in instructions() if name == "COPY" and not words[0].startswith("--from")]
    sources = {source for group in copied for source in group}
    assert all((ROOT / source).exists() for source in sources)
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line.removeprefix("!") for line in sent if line.startswith("!")} == sources
    package = ConfigParser()
    package.read(ROOT / "setup.cfg")
    needed = {name.partition(".")[0] for name in package["options"]["packages"].split()}
    needed |= set(package["options"]["package_dir"].replace("=", " ").split()[1::2])
    needed |= set(package["metadata"]["license_files"].split()) | {"setup.cfg", "pyproject.toml", "README.md"}
    assert needed == sources
    assert "cluster" in package["options.extras_require"]


def test_the_image_runs_the_service_as_a_user_of_its_own_over_a_volume() -> None:
    steps = list(instructions())
    last = len(steps) - [name for name, _ in reversed(steps)].index("FROM")
    final = dict(steps[last:])
    assert final["USER"] == ["faceswap"] and final["VOLUME"] == ["/data"] and final["EXPOSE"] == ["8000"]
    environ = dict(word.split("=", 1) for word in final["ENV"])
    settings = Settings.load(environ)
    assert (settings.data_dir, settings.host, settings.port) == (Path("/data"), "0.0.0.0", 8000)
    assert "/livez" in " ".join(final["HEALTHCHECK"])
    assert "pip" not in " ".join(word for name, words in steps[last:] for word in (name, *words)).split()


def test_the_image_starts_the_command_line_with_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    final = dict(instructions())
    command = [*yaml.safe_load(" ".join(final["ENTRYPOINT"])), *yaml.safe_load(" ".join(final["CMD"]))]
    assert shlex.join(command) == "faceswap serve"
    assert main([*command[1:], "--help"]) == 0
    assert "--port" in capsys.readouterr().out


def test_the_guide_names_what_exists() -> None:
    guide = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    known = {f"FACESWAP_{name.upper()}" for name in Settings.__dataclass_fields__} | {"FACESWAP_TEST_DATABASE_URL"}
    assert set(re.findall(r"FACESWAP_[A-Z_]+", guide)) <= known
    paths = set(re.findall(r"`(tests/[^`]+)`", guide)) | set(re.findall(r"\]\(\.\./([^)]+)\)", guide))
    assert paths and all((ROOT / path).is_file() for path in paths)


def test_the_log_lines_of_the_guide_are_those_of_the_service() -> None:
    guide = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    table = guide.split("| line | means |")[1].split("\n\n")[0]
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "faceswap").rglob("*.py"))
    source = re.sub(r'"\n\s+"', "", source)  # a text may go on in the next line
    pieces = [piece for line in re.findall(r"`([^`]+)`", table) for piece in re.split("…", line) if piece.strip(" :")]
    assert len(pieces) > 8
    assert not [piece for piece in pieces if piece.strip(" :") not in source and "FACESWAP_NODE" not in piece]
