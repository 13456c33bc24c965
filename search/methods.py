"""The registry of ways to find groupings. A method is a function of a file of its own, and a line here.

It takes (LayerFitness, Generator, Settings, report) for one layer and returns Candidates, at best one for every number of KV heads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fitness import LayerFitness
from grouper.errors import GrouperError
from search import baselines
from search.asymgqa import asymgqa, asymgqa_sym
from search.candidate import Candidate
from search.exact import LIMIT, exact_candidates
from search.nsga2 import Report, Settings
from search.qcqa import qcqa_ac, qcqa_ec

SearchLayer = Callable[[LayerFitness, np.random.Generator, Settings, Report | None], list[Candidate]]


@dataclass(frozen=True)
class Method:
    """equal: it gives equal groups. budgets: its fronts go through stage 2. baseline: to be compared with, exported only by number."""

    search_layer: SearchLayer
    equal: bool = False
    budgets: bool = True
    baseline: bool = False


def exact(fitness: LayerFitness, rng: np.random.Generator, settings: Settings, report: Report | None = None) -> list[Candidate]:
    """Both optima, groups of any size and equal groups, for every number of KV heads."""
    return exact_candidates(fitness) + exact_candidates(fitness, equal=True)


METHODS: dict[str, Method] = {
    "qcqa-ac": Method(qcqa_ac),
    "qcqa-ec": Method(qcqa_ec, equal=True),
    "exact": Method(exact, equal=True),
    "asymgqa": Method(asymgqa),
    "asymgqa-sym": Method(asymgqa_sym, equal=True),
    "neighbour": Method(baselines.neighbour, budgets=False, baseline=True),
    "random": Method(baselines.random, budgets=False, baseline=True),
}
BASELINES = [name for name, method in METHODS.items() if method.baseline]
ORIGINAL = "original"


def check_methods(names: list[str], kv_heads: int) -> None:
    """Raise GrouperError for a method that is unknown or cannot take so many heads."""
    for name in names:
        if name not in METHODS:
            raise GrouperError(f"unknown method {name!r}: expected some of {', '.join(METHODS)}, separated by commas")
    if "exact" in names and kv_heads > LIMIT:
        raise GrouperError(f"the exact method takes up to {LIMIT} KV heads, this model has {kv_heads}: use qcqa-ac,qcqa-ec")
