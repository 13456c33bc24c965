"""The genetic search compared with alternatives, on the same error, in the same run.

    pip install pymoo            # in the dev extra
    python bench/peers.py

On OPT-125m's shape (12 heads of 64, hidden size 768, random weights), QCQA's weight-sharing error of one layer:

    direct       the paper's algorithm as written down: group means of weight tensors for each candidate, pymoo's NSGA2
    DEAP         DEAP's own operators and selNSGA2 on lists, errors from our tables
    pymoo        pymoo's NSGA2 on our tables
    ours         memetic NSGA-II on our tables
    exact        dynamic programming: the best there is

Prints evaluations per second, and the hypervolume of the found front relative to the exact front's, at equal
evaluations and at equal time; for both, higher is better.
"""

import argparse
import random
import time
from collections.abc import Callable

import moocore
import numpy as np
import torch
from deap import algorithms, base, creator, tools
from measured import report
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.optimize import minimize
from pymoo.termination.max_time import TimeBasedTermination

from fitness.weight import Weight
from grouper.attention import Attention
from search.methods.exact import optimal_partitions
from search.methods.qcqa import any_sizes
from search.options import GeneticOptions

HEADS, HEAD_DIM, HIDDEN = 12, 64, 768
POPULATION = 100

Errors = Callable[[np.ndarray], np.ndarray]  # labels [n, G] -> [n]


class Counted:
    """Errors with a count of the evaluations, and all points that were met."""

    def __init__(self, errors: Errors):
        self.errors, self.count, self.points = errors, 0, []

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        self.count += len(labels)
        found = self.errors(labels)
        groups = [len(set(row)) for row in labels.tolist()]
        self.points.append(np.stack([np.array(groups) / HEADS, found], 1))
        return found


def layer() -> Attention:
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(HEADS, HEAD_DIM, HIDDEN, generator=generator) for _ in range(3)]
    heads = [h + 0.5 * h.roll(1, 0) for h in heads]  # neighbours resemble each other a little
    return Attention(*heads, torch.randn(HIDDEN, HEADS, HEAD_DIM, generator=generator))


def direct(attention: Attention) -> Errors:
    """Errors computed from group means of the weights themselves, candidate by candidate."""
    weights = [attention.k.flatten(1), attention.v.flatten(1)]
    energy = sum(float(w.square().sum()) for w in weights)

    def errors(labels: np.ndarray) -> np.ndarray:
        out = []
        for row in labels:
            error = 0.0
            for w in weights:
                for g in set(row.tolist()):
                    members = w[np.flatnonzero(row == g)]
                    error += float((members - members.mean(0)).square().sum())
            out.append(error / energy)
        return np.array(out)

    return errors


def by_pymoo(errors: Errors, generations: int, seconds: float | None = None) -> None:
    class Grouping(Problem):
        def __init__(self):
            super().__init__(n_var=HEADS, n_obj=2, xl=0, xu=HEADS - 1, vtype=int)

        def _evaluate(self, x, out, *_args, **_kwargs):
            labels = x.astype(int)
            groups = np.array([len(set(row)) for row in labels.tolist()]) / HEADS
            out["F"] = np.stack([groups, errors(labels)], 1)

    algorithm = NSGA2(
        pop_size=POPULATION, sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=1 / HEADS, vtype=float, repair=RoundingRepair()), eliminate_duplicates=True,
    )  # fmt: skip
    until = ("n_gen", generations)
    if seconds is not None:
        until = TimeBasedTermination("00:00:01")
        until.max_time = seconds  # accepts only whole seconds
    minimize(Grouping(), algorithm, until, seed=1)


def by_deap(errors: Errors, generations: int, seconds: float | None = None) -> None:
    if not hasattr(creator, "Point"):
        creator.create("Point", base.Fitness, weights=(-1.0, -1.0))
        creator.create("Individual", list, fitness=creator.Point)
    random.seed(1)
    toolbox = base.Toolbox()
    toolbox.register("gene", random.randrange, HEADS)
    toolbox.register("individual", tools.initRepeat, creator.Individual, toolbox.gene, HEADS)
    toolbox.register("mate", tools.cxTwoPoint)
    toolbox.register("mutate", tools.mutUniformInt, low=0, up=HEADS - 1, indpb=1 / HEADS)

    def scored(individuals: list) -> None:
        found = errors(np.array(individuals))
        for individual, error in zip(individuals, found):
            individual.fitness.values = (len(set(individual)) / HEADS, float(error))

    population = [toolbox.individual() for _ in range(POPULATION)]
    scored(population)
    population = tools.selNSGA2(population, POPULATION)
    began, generation = time.perf_counter(), 1
    while generation < generations if seconds is None else time.perf_counter() - began < seconds:
        children = algorithms.varAnd(tools.selTournamentDCD(population, POPULATION), toolbox, 0.9, 0.5)
        scored(children)
        population = tools.selNSGA2(population + children, POPULATION)
        generation += 1


def ours(fitness, counted: Counted, generations: int) -> None:
    """Run Grouper's search. Errors looked up in its table are counted; local improvement works on differences, and is
    not counted."""
    original = fitness.errors
    fitness.errors = counted
    found = any_sizes(fitness, np.random.default_rng(1), GeneticOptions(POPULATION, generations))
    fitness.errors = original
    counted(np.array([p.labels for p in found]))


def hypervolume(points: list[np.ndarray], reference: tuple[float, float]) -> float:
    every = np.concatenate([*points, [[1.0, 0.0]]])
    return float(moocore.hypervolume(every, ref=reference))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=10, help="as in the paper's released settings")
    args = parser.parse_args()
    attention = layer()
    tables = Weight().tables(attention)
    best = optimal_partitions(tables)
    reference = (1.0, float(tables.errors(np.zeros((1, HEADS), int))[0]) * 1.001)
    whole = hypervolume([np.array([[p.groups / HEADS, p.error] for p in best])], reference)
    counted = Counted(tables.errors)
    began = time.perf_counter()
    ours(tables, counted, args.generations)
    budget = time.perf_counter() - began

    def row(name: str, counted: Counted, seconds: float, at: str) -> dict:
        reached = hypervolume(counted.points, reference) / whole
        speed = round(counted.count / seconds)
        found = {"evaluations": counted.count, "seconds": round(seconds, 3), "evaluations / s": speed}
        return {"search": name, "at": at, **found, "hypervolume / exact": round(reached, 4)}

    rows = [row("ours", counted, budget, "its default")]
    peers = (
        ("direct, pymoo", direct(attention), by_pymoo),
        ("pymoo on our tables", tables.errors, by_pymoo),
        ("DEAP on our tables", tables.errors, by_deap),
    )
    for name, errors, search in peers:
        for at, limit in ((f"{args.generations} generations", None), ("ours' time", budget)):
            counted = Counted(errors)
            began = time.perf_counter()
            search(counted, args.generations, limit)
            rows.append(row(name, counted, time.perf_counter() - began, at))
    report("peers", rows)


if __name__ == "__main__":
    main()
