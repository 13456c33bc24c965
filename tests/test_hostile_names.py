"""Names are text: one list of hostile ones, over every place that a name can come from and go to."""

import io
import re
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from commands import grouper
from hostile_names import FOLDERS, HOSTILE, has_controls
from markdown_it import MarkdownIt
from rich.table import Table

from grouper import Checkpoint, HeadLayout
from grouper.export.card import model_card
from search.commands.console import Terminal
from search.runs.comparison import Compared, draw

LAYOUT = HeadLayout.from_labels([[0, 0, 0, 1]] * 3, 8, 16)
REPORT = SimpleNamespace(
    kv_bytes_per_token=(768, 384), kv_bytes_per_source_token=(0, 0), weight_bytes=(100, 90), engines=["transformers"],
    export_class="ragged", loader="AutoModelForCausalLM", tp=1, padding_bytes=0,
)  # fmt: skip


def front_matter_and_tokens(card: str) -> tuple[dict, list]:
    """The card's front matter, and all tokens of its Markdown, those within paragraphs included."""
    assert not has_controls(card)
    front, text = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()
    tokens = MarkdownIt().enable("table").parse(text)
    return yaml.safe_load(front), [*tokens, *(inner for token in tokens for inner in token.children or ())]


def checked(card: str, *more: str, fences: int = 1) -> dict:
    """The front matter of a card without anything that a name could have smuggled in."""
    front, tokens = front_matter_and_tokens(card)
    assert not [t for t in tokens if t.type in ("html_block", "html_inline", "link_open", "image", "hr")]
    assert sum(t.type == "heading_open" for t in tokens) == 1 + len(more)
    assert sum(t.type == "fence" for t in tokens) <= fences and sum(t.type == "table_open" for t in tokens) <= 2
    assert set(front) <= {"base_model", "license", "language", "library_name", "tags"}
    assert front["library_name"] == "transformers" and len(front["tags"]) == 3
    return front


@pytest.fixture
def checkpoint(models, tmp_path):
    shutil.copytree(models("llama", heads=8, kv_heads=4), tmp_path / "tiny")
    return Checkpoint.open(tmp_path / "tiny")


def card(checkpoint, **facts) -> str:
    return model_card(checkpoint, LAYOUT, {"merge": "mean", **facts}, REPORT, "transformers", "LOADING")


@pytest.mark.parametrize("name", HOSTILE)
def test_cards_hold_names_as_text(checkpoint, name):
    """Of the model, the method, the merge, the teacher, a text that was measured on, and commands."""
    made = card(
        checkpoint, base_model=name, method=name, merge=name, measured={f"nats per token, {name}": [1.0, 2.0]},
        uptrained={"method": name, "teacher": name, "tokens": 1, "steps": 1}, search=f"grouper search {name}",
        export=f"grouper export {name}",
    )  # fmt: skip
    checked(made)
    assert checked(card(checkpoint, base_model=f"user/{name}")).get("base_model") in (None, f"user/{name}")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_base_models_front_matter_stays_yaml_of_words(checkpoint, name):
    fields = {
        "license": name,
        "language": [name, "no"],
        "license_name": {name: name},
        "pipeline_tag": [[name]],
        name: 1,
    }
    front = yaml.safe_dump({**fields, name: 1}, sort_keys=False)
    (checkpoint.folder / "README.md").write_text(f"---\n{front}---\nWords\n")
    found = checked(card(checkpoint), "The card of tiny")
    if "\n---" not in front and not has_controls(name):
        assert found["license"] == name and found["language"] == [name, "no"]


@pytest.mark.parametrize(
    "front", [*HOSTILE, "[" * 5000, "a: &a [*a]", "license: !!python/name:os.system x", "license:"]
)
def test_front_matter_that_is_none_is_left_out(checkpoint, front):
    (checkpoint.folder / "README.md").write_text(f"---\n{front}\n---\nWords\n")
    front, tokens = front_matter_and_tokens(card(checkpoint))
    assert set(front) <= {"library_name", "tags", "license"} and len(front["tags"]) == 3
    assert any(token.content == "Words" for token in tokens)


def test_a_card_that_leads_out_of_the_model_is_not_read(checkpoint, tmp_path):
    (tmp_path / "secret").write_text("password")
    (checkpoint.folder / "README.md").symlink_to(tmp_path / "secret")
    assert "password" not in card(checkpoint)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_terminal_shows_names_as_text(name):
    stream = io.StringIO()
    terminal, table = Terminal(file=stream, force_terminal=True, width=200), Table(name, title=name)
    table.add_row(name)
    terminal.print(name)
    terminal.print(table)
    assert not has_controls(re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue().replace("\x1b[2J", "HARM")))
    assert ("HARM" not in stream.getvalue() and "[bold]" in stream.getvalue()) or "[bold]" not in name


@pytest.mark.parametrize("name", HOSTILE)
def test_pictures_show_names_as_text(name, tmp_path):
    one = Compared(name, "model", "ward", "error", 2, 0.5, {}, {})
    draw([one], {name: pd.DataFrame({"kv_ratio": [0.5, 1.0], "value": [1.0, 0.5]})}, tmp_path / "both.svg")
    found = (tmp_path / "both.svg").read_text()
    assert "<script" not in found and not has_controls(found)


# One of each kind; every name goes through every sink by itself above.
SOME = ("<script>alert(1)<-script>", "a\x1b[2J\x1b]0;title\x07b", "a\nb: c", "key: [value", "'\"", "x\x9b31my")


@pytest.mark.parametrize("name", SOME)
def test_commands_on_folders_of_hostile_names(models, tmp_path, name):
    """Whatever a model and a run are called, what commands say has no control characters, and what they write is
    sound."""
    assert name in FOLDERS
    model = shutil.copytree(models("llama"), tmp_path / name)
    (model / "README.md").write_text("---\nlicense: [mit, [x]]\n---\nWords\n")
    small = ("--fitness", "weight", "--population", 4, "--generations", 1, "--method", "qcqa-ec")
    said = []
    for arguments in (
        ("inspect", f"./{name}"), ("search", f"./{name}", "-o", f"./run {name}", *small),
        ("export", f"./run {name}", "-o", f"./out {name}", "--kv-ratio", "1/2", "--no-refine"),
        ("layouts", f"./run {name}"), ("layouts", f"./nowhere {name}"), ("inspect", f"-{name}"),
    ):  # fmt: skip
        done = grouper(*arguments, cwd=tmp_path)
        said += [done.stdout, done.stderr]
        assert done.returncode == (0 if arguments[1].startswith(("./run", f"./{name}")) else done.returncode or 1)
    assert not has_controls("".join(said))
    checked((tmp_path / f"out {name}" / "README.md").read_text(), "The card of it", fences=3)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
