"""The words of docstrings and help texts: they begin with a noun or a verb, in plain English."""

import ast
import re
from collections.abc import Iterator

import pytest
from tiny_models import ROOT

SOURCES = sorted(p for place in ("grouper", "search", "fitness") for p in (ROOT / place).rglob("*.py"))
BEGINNINGS = re.compile(r"^(What|Of|Those|That|Whom)\b")
WORDS = re.compile(r"leave away|made anew|for ever\b|whoever|none of ours|\bmend|\bdear\b", re.IGNORECASE)
HELP_AT = {"option": 1, "Option": 0}  # position of the help text among the arguments of grouper.option_fields


def texts_of(source: str) -> Iterator[tuple[str, str]]:
    """(name, text) of every docstring and help text. A help text has the line of its call as its name."""
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "the module"), text
        if isinstance(node, ast.Call):
            at = HELP_AT.get(getattr(node.func, "id", ""))
            given = [] if at is None else node.args[at : at + 1]
            for argument in [*given, *(k.value for k in node.keywords if k.arg == "help")]:
                parts = (
                    n.value for n in ast.walk(argument) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                )
                yield f"the option of line {node.lineno}", "".join(parts)


def refused_in(source: str) -> list[str]:
    """Names of the texts with a refused word, and the word."""
    found = []
    for name, text in texts_of(source):
        flat = " ".join(text.split())
        if match := BEGINNINGS.search(flat) or WORDS.search(flat):
            found.append(f"{name} says {match[0]!r}")
    return found


def test_docstrings_and_help_texts_begin_with_a_noun_or_a_verb_in_plain_english():
    refused = [
        f"{path.relative_to(ROOT)}: {one}"
        for path in [*SOURCES, ROOT / "cli.py"]
        for one in refused_in(path.read_text(encoding="utf-8"))
    ]
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ('"""What comes out."""', "the module"),
        ('def f():\n    """Of all layers."""', "f"),
        ('class A:\n    async def g(self):\n        """It would wait for\n        ever."""', "g"),
        ('seed: int = option(0, "Of all chance.")', "the option of line 1"),
        ('\nx = Annotated[str, Option("Whom to learn from.", "Teacher")]', "the option of line 2"),
        ('x = typer.Argument(metavar="X", help="Leave away " "what is dear.")', "the option of line 1"),
        ('x = same(Cake, "layers", help=f"Those of {name}.")', "the option of line 1"),
    ],
)
def test_refused_words_are_seen_wherever_they_stand(source, name):
    (one,) = refused_in(source)
    assert one.startswith(name)


def test_plain_words_are_not_refused():
    assert not refused_in(
        '"""Offer forever recommended amendments. What follows is free."""\nx = option("Of", "Seed.")'
    )
