"""The worker process: it takes one call a line on stdin, answers one line on stdout, and decodes hostile media.

A call is `{"call": name, "arguments": {…}}`, an answer `{"result": {…}}`, `{"problem": {…}}`, `{"failure": {…}}`
or `{"crash": traceback}`. The process ends when its stdin does, so it never outlives its parent.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import av

from ..errors import JobFailure, Problem
from ..limits import limit_process
from ..marks import Marks

MAX_DATA_BYTES = 2 << 30
MAX_OPEN_FILES = 256

CALLS: Mapping[str, str] = {
    "probe_video": "probe.probe_video",
    "probe_target": "probe.probe_target",
    "probe_image": "probe.probe_image",
    "thumbnail": "thumbnail.thumbnail",
    "look_for_faces": "faces.look_for_faces",
    "cut_portrait": "faces.cut_portrait",
    "convert_image": "stills.convert",
    "check_cuttable": "cut.check_cuttable",
    "find_frames": "cut.find_frames",
    "prepare": "cut.prepare",
    "cut": "cut.cut",
    "join": "join.join",
    "convert": "convert.convert",
    "make_still": "picture.make_still",
    "verify_still": "picture.verify_still",
    "finish_picture": "picture.finish_picture",
    "mark": "mark.mark",
    "examine": "examine.examine",
    "check_signing": "credentials.check_signing",
    "verify": "verify.verify",
}
"""The calls, and the functions of this package that answer them; arguments are passed by name."""


def _rate(text: str | None) -> Fraction | None:
    return None if text is None else Fraction(text)


def _paths(texts: list[str]) -> list[Path]:
    return [Path(text) for text in texts]


def _signing(files: dict[str, str] | None) -> tuple[Path, Path] | None:
    return (Path(files["cert"]), Path(files["key"])) if files else None


CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("path", "source", "result", "still", "out", "cert", "key"), Path),
    "segments": _paths,
    "frame_rate": _rate,
    "signing": _signing,
    "marks": Marks.from_json,
}
"""The arguments that JSON cannot hold, and how they are read."""


def main() -> None:
    """Serve calls until stdin ends."""
    limit_resources()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    calls: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_calls, args=(calls,), daemon=True).start()
    while True:
        answers.write(json.dumps(_answer(json.loads(calls.get())), default=str) + "\n")
        answers.flush()


def limit_resources() -> None:
    """Bound memory, core dumps, open files and the size of images."""
    limit_process(MAX_DATA_BYTES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    av.logging.set_level(None)


def _read_calls(calls: queue.SimpleQueue[str]) -> None:
    # A thread of its own notices the end of stdin while the main thread is inside a decoder.
    for line in sys.stdin:
        calls.put(line)
    os._exit(0)


def _answer(message: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": asdict(_call(message["call"], message["arguments"]))}
    except Problem as problem:
        return {"problem": {"kind": type(problem).__name__, "code": problem.code, "detail": problem.detail}}
    except JobFailure as failure:
        return {"failure": {"code": failure.code, "message": failure.message, "transient": failure.transient}}
    except Exception:  # noqa: BLE001 - the top of the task: the parent logs it and ends the call
        return {"crash": traceback.format_exc()}


def _call(name: str, arguments: dict[str, Any]) -> Any:
    module, _, function = CALLS[name].partition(".")
    # Loaded when first needed: a process that only probes stays small.
    call = getattr(import_module(f".{module}", __package__), function)
    return call(**{key: CONVERSIONS[key](value) if key in CONVERSIONS else value for key, value in arguments.items()})


if __name__ == "__main__":
    main()
