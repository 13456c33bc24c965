"""Search for the learning rate by short trainings of the same kind. The best rate differs a hundredfold between models,
and one that is too high destroys the start's quality."""

from collections.abc import Callable

FIRST = {"full": 3e-5, "lora": 3e-4}
FACTOR = 3.0  # ratio of consecutive rates
LOWEST, HIGHEST = 1e-7, 1e-2
SHARE, FEWEST, MOST = 0.05, 8, 24  # steps of a probe: share of all steps, at least, at most
PROBES = 4  # usual number of probes in a search
NEAR = 1.02  # times the best score counts as equal, because a longer training recovers better from a high rate


def probe_steps(steps: int) -> int:
    """Steps of one probe, for a training of this many steps.

    >>> probe_steps(366), probe_steps(128), probe_steps(20), probe_steps(4)
    (18, 8, 4, 2)
    """
    return min(MOST, max(FEWEST, round(SHARE * steps)), max(2, steps // 5))


def find_rate(score_of: Callable[[float], float], first: float) -> tuple[float, dict[float, float]]:
    """Best rate, and the score of each rate that was tried. score_of: lower is better; infinite or NaN if training
    diverged. The search goes downwards from the first rate while scores improve, else upwards. It returns the highest
    rate whose score is about the best, or the lowest rate if all diverged."""
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
