"""Bands of positions within a window. Losses are reported by band, since a model may lose more at late positions than
at early ones."""

FIRST = 256  # positions in the first band; each later band ends at twice the position where it begins
DIVIDED = 1024  # shortest window, in tokens, that is reported by band


def bands(window: int) -> list[tuple[int, int]]:
    """Bands of a window, as (first position, position after the last); an empty list for short windows. The loss at
    a position is that of predicting the next token, so the last position of a window has no loss.

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
    """Name of a band's column.

    >>> column_at("nll", (256, 512))
    'nll@256-512'
    """
    return f"{column}@{band[0]}-{band[1]}"
