"""The English of docstrings, where ruff's pydocstyle rules end.

Ruff's D401 knows verbs in the wrong mood and articles. It passes over sentences that begin with a question word or a
preposition, over properties, and over the strings that document constants and fields.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("faceswap", "bench", "quality", "tests")
FILES = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

QUESTION = re.compile(r"(What|Whatever|When|Where|Whether|Which|Who|Whose|Why|How|That)\b")
"""First words of riddles: a docstring answers questions."""

NOT_A_VERB = re.compile(
    rf"{QUESTION.pattern}|(A|All|Also|An|As|At|Before|By|Each|Every|Everything|First|For|From|It|No|Of|On|One|Some"
    r"|Something|The|Their|There|These|This|Those|To|Two|Until|With|Within|Without)\b"
)
"""First words that say that a function's docstring does not begin with a verb."""


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.Constant]]:
    """Yield the docstrings of a file, each with its function, class, module or assignment."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for place, statement in enumerate(body if isinstance(body, list) else []):
            match statement:
                case ast.Expr(value=ast.Constant(value=str()) as text):
                    yield (node if place == 0 else body[place - 1]), text


def is_described_as_a_noun(node: ast.AST) -> bool:
    """Tell whether a docstring need not begin with a verb: of all but functions, of properties, and of tests."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("test_"):
        return True
    return any(ast.unparse(decorator).endswith("property") for decorator in node.decorator_list)


def riddles(tree: ast.Module) -> list[str]:
    """Name the docstrings that begin with a word that a docstring does not begin with."""
    found = []
    for node, text in docstrings(tree):
        forbidden = QUESTION if is_described_as_a_noun(node) else NOT_A_VERB
        if forbidden.match(text.value):
            found.append(text.value.splitlines()[0])
    return found


def test_docstrings_begin_with_a_verb_or_name_the_thing() -> None:
    found = {path: riddles(ast.parse((ROOT / path).read_text(encoding="utf-8"))) for path in FILES}
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ('def f():\n    """Return the share."""', 0),
        ('def f():\n    """The share."""', 1),
        ('async def _f():\n    """Whether it is there."""', 1),
        ('class C:\n    """A share."""', 0),
        ('class C:\n    """What is shared."""', 1),
        ('class C:\n    a: int\n    """How many there are."""\n    b: int\n    """The number of the others."""', 1),
        ('class C:\n    @property\n    def f(self):\n        """The share."""', 0),
        ('class C:\n    @property\n    def f(self):\n        """Whether it is there."""', 1),
        ('"""Where it lies."""\nSHARE_S = 1\n"""Where it is."""', 2),
    ],
)
def test_a_riddle_is_found(source: str, number: int) -> None:
    assert len(riddles(ast.parse(source))) == number
