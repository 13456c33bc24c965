"""K heads and V heads grouped each for themselves, in different numbers: errors of K and V add, so each is searched alone.

V heads are more alike than K heads in many models. Grouped attention kernels want K and V grouped alike, so such a layout can be
measured and refined, not exported.
"""

import numpy as np

from grouper.layout import Grouping, LayerLayout
from search.methods.candidate import Candidate
from search.methods.qcqa import qcqa_ac
from search.methods.task import LayerTask
from search.optimise.nsga2 import Report, Settings


def separate(
    task: LayerTask, rng: np.random.Generator, settings: Settings, report: Report | None = None
) -> list[Candidate]:
    """For every number of K heads plus V heads, the best of all its splits among the groupings found for each."""
    heads = task.attention.kv_heads
    alone = Candidate(np.arange(heads), 0.0)
    k, v = ([*qcqa_ac(task.parts[part], rng, settings, report), alone] for part in ("k", "v"))
    best: dict[int, tuple[Candidate, Candidate]] = {}
    for a in k:
        for b in v:
            total = a.kv_heads + b.kv_heads
            if total < 2 * heads and (total not in best or a.error + b.error < sum(c.error for c in best[total])):
                best[total] = (a, b)
    found = []
    for total in sorted(best):
        a, b = best[total]
        layout = LayerLayout(*(Grouping.from_labels(c.labels, task.queries_per_kv_head) for c in (a, b)))
        found.append(Candidate(a.labels, a.error + b.error, layout))
    return found
