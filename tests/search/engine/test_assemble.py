"""From layers to models, in every stage 2."""

import numpy as np
import pytest
from random_tables import random_pairs, task_of

from grouper import Architecture, Grouping, LayerLayout
from search.engine.assemble import assemble_layouts, budgets
from search.methods.candidate import Candidate, best_per_size
from search.methods.registry import METHODS
from search.options import GeneticOptions, SearchOptions

ARCHITECTURE = Architecture.of(
    {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 9}
)
NAMES = ("neighbour", "random", "exact", "ward")


@pytest.fixture(scope="module")
def found() -> list[dict[str, list[Candidate]]]:
    layers = []
    for layer in range(3):
        task = task_of(random_pairs(layer, 4))
        rng = np.random.default_rng(layer)
        layers.append({n: METHODS[n].search_layer(task, rng, GeneticOptions()) for n in NAMES})
    return layers


def candidate(labels: list[int], error: float) -> Candidate:
    return Candidate(LayerLayout.from_labels(labels), error)


def test_equal_layouts_stand_once_and_name_all_methods_that_came_to_them(found):
    options = SearchOptions(method=("exact", "ward"), fitness="weight")
    methods = [METHODS[n] for n in ("exact", "ward", "neighbour", "random")]
    scored = assemble_layouts(found, ARCHITECTURE, options, methods)
    searched = [s for s in scored if s.method not in ("neighbour", "random")]
    assert len({s.layout for s in searched}) == len(searched) and scored[0].method == "original"
    one = next(s for s in searched if s.layout.kv_heads == ("1", "1", "1"))
    assert one.method == "exact" and one.also_found_by == ["ward"], "there is one way to share one head"
    assert scored[0].also_found_by == [], "the original was not found"
    sizes = [s.layout.cached_heads for s in scored]
    assert sizes == sorted(sizes, reverse=True)


def test_the_papers_stage_2_hands_over_every_count():
    """With errors that fall with the count, runs from each count leave mixtures of that count and whole layers."""
    layer = {2 * k: candidate([min(i, k - 1) for i in range(4)], error) for k, error in ((1, 3.0), (2, 1.0), (3, 0.5))}
    layer[8] = candidate([0, 1, 2, 3], 0.0)
    options = SearchOptions(stage2="nsga2", generations=30)
    chosen = budgets([layer] * 3, ARCHITECTURE, options, "qcqa-ac")
    assert {frozenset(choice) for choice in chosen} >= {frozenset({2, 8}), frozenset({4, 8}), frozenset({6, 8})}
    assert all(len(set(choice) - {8}) <= 1 for choice in chosen)


def test_the_best_of_each_size_is_the_cheapest_and_ties_go_to_smaller_labels():
    rows = [([0, 1, 1, 1], 2.0), ([0, 1, 0, 1], 1.0), ([0, 0, 1, 1], 1.0), ([0, 0, 0, 0], 4.0)]
    best = best_per_size([candidate(row, error) for row, error in rows])
    assert {size: c.layout.k.labels.tolist() for size, c in best.items()} == {2: [0, 0, 0, 0], 4: [0, 0, 1, 1]}


def test_counts_that_are_not_asked_for_are_left_out(found):
    options = SearchOptions(method=("exact",), fitness="weight", kv_heads_multiple_of=2)
    scored = assemble_layouts(found, ARCHITECTURE, options, [METHODS["exact"]])
    assert {k for s in scored for k in s.layout.kv_heads} == {"2", "4"}


def test_both_k_and_v_keep_to_the_multiples_asked_for():
    two, three = Grouping.from_labels([0, 0, 1, 1]), Grouping.from_labels([0, 0, 1, 2])
    found = [{"separate": [Candidate(LayerLayout(two, three), 1.0), Candidate(LayerLayout.shared(two), 2.0)]}] * 3
    options = SearchOptions(method=("separate",), fitness="weight", kv_heads_multiple_of=2)
    layouts = assemble_layouts(found, ARCHITECTURE, options, [METHODS["separate"]])
    assert {count for scored in layouts for count in scored.layout.kv_heads} == {"2", "4"}


def test_the_best_equal_groups_stand_beside_the_best_of_any_size():
    rows = (([0, 0, 0, 1], 1.0), ([0, 0, 1, 1], 2.0))
    found = [{"exact": [Candidate(LayerLayout.from_labels(row), error) for row, error in rows]}] * 3
    options = SearchOptions(method=("exact",), fitness="weight", stage2="none")
    layouts = assemble_layouts(found, ARCHITECTURE, options, [METHODS["exact"]])
    assert [(s.layout.export_class, s.error) for s in layouts] == [("stock", 0.0), ("padded", 3.0), ("stock", 6.0)]


def test_a_method_that_found_nothing_in_a_layer_leaves_no_layout_behind():
    options = SearchOptions(method=("exact",), fitness="weight")
    found = [{"exact": []}, {}, {"exact": []}]
    assert [s.method for s in assemble_layouts(found, ARCHITECTURE, options, [METHODS["exact"]])] == ["original"]
