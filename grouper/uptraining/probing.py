"""The rate of a training, found by short trainings of the same kind: what is best differs a hundredfold between models,
and one that is too high undoes what the start was good at."""

from collections.abc import Callable

FIRST = {"full": 3e-5, "lora": 3e-4}
FACTOR = 3.0  # between a rate and the next one
LOWEST, HIGHEST = 1e-7, 1e-2
SHARE, FEWEST, MOST = 0.05, 8, 24  # steps of a probe: of all, at least, at most
PROBES = 4  # that a search takes, as a rule
NEAR = 1.02  # times the best score: as good, for a longer training has more time to make up for a high rate


def probe_steps(steps: int) -> int:
    """Of one probe, for a training of so many; few of a short one.

    >>> probe_steps(366), probe_steps(128), probe_steps(20), probe_steps(4)
    (18, 8, 4, 2)
    """
    return min(MOST, max(FEWEST, round(SHARE * steps)), max(2, steps // 5))


def find_rate(score_of: Callable[[float], float], first: float) -> tuple[float, dict[float, float]]:
    """(rate, score of each rate that was tried). score_of: the smaller the better; infinite or NaN where training broke
    down. From the first rate downwards while that gets better, else upwards; the highest rate of those as good as the
    best, the lowest where all broke down."""
    tried: dict[float, float] = {}

    def score(rate: float) -> float:
        if rate not in tried:
            found = score_of(rate)
            tried[rate] = found if found == found else float("inf")
        return tried[rate]

    at = first
    score(at)
    for factor in (1 / FACTOR, FACTOR):
        while LOWEST <= at * factor <= HIGHEST and score(at * factor) <= score(at):
            at *= factor
        if at != first:
            break
    best = min(tried.values())
    if best == float("inf"):
        return min(tried), tried
    return max(rate for rate, found in tried.items() if found <= NEAR * best), tried
