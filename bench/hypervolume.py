"""Share of the best front that the default genetic search finds: of the exact front up to 16 heads, of the best known
front beyond.

    python bench/hypervolume.py                # 12 and 16 heads against exact, 32 and 64 against long runs

QCQA's weight-sharing error of one layer with random weights whose heads resemble their neighbours a little. The best
known front is made of everything that long runs with other seeds find (4 times the population, 4 times the generations,
no early stop), greedy joining, and every run's local improvement. Values are medians over the seeds of the default
search; higher is better.
"""

import argparse
import time

import moocore
import numpy as np
import torch
from measured import report
from shapes import Shape, random_weights

from fitness import PairwiseFitness
from fitness.weight import Weight
from grouper.attention import Attention
from search.methods.exact import LIMIT, optimal_partitions
from search.methods.qcqa import any_sizes
from search.optimise.operators import agglomerate
from search.optimise.partition import Partition
from search.options import GeneticOptions

DEFAULT = GeneticOptions()
LONG = GeneticOptions(4 * DEFAULT.population, 4 * DEFAULT.generations, patience=0)


def layer(heads: int, head_dim: int = 64) -> PairwiseFitness:
    shape = Shape(1, heads * head_dim, heads, heads, 1)
    of = (heads * head_dim, shape.hidden)
    q, k, v = (random_weights(f"self_attn.{n}_proj.weight", of, shape).float() for n in "qkv")
    o = torch.zeros(shape.hidden, heads, head_dim)
    q, k, v = (w.view(heads, head_dim, -1) for w in (q, k, v))
    return Weight().tables(Attention(q, k, v, o, planes=torch.arange(head_dim).view(2, -1).T))


def front(partitions: list[Partition], heads: int) -> np.ndarray:
    return np.array([[p.groups / heads, p.error] for p in partitions] + [[1.0, 0.0]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="12,16,32,64")
    parser.add_argument("--seeds", type=int, default=5, help="of the default search")
    parser.add_argument("--long", type=int, default=3, help="long runs")
    args = parser.parse_args()
    rows = []
    for heads in map(int, args.heads.split(",")):
        fitness = layer(heads)
        fronts, took = [], []
        for seed in range(args.seeds):
            began = time.perf_counter()
            fronts.append(front(any_sizes(fitness, np.random.default_rng(seed), DEFAULT), heads))
            took.append(time.perf_counter() - began)
        if heads <= LIMIT:
            best = front(optimal_partitions(fitness), heads)
        else:
            long = [any_sizes(fitness, np.random.default_rng(1000 + seed), LONG) for seed in range(args.long)]
            joined = agglomerate(fitness)
            greedy = [Partition(row, float(e)) for row, e in zip(joined, fitness.errors(joined))]
            best = np.concatenate([front([p for run in (*long, greedy) for p in run], heads), *fronts])
        reference = (1.0, 1.001 * float(fitness.errors(np.zeros((1, heads), int))[0]))
        whole = moocore.hypervolume(best, ref=reference)
        shares = [float(moocore.hypervolume(f, ref=reference)) / whole for f in fronts]
        rows.append({
            "heads": heads, "against": "exact" if heads <= LIMIT else "best known",
            "hypervolume, median": round(float(np.median(shares)), 5), "least": round(min(shares), 5),
            "seconds": round(float(np.median(took)), 2),
        })  # fmt: skip
    report("hypervolume", rows)


if __name__ == "__main__":
    main()
