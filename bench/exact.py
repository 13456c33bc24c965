"""The genetic search against the exact solver, layer by layer.

    python bench/exact.py [--model FOLDER] [--fitness weight,activation,spectral]

Prints for every layer and fitness the number of KV-head counts (any sizes) and divisors (equal sizes) that the search
solved to optimality, the largest excess of an error over the optimum, and both times. The exact spectral errors of 2^16
groups need a GPU.
"""

import argparse
import time

import numpy as np
import torch

from fitness import FITNESSES
from grouper import Checkpoint
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.compress import Regrouper
from search.methods.exact import optimal_partitions
from search.methods.qcqa import any_sizes, equal_sizes
from search.options import GeneticOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--calibration", default="demo")
    parser.add_argument("--fitness", default="weight,activation")
    parser.add_argument("--layers", type=int, help="at most")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    regrouper = Regrouper(Checkpoint.open(args.model), Calibration(TextSource(args.calibration)), args.device)
    print("| fitness | layer | any sizes | equal sizes | largest excess | search, s | exact, s |")
    print("|" + " --- |" * 7, flush=True)
    for name in args.fitness.split(","):
        for layer in range(min(args.layers or 10**9, regrouper.architecture.layers)):
            attention = regrouper.architecture.read(regrouper.checkpoint, layer)
            fitness = FITNESSES[name].tables(attention, regrouper.moments_of(layer), device=args.device)
            solved, excess, took = [], 0.0, [0.0, 0.0]
            for method, equal in ((any_sizes, False), (equal_sizes, True)):
                began = time.perf_counter()
                found = {p.groups: p.error for p in method(fitness, np.random.default_rng(layer), GeneticOptions())}
                middle = time.perf_counter()
                optimum = {p.groups: p.error for p in optimal_partitions(fitness, equal)}
                took = [took[0] + middle - began, took[1] + time.perf_counter() - middle]
                over = [found[k] / optimum[k] - 1 for k in optimum if optimum[k] > 0]
                solved.append(f"{sum(o < 1e-9 for o in over)} of {len(over)}")
                excess = max(excess, *over)
            cells = (name, layer, *solved, f"{excess:.2%}", *(f"{seconds:.1f}" for seconds in took))
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
