"""Candidate: one grouping of one layer's KV heads as a layout, with its error."""

from dataclasses import dataclass

from grouper.layout import LayerLayout


@dataclass(frozen=True)
class Candidate:
    """A layout of one layer. error: by the fitness. k_error: K's part of it, if the fitness gives one."""

    layout: LayerLayout
    error: float
    k_error: float | None = None

    @property
    def kv_heads(self) -> int:
        """Number of K heads."""
        return self.layout.k.kv_heads

    @property
    def counts(self) -> set[int]:
        """Numbers of K heads and of V heads."""
        return {self.layout.k.kv_heads, self.layout.v.kv_heads}


def best_per_size(candidates: list[Candidate]) -> dict[int, Candidate]:
    """The candidate of lowest error for each number of K heads plus V heads. Ties go to the smaller labels, so that the
    choice is reproducible."""
    best: dict[int, Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: (c.layout.cached_heads, c.error, c.layout.k.labels.tolist())):
        best.setdefault(candidate.layout.cached_heads, candidate)
    return best
