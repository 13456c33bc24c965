"""Options: fields of dataclasses with descriptions that the command line and Python share."""

from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib import import_module
from typing import Any

KEY = "option"  # in a field's metadata


@dataclass(frozen=True)
class Option:
    """Description of a field for people.

    help: one sentence. panel: group of `--help`. words: accepted values, or the place where they are defined,
    "package.module.NAME", so that they need not be imported here; a tuple field takes several, comma-separated. name:
    name on the command line, if it differs from the field's. short: short form, e.g. "-o". metavar: placeholder for the
    value. read: converts the typed text to the field's value. shown: converts a default to text. several: whether the
    option may be repeated.
    """

    help: str
    panel: str = ""
    words: Iterable[str] | str = ()
    name: str = ""
    short: str = ""
    metavar: str | None = None
    read: Callable[[str], Any] | None = None
    shown: Callable[[Any], str] = str
    several: bool = False

    def known_words(self) -> list[str]:
        if not isinstance(self.words, str):
            return [*self.words]
        module, _, name = self.words.rpartition(".")
        return [*getattr(import_module(module), name)]


def option(default: Any, help: str, **known: Any) -> Any:
    """Field of a dataclass with an Option. default: MISSING if there is none. known: fields of Option."""
    return field(default=default, metadata={KEY: Option(help, **known)})


def same(kind: type, name: str, /, **changed: Any) -> Any:
    """Field like one of another dataclass. changed: fields of Option that differ."""
    like = next(f for f in fields(kind) if f.name == name)
    return field(default=like.default, metadata={KEY: replace(like.metadata[KEY], **changed)})


def words_of(typed: str) -> tuple[str, ...]:
    """Words separated by commas.

    >>> words_of("qcqa-ac, exact")
    ('qcqa-ac', 'exact')
    """
    return tuple(word.strip() for word in typed.split(","))


__all__ = ["KEY", "MISSING", "Option", "option", "same", "words_of"]
