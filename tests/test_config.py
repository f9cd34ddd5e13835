"""The settings: each from its variable, each refused in one line that says what is allowed."""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from faceswap.config import ConfigError, Settings, default_data_dir, resource_dir

VALUES: dict[str, tuple[str, Any]] = {
    "data_dir": ("/srv/faceswap", Path("/srv/faceswap")),
    "models_dir": ("/srv/ComfyUI/models", Path("/srv/ComfyUI/models")),
    "engines": ("3", 3),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("0", 0),
    "comfyui_urls": (
        "http://a:8188, https://b/prefix,http://a:8188",
        (URL("http://a:8188"), URL("https://b/prefix")),
    ),
    "comfyui_headers": ('{"Authorization": "Bearer x"}', {"Authorization": "Bearer x"}),
    "workflow_dir": ("/srv/workflows", Path("/srv/workflows")),
    "workflow": ("Mine", "Mine"),
    "max_upload_mb": ("5", 5),
    "url_allow": ("10.0.0.0/8, fd00::/8", (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))),
    "cors_origins": ("https://a.example, http://b:81/path", ("https://a.example", "http://b:81")),
    "public_url": ("https://faces.example.org/swap", URL("https://faces.example.org/swap")),
    "webhook_secret": (f"whsec_{base64.b64encode(bytes(24)).decode()}, whsec_{'A' * 43}", (bytes(24), bytes(32))),
    "database_url": ("postgresql://user@host/database", "postgresql://user@host/database"),
    "files_url": ("s3://bucket/prefix/", "s3://bucket/prefix"),
    "node": ("node-1.example", "node-1.example"),
    "api_keys_file": ("/etc/faceswap/keys", Path("/etc/faceswap/keys")),
    "allow_anonymous": ("1", True),
    "rate_limit": ("0", 0),
    "trusted_proxies": ("10.0.0.0/8,::1", (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1/128"))),
    "download_redirect": ("1", True),
    "label": (" Généré par IA ", "Généré par IA"),
    "watermark": ("1", True),
    "c2pa_cert": ("/etc/faceswap/chain.pem", Path("/etc/faceswap/chain.pem")),
    "c2pa_key": ("/etc/faceswap/key.pem", Path("/etc/faceswap/key.pem")),
    "queue_limit": ("7", 7),
    "queue_limit_per_key": ("7", 7),
    "segment_frames": ("0", 0),
    "max_frames": ("1000", 1000),
    "max_duration_s": ("60", 60),
    "max_segments": ("1", 1),
    "input_ttl_s": ("0", 0),
    "output_ttl_s": ("60", 60),
    "upload_ttl_s": ("60", 60),
    "min_free_mb": ("0", 0),
    "record_ttl_s": ("60", 60),
    "access_log": ("1", True),
    "require_consent": ("1", True),
    "log_format": ("json", "json"),
    "log_level": ("debug", "debug"),
}

WRONG: dict[str, list[str]] = {
    "data_dir": ["~no-such-user-here/x"],
    "models_dir": ["~no-such-user-here/x"],
    "engines": ["-1", "65", "many"],
    "host": [" "],
    "port": ["-1", "65536", "x", "80.0"],
    "comfyui_urls": [
        "ftp://a",
        "a:8188",
        "http://",
        "http://a?x=1",
        "http://user:word@a",
        "http://a:99999",
        "http://a,b",
        "http://xn--/",
    ],
    "comfyui_headers": ["x", "[]", '{"a": 1}', "{", '"a"'],
    "workflow_dir": ["~no-such-user-here/x"],
    "workflow": [" "],
    "max_upload_mb": ["0", "-1", "1e3", "99999999"],
    "url_allow": ["10.0.0.1/8", "example.com", "10.0.0.0/33"],
    "cors_origins": ["*", "example.com", "http://xn--/"],
    "public_url": [
        "faces.example.org",
        "https://",
        "ftp://a",
        "https://a?x=1",
        "https://user@a",
        "https://a, https://b",
    ],
    "webhook_secret": ["x", "whsec_", "whsec_!", f"whsec_{'A' * 31}", f"whsec_{'A' * 88}", f"whsec_{'A' * 32} B"],
    "database_url": ["sqlite:///x", "postgresql:"],
    "files_url": ["relative/folder", "s3://", "s3://key@bucket", "s3://bucket?x=1", "http://host/bucket"],
    "node": ["a b", "a/b", "x" * 65],
    "api_keys_file": ["~no-such-user-here/x"],
    "allow_anonymous": ["yes", "2"],
    "rate_limit": ["-1", "x", "60/minute"],
    "trusted_proxies": ["10.0.0.1/8", "proxy.example"],
    "download_redirect": ["yes", "2"],
    "label": ["two\nlines"],
    "watermark": ["yes", "2"],
    "c2pa_cert": ["~no-such-user-here/x"],
    "c2pa_key": ["~no-such-user-here/x"],
    "queue_limit": ["0", "x"],
    "queue_limit_per_key": ["0", "x"],
    "segment_frames": ["-1", "x"],
    "max_frames": ["0", "1000001"],
    "max_duration_s": ["0", "1h"],
    "max_segments": ["0", "x"],
    "input_ttl_s": ["-1", "1h"],
    "output_ttl_s": ["0", "1h"],
    "upload_ttl_s": ["59", "1h"],
    "min_free_mb": ["-1", "x"],
    "record_ttl_s": ["0", "1h"],
    "access_log": ["yes", "2"],
    "require_consent": ["yes", "2"],
    "log_format": ["JSON", "xml"],
    "log_level": ["loud", "INFO"],
}

NAMES = [field.name for field in dataclasses.fields(Settings)]


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    settings = Settings.load({})
    assert (settings.host, settings.port, settings.comfyui_urls) == ("127.0.0.1", 8000, ())
    assert (settings.workflow, settings.max_upload_mb, settings.queue_limit) == ("FaceSwap-Reactor-API", 2048, 1000)
    assert (settings.segment_frames, settings.input_ttl_s, settings.output_ttl_s) == (240, 3600, 604800)
    assert (settings.record_ttl_s, settings.access_log, settings.require_consent) == (2592000, False, False)
    assert (settings.min_free_mb, settings.log_format, settings.log_level) == (1024, "text", "info")
    assert (settings.url_allow, settings.cors_origins, dict(settings.comfyui_headers)) == ((), (), {})
    assert (settings.max_frames, settings.max_duration_s, settings.max_segments) == (1_000_000, 21_600, 10_000)
    assert settings.public_url is None
    assert settings.max_upload_bytes == 2 * 2**30


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_read_from_its_variable(name: str) -> None:
    text, value = VALUES[name]
    assert getattr(Settings.load({f"FACESWAP_{name.upper()}": text}), name) == value
    assert value != getattr(Settings.load({}), name)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_variable_is_as_good_as_none(name: str) -> None:
    assert Settings.load({f"FACESWAP_{name.upper()}": ""}) == Settings.load({})


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_value_is_refused_in_one_line_with_variable_value_and_what_is_allowed(name: str) -> None:
    variable = f"FACESWAP_{name.upper()}"
    for text in WRONG[name]:
        with pytest.raises(ConfigError) as refused:
            Settings.load({variable: text})
        message = str(refused.value)
        assert message.startswith(f"{variable}=")
        assert name in ("comfyui_headers", "database_url", "webhook_secret") or repr(text) in message
        assert "allowed" in message
        assert "\n" not in message


def test_an_option_of_the_command_line_wins() -> None:
    environ = {"FACESWAP_PORT": "81", "FACESWAP_HOST": "::1"}
    settings = Settings.load(environ, port=82, host=None)
    assert (settings.port, settings.host) == (82, "::1")
    with pytest.raises(ConfigError, match="FACESWAP_PORT='x'"):
        Settings.load(environ, port="x")
    assert Settings.load({"FACESWAP_PORT": "x"}, port="0").port == 0


def test_headers_are_told_nowhere() -> None:
    secret = "Bearer-of-secrets"
    settings = Settings.load({"FACESWAP_COMFYUI_HEADERS": f'{{"Authorization": "{secret}"}}'})
    assert secret not in repr(settings) + str(settings)
    with pytest.raises(ConfigError) as refused:
        Settings.load({"FACESWAP_COMFYUI_HEADERS": f'{{"Authorization": "{secret}"'})
    assert secret not in str(refused.value)


def test_a_secret_may_be_a_credential_of_systemd(tmp_path: Path) -> None:
    (tmp_path / "faceswap.comfyui_headers").write_text('{"Authorization": "Bearer x"}\n')
    (tmp_path / "faceswap.api_keys_file").write_text("")
    (tmp_path / "faceswap.port").write_text("81")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    settings = Settings.load(environ)
    assert settings.comfyui_headers == {"Authorization": "Bearer x"}
    assert settings.api_keys_file == tmp_path / "faceswap.api_keys_file"
    assert (settings.port, settings.database_url) == (8000, "")
    assert Settings.load({**environ, "FACESWAP_API_KEYS_FILE": "/x"}).api_keys_file == Path("/x")


def test_a_credential_that_is_wrong_is_told_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "faceswap.comfyui_headers").write_text("a-secret")
    with pytest.raises(ConfigError, match="FACESWAP_COMFYUI_HEADERS=\\(hidden\\)"):
        Settings.load({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    (tmp_path / "faceswap.comfyui_headers").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="credential faceswap\\.comfyui_headers"):
        Settings.load({"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings.load({}).port = 1  # type: ignore[misc]  # that is the point


def test_the_data_lies_where_the_platform_wants_it() -> None:
    assert default_data_dir({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "XDG_DATA_HOME": "/x"}) == Path("/var/lib/a")
    assert default_data_dir({"XDG_DATA_HOME": "/x"}) == Path("/x/faceswap")
    assert default_data_dir({}) == Path.home() / ".local" / "share" / "faceswap"


def test_a_home_folder_and_a_relative_path_are_made_absolute() -> None:
    assert Settings.load({"FACESWAP_DATA_DIR": "~/x"}).data_dir == Path.home() / "x"
    assert Settings.load({"FACESWAP_DATA_DIR": "x"}).data_dir == Path.cwd() / "x"


@pytest.mark.parametrize(
    ("name", "file"), [("migrations", "0001_jobs.sql"), ("workflows", "FaceSwap-Reactor-API.json")]
)
def test_what_the_program_brings_along_is_found(name: str, file: str) -> None:
    assert (resource_dir(name) / file).is_file()
