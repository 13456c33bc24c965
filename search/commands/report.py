"""`grouper report`: a run as one HTML page, or as pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from grouper.errors import GrouperError
from grouper.names import printable
from grouper.option_fields import Option
from search.commands.options import Run, command
from search.commands.saying import tell
from search.runs.selection import ASKED_CACHES

if TYPE_CHECKING:
    from search.report.facts import Facts
    from search.runs.folder import RunFolder


@command("report", first="output format layout dark similar beside")
def run(
    run: Run,
    output: Annotated[
        Path | None, Option("Output (default: RUN/report.html); a folder with --format.", short="-o", metavar="FILE")
    ] = None,
    format: Annotated[
        str | None,
        Option("Write pictures instead of the page: png, svg, pdf; comma-separated.", words=("png", "svg", "pdf")),
    ] = None,
    layout: Annotated[int | None, Option("Layout in pictures (default: the one exported at half the cache).")] = None,
    dark: Annotated[bool, Option("Dark background for pictures.")] = False,
    similar: Annotated[bool, Option("Show the similarity of heads; reads the model's weights.")] = True,
    bounds: Annotated[
        bool,
        Option("Compute the least errors that the same bytes allow, a minute a layer for a 7B (bounds.csv)."),
    ] = False,
    beside: Annotated[Path | None, Option("Second run to show on the same page.", metavar="RUN")] = None,
    kv_cache: Annotated[str | None, Option("Add rows of this KV cache type; any: of all.", words=ASKED_CACHES)] = None,
    overwrite: Annotated[bool, Option("Accepted as in other commands; an earlier report is always replaced.")] = False,
) -> None:
    """Write a run as one HTML page that needs no network, or as pictures for papers."""
    from search.report import write_pictures, write_report
    from search.report.facts import common_to
    from search.report.page import check_page
    from search.report.pictures import check_pictures, parsed_formats
    from search.runs.folder import RunFolder
    from search.runs.picking import representative

    check_options(format, layout, dark, beside)
    folder = RunFolder.open(run)
    output = output or run / ("pictures" if format else "report.html")
    formats = parsed_formats(format) if format else ()
    if formats:
        check_pictures(output, formats, dark, folder.settings.model_folder)
    else:
        check_page(output, folder.settings.model_folder)
    if layout is not None:
        folder.layout(layout)
    folders = [folder, *([RunFolder.open(beside)] if beside else [])]
    if beside:
        common_to(folders)
    found = gathered(folders, similar, bounds, kv_cache)
    if formats:
        shown = int(representative(found[0].front)["layout"]) if layout is None else layout
        written = write_pictures(found[0], output, formats, shown, dark)
    else:
        write_report(found[0], output, *found[1:])
        written = [output]
    for path in written:
        print(printable(str(path)))


def gathered(folders: list["RunFolder"], similar: bool, bounds: bool, kv_cache: str | None) -> list["Facts"]:
    """Facts of the runs. bounds: compute their bounds first."""
    from search.commands.bars import bar
    from search.report.bounds import write_bounds
    from search.report.facts import facts_of

    if bounds:
        with bar("bounding errors", says_how_long=True) as progress:
            for one in folders:
                write_bounds(one, progress)
    with bar("comparing heads", says_how_long=True) as progress:
        found = [facts_of(one, similar, progress, kv_cache) for one in folders]
    for facts in found:
        if facts.missing:
            tell(facts.missing)
    return found


def check_options(format: str | None, layout: int | None, dark: bool, beside: Path | None) -> None:
    """Raise GrouperError if an option for pictures is given without --format, or an option for the page with it."""
    if not format and (layout is not None or dark):
        raise GrouperError("--layout and --dark are for pictures: give --format, too")
    if format and beside:
        raise GrouperError("--beside is for the page: drop it, or --format")
