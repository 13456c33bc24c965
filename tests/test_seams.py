"""What holds the parts together: imports one way, names that find their modules, examples that run."""

import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import ROOT

import fitness
import grouper
import search

ORDER = ["grouper", "fitness", "search", "cli"]
PACKAGES = (grouper, fitness, search)
MODULES = sorted(
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if ".modeling_ragged" not in module.name  # templates, which travel with a model
)
FILES = [ROOT / "cli.py", *(p for name in ORDER[:3] for p in (ROOT / name).rglob("*.py"))]


def imports_of(source: str) -> set[str]:
    """Modules, and names that may be modules, of all imports: also inside functions and for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def module_of(path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_one_way(path):
    """cli -> search -> fitness -> grouper, wherever in a file they stand."""
    own = ORDER.index(module_of(path).split(".")[0])
    for node in ast.walk(ast.parse(path.read_text())):
        name = (
            node.module
            if isinstance(node, ast.ImportFrom)
            else node.names[0].name
            if isinstance(node, ast.Import)
            else ""
        )
        top = (name or "").split(".")[0]
        assert top not in ORDER or ORDER.index(top) <= own, f"{module_of(path)} imports {name}"


def check_no_circle(sources: dict[str, str]) -> None:
    """sources: text of each module by its name. Raises AssertionError that names the modules of a circle."""
    edges = {name: imports_of(text) & set(sources) - {name} for name, text in sources.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_there_is_no_import_circle():
    check_no_circle({module_of(path): path.read_text() for path in FILES})


@pytest.mark.parametrize(
    "back",
    ["import p.a", "from p import a", "def f():\n    from p.a import x", "if TYPE_CHECKING:\n    from p.a import x"],
)
def test_a_circle_is_seen_wherever_its_imports_stand(back):
    check_no_circle({"p": "", "p.a": "from p.b import y", "p.b": "from p import c", "p.c": ""})
    with pytest.raises(AssertionError, match=r"p\.a -> p\.b -> p\.c -> p\.a"):
        check_no_circle({"p": "", "p.a": "from p.b import y", "p.b": "from p import c", "p.c": back})


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_found_by_its_name(name):
    """No function hides a module of its own name."""
    parent, _, last = name.rpartition(".")
    module = importlib.import_module(name)
    assert getattr(importlib.import_module(parent), last) is module
    assert not callable(getattr(module, last, None)), f"{name} has a function of its own name"


def test_a_module_can_be_the_first_to_be_imported():
    """A fifth of them: where no imports make a circle, as another test says, any may be."""
    script = """
import importlib, os, sys
import deap.tools, matplotlib.pyplot, pandas, scipy.optimize, torch, transformers  # once, for all
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        importlib.import_module(name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""
    subprocess.run([sys.executable, "-c", script, "cli", *MODULES[::5]], check=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize("name", ["grouper", "fitness", "search", *MODULES])
def test_doctests(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_public_names_are_where_the_readme_shows_them():
    for package in PACKAGES:
        for name in package.__all__:
            assert getattr(importlib.import_module(package.__name__), name) is not None
    with pytest.raises(ImportError, match="luck"):
        exec("from grouper import luck")


def of_model(folder: Path, script: str) -> str:
    """The script for another model than the one in the box."""
    found, many = re.subn(r'\b(search|regroup|open)\("demo"', rf'\1("{folder}"', script)
    assert many
    return found


def test_the_python_of_the_docs_runs(reader, tmp_path, monkeypatch):
    """As it stands, but for a smaller model, fewer tokens and generations."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    script = next(block for block in blocks if "import" in block and "search(" in block)
    short = script.replace('text="demo")', 'text="demo", tokens=2048, window=128, generations=2, population=16)')
    short = short.replace("limit=8", "limit=2, window=64, layouts='0'").replace(
        "RefineOptions()", "RefineOptions(tokens=512)"
    )
    short = short.replace('TextSource("demo"))', 'TextSource("demo"), tokens=2048, window=128)')
    assert short != script
    short = of_model(reader, short)
    monkeypatch.chdir(tmp_path)
    exec(compile(short, "python.md", "exec"), {})
    assert (tmp_path / "regrouped" / "model.safetensors").is_file() and (tmp_path / "bare" / "config.json").is_file()


def test_the_readmes_one_call_runs(reader, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = next(block for block in blocks if "regroup(" in block)
    quick = "tokens=2048, window=128, refine_tokens=512, options=SearchOptions(generations=2, population=8)"
    short = script.replace("kv_ratio=0.5)", f"kv_ratio=0.5, {quick})", 1)
    assert short != script
    short = of_model(reader, short)
    monkeypatch.chdir(tmp_path)
    exec(compile(f"from search import SearchOptions\n{short}", "README.md", "exec"), {})
    assert (tmp_path / "half" / "model.safetensors").is_file()


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def anchors(page) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_lines_are_short(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            place = (page.parent / file) if file else page
            assert place.is_file(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(place), f"{page.name} links to {target}"
    long = [line for line in text.split("\n") if len(line) > 120 and not line.startswith("|")]
    assert not long, long[0]


def test_every_page_is_on_the_list():
    listed = (ROOT / "docs" / "README.md").read_text()
    missing = [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "README.md" and f"({p.name})" not in listed]
    assert not missing


def test_no_function_is_longer_than_one_reads_at_a_glance():
    """50 lines, docstrings aside."""
    for path in FILES:
        if path.name.startswith("modeling_") or path.name == "cli.py":  # a command's options are a table
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                text = ast.get_docstring(node, clean=False) or ""
                lines = node.end_lineno - node.lineno + 1 - (text.count("\n") + 1 if text else 0)
                assert lines <= 50, f"{module_of(path)}.{node.name} has {lines} lines"


@pytest.mark.parametrize("path", [p for p in FILES if module_of(p).startswith(("grouper.", "fitness."))], ids=module_of)
def test_errors_below_the_command_line_name_fields_and_no_flags(path):
    """People read them in Python, too; the command line shows flags instead."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise):
            said = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            assert not [text for text in said if re.search(r"(^|[ (])--[a-z]", text)]


@pytest.mark.parametrize("package", [grouper, search, importlib.import_module("grouper.export")])
def test_type_checkers_see_what_is_imported_lazily(package):
    """The names below TYPE_CHECKING are those of MODULES, from the same modules."""
    tree = ast.parse(Path(package.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {a.asname: n.module for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == package.MODULES
    assert Path(package.__file__).with_name("py.typed").is_file() or "." in package.__name__
