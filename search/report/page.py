"""The report as one self-contained HTML page: plotting library, scripts and the run's data. It makes no network
request.

Large parts are compressed; the browser inflates them when the page opens.
"""

import base64
import gzip
import html
import json
from importlib.resources import files
from pathlib import Path
from string import Template

from grouper.errors import GrouperError
from grouper.outputs import bears, locked, refuse_foreign, refuse_inside, write_text
from search.report.facts import Facts, data_of, titles_of

SCRIPTS = (
    "start.js",
    "words.js",
    "colours.js",
    "axis.js",
    "front.js",
    "layout.js",
    "heads.js",
    "layers.js",
    "positions.js",
    "samples.js",
    "cache.js",
    "table.js",
    "page.js",
)


def write_report(facts: Facts, path: Path, beside: Facts | None = None) -> None:
    """Write the page of a run. beside: a second run to show with it. Raises GrouperError if plotly is not installed, or
    if the two runs cannot be compared."""
    parts = files("search.report") / "page"
    scripts = "\n".join((parts / name).read_text(encoding="utf-8") for name in SCRIPTS)
    page = Template((parts / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(f"{titles_of(facts, beside)}: fewer KV heads"),
        style=(parts / "page.css").read_text(encoding="utf-8"),
        library=packed(plotting_library()),
        data=packed(json.dumps(data_of(facts, beside), allow_nan=False)),
        scripts=scripts,
    )
    with locked(path):
        write_text(path, page)


def check_page(path: Path, model: Path | None) -> None:
    """Raise GrouperError if the page cannot be written: another file stands there, its folder is missing or is the
    model's, or plotly is missing."""
    refuse_inside(path, model)
    refuse_foreign(path, is_page)
    if not path.absolute().parent.is_dir():
        raise GrouperError(f"{path} cannot be written: expected a file's name in a folder that is there")
    plotting_library()


def is_page(path: Path) -> bool:
    """Whether the file is an earlier report."""
    return bears(path, b"fewer KV heads</title>")


def plotting_library() -> str:
    """Source of plotly.js (MIT licence)."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise GrouperError("reports need plotly: pip install 'kv-grouper[report]'") from error
    return get_plotlyjs()


def packed(text: str) -> str:
    """The text as gzip in base64; equal texts give equal results."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
