"""A script as people write it; `make lint` checks its types, nothing runs it."""

from pathlib import Path

import grouper
import search
from fitness import FITNESSES


def smaller(model: str, text: str) -> Path:
    options = search.SearchOptions(method=("qcqa-ac",), text=text, seed=1)
    front = search.search(model, Path("run"), options, machine=grouper.Machine("cpu"))
    best: int = int(front.front()["layout"].iloc[0])
    layout: grouper.HeadLayout = search.RunFolder(Path("run")).layout(best)
    ratio: float = layout.kv_ratio
    exported = search.export_from_run("run", "out", search.Selection(layout=best))
    assert exported.self_test.passed and ratio < 1
    area: float = front.hypervolume()
    name: str = FITNESSES["spectral"].own_merge
    print(area, name)
    healed = grouper.uptrain_model("out", "healed", grouper.TextSource(text), grouper.UptrainOptions(tokens=100_000))
    return Path(healed.folder)


def in_memory(model: str) -> object:
    small = search.regroup(model, text="demo", kv_ratio=0.5)
    small.save("half")
    return small.model
