"""The description of the API as a page: plain HTML, without a script, with nothing from anywhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

PAGE_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page(document: Mapping[str, Any]) -> str:
    """Return an OpenAPI document as a page to read."""
    return "".join(_page(document))


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    title = f"{escape(document['info']['title'])} {escape(document['info']['version'])}"
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<title>{title}: API</title>\n<link rel="icon" href="data:,">\n'
        '<link rel="stylesheet" href="web/docs.css">\n</head>\n<body>\n'
        f"<header><h1>{title}</h1><p>{_text(document['info']['description'])}</p>"
        '<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p></header>\n<main>\n'
    )
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['description'])}</h2>\n"
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    yield from _operation(method, path, operation)
    yield "<h2>Sent by the service</h2>\n"
    for name, methods in document["webhooks"].items():
        for method, operation in methods.items():
            yield from _operation(method, name, operation)
    yield "<h2>Schemas</h2>\n"
    for name, schema in document["components"]["schemas"].items():
        text = escape(json.dumps(schema, ensure_ascii=False, indent=2))
        text = re.sub(r"#/components/schemas/(\w+)", r'<a href="#\1">#/components/schemas/\1</a>', text)
        summary = f"<summary><code>{escape(name)}</code></summary>"
        yield f'<details id="{escape(name)}">{summary}<pre>{text}</pre></details>\n'
    yield "</main>\n</body>\n</html>\n"


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f'<details class="operation" id="{escape(operation["operationId"])}"><summary><b>{method.upper()}</b>'
        f" <code>{escape(path)}</code> <span>{_text(operation['summary'])}</span></summary>\n"
    )
    if "description" in operation:
        yield f"<p>{_text(operation['description'])}</p>\n"
    if not operation["security"]:
        yield "<p>It needs no key.</p>\n"
    if parameters := operation.get("parameters"):
        yield from _table(
            ("Parameter", "In", "What it is"),
            ((f"<code>{escape(one['name'])}</code>", one["in"], _described(one)) for one in parameters),
        )
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body <code>{escape(media_type)}</code>: {_schema(content['schema'])}</p>\n"
    yield from _table(
        ("Status", "Answer", "Content"),
        ((status, _text(answer["description"]), _content(answer)) for status, answer in operation["responses"].items()),
    )
    yield "</details>\n"


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{text}</th>" for text in head) + "</tr>\n"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n"
    yield "</table>\n"


def _described(parameter: Mapping[str, Any]) -> str:
    text = _text(parameter.get("description", ""))
    return f"{text} {_schema(parameter['schema'])}".strip()


def _content(answer: Mapping[str, Any]) -> str:
    parts = [
        f"<code>{escape(media_type)}</code> {_schema(content['schema'])}"
        for media_type, content in answer.get("content", {}).items()
    ]
    return "<br>".join(parts)


def _schema(schema: Mapping[str, Any]) -> str:
    """Return a schema in short: a link where it has a name."""
    if "allOf" in schema:
        return _schema(schema["allOf"][0])
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    shown = {key: value for key, value in schema.items() if key != "description"}
    return f"<code>{escape(json.dumps(shown, ensure_ascii=False))}</code>"


def _text(text: str) -> str:
    """Return a text as HTML, with what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
