"""The whole job as a program: `python whole_job.py MODEL TEXT FOLDER`, also under torchrun."""

import sys
from pathlib import Path

from grouper import UptrainOptions
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.refinement.options import RefineOptions
from grouper.uptraining.uptrain import uptrain_model
from search import SearchOptions, Selection, evaluate, export_from_run, search


def whole_job(model: str, text: str, folder: Path) -> None:
    options = SearchOptions(generations=3, population=16, text=text, tokens=5120, window=128)
    search(model, folder / "run", options, jobs=1)
    evaluate(folder / "run", TextSource("demo", purpose="evaluation"), window=128, limit=4)
    calibration = Calibration(TextSource(text), tokens=5120, window=128)
    for windows in (2, 3):  # of a step: for two ranks one each, or no multiple of two
        # long windows would be one a rank: fewer, larger steps than one process takes
        refine = RefineOptions(tokens=1536, steps=5, batch_tokens=128 * windows, long_share=0.0)
        export_from_run(folder / "run", folder / f"out-{windows}", Selection(kv_ratio="1/2"), calibration, refine)
    healing = UptrainOptions(tokens=4096, step_tokens=512, micro_tokens=128, window=64, validate=4, lr=1e-3)
    uptrain_model(folder / "out-2", folder / "healed", TextSource(text), healing, base=model)


if __name__ == "__main__":
    whole_job(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
