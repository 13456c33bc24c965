"""Time and memory of a bare export, against copying the folder.

    python bench/export_scale.py                      # 7B, all layers
    python bench/export_scale.py --shape 70b          # 80 layers, sparse on disk: search by weights, merge, export

A stock layout of half the KV heads, merged by the mean, self-test included.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from measured import report, run
from shapes import SHAPES, Shape, make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    parser.add_argument("--layers", type=int)
    args = parser.parse_args()
    whole = SHAPES[args.shape]
    shape = Shape(args.layers or whole.layers, whole.hidden, whole.heads, whole.kv_heads, whole.inner, whole.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        model, searched, out = make(shape, Path(folder) / "model"), Path(folder) / "run", Path(folder) / "out"
        grouper = [sys.executable, "-m", "cli"]
        search = run(*grouper, "search", model, "-o", searched, "--fitness", "weight", "--method", "qcqa-ec")
        began = time.perf_counter()
        shutil.copytree(model, Path(folder) / "copy")
        copied = time.perf_counter() - began
        shutil.rmtree(Path(folder) / "copy")
        export = run(*grouper, "export", searched, "-o", out, "--kv-ratio", "1/2")
        for done in (search, export):
            if done.code:
                raise SystemExit(done.output)
        weights = sum(file.stat().st_size for file in model.iterdir())
        report("export_scale", [{
            "model": args.shape, "layers": shape.layers, "GB": round(weights / 1e9, 1),
            "search s": round(search.seconds, 1), "search peak GB": round(search.peak / 1e9, 2),
            "copy s": round(copied, 1), "export s": round(export.seconds, 1),
            "export peak GB": round(export.peak / 1e9, 2),
            "self-test": next(line for line in export.output.splitlines() if "self-test" in line),
        }])  # fmt: skip


if __name__ == "__main__":
    main()
