"""The web page keeps to what its content security policy allows, and its parts fit together."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import faceswap
from faceswap.jobs import SUPERSEDED_EVENTS, TERMINAL_EVENTS, JobState, Options

WEB = Path(faceswap.__file__).parent / "web"
HTML, SCRIPT, STYLE = ((WEB / name).read_text() for name in ("index.html", "app.js", "style.css"))


class Page(HTMLParser):
    """The page's tags as (name, attributes), and the text inside `script` and `style`."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self.feed(HTML)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.inline += data.strip()

    def values(self, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for _, attributes in self.tags if attribute in attributes]


PAGE = Page()


def test_every_file_the_page_names_is_there_by_a_relative_address() -> None:
    named = [value for name in ("src", "href") for value in PAGE.values(name) if not value.startswith(("#", "data:"))]
    assert sorted(named) == ["web/app.js", "web/style.css"]
    assert all((WEB.parent / value).is_file() for value in named)


def test_no_script_or_style_is_inline() -> None:
    assert PAGE.inline == ""
    assert not [tag for tag, _ in PAGE.tags if tag == "style"]
    attributes = {name for _, attributes in PAGE.tags for name in attributes}
    assert not [name for name in attributes if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("text", [HTML, SCRIPT, STYLE], ids=["html", "script", "style"])
def test_nothing_is_fetched_from_elsewhere(text: str) -> None:
    assert not re.findall(r"https?://\w|url\(|@import|[\"'(]//\w", text)


def test_text_never_becomes_markup_or_code() -> None:
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", SCRIPT)


def test_every_element_the_script_asks_for_is_on_the_page() -> None:
    ids = PAGE.values("id")
    assert len(ids) == len(set(ids))
    asked = set(re.findall(r"\$\(\"([\w-]+)\"\)", SCRIPT))
    asked |= {
        f"{kind}-{part}" for part in re.findall(r"\$\(`\$\{\w+\}-(\w+)`\)", SCRIPT) for kind in ("video", "image")
    }
    assert asked - set(ids) == set()


def test_every_field_has_a_label() -> None:
    labelled = re.findall(r"<label\b.*?</label>", HTML, re.DOTALL)
    for tag, attributes in PAGE.tags:
        if tag in ("input", "select"):
            assert any(f'id="{attributes["id"]}"' in label for label in labelled), attributes["id"]


def test_every_option_of_the_form_is_one_the_service_knows() -> None:
    block = re.search(r"const OPTIONS = \{(.*?)\n\};", SCRIPT, re.DOTALL)
    assert block
    options = re.findall(r"^  (\w+):", block[1], re.MULTILINE)
    assert options
    assert set(options) <= {field.name for field in dataclasses.fields(Options)}
    assert set(options) <= set(PAGE.values("id"))


def test_every_state_and_every_event_has_its_place() -> None:
    assert all(re.search(rf"^  {state}: ", SCRIPT, re.MULTILINE) for state in JobState)
    handled = set(re.findall(r"\bon\(\"(\w+)\"", SCRIPT))
    assert handled == {"queued", "executing", "status"} | TERMINAL_EVENTS | SUPERSEDED_EVENTS
