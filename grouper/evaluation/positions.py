"""Bands of positions within a window: what a model loses far behind a window's begin is told apart from what it loses
there."""

FIRST = 256  # positions of the first band; each later one ends where twice as many are behind it
DIVIDED = 1024  # tokens of the shortest windows that are told band by band


def bands(window: int) -> list[tuple[int, int]]:
    """(first position, the one after its last) of each band; none of short windows. A position's loss is that of the
    token after it, so the window's last one has none.

    >>> bands(4096)
    [(0, 256), (256, 512), (512, 1024), (1024, 2048), (2048, 4096)]
    >>> bands(1200), bands(512)
    ([(0, 256), (256, 512), (512, 1024), (1024, 1200)], [])
    """
    if window < DIVIDED:
        return []
    ends = [FIRST]
    while ends[-1] < window:
        ends.append(2 * ends[-1])
    return list(zip([0, *ends], [*ends[:-1], window]))


def column_at(column: str, band: tuple[int, int]) -> str:
    """The column of a band.

    >>> column_at("nll", (256, 512))
    'nll@256-512'
    """
    return f"{column}@{band[0]}-{band[1]}"
