"""Packages whose public names are imported when they are first asked for: so that `grouper --help` needs no torch."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazily(package: str, modules: dict[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` (PEP 562). modules: a public name -> the module that it is in."""

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return get
