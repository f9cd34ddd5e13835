"""The configuration: one frozen dataclass, read from the environment and the options of `serve`."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yarl import URL

from .marks import MAX_LABEL

HOST_PATTERN = re.compile(r"[A-Za-z0-9._:%-]+")
"""A host name or address as it stands in a URL, without brackets."""

NODE_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""A node's name, of which leases and files are named."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SECRETS = frozenset({"comfyui_headers", "database_url", "webhook_secret"})
"""Settings whose value is shown nowhere. It may be the content of a credential of systemd."""
SECRET_FILES = frozenset({"api_keys_file", "c2pa_cert", "c2pa_key"})
"""Settings that are the path of a file to keep secret. It may be that of a credential of systemd."""
CREDENTIAL_PREFIX = "faceswap."
"""The beginning of the names of credentials, before that of the setting."""


SECRET_PREFIX = "whsec_"
SECRET_BYTES = range(24, 65)
"""The lengths of a webhook secret, by Standard Webhooks."""


class ConfigError(ValueError):
    """A wrong value; the message is one line with the variable, the value and the allowed ones."""


def resource_dir(name: str) -> Path:
    """Return the folder `migrations` or `workflows`: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Return `$STATE_DIRECTORY` under systemd, else the user's data folder by the XDG base directory rules."""
    if environ.get("STATE_DIRECTORY"):
        return Path(environ["STATE_DIRECTORY"].split(":")[0])
    base = environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "faceswap"


