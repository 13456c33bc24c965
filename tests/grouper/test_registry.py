"""Registries: names, parameters, and what is refused."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from grouper import GrouperError
from grouper.merging.select import Select
from grouper.registry import Entry, Named, Registry, check_assignments


@dataclass(frozen=True)
class Cook(Entry):
    steps: int = 3
    heat: float = 0.5
    slow: bool = False
    pan: str = "iron"


@pytest.fixture
def cooks() -> Registry[Cook]:
    return Registry("cook", Cook("anna"), Cook("bob", steps=9))


def test_parameters_are_assigned_in_their_own_type_and_the_registry_stays(cooks):
    found = cooks.configured(["anna.steps=7", "bob.heat = 0.25", "anna.slow=true", "anna.pan=clay", "carl.steps=1"])
    assert (found["anna"], found["bob"]) == (Cook("anna", 7, 0.5, True, "clay"), Cook("bob", 9, 0.25))
    assert cooks["anna"] == Cook("anna"), "the registry stays as it was"
    assert found["anna"].parameters == {"steps": 7, "heat": 0.5, "slow": True, "pan": "clay"}
    assert cooks.configured(["anna.slow=no"])["anna"].slow is False


@pytest.mark.parametrize(
    ("assignment", "why"),
    [
        ("anna.steps=many", "expected a whole number"), ("anna.heat=hot", "expected a number"),
        ("anna.slow=maybe", "expected true or false"), ("anna.salt=1", "anna has no such parameter, it has steps"),
        ("dora.steps=1", "there is no cook or waiter 'dora'"), ("anna.steps", "expected NAME.FIELD=VALUE"),
        ("steps=1", "expected NAME.FIELD=VALUE"), ("anna.name=eve", "no such parameter"),
    ],
)  # fmt: skip
def test_assignments_that_cannot_be_met_are_refused(cooks, assignment, why):
    with pytest.raises(GrouperError, match=why):
        check_assignments([assignment], cooks, Registry("waiter"))
        cooks.configured([assignment])


def test_names_are_taken_once_and_can_be_typed(cooks):
    with pytest.raises(GrouperError, match="a cook 'anna' already"):
        cooks.add(Cook("anna"))
    for name in ("", "a.b", "a,b", "a=b", "a b", "a;b", "a+b"):
        with pytest.raises(GrouperError, match="cannot be called"):
            cooks.add(Cook(name))
    cooks.add(Cook("carl"))
    assert list(cooks) == ["anna", "bob", "carl"] and len(cooks) == 3
    cooks.remove("carl")
    with pytest.raises(GrouperError, match="unknown cook 'carl': expected one of anna, bob"):
        cooks.named("carl")


def test_a_named_entry_is_imported_when_it_is_asked_for():
    """Its class, with the parameters that differ; a wrong one is found then."""
    registry = Registry("entry", Named("a", "collections.nowhere.A"), Named("b", "fractions.Fraction"))
    assert list(registry) == ["a", "b"] and "a" in registry and len(registry) == 2
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        registry["a"]
    merges = Registry("merge", Named("mine", "grouper.merging.select.Select", first=True))
    assert merges["mine"] == Select("mine", first=True) and merges["mine"] is merges["mine"]
    assert merges.configured(["mine.first=false"])["mine"] == Select("mine", first=False)
    with pytest.raises(GrouperError, match="there is a merge 'mine' already"):
        merges.add(Select("mine"))


def test_names_of_entries_are_known_without_torch():
    """So that --help answers at once."""
    script = """
import sys
import fitness, grouper.export.formats, grouper.merging, grouper.uptraining.methods, search.methods.registry
assert "mean" in grouper.merging.MERGES and "spectral" in fitness.FITNESSES
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
