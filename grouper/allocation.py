"""How many query heads each KV head gets, in proportion to something (DGQA, arXiv 2408.08454)."""

import numpy as np


def allocate(shares: np.ndarray, queries: int) -> list[int]:
    """Whole numbers of queries in proportion to `shares`, at least one each, `queries` together: rounded, then one off
    the largest or on the smallest until the sum is right."""
    total = shares.sum()
    even = np.full(len(shares), 1 / len(shares))
    wanted = queries * (shares / total if total > 0 and np.isfinite(total) else even)
    sizes = np.maximum(np.round(wanted).astype(int), 1)
    while sizes.sum() > queries:
        sizes[sizes.argmax()] -= 1
    while sizes.sum() < queries:
        sizes[sizes.argmin()] += 1
    return sizes.tolist()
