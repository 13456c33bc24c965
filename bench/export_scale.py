"""Time and memory of a bare export, against copying the folder.

    python bench/export_scale.py                      # 7B, all layers
    python bench/export_scale.py --shape 70b --holes  # 80 layers; the disk need not hold them: zeros become holes

The export is a stock layout of half the KV heads, merged by the mean, with its self-test. The copy is made first, by
`cp`, into the same folder. With --holes no copy is made, and every shard of the export is made sparse as soon as it is
finished.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from measured import report, run
from shapes import SHAPES, Shape, make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--holes", action="store_true", help="for models that are larger than the disk")
    args = parser.parse_args()
    whole = SHAPES[args.shape]
    shape = Shape(args.layers or whole.layers, whole.hidden, whole.heads, whole.kv_heads, whole.inner, whole.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        model, searched, out = make(shape, Path(folder) / "model"), Path(folder) / "run", Path(folder) / "out"
        grouper = [sys.executable, "-m", "cli"]
        search = run(*grouper, "search", model, "-o", searched, "--fitness", "weight", "--method", "qcqa-ec")
        copied = None if args.holes else seconds_to_copy(model, Path(folder) / "copy")
        with holes_in(Path(folder), model) if args.holes else nullcontext():
            export = run(*grouper, "export", searched, "-o", out, "--kv-ratio", "1/2")
        for done in (search, export):
            if done.code:
                raise SystemExit(done.output)
        weights = sum(file.stat().st_size for file in model.iterdir())
        report("export_scale", [{
            "model": args.shape, "layers": shape.layers, "GB": round(weights / 1e9, 1),
            "search s": round(search.seconds, 1), "search peak GB": round(search.peak / 1e9, 2),
            "copy s": copied and round(copied, 1), "export s": round(export.seconds, 1),
            "export peak GB": round(export.peak / 1e9, 2),
            "self-test": next(line for line in export.output.splitlines() if "self-test" in line),
        }])  # fmt: skip


def seconds_to_copy(model: Path, copy: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["cp", "-r", "--sparse=never", model, copy], check=True)
    took = time.perf_counter() - began
    shutil.rmtree(copy)
    return took


@contextmanager
def holes_in(folder: Path, model: Path) -> Iterator[None]:
    """Free the disk space of zeros in weight files below `folder` that were not written to for two seconds."""
    done, finished = set(), threading.Event()

    def dig() -> None:
        while not finished.wait(1):
            for path in folder.rglob("*"):
                with suppress(OSError):  # renamed meanwhile
                    file, large = path.stat(), path.is_file() and model not in path.parents
                    if large and file.st_ino not in done and file.st_size > 2**20 and time.time() - file.st_mtime > 2:
                        subprocess.run(["fallocate", "--dig-holes", path], check=False, stderr=subprocess.DEVNULL)
                        done.add(file.st_ino)

    thread = threading.Thread(target=dig)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


if __name__ == "__main__":
    main()
