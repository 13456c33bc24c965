"""How large the report of a 7B's run is, how long it takes to write, and until a browser shows it.

    python bench/report_page.py        # a search by weights on a 7B's shape; needs chromium and chromedriver

The page counts as shown when its first screen and the table are drawn, for the rest is drawn when one comes there: the
median of five openings.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measured import report, run
from shapes import SHAPES, make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    args = parser.parse_args()
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


def opening(page: Path) -> float:
    """Seconds from asking for the page until its first screen is drawn."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{argument}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        began = time.perf_counter()
        browser.get(f"file://{page}")
        while browser.execute_script("return document.documentElement.dataset.ready") != "yes":
            time.sleep(0.01)
        return time.perf_counter() - began
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
