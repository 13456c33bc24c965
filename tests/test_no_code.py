"""No command runs code that comes with a model, and none asks on standard input whether it may."""

import ast
import json
import os
import shutil
import subprocess
import sys

import pytest
from evil_models import add_code, answers  # noqa: F401  a fixture
from tiny_models import ROOT, add_tokenizer, make_model

import cli
from grouper import GrouperError

FILES = [
    ROOT / "cli.py",
    *(p for n in ("grouper", "search", "fitness", "bench", "tests") for p in (ROOT / n).rglob("*.py")),
]
NOTEBOOKS = list((ROOT / "examples").rglob("*.ipynb"))
LOADING = ("from_pretrained", "from_config")


def without_argument(source: str) -> list[int]:
    """Lines where something is loaded without a word on trust_remote_code; one that is handed on is not seen to get
    it."""
    tree = ast.parse(source if any(name in source for name in LOADING) else "")
    told = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and any(k.arg == "trust_remote_code" for k in node.keywords)
    }
    loads = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in LOADING)
    return [node.lineno for node in loads if id(node) not in told]


def test_the_argument_is_given_wherever_something_is_loaded():
    assert without_argument("A.from_pretrained(x, trust_remote_code=False)\nload = A.from_config\nB.from_config()") == [
        2,
        3,
    ]
    sources = {path: path.read_text(encoding="utf-8") for path in FILES}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        sources[path] = "\n".join(
            line for part in code for line in part.splitlines() if not line.startswith(("%", "!"))
        )
    silent = {str(path.relative_to(ROOT)): found for path, text in sources.items() if (found := without_argument(text))}
    assert not silent


@pytest.fixture
def grouper(monkeypatch):
    """grouper("search", ...): the command, in this process."""

    def run(*arguments) -> None:
        words = [str(word) for word in arguments]
        monkeypatch.setattr(sys, "argv", ["grouper", *words])
        cli.app(words, standalone_mode=False)

    return run


def test_the_whole_job_runs_no_code_and_asks_nothing(tmp_path, text, answers, grouper):  # noqa: F811
    """On a model that transformers knows and that names code all the same, up to an export that runs our own file."""
    model = add_tokenizer(make_model(tmp_path / "model", vocab_size=4096, heads=4, num_hidden_layers=2))
    mark, run, out = add_code(model), tmp_path / "run", tmp_path / "out"
    small = ("--text", text, "--tokens", 512, "--window", 64)
    grouper("inspect", model)
    grouper("search", model, "-o", run, *small, "--generations", 2, "--population", 8, "--jobs", 1)
    grouper("evaluate", run, "--text", text, "--window", 64, "--limit", 2, "--layouts", 0)
    grouper("export", run, "-o", out, "--kv-ratio", "3/4", "--deploy", "ragged", *small, "--refine-tokens", 256)
    healing = ("--text", text, "--tokens", 512, "--step-tokens", 256, "--window", 64, "--base", model)
    grouper("uptrain", out, "-o", tmp_path / "healed", *healing)
    assert answers.tell() == 0 and not mark.exists()
    for folder in (out, tmp_path / "healed"):
        assert not any('"evil' in file.read_text() for file in folder.rglob("*.json"))
        assert [file.name for file in folder.rglob("*.py")] == ["modeling_ragged.py"]


def test_a_tokenizer_that_needs_its_code_ends_a_search_in_one_line(reader, tmp_path, text, answers, grouper):  # noqa: F811
    model = shutil.copytree(reader, tmp_path / "model")
    mark = add_code(model, tokenizer={"tokenizer_class": "EvilTokenizer"})
    with pytest.raises(GrouperError, match=r"^\S+ asks for code of its own to be run \(auto_map\), which"):
        grouper("search", model, "-o", tmp_path / "run", "--text", text, "--tokens", 512, "--window", 64)
    assert answers.tell() == 0 and not mark.exists() and not (tmp_path / "run" / "pareto.csv").exists()


def test_a_command_imports_nothing_from_the_current_folder(tmp_path):
    """Not even as `python -m cli`, in a folder that somebody else filled."""
    evil = "open('executed', 'w')\nraise SystemExit(0)\n"
    for name in ("logging", "json", "torch", "typer", "random", "yaml", "safetensors", "grouper", "search", "fitness"):
        (tmp_path / f"{name}.py").write_text(evil)
    (tmp_path / "pydantic").mkdir()
    (tmp_path / "pydantic" / "__init__.py").write_text(evil)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | {"PYTHONPATH": str(ROOT)}
    for arguments in (("inspect", "demo"), ("check", "nothing")):
        command = [sys.executable, "-m", "cli", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert not (tmp_path / "executed").exists()
        assert done.returncode == (0 if "demo" in arguments else 1) and (done.stdout or "grouper: " in done.stderr)


@pytest.mark.parametrize("command", [["-m", "cli"], [str(ROOT / "cli.py")]])
def test_a_checkout_runs_where_it_lies(command):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
