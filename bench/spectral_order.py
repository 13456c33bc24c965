"""Ranking quality of the cheap forms of the spectral error: Spearman's rank correlation with the exact error over
groups.

    python bench/spectral_order.py

"surrogate": the form with which searches choose moves (pairs and group sizes alone). "reduced": V's eigenproblem in
each head's own leading directions, `screen_rows` rows in all. Groups are random, in every layer of the bundled model,
and in one random layer with heads of 128.
"""

import time

import numpy as np
import torch
from scipy.stats import spearmanr

from fitness.spectral import Spectral
from grouper import Architecture, Checkpoint
from grouper.attention import Attention
from grouper.calibration.input_moments import AssumedInputs, InputMoments

GROUPS = 60


def compare(name: str, attention: Attention, inputs: InputMoments, size: int, screen_rows: int) -> None:
    rng = np.random.default_rng(0)
    groups = [tuple(sorted(rng.choice(attention.kv_heads, size, replace=False).tolist())) for _ in range(GROUPS)]
    results = {}
    exact = Spectral(screen_rows=screen_rows).tables(attention, inputs)
    for label, score in (("exact", exact), ("reduced", exact.screen)):
        score._known = {k: v for k, v in score._known.items() if len(k) == 1}
        began = time.perf_counter()
        results[label] = score.group_errors(groups)
        results[label + " s"] = time.perf_counter() - began
    surrogate = exact.surrogate.group_errors(groups)
    a, b = (spearmanr(results["exact"], other).statistic for other in (results["reduced"], surrogate))
    times = results["exact s"] / results["reduced s"]
    print(f"| {name} | {size} | {a:.3f} | {b:.3f} | {times:.1f} |", flush=True)


def main() -> None:
    checkpoint = Checkpoint.open("demo")
    architecture = Architecture.of(checkpoint.config)
    print("| layer | heads in a group | reduced | surrogate | exact time / reduced |\n| --- | --- | --- | --- | --- |")
    for layer in range(architecture.layers):
        inputs = AssumedInputs.from_norm(*architecture.norm(checkpoint, layer), architecture.hidden_size)
        for size in (4, 8):
            compare(f"in the box, {layer}", architecture.read(checkpoint, layer), inputs, size, size * 16)
    g = torch.Generator().manual_seed(0)
    falling = torch.logspace(0, -1, 1024)  # spectra fall as in real projections
    q, k, v = (torch.randn(32, 128, 1024, generator=g) * falling for _ in range(3))
    o = torch.randn(1024, 32, 128, generator=g)
    planes = torch.stack([torch.arange(64), torch.arange(64) + 64], -1)
    inputs = AssumedInputs.from_norm(None, None, 1024)
    compare("random, heads of 128", Attention(q, k, v, o, planes=planes), inputs, 8, 256)


if __name__ == "__main__":
    main()
