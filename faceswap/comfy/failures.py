"""ComfyUI's errors as a `JobFailure`: a stable code and one sentence that says what to do.

Two kinds: a graph refused by `POST /prompt` (`PromptRejected`), and a node that raised while it ran
(`failure_from_error`). What ComfyUI wrote is shown to users, so paths of its machine are cut to the file's name and
tracebacks never get this far.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import JobFailure

SHOWN_CHARACTERS = 300
SHOWN_CHOICES = 8

PACKAGES = {"ReActor": "ComfyUI-ReActor", "VHS_": "ComfyUI-VideoHelperSuite"}
DISK_FULL_TEXT = "No space left on device"
MODEL_FILE = re.compile(r"\.(onnx|pth|pt|safetensors|ckpt|bin)$", re.IGNORECASE)

_OUT_OF_MEMORY = re.compile(
    r"out of memory|allocation on device|not enough memory|can't allocate memory|failed to allocate memory",
    re.IGNORECASE,
)
_DOWNLOAD_ERRORS = {"URLError", "HTTPError", "NoSuchFile", "LocalEntryNotFoundError", "RepositoryNotFoundError"}
_BROKEN_MODEL_ERRORS = {
    *("InvalidArgument", "InvalidGraph", "InvalidProtobuf", "UnpicklingError", "SafetensorError"),
    "NetworkError",  # the embedded engine's
}

_QUOTED_PATH = re.compile(r"""(['"])(?:[A-Za-z]:)?[\\/](?:[^'"\n]*[\\/])?([^'"\n\\/]*)\1""")
_BARE_PATH = re.compile(r"""(?:file://|(?<![\w:/\\.]))(?:[A-Za-z]:)?(?:[\\/][^\s\\/:'"<>|,;()]+)+[\\/]?""")
_UNKNOWN_NODE = re.compile(r"node (\S.*?) does not exist|Node '(.+?)' not found")


@dataclass(frozen=True)
class _InputError:
    """One error of one node, as a 400 body lists it."""

    node_class: str
    kind: str
    message: str
    details: str
    input_name: str
    received: object
    choices: tuple[str, ...]


class PromptRejected(JobFailure):
    """ComfyUI refused the graph.

    Codes: `node_missing`, `model_missing`, `input_missing` (transient: the file is uploaded again), `workflow_invalid`.
    """

    @classmethod
    def from_body(cls, body: object) -> PromptRejected:
        """Return the rejection in a 400, or in a 200 with `node_errors` of our output. JSON of any shape is taken."""
        rejections = [cls._from_input(error) for error in _input_errors(body)]
        telling = [rejection for rejection in rejections if rejection.code != "workflow_invalid"]
        return (telling or rejections or [cls._from_prompt(body)])[0]

    @classmethod
    def _from_prompt(cls, body: object) -> PromptRejected:
        error = _dict(_dict(body).get("error"))
        message = _str(error.get("message"))
        found = _UNKNOWN_NODE.search(message)
        node_class = _str(_dict(error.get("extra_info")).get("class_type"))
        if found and (name := node_class or found[1] or found[2]):
            return cls("node_missing", node_missing(name))
        details = _str(error.get("details"))
        reason = shown(message if details in message else f"{message} {details}") or "it gave no reason."
        return cls("workflow_invalid", f"ComfyUI refused the workflow: {reason}")

    @classmethod
    def _from_input(cls, error: _InputError) -> PromptRejected:
        value, where = shown(str(error.received)), f"{error.input_name} of {error.node_class}"
        if error.kind == "value_not_in_list" and ("model" in error.input_name or MODEL_FILE.search(value)):
            instead = f", or choose {_listing(error.choices)}" if error.choices else ""
            return cls(
                "model_missing",
                f"ComfyUI has no model {value} ({where}); put it into its models folder and restart it{instead}.",
            )
        missing_file = error.kind == "custom_validation_failed" and "Invalid" in error.details
        if missing_file or (error.kind == "value_not_in_list" and error.node_class == "LoadImage"):
            return cls(
                "input_missing",
                f"ComfyUI no longer has the uploaded file ({where}); it has to be uploaded again.",
                transient=True,
            )
        reason = shown(f"{error.message}: {error.details}" if error.details else error.message)
        return cls("workflow_invalid", f"ComfyUI refused {where}: {reason}")


def node_missing(node_class: str) -> str:
    """Return the sentence for a node class that ComfyUI does not have."""
    package = next((package for prefix, package in PACKAGES.items() if node_class.startswith(prefix)), None)
    remedy = f"install {package}" if package else "install the package that brings it"
    return f"ComfyUI has no node class {shown(node_class)}; {remedy} and restart ComfyUI."


def disk_full() -> JobFailure:
    """Return the failure of an upload or a prompt that ComfyUI has no room for. It is transient."""
    message = "ComfyUI's disk is full; the job goes on when there is room."
    return JobFailure("engine_disk_full", message, transient=True)


def failure_from_error(node_type: str, exception_type: str, message: str) -> JobFailure:
    """Return why a node failed while it ran. `exception_type` is dotted (`torch.OutOfMemoryError`), `message` any text.

    Codes: `out_of_memory` and `engine_disk_full` (transient), `model_missing`, `model_broken`, `engine_error`.
    """
    if DISK_FULL_TEXT in message:
        return disk_full()
    node, name, text = shown(node_type) or "A node", exception_type.rpartition(".")[2], shown(message)
    reason = text or shown(name) or "it gave no reason."
    if name.endswith(("OutOfMemoryError", "MemoryError")) or _OUT_OF_MEMORY.search(message):
        remedy = "take a smaller video or a lower FACESWAP_SEGMENT_FRAMES"
        return JobFailure("out_of_memory", f"{node} ran out of memory in ComfyUI; {remedy}: {reason}", transient=True)
    if name in _DOWNLOAD_ERRORS or (name == "FileNotFoundError" and MODEL_FILE.search(text.strip("'\""))):
        return JobFailure(
            "model_missing",
            f"{node} misses a model that ComfyUI could not download; put it into its models folder: {reason}",
        )
    if name in _BROKEN_MODEL_ERRORS:
        return JobFailure("model_broken", f"{node} could not use its model; put a good copy into place: {reason}")
    return JobFailure("engine_error", f"{node} failed in ComfyUI: {reason}")


def shown(text: str) -> str:
    """Return the first line of ComfyUI's text, at most 300 characters, absolute paths cut to their last part."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")[: 4 * SHOWN_CHARACTERS]
    line = _QUOTED_PATH.sub(r"\1\2\1", line)
    line = _BARE_PATH.sub(lambda path: re.split(r"[\\/]", path[0].rstrip("\\/"))[-1], line)
    line = "".join(character for character in line if character.isprintable())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"


def _input_errors(body: object) -> Iterator[_InputError]:
    for node in _dict(_dict(body).get("node_errors")).values():
        node_class = shown(_str(_dict(node).get("class_type"))) or "a node"
        errors = _dict(node).get("errors")
        for error in errors if isinstance(errors, list) else ():
            extra = _dict(_dict(error).get("extra_info"))
            config = extra.get("input_config")
            choices = config[0] if isinstance(config, list) and config and isinstance(config[0], list) else []
            yield _InputError(
                node_class=node_class,
                kind=_str(_dict(error).get("type")),
                message=_str(_dict(error).get("message")),
                details=_str(_dict(error).get("details")),
                input_name=shown(_str(extra.get("input_name"))) or "an input",
                received=extra.get("received_value", ""),
                choices=tuple(shown(choice) for choice in choices if isinstance(choice, str)),
            )


def _listing(choices: tuple[str, ...]) -> str:
    more = f" and {len(choices) - SHOWN_CHOICES} more" if len(choices) > SHOWN_CHOICES else ""
    return f"one of {', '.join(choices[:SHOWN_CHOICES])}{more}" if len(choices) > 1 else choices[0]


def _dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _str(value: object) -> str:
    return value if isinstance(value, str) else ""
