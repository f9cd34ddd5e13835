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
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from ..errors import JobFailure, Problem
from ..limits import limit_process
from . import probe

MAX_DATA_BYTES = 2 << 30
MAX_OPEN_FILES = 256


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
    if name == "probe_video":
        return probe.probe_video(Path(arguments["path"]), arguments["max_frames"])
    if name == "probe_target":
        return probe.probe_target(Path(arguments["path"]), arguments["max_frames"])
    if name == "probe_image":
        return probe.probe_image(Path(arguments["path"]))
    if name == "thumbnail":
        from .thumbnail import thumbnail

        return thumbnail(Path(arguments["path"]), is_picture=arguments["is_picture"])
    # Loaded when first needed: a process that only probes stays small.
    if name == "look_for_faces":
        from .faces import look_for_faces

        return look_for_faces(Path(arguments.pop("path")), **arguments)
    if name == "cut_portrait":
        from .faces import cut_portrait

        return cut_portrait(Path(arguments["path"]), Path(arguments["out"]), arguments["index"])
    if name == "convert_image":
        from .stills import convert

        return convert(Path(arguments["path"]), Path(arguments["out"]))
    if name == "check_cuttable":
        from .cut import check_cuttable

        return check_cuttable(Path(arguments["source"]))
    if name == "mark":
        from ..marks import Marks
        from .mark import mark

        return mark(Path(arguments["path"]), Marks.from_json(arguments["marks"]), arguments["crf"])
    if name == "examine":
        from .examine import examine

        return examine(Path(arguments["path"]))
    if name == "check_signing":
        from .credentials import check_signing

        return check_signing(Path(arguments["cert"]), Path(arguments["key"]))
    if name in ("make_still", "verify_still", "finish_picture"):
        from . import picture

        return getattr(picture, name)(**_with_paths(arguments))
    if name == "convert":
        from .convert import convert as convert_result

        return convert_result(**_with_paths(arguments))
    rate = arguments.pop("frame_rate")
    frame_rate = None if rate is None else Fraction(rate)
    if name == "find_frames":
        from .cut import find_frames

        return find_frames(Path(arguments["path"]), arguments["start"], arguments["end"], frame_rate)
    if name in ("prepare", "cut"):
        from . import cut

        call = cut.prepare if name == "prepare" else cut.cut
        source, out = Path(arguments.pop("source")), Path(arguments.pop("out"))
        return call(source, out, frame_rate=frame_rate, **arguments)
    if name == "join":
        from .join import join

        segments = [Path(segment) for segment in arguments["segments"]]
        source, out, signing = Path(arguments["source"]), Path(arguments["out"]), _signing(arguments["signing"])
        part = {name: arguments[name] for name in ("first_frame", "start", "end")}
        return join(segments, source, out, frame_rate, arguments["prompt_id"], signing, **part)
    from .verify import verify

    result, source = Path(arguments.pop("result")), Path(arguments.pop("source"))
    return verify(result, source, frame_rate=frame_rate, **arguments)


def _with_paths(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments with paths, and certificate and key, in place of their texts."""
    named = {name: Path(arguments[name]) for name in ("path", "source", "result", "still", "out") if name in arguments}
    signing = {"signing": _signing(arguments["signing"])} if "signing" in arguments else {}
    return arguments | named | signing


def _signing(files: dict[str, str] | None) -> tuple[Path, Path] | None:
    return (Path(files["cert"]), Path(files["key"])) if files else None


if __name__ == "__main__":
    main()
