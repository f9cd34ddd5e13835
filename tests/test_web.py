"""The web page keeps to what its content security policy allows, it is small, and its parts fit together."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import faceswap
from faceswap.events import SUPERSEDED_EVENTS, TERMINAL_EVENTS
from faceswap.jobs import JobState
from faceswap.options import Options

WEB = Path(faceswap.__file__).parent / "web"
HTML, STYLE = ((WEB / name).read_text() for name in ("index.html", "style.css"))
SCRIPTS = {path.name: path.read_text() for path in sorted(WEB.glob("*.js"))}
ALL_SCRIPTS = "\n".join(SCRIPTS.values())
MOST_BYTES = 150_000
"""The most that the page may weigh, all of its files together."""


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


def test_the_page_names_all_its_files_by_relative_addresses() -> None:
    named = [value for name in ("src", "href") for value in PAGE.values(name) if not value.startswith(("#", "data:"))]
    assert sorted(named) == ["docs", *sorted(f"web/{name}" for name in (*SCRIPTS, "style.css"))]


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in WEB.iterdir()) <= MOST_BYTES


def test_no_script_or_style_is_inline() -> None:
    assert PAGE.inline == ""
    assert not [tag for tag, _ in PAGE.tags if tag == "style"]
    attributes = {name for _, attributes in PAGE.tags for name in attributes}
    assert not [name for name in attributes if name == "style" or name.startswith("on")]


@pytest.mark.parametrize(
    "text", [re.sub('data:image[^"]*', "", HTML), STYLE, *SCRIPTS.values()], ids=["html", "style", *SCRIPTS]
)
def test_nothing_is_fetched_from_elsewhere(text: str) -> None:
    found = re.findall(r"https?://\w|url\(|@import|[\"'(]//\w", text.replace('"http://www.w3.org/2000/svg"', ""))
    assert not found


def test_text_never_becomes_markup_or_code() -> None:
    pattern = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc"
    assert not re.findall(pattern, ALL_SCRIPTS)


def test_modules_import_each_other_by_relative_addresses_and_what_is_there() -> None:
    for name, script in SCRIPTS.items():
        imported = re.findall(r"^import \{([^}]*)\} from \"\./([\w-]+\.js)\";", script, re.MULTILINE)
        assert len(imported) == script.count("import {"), name
        for names, source in imported:
            for one in filter(None, (text.strip() for text in names.split(","))):
                assert re.search(
                    rf"^export (async )?(function|const|class|let) {re.escape(one)}(?![\w$])",
                    SCRIPTS[source],
                    re.MULTILINE,
                ), (name, one)
                assert len(re.findall(rf"\b{re.escape(one)}(?![\w$])", script)) > 1 or one == "$", (
                    name,
                    one,
                    "is not used",
                )


def test_every_element_the_scripts_ask_for_is_on_the_page() -> None:
    ids = PAGE.values("id")
    assert len(ids) == len(set(ids))
    asked = set(re.findall(r"\$\(\"([\w-]+)\"\)", ALL_SCRIPTS))
    assert asked - set(ids) == set()


def test_every_picture_of_the_sprite_is_used_and_there() -> None:
    drawn = {name for name in PAGE.values("id") if name.startswith("i-")}
    used = {f"i-{name}" for name in re.findall(r"icon(?:Button)?\(\"([\w-]+)\"", ALL_SCRIPTS)}
    used |= set(re.findall(r"#(i-[\w-]+)\"", HTML))
    assert used <= drawn
    assert all(name in used or f'"{name.removeprefix("i-")}"' in ALL_SCRIPTS for name in drawn)


def test_every_field_has_a_label() -> None:
    labelled = re.findall(r"<label\b.*?</label>", HTML, re.DOTALL)
    for tag, attributes in PAGE.tags:
        if tag in ("input", "select") and "hidden" not in attributes:
            is_labelled = any(f'id="{attributes["id"]}"' in label for label in labelled)
            assert is_labelled or attributes.get("aria-label"), attributes["id"]


def test_every_option_of_the_page_is_one_the_service_knows() -> None:
    block = re.search(r"const OPTIONS = \{(.*?)\n\};", SCRIPTS["request.js"], re.DOTALL)
    assert block
    options = re.findall(r"^  (\w+):", block[1], re.MULTILINE)
    assert options
    assert set(options) <= {field.name for field in dataclasses.fields(Options)}


def test_every_state_and_every_event_has_its_place() -> None:
    assert all(re.search(rf"^  {state}: ", SCRIPTS["words.js"], re.MULTILINE) for state in JobState)
    handled = set(re.findall(r"\bon\(\"(\w+)\"", SCRIPTS["queue.js"]))
    in_one_loop = re.search(r"for \(const type of \[(.*?)\]\) on\(", SCRIPTS["queue.js"])
    assert in_one_loop
    handled |= set(re.findall(r"\"(\w+)\"", in_one_loop[1]))
    assert handled == {"queued", "executing", "status"} | TERMINAL_EVENTS | SUPERSEDED_EVENTS
