"""Commands from functions: each field of a parameter that is a dataclass becomes an option of the command line."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from grouper.names import listed
from grouper.option_fields import KEY, Option, words_of
from search.commands.config_file import read_options
from search.commands.limits import usable_device, within_limits


def from_config(context: typer.Context, path: Path | None) -> Path | None:
    """Callback of --config: the file's options become the command's defaults, which options on the command line
    override."""
    if path is not None:
        parameters = context.command.params
        several = {p.name for p in parameters if p.multiple}
        options = read_options(path, str(context.command.name), {p.name for p in parameters}, several)
        context.default_map = {**(context.default_map or {}), **options}
    return path


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a Hub id, or `demo` for the bundled model.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that `grouper search` wrote.")]
Json = Annotated[bool, Option("Print JSON on stdout.", panel="Output")]
Overwrite = Annotated[bool, Option("Replace existing output.", panel="Output")]
Assignments = Annotated[
    list[str] | None,
    Option("Set a parameter of a merge, e.g. weighted.steps=50.", panel="Layout", metavar="NAME.FIELD=VALUE"),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", callback=from_config, is_eager=True, metavar="FILE", rich_help_panel="Output",
        help="YAML file with options of this command.",
    ),
]  # fmt: skip


FLAGS: dict[str, str] = {}  # flags by field, of all commands
NAMED = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")  # a field named in a message, perhaps with its value

METAVARS = ((int, "N"), (float, "X"), (str, "WORD"), (Path, "PATH"), (list[str], "WORD"))


def as_flags(message: str) -> str:
    """The message with flags in place of the field names that it contains."""

    def flag(found: re.Match) -> str:
        name, value = found.groups()
        if name not in FLAGS or found[0] == "`text`":  # documents have a field `text`, too
            return found[0]
        if value in ("True", "False"):
            return FLAGS[name] if value == "True" else f"--no-{FLAGS[name][2:]}"
        return FLAGS[name] if value is None else f"{FLAGS[name]} {value}"

    return NAMED.sub(flag, message)


class Command(TyperCommand):
    """Command whose help shows no value placeholder after a flag."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. The error for an option of another command says which commands take it."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if type(error).__name__ == "NoSuchOption" and (where := belongs(ctx, vars(error)["option_name"])):
                vars(error).update(message=f"{vars(error)['message']}: {where}", possibilities=None)
            raise

    def get_params(self, ctx: Any) -> list:
        params = super().get_params(ctx)
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


def belongs(context: Any, option: str) -> str | None:
    """End of the message about an unknown option: which other commands take it; None if none does."""
    if option == "--kv-heads":
        return "a search finds all numbers of KV heads; --kv-ratio of regroup and export picks one"
    commands = getattr(context.parent and context.parent.command, "commands", {})
    found = [name for name, one in commands.items() if any(option in p.opts for p in one.params)]
    return f"it is an option of {listed(found)}" if found else None


def command(name: str, first: str) -> Callable[[Callable], Callable]:
    """Decorator that turns the function into a command of this name. first: the most used options, which --help shows
    before its groups."""

    def decorate(function: Callable) -> Callable:
        hints = get_type_hints(function, include_extras=True)
        given = signature(function).parameters
        parameters = [p for n in given for p in parameters_of(n, hints[n], given[n].default, first.split())]

        @wraps(function)
        def called(**values: Any) -> Any:
            return function(**{n: made(hints[n], values) if dataclass_of(hints[n]) else values[n] for n in given})

        called.__signature__ = signature(called).replace(parameters=parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        called.__name__ = name
        return called

    return decorate


def dataclass_of(hint: Any) -> Any:
    """The dataclass in a parameter's type, optional or not; None for any other parameter."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((kind for kind in kinds if is_dataclass(kind)), None)


def parameters_of(name: str, hint: Any, default: Any, first: list[str], optional: bool = False) -> list[Parameter]:
    """Parameters of the command line for one parameter of a function. optional: whether the dataclass it belongs to may
    be None."""
    if kind := dataclass_of(hint):
        hints, found, optional = get_type_hints(kind), [], optional or hint is not kind
        for f in fields(kind):
            if dataclass_of(hints[f.name]):
                found += parameters_of(f.name, hints[f.name], None, first, optional)
            elif KEY in f.metadata:
                found.append(parameter(f.name, hints[f.name], f.default, f.metadata[KEY], first, optional))
        return found
    told = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Option)), None)
    if told is None:
        return [Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)]
    return [parameter(name, get_args(hint)[0], MISSING if default is Parameter.empty else default, told, first)]


def parameter(name: str, hint: Any, default: Any, told: Option, first: list[str], optional: bool = False) -> Parameter:
    """One option for typer. optional: whether the dataclass it belongs to may be None."""
    flag = f"--{(told.name or name).replace('_', '-')}"
    FLAGS.setdefault(name, flag)
    name = told.name or name
    FLAGS[name] = flag
    if optional and default is MISSING:
        hint, default = hint | None, None
    if told.read or get_origin(hint) is tuple:
        several = told.several and (list[str] | None)
        default = None if default is None or told.several else shown(told, default)
        hint = several or (str | None if default is None else str)
    metavar = told.metavar or next((word for kind, word in METAVARS if kind in (hint, *get_args(hint))), None)
    flags = [f"{flag}/--no-{flag[2:]}" if hint is bool and default is True else flag]
    words = told.known_words()
    listed = f" One of {', '.join(words)}." if any(word not in told.help for word in words) else ""
    checks = {int: within_limits, int | None: within_limits}
    check = usable_device if name.endswith("device") else checks.get(hint)
    info = typer.Option(
        *([told.short] if told.short else []), *flags, help=told.help + listed, metavar=metavar,
        rich_help_panel=None if name in first else told.panel or None,
        autocompletion=completing(words) if words else None, callback=check,
    )  # fmt: skip
    given = Parameter.empty if default is MISSING else default
    return Parameter(name, Parameter.KEYWORD_ONLY, default=given, annotation=Annotated[hint, info])


def shown(told: Option, default: Any) -> str:
    return ",".join(default) if isinstance(default, tuple) else told.shown(default)


def made(hint: Any, values: dict[str, Any]) -> Any:
    """The dataclass with the values from the command line. An optional one is None if none of its required fields is
    given, or, if it has no required fields, if no field is given."""
    kind = dataclass_of(hint)
    hints, given, asked = get_type_hints(kind), {}, []
    needed = any(f.default is MISSING and f.default_factory is MISSING for f in fields(kind))
    for f in fields(kind):
        if dataclass_of(hints[f.name]):
            given[f.name] = made(hints[f.name] if f.default is not MISSING else hints[f.name] | None, values)
        elif KEY in f.metadata:
            given[f.name] = value_of(f.metadata[KEY], hints[f.name], values[f.metadata[KEY].name or f.name])
        if f.name in given and (f.default is MISSING or not needed):
            asked.append(given[f.name] != (None if f.default is MISSING else f.default))
    return kind(**given) if hint is kind or any(asked) else None


def value_of(told: Option, hint: Any, typed: Any) -> Any:
    if told.read:
        return None if typed is None else told.read(typed)
    if get_origin(hint) is tuple:
        return tuple(typed or ()) if told.several else words_of(typed)
    return typed


def completing(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Shell completion of comma-separated words: completes the last one."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{word}" for word in words if word.startswith(last)]

    return complete
