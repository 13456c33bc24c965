"""Allocation of query heads to KV heads, in proportion to given shares (DGQA, arXiv 2408.08454)."""

import numpy as np


def allocate(shares: np.ndarray, queries: int) -> list[int]:
    """Numbers of query heads in proportion to `shares`, at least one each, `queries` in total. Shares are rounded; then
    the largest number is lowered or the smallest raised by one until the sum is right."""
    total = shares.sum()
    even = np.full(len(shares), 1 / len(shares))
    wanted = queries * (shares / total if total > 0 and np.isfinite(total) else even)
    sizes = np.maximum(np.round(wanted).astype(int), 1)
    while sizes.sum() > queries:
        sizes[sizes.argmax()] -= 1
    while sizes.sum() < queries:
        sizes[sizes.argmin()] += 1
    return sizes.tolist()
