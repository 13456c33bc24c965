"""The `grouper` application: all commands, in the order in which people need them."""

import typer

from search.commands import check, compare, demo, evaluate, export, inspect, layouts, regroup, report, search, uptrain
from search.commands.options import Command

app = typer.Typer(
    help="Give a Hugging Face LLM fewer KV heads: less KV cache, nearly the same text.",
    epilog="With any command: --quiet says nothing but errors and results, --verbose what libraries log, --debug the "
    "whole traceback of a failure.",
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown",
)  # fmt: skip
for module in (inspect, regroup, search, evaluate, export, check, uptrain, layouts, report, compare, demo):
    app.command(module.run.__name__, cls=Command)(module.run)
