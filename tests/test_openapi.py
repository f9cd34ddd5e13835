"""The description of the API, held against the code that it describes."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import itertools
import json
from collections.abc import Iterator, Mapping
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from aiohttp import web
from clips import make_clip
from openapi_spec_validator import validate
from service_rig import running_service, service_and_engines
from stored_jobs import opened, run_to_success

from faceswap import errors
from faceswap.api.middleware import _TITLES
from faceswap.api.openapi import DOCUMENT, routes
from faceswap.api.operations import OPERATIONS, PROBLEMS, SOCKET_PROBLEMS
from faceswap.api.schemas import EVENTS, FIELDS, SCHEMAS
from faceswap.app import create_app
from faceswap.config import Settings
from faceswap.deliveries import webhook_body
from faceswap.errors import BadRequest
from faceswap.intake.form import INPUTS, SwapForm
from faceswap.options import Options

PACKAGE = Path(errors.__file__).parent


@cache
def trees() -> Mapping[Path, ast.Module]:
    """Return the syntax tree of each file of the service: made at first use, since every worker collects all tests."""
    return {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py") if "engine" not in path.parts}


@pytest.fixture
def app(tmp_path: Path) -> web.Application:
    return create_app(Settings(tmp_path))


def test_the_document_is_openapi_3_1(app: web.Application) -> None:
    document = json.loads(json.dumps(app[DOCUMENT]))
    validate(document)
    assert document["openapi"].startswith("3.1.")


def test_every_route_is_described_and_nothing_else(app: web.Application) -> None:
    assert {(method, path) for method, path, _ in routes(app)} == set(OPERATIONS)


def test_every_operation_has_an_id_of_its_own_and_a_summary(app: web.Application) -> None:
    operations = [operation for methods in app[DOCUMENT]["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] for operation in operations)


def raised_problems() -> Iterator[tuple[str, int]]:
    """Yield the code and the status of every problem that the code makes."""
    classes = {
        name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.Problem)
    }
    for node in itertools.chain.from_iterable(map(ast.walk, trees().values())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name not in classes:
            continue
        match next((keyword.value for keyword in node.keywords if keyword.arg == "code"), None):
            case None:
                yield classes[name].code, classes[name].status
            case ast.Constant(value=code):
                yield code, classes[name].status
            case ast.JoinedStr(values=[ast.Constant(value=start), ast.FormattedValue()]):
                yield from ((start + kind, classes[name].status) for kind in INPUTS)
            case ast.Name(id="code"):  # passed on from where it was made, or one of the two beneath
                pass
            case other:
                raise AssertionError(ast.unparse(other))
    yield from ((code, status) for status, (code, _) in _TITLES.items())
    yield "http_error", 400


def test_every_code_that_is_raised_is_described_with_its_status_and_no_other() -> None:
    assert dict(raised_problems()) == {**PROBLEMS, **SOCKET_PROBLEMS}
    assert len(set(raised_problems())) == len(PROBLEMS) + len(SOCKET_PROBLEMS)


def test_every_code_belongs_to_an_operation() -> None:
    assert {code for operation in OPERATIONS.values() for code in operation.codes} == set(PROBLEMS)


def test_the_fields_of_the_form_are_those_that_are_read() -> None:
    assert set(FIELDS) == set(SwapForm.checks)


def test_every_event_is_described() -> None:
    calls = (node for node in ast.walk(trees()[PACKAGE / "events.py"]) if isinstance(node, ast.Call))
    made = {
        node.args[0].value
        for node in calls
        if getattr(node.func, "id", "") == "Payload" and isinstance(node.args[0], ast.Constant)
    }
    assert made == set(EVENTS)


PROBES: list[object] = [
    *(None, True, False, "", " ", "x", "no", "male", "inswapper_128.onnx", ".hidden", "a/b", "x" * 100, "x" * 101),
    *("0", "1, 2", "12,", "123", ",", "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0", "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0"),
    *(-11, -10, -1, 0, 1, 2, 10, 11, 20, 51, 52, 60, 61, 99, 100, 0.05, 0.1, 0.5, 1.5, 29.97, 60.5),
    *([], [1], {}, {"a": 1}),
]


@pytest.mark.parametrize("name", [option.name for option in dataclasses.fields(Options)])
def test_an_option_is_described_as_it_is_checked(name: str) -> None:
    validator = jsonschema_rs.Draft202012Validator(
        {"$ref": "#/components/schemas/Options", "components": {"schemas": SCHEMAS}}
    )
    for value in PROBES:
        try:
            Options.parse({name: value})
            accepted = True
        except BadRequest:
            accepted = False
        assert validator.is_valid({name: value}) == accepted, value


def test_no_option_is_described_that_is_none() -> None:
    assert set(SCHEMAS["Options"]["properties"]) == {option.name for option in dataclasses.fields(Options)}


async def test_a_job_and_its_events_are_as_described_from_start_to_end(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=6)
    async with service_and_engines(tmp_path, paint=True) as (service, (engine,)):
        described = service.described
        engine.hold()
        prompt_id = await service.post(clip, crf=30, face_index="0,1")
        waiting = await service.post(clip)
        for path in ("/health", "/jobs", "/jobs?status=QUEUED&limit=1", f"/status/{waiting}", "/livez", "/readyz", "/"):
            await service.get(path)
        engine.release()
        status = await service.ended(prompt_id)
        await service.ended(waiting)
        async with service.client.get(f"/events/{prompt_id}") as response:
            events = (await response.text()).strip().split("\n\n")
        for event in events:
            lines = dict(line.split(": ", 1) for line in event.splitlines())
            pointer = f"/components/schemas/Event_{lines['event']}"
            assert not described.schema_errors(pointer, json.loads(lines["data"])), event
        assert {"queued", "executing", "progress", "status", "completed"} <= {
            line for event in events for line in event.replace("event: ", "\n").splitlines()
        }
        for path in (status["result"], "/metrics", "/openapi.json", "/docs", "/web/app.js"):
            async with service.client.get(path) as response:
                assert response.status == 200
        for method, path in (
            ("GET", "/status/nobody"),
            ("POST", f"/jobs/{prompt_id}/retry"),
            ("DELETE", f"/jobs/{waiting}"),
        ):
            async with service.client.request(method, path) as response:
                assert response.status in (404, 409, 204)


async def test_a_webhook_is_as_described(tmp_path: Path) -> None:
    async with opened(tmp_path / "faceswap.db") as store:
        ended = await run_to_success(store)
    validator = jsonschema_rs.Draft202012Validator(
        {"$ref": "#/components/schemas/Webhook", "components": {"schemas": SCHEMAS}}
    )
    validator.validate(webhook_body(ended))


async def test_an_answer_that_is_not_described_is_noticed(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        document = copy.deepcopy(service.described.document)
        document["components"]["schemas"]["Live"] = {"properties": {"status": {"const": "dead"}}}
        document["paths"]["/readyz"]["get"]["responses"] = {}
        service.described.hold_against(document)
        await service.get("/livez")
        async with service.client.get("/readyz") as response:
            status = response.status
        assert service.described.faults == [
            'GET /livez → 200: /status: "dead" was expected',
            f"GET /readyz → {status}: the status is not described",
        ]
        service.described.faults.clear()


class Page(HTMLParser):
    """The tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


async def test_the_page_shows_every_operation_runs_no_script_and_names_nothing_elsewhere(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service, service.client.get("/docs") as response:
        assert response.content_type == "text/html"
        policy = response.headers["Content-Security-Policy"]
        html = await response.text()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag in ("script", "style", "iframe", "img")]
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {attributes["href"] for _, attributes in page.tags if "href" in attributes}
    assert {link for link in links if not link.startswith("#")} == {"data:,", "web/docs.css", "openapi.json"}
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    for method, path in OPERATIONS:
        assert f"<b>{method}</b> <code>{path}</code>" in html
