"""`grouper layouts`: the front of a run as a table."""

from typing import Annotated

from grouper.export.options import ASKED
from grouper.option_fields import Option
from search.commands.options import Json, Run, command
from search.commands.saying import tell
from search.runs.selection import ASKED_CACHES


@command("layouts", first="sort deploy best_under all json")
def run(
    run: Run,
    sort: Annotated[
        str,
        Option(
            "Column of pareto.csv to sort by, or over (nats over the original); -COLUMN sorts descending.",
            metavar="COLUMN",
        ),
    ] = "-kv_ratio",
    deploy: Annotated[
        str | None, Option("Only layouts of one export class: stock, padded or ragged.", words=ASKED)
    ] = None,
    best_under: Annotated[
        str | None, Option("Only the layout that an export with this KV ratio takes.", metavar="RATIO")
    ] = None,
    all: Annotated[bool, Option("All rows, not only the front.")] = False,
    kv_cache: Annotated[
        str | None,
        Option("Show only rows of this KV cache type; any: of all types, on one front by bytes.", words=ASKED_CACHES),
    ] = None,
    json: Json = False,
) -> None:
    """Print a run's front as a table: sizes, errors, measurements."""
    from search.commands.console import layouts_table
    from search.runs.folder import RunFolder
    from search.runs.view import View, viewed

    rows = viewed(RunFolder.open(run).front(tell), View(sort, deploy, best_under, all, kv_cache), tell)
    if json:
        print(rows.to_json(orient="records"))
    else:
        layouts_table(rows)
