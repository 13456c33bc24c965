"""pyproject.toml, the files of constraints and the code say the same of dependencies."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
OURS = ("grouper", "fitness", "search", "cli")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [one for extra in PROJECT["optional-dependencies"].values() for one in extra]
REQUIRED = list(map(Requirement, PROJECT["dependencies"] + EXTRAS))


def pins(name: str) -> dict[str, Version]:
    """PACKAGE==RELEASE lines."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(package): Version(release) for package, release in (line.split("==") for line in lines)}


def test_the_lowest_releases_that_are_run_are_those_that_are_allowed():
    floors: dict[str, set[Version]] = {}
    for one in REQUIRED:
        for allowed in one.specifier:
            assert allowed.operator == ">="
            floors.setdefault(canonicalize_name(one.name), set()).add(Version(allowed.version))
    lowest, (torch,) = pins("constraints-lowest.txt"), floors.pop("torch")
    assert torch <= pins("constraints.txt")["torch"] == lowest.pop("torch"), "one release of torch for all"
    assert {name: {release} for name, release in lowest.items()} == floors


def test_every_package_that_is_imported_is_declared():
    declared, found = {canonicalize_name(one.name) for one in REQUIRED}, set()
    for file in [ROOT / "cli.py", *(f for name in OURS[:3] for f in (ROOT / name).rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.partition(".")[0])
    packages = packages_distributions()
    foreign = found - set(sys.stdlib_module_names) - set(OURS)
    assert {"torch", "PIL", "yaml"} <= foreign
    undeclared = {n for n in foreign if not declared & set(map(canonicalize_name, packages.get(n, [n])))}
    assert not undeclared


@pytest.mark.parametrize("name", ["modeling_ragged", "modeling_ragged_plain"])
def test_modelling_files_name_the_newest_transformers_that_they_are_run_with(name):
    docstring = ast.get_docstring(ast.parse((ROOT / "grouper" / "export" / "hf" / f"{name}.py").read_text()))
    (newest,) = re.findall(r"([\d.]+) is the newest release that it was tested with", docstring)
    assert Version(newest) == pins("constraints.txt")["transformers"]


def test_folders_of_data_are_packages_that_are_named():
    """setuptools warns at length of others, and may leave them out one day."""
    setuptools = pytest.importorskip("setuptools")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert settings.pop("namespaces", True)
    found = setuptools.find_namespace_packages(str(ROOT), **settings)
    assert {"grouper.data.demo", "search.report.page"} <= set(found)
    assert not [name for name in found if "__pycache__" in name or name.partition(".")[0] not in OURS]
