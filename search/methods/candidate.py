"""One way to group one layer's KV heads: a layout, with what it costs."""

from dataclasses import dataclass

from grouper.layout import LayerLayout


@dataclass(frozen=True)
class Candidate:
    """error: the fitness. k_error: what of it is K's, where the fitness says."""

    layout: LayerLayout
    error: float
    k_error: float | None = None

    @property
    def kv_heads(self) -> int:
        """K heads."""
        return self.layout.k.kv_heads

    @property
    def counts(self) -> set[int]:
        """Its numbers of K and V heads."""
        return {self.layout.k.kv_heads, self.layout.v.kv_heads}


def best_per_size(candidates: list[Candidate]) -> dict[int, Candidate]:
    """The cheapest candidate for each number of K heads plus V heads; ties go to the smaller labels, so that the choice
    is reproducible."""
    best: dict[int, Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: (c.layout.cached_heads, c.error, c.layout.k.labels.tolist())):
        best.setdefault(candidate.layout.cached_heads, candidate)
    return best
