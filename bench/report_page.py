"""Report of a 7B's run: its size, the time to write it, and the time until a browser shows it.

    python bench/report_page.py        # a search by weights on a 7B's shape; needs chromium and chromedriver
    python bench/report_page.py --picture run/report.html docs/report.png    # only the picture of the docs, of a page

The page counts as shown when its first screen and the table are drawn; all else is drawn when it comes into view. The
time is the median of five openings.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from measured import report, run
from shapes import SHAPES, make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    parser.add_argument("--picture", nargs=2, type=Path, metavar=("PAGE", "PNG"), help="Screenshot of a page.")
    args = parser.parse_args()
    if args.picture:
        picture(*args.picture)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make(SHAPES[args.shape], folder / "model")
        grouper = [sys.executable, "-m", "cli"]
        run(*grouper, "search", model, "-o", folder / "run", "--fitness", "weight")
        written = run(*grouper, "report", folder / "run")
        page = folder / "run" / "report.html"
        rows = len((folder / "run" / "pareto.csv").read_text().splitlines()) - 1
        opened = statistics.median(opening(page) for _ in range(5))
        found = {
            "rows": rows, "page, MB": page.stat().st_size / 1e6, "written, s": written.seconds,
            "written, GB": written.peak / 1e9, "opened, s": opened,
        }  # fmt: skip
    report("report_page", [found])


@contextmanager
def browser(size: str) -> Iterator[Any]:
    """Start Chromium without a window. size: "WIDTH,HEIGHT", in pixels."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    switches = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars")
    for argument in (*switches, f"window-size={size}"):
        options.add_argument(f"--{argument}")
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield started
    finally:
        started.quit()


def shown(started: Any, page: Path) -> None:
    """Open a page, and wait until its first screen is drawn."""
    started.get(f"file://{page.resolve()}")
    while started.execute_script("return document.documentElement.dataset.ready") != "yes":
        time.sleep(0.01)


def opening(page: Path) -> float:
    """Seconds from the request for the page until its first screen is drawn."""
    with browser("1400,1000") as started:
        began = time.perf_counter()
        shown(started, page)
        return time.perf_counter() - began


def picture(page: Path, path: Path) -> None:
    """Save a screenshot of a page's first screens, in 128 colours, which halves the file."""
    from PIL import Image

    with browser("1200,1500") as started:
        shown(started, page)
        time.sleep(1)  # some parts are drawn when they come into view
        image = Image.open(BytesIO(started.get_screenshot_as_png()))
    image.convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main()
