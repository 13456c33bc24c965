"""Options: fields of dataclasses that say what they are for, on a command line as in Python."""

from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib import import_module
from typing import Any

KEY = "option"  # in a field's metadata


@dataclass(frozen=True)
class Option:
    """Description of a field for people.

    help: one sentence. panel: group of `--help`. words: those that the option takes, several with commas where the
    field is a tuple; or where they stand, "package.module.NAME", so that they need not be imported here. name: on a
    command line, where it is not the field's. short: like "-o". metavar: what stands for the value. read: from what is
    typed to the field's value; shown: the other way, for a default. several: whether it may be given more than once.
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
    """A field of a dataclass. default: MISSING where there is none. known: fields of Option."""
    return field(default=default, metadata={KEY: Option(help, **known)})


def same(kind: type, name: str, /, **changed: Any) -> Any:
    """A field like the one of another dataclass. changed: fields of Option that differ."""
    like = next(f for f in fields(kind) if f.name == name)
    return field(default=like.default, metadata={KEY: replace(like.metadata[KEY], **changed)})


def words_of(typed: str) -> tuple[str, ...]:
    """Words with commas between.

    >>> words_of("qcqa-ac, exact")
    ('qcqa-ac', 'exact')
    """
    return tuple(word.strip() for word in typed.split(","))


__all__ = ["KEY", "MISSING", "Option", "option", "same", "words_of"]
