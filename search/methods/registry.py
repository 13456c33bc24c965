"""The registry of ways to find groupings. A method is a function of a file of its own, and a line here.

It takes (LayerTask, Generator, Settings, report) for one layer and returns Candidates, at best one for every number of KV heads; those that need
nothing but the layer's fitness take that in the task's place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fitness import LayerFitness
from grouper.errors import GrouperError
from grouper.model.architecture import Architecture
from search.methods import baselines
from search.methods.asymgqa import asymgqa, asymgqa_sym
from search.methods.candidate import Candidate
from search.methods.exact import LIMIT, exact_candidates
from search.methods.gqkva import gqkva
from search.methods.key_driven import dgqa, dgqa_diff, kdgqa
from search.methods.qcqa import qcqa_ac, qcqa_ec
from search.methods.separate import separate
from search.methods.task import LayerTask
from search.methods.ward import ward
from search.optimise.nsga2 import Report, Settings

SearchLayer = Callable[[LayerTask, np.random.Generator, Settings, Report | None], list[Candidate]]


@dataclass(frozen=True)
class Method:
    """equal: it gives equal groups. budgets: its fronts go through stage 2. baseline: to be compared with, exported only by number.

    parts: tables it needs besides the fitness's own: of "k" or "v" alone, of "q", or what "pairs" of KV heads say. weights: it needs
    the layer's weights and inputs. text: it needs calibration text. aligned: the candidates at the same place of every layer make a
    layout, whatever their size.
    """

    search_layer: SearchLayer
    equal: bool = False
    budgets: bool = True
    baseline: bool = False
    parts: tuple[str, ...] = ()
    weights: bool = False
    text: bool = False
    aligned: bool = False


def by_fitness(search_layer: Callable[..., list[Candidate]]) -> SearchLayer:
    """A method that needs nothing but the fitness."""
    return lambda task, rng, settings, report=None: search_layer(task.fitness, rng, settings, report)


def judged(name: str, search_layer: Callable[..., list[Candidate]]) -> SearchLayer:
    """A method whose steps the merged model's loss may judge."""
    return lambda task, rng, settings, report=None: search_layer(
        task.fitness, rng, settings, report, task.judges.get(name)
    )


def exact(
    fitness: LayerFitness, rng: np.random.Generator, settings: Settings, report: Report | None = None
) -> list[Candidate]:
    """Both optima, groups of any size and equal groups, for every number of KV heads."""
    return exact_candidates(fitness) + exact_candidates(fitness, equal=True)


METHODS: dict[str, Method] = {
    "qcqa-ac": Method(by_fitness(qcqa_ac)),
    "qcqa-ec": Method(by_fitness(qcqa_ec), equal=True),
    "exact": Method(by_fitness(exact), equal=True),
    "asymgqa": Method(judged("asymgqa", asymgqa)),
    "asymgqa-sym": Method(judged("asymgqa-sym", asymgqa_sym), equal=True),
    "ward": Method(by_fitness(ward)),
    "kdgqa": Method(kdgqa, budgets=False, weights=True, text=True),
    "dgqa": Method(dgqa, budgets=False, weights=True, text=True),
    "dgqa-diff": Method(dgqa_diff, budgets=False, weights=True, text=True),
    "gqkva": Method(gqkva, budgets=False, weights=True, parts=("q", "pairs"), aligned=True),
    "separate": Method(separate, weights=True, parts=("k", "v")),
    "neighbour": Method(by_fitness(baselines.neighbour), budgets=False, baseline=True),
    "random": Method(by_fitness(baselines.random), budgets=False, baseline=True),
}
JUDGED = ("asymgqa", "asymgqa-sym")
BASELINES = [name for name, method in METHODS.items() if method.baseline]
ORIGINAL = "original"


def check_methods(names: list[str], architecture: Architecture, text: bool) -> None:
    """Raise GrouperError for a method that is unknown or cannot take this model."""
    a = architecture
    for name in names:
        if name not in METHODS:
            raise GrouperError(f"unknown method {name!r}: expected some of {', '.join(METHODS)}, separated by commas")
        if METHODS[name].text and not text:
            raise GrouperError(f"the {name} method goes by norms of keys on text: give --text or --dataset")
    if "exact" in names and a.kv_heads > LIMIT:
        raise GrouperError(
            f"the exact method takes up to {LIMIT} KV heads, this model has {a.kv_heads}: use qcqa-ac,qcqa-ec"
        )
    if "gqkva" in names and a.kv_heads != a.query_heads:
        raise GrouperError(
            f"the gqkva method takes multi-head models; this one has {a.kv_heads} KV heads for {a.query_heads} query heads"
        )
