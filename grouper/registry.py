"""Registries of merges, fitnesses and search methods. An entry is complete in itself; no other code names it.

An entry is a frozen dataclass. Users select it by `name`. Its other fields are parameters, which an assignment
NAME.FIELD=VALUE sets and run.json records.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any, Generic, TypeVar

from grouper.errors import GrouperError
from grouper.names import expected


@dataclass(frozen=True)
class Entry:
    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}


@dataclass(frozen=True, init=False)
class Named:
    """Entry whose class is imported on first use, so that `--help` knows its name without importing torch.

    path: path of the class, "package.module.Class". parameters: parameters of the entry that differ from the class's.
    """

    name: str
    path: str
    parameters: Mapping[str, Any]

    def __init__(self, name: str, path: str, **parameters: Any):
        for field, value in {"name": name, "path": path, "parameters": parameters}.items():
            object.__setattr__(self, field, value)

    def made(self) -> Any:
        module, _, kind = self.path.rpartition(".")
        return getattr(import_module(module), kind)(name=self.name, **self.parameters)


E = TypeVar("E", bound=Entry)


class Registry(Mapping[str, E], Generic[E]):
    """Entries by name, in the order of registration. kind: kind of entries, for messages ("merge").

    >>> merges = Registry[Entry]("merge", Entry("mean"))
    >>> merges.named("luck")
    Traceback (most recent call last):
    grouper.errors.GrouperError: unknown merge 'luck': expected one of mean
    """

    def __init__(self, kind: str, *entries: E | Named):
        self.kind = kind
        self._entries: dict[str, E | Named] = {}
        for entry in entries:
            if isinstance(entry, Named):
                self._entries[entry.name] = entry
            else:
                self.add(entry)

    def __getitem__(self, name: str) -> E:
        entry = self._entries[name]
        if isinstance(entry, Named):
            entry = self._entries[name] = self._checked(entry.made())
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: E) -> E:
        """Add an entry. Raises GrouperError if the name is taken, or if the name or a parameter cannot be given on a
        command line: parameters must be numbers, words, true or false."""
        if entry.name in self._entries:
            raise GrouperError(f"there is a {self.kind} {entry.name!r} already: choose another name")
        self._entries[entry.name] = self._checked(entry)
        return entry

    def _checked(self, entry: E) -> E:
        if not entry.name or set(entry.name) & set(".,=+; "):
            raise GrouperError(f"a {self.kind} cannot be called {entry.name!r}: use letters, digits and hyphens")
        for parameter, default in entry.parameters.items():
            if not isinstance(default, bool | int | float | str):
                kind = type(default).__name__
                raise GrouperError(f"{entry.name}.{parameter} is a {kind}: expected a number, a word, true or false")
        return entry

    def remove(self, name: str) -> None:
        del self._entries[name]

    def named(self, name: str) -> E:
        """Entry of this name. Raises GrouperError if there is none."""
        if name not in self._entries:
            raise GrouperError(f"unknown {self.kind} {name!r}: {expected(name, self)}")
        return self[name]

    def configured(self, assignments: Sequence[str]) -> "Registry[E]":
        """Registry with the parameters set by `assignments` ("NAME.FIELD=VALUE"). Assignments for other registries are
        ignored (see `check_assignments`). Raises GrouperError if a value has the wrong type."""
        changed = dict(self.items())
        for name, parameter, value in map(parsed, assignments):
            if name in changed and parameter in changed[name].parameters:
                typed = _typed(changed[name].parameters[parameter], value, f"{name}.{parameter}")
                changed[name] = replace(changed[name], **{parameter: typed})
        return Registry(self.kind, *changed.values())


def check_assignments(assignments: Sequence[str], *registries: Registry) -> None:
    """Raise GrouperError for an assignment that no entry of these registries accepts."""
    for name, parameter, _ in map(parsed, assignments):
        entries = [registry[name] for registry in registries if name in registry]
        if not entries:
            raise GrouperError(
                f"`set={name}.{parameter}`: there is no {' or '.join(r.kind for r in registries)} {name!r}"
            )
        known = [p for entry in entries for p in entry.parameters]
        if parameter not in known:
            expected = f"it has {', '.join(known)}" if known else "it has none"
            raise GrouperError(f"`set={name}.{parameter}`: {name} has no such parameter, {expected}")


def parsed(assignment: str) -> tuple[str, str, str]:
    """Parts of an assignment NAME.FIELD=VALUE: (name, field, value).

    >>> parsed("weighted.steps=50")
    ('weighted', 'steps', '50')
    """
    left, equals, value = assignment.partition("=")
    name, dot, parameter = left.strip().partition(".")
    if not (equals and dot and name and parameter):
        raise GrouperError(f"`set={assignment!r}`: expected NAME.FIELD=VALUE")
    return name, parameter.strip(), value.strip()


def _typed(default: Any, value: str, what: str) -> Any:
    """Value converted to the type of the default."""
    kind = type(default)
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
        return kind(value)
    except (KeyError, ValueError) as error:
        expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise GrouperError(f"`set={what}={value}`: expected {expected}") from error