def credential(environ: Mapping[str, str], name: str) -> str | None:
    """Return the value of a setting that systemd hands over as a credential, None where there is none.

    It is the text of the file `faceswap.<setting>` in `$CREDENTIALS_DIRECTORY`, or its path for a setting that is the
    path of a file. Raises `ConfigError`.
    """
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder or name not in SECRETS | SECRET_FILES:
        return None
    path = Path(folder) / f"{CREDENTIAL_PREFIX}{name}"
    if not path.is_file():
        return None
    if name in SECRET_FILES:
        return str(path)
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the credential {path.name} cannot be read: {error}") from error


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class Settings:
    """The service's settings. Sizes are in MB of 1,048,576 bytes, times in seconds, as the names say."""

    data_dir: Path
    models_dir: Path | None = None
    engines: int = 0
    database_url: str = field(default="", repr=False)
    files_url: str = ""
    node: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    comfyui_urls: tuple[URL, ...] = ()
    comfyui_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    workflow_dir: Path = field(default_factory=lambda: resource_dir("workflows"))
    workflow: str = "FaceSwap-Reactor-API"
    max_upload_mb: int = 2048
    url_allow: tuple[Network, ...] = ()
    cors_origins: tuple[str, ...] = ()
    public_url: URL | None = None
    webhook_secret: tuple[bytes, ...] = field(default=(), repr=False)
    api_keys_file: Path | None = None
    allow_anonymous: bool = False
    rate_limit: int = 60
    trusted_proxies: tuple[Network, ...] = ()
    download_redirect: bool = False
    queue_limit: int = 1000
    queue_limit_per_key: int = 100
    segment_frames: int = 240
    max_frames: int = 1_000_000
    max_duration_s: int = 21_600
    max_segments: int = 10_000
    input_ttl_s: int = 3600
    output_ttl_s: int = 604800
    upload_ttl_s: int = 86400
    record_ttl_s: int = 2_592_000
    min_free_mb: int = 1024
    label: str = ""
    watermark: bool = False
    c2pa_cert: Path | None = None
    c2pa_key: Path | None = None
    log_format: str = "text"
    log_level: str = "info"
    access_log: bool = False
    require_consent: bool = False

    @property
    def max_upload_bytes(self) -> int:
        """The largest video or image that is accepted, in bytes."""
        return self.max_upload_mb * 1024 * 1024

    @property
    def models_folder(self) -> Path:
        """The folder of the operator's networks, which need not be there."""
        return self.models_dir or self.data_dir / "models"

    def has_networks(self) -> bool:
        """Look whether there are networks of the operator's."""
        return any(self.models_folder.rglob("*.onnx"))

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read the environment; `overrides` (command-line options, as text) win. Raises `ConfigError`."""
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {"data_dir": default_data_dir(environ)}
        for name, parse in _PARSERS.items():
            variable = f"FACESWAP_{name.upper()}"
            text = overrides.get(name)
            if text is None:
                text = environ.get(variable) or credential(environ, name) or None
            if text is None:
                continue
            try:
                values[name] = parse(str(text))
            except (ValueError, TypeError) as error:
                shown = "(hidden)" if name in SECRETS else repr(str(text)[:80])
                raise ConfigError(f"{variable}={shown}: {error}") from None
        return cls(**values)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise ValueError(f"allowed is a whole number from {low} to {high}")
        return value

    return parse


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"allowed is one of {', '.join(choices)}")
        return text

    return parse


def _flag(text: str) -> bool:
    return _choice("0", "1")(text) == "1"


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("allowed is any text but the empty one")
    return text.strip()


def _label(text: str) -> str:
    if not text.strip().isprintable() or len(text.strip()) > MAX_LABEL:
        raise ValueError(f"allowed is one line of up to {MAX_LABEL} characters")
    return text.strip()


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError("allowed is a path; there is no such user's home folder") from None


def _database_url(text: str) -> str:
    # The driver reads the rest of it; a wrong one is told when it is connected to.
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("allowed is postgresql://user:password@host/database")
    return text


def _files_url(text: str) -> str:
    url = URL(text)
    if url.scheme == "s3" and url.host and not (url.user or url.query_string or url.fragment):
        return text.rstrip("/")
    if not url.scheme and text.startswith("/"):
        return text
    raise ValueError("allowed is s3://bucket/prefix, or the absolute path of a folder that all nodes share")


def _node_name(text: str) -> str:
    if not NODE_PATTERN.fullmatch(text):
        raise ValueError("allowed are up to 64 letters, digits, '.', '_' and '-'")
    return text


def _url(text: str) -> URL:
    try:
        url = URL(text)
        is_plain = HOST_PATTERN.fullmatch(url.raw_host or "") and not (url.user or url.query_string or url.fragment)
        if url.scheme in ("http", "https") and url.host and is_plain:
            return url
    except ValueError:
        pass
    raise ValueError("allowed is an http:// or https:// address without user or query")


def _urls(text: str) -> tuple[URL, ...]:
    try:
        urls = [_url(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ValueError(f"{error}, or several separated by commas") from None
    return tuple(dict.fromkeys(urls))


def _headers(text: str) -> Mapping[str, str]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise ValueError("allowed is a JSON object of header names and values, both text")
    return value


def _origins(text: str) -> tuple[str, ...]:
    return tuple(str(url.origin()) for url in _urls(text))


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("allowed are networks as CIDR, such as 10.0.0.0/8, separated by commas") from None


def _webhook_secrets(text: str) -> tuple[bytes, ...]:
    secrets = []
    for part in text.replace(",", " ").split():
        prefix, encoded = part[: len(SECRET_PREFIX)], part[len(SECRET_PREFIX) :]
        try:
            secret = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except ValueError:
            secret = b""
        if prefix != SECRET_PREFIX or len(secret) not in SECRET_BYTES:
            raise ValueError("allowed is whsec_ and 24 to 64 bytes in base64, or several separated by commas")
        secrets.append(secret)
    return tuple(secrets)


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "host": _text,
    "port": _whole(0, 65535),
    "data_dir": _path,
    "models_dir": _path,
    "engines": _whole(0, 64),
    "database_url": _database_url,
    "files_url": _files_url,
    "node": _node_name,
    "comfyui_urls": _urls,
    "comfyui_headers": _headers,
    "workflow_dir": _path,
    "workflow": _text,
    "max_upload_mb": _whole(1, 1_048_576),
    "url_allow": _networks,
    "cors_origins": _origins,
    "public_url": _url,
    "webhook_secret": _webhook_secrets,
    "api_keys_file": _path,
    "allow_anonymous": _flag,
    "rate_limit": _whole(0, 1_000_000),
    "trusted_proxies": _networks,
    "download_redirect": _flag,
    "queue_limit": _whole(1, 1_000_000),
    "queue_limit_per_key": _whole(1, 1_000_000),
    "segment_frames": _whole(0, 1_000_000),
    "max_frames": _whole(1, 1_000_000),
    "max_duration_s": _whole(1, 31_536_000),
    "max_segments": _whole(1, 100_000),
    "input_ttl_s": _whole(0, 31_536_000),
    "output_ttl_s": _whole(1, 315_360_000),
    "upload_ttl_s": _whole(60, 31_536_000),
    "record_ttl_s": _whole(1, 315_360_000),
    "min_free_mb": _whole(0, 1_073_741_824),
    "label": _label,
    "watermark": _flag,
    "c2pa_cert": _path,
    "c2pa_key": _path,
    "log_format": _choice("text", "json"),
    "log_level": _choice("debug", "info", "warning", "error"),
    "access_log": _flag,
    "require_consent": _flag,
}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The bounds of all waits for an engine, in seconds, and of all repetitions."""

    reconcile_s: float = 3.0
    """The time between two looks at queue and history while a prompt is in flight."""
    silence_s: float = 20.0
    """The silence on the socket, while a prompt runs, after which the socket is reconnected."""
    stuck_s: float = 600.0
    """The silence after which the engine is considered stuck."""
    stop_s: float = 60.0
    """The time for an interrupted prompt to leave the queue."""
    unreachable_s: float = 30.0
    """The time without an answer after which work is moved to another ComfyUI, where there is one."""
    confirm_s: float = 0.5
    """The time between the two looks that must both miss a prompt before it counts as lost."""
    retry_s: tuple[float, ...] = (2.0, 10.0)
    """The pauses before the second and the third attempt after a transient failure; there is no fourth."""
    gone_s: float = 24 * 3600.0
    """The time without any engine after which the jobs that wait for one fail."""
    loss_limit: int = 25
    """The number of times a prompt may be lost before its job fails."""
    death_limit: int = 5
    """The deaths of an engine in a row, while it works on a segment, after which the job fails: some videos kill it."""
    inspect_s: float = 60.0
    """The time between two inspections of a ComfyUI: its nodes, its models, its memory."""
    lease_s: float = 3600.0
    """The time without a renewal after which another node may take over a node's work."""
    outage_s: float = 3.0
    """The time without any ComfyUI after which the jobs that wait for one report an outage."""
    node_gone_s: float = 15.0
    """The time without a sign of a node after which it does not count any more: what only it could do others do."""

    @classmethod
    def of(cls, settings: Settings) -> Timeouts:
        """Return the bounds for a node that has its database alone, or may share it."""
        return cls(lease_s=10.0, outage_s=20.0) if settings.database_url else cls()
