"""Expected hours of refinement on many GPUs, by a small model fitted to what one and two GPUs took.

    python bench/scale.py                      # on H200 of one host each, hosts joined by 50 GB/s for each GPU
    python bench/scale.py --between 12.5       # hosts joined by 100 Gbit/s for each GPU

A layer takes C/N + F seconds on N GPUs: C is the part that the windows of a step share out, F the rest (updates of
weights, and whatever of the sums is not hidden by the backward pass). Both follow from two measurements of
bench/refinement.py (docs/performance.md). Between hosts the gradients of a step, 2 bytes a weight, must travel: what
takes longer than the backward pass, two thirds of a step, comes on top. Layers of a 405B are taken as those of a 70B,
larger by their weights.
"""

import argparse
from dataclasses import dataclass

from measured import report

STEPS = 967  # of refinement on 393,216 tokens
IN_HOST = 8  # GPUs


@dataclass(frozen=True)
class Layer:
    """Seconds of one layer on one GPU and on two, by 393,216 tokens; its weights; the model's layers."""

    model: str
    one: float
    two: float
    weights: float
    layers: int

    @property
    def shared(self) -> float:
        return 2 * (self.one - self.two)

    @property
    def rest(self) -> float:
        return self.one - self.shared

    def larger(self, model: str, weights: float, layers: int) -> "Layer":
        times = weights / self.weights
        return Layer(model, times * self.one, times * self.two, weights, layers)

    def seconds(self, gpus: int, between: float) -> float:
        """Seconds on `gpus` GPUs. between: bytes a second for each GPU from host to host."""
        computed = self.shared / gpus
        if gpus <= IN_HOST:
            return computed + self.rest
        travelling = STEPS * 2 * 2 * self.weights / IN_HOST / between  # each GPU carries its share of its host's sums
        return computed + self.rest + max(0.0, travelling - 2 / 3 * computed)


SEVEN = Layer("7B", 34.5 / 2, 21.6 / 2, 0.185e9, 32)
SEVENTY = Layer("70B", 2 * 40.8, 2 * 30.4, 0.84e9, 80)  # half of the tokens were measured
MODELS = (SEVEN, SEVENTY, SEVENTY.larger("405B", 3.2e9, 126))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--between", type=float, default=50.0, help="GB a second for each GPU from host to host")
    args = parser.parse_args()
    rows = []
    for of in MODELS:
        hours = {f"{n} GPUs": of.layers * of.seconds(n, args.between * 1e9) / 3600 for n in (1, 2, 8, 64)}
        sent = 2 * of.weights / 1e9
        told = {name: round(value, 2) for name, value in hours.items()}
        rows.append({"model": of.model, "GB that a step sends": round(sent, 1), **told})
    report("scale", rows)


if __name__ == "__main__":
    main()
