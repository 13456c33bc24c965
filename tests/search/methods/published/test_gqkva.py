"""Grids of query groups and KV groups."""

from itertools import permutations

import numpy as np
import pytest
from random_tables import random_pairs
from tiny_models import edit_weights, logits

from grouper import Checkpoint, GrouperError, Grouping, HeadLayout, LayerLayout, export
from search import SearchOptions, search
from search.methods.published import gqkva
from search.methods.published.gqkva import best_grid, grid_crossover, improved_grids
from search.options import GeneticOptions


def test_the_grid_search_finds_the_best_grid():
    queries, kv = random_pairs(0, 6, 60), random_pairs(1, 6, 60)
    every = np.array(list(permutations(range(6))))
    for columns in (2, 3):
        least = (queries.errors(every // columns) + kv.errors(every % columns)).min()
        place = best_grid(queries, kv, columns, np.random.default_rng(0), GeneticOptions())[None]
        assert np.isclose((queries.errors(place // columns) + kv.errors(place % columns))[0], least)


def test_a_planted_grid_goes_out_without_loss_and_with_fewer_queries(reader, tmp_path, prompt):
    q, kv = [0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 1, 1, 1, 1, 0, 0]

    def plant(tensors):
        for layer in range(3):
            for kind, labels in (("q", q), ("k", kv), ("v", kv)):
                name = f"model.layers.{layer}.self_attn.{kind}_proj.weight"
                heads = tensors[name].view(8, 16, -1)
                tensors[name] = heads[[labels.index(g) for g in labels]].flatten(0, 1).contiguous()

    folder = edit_weights(reader, tmp_path / "planted", plant)
    layer = LayerLayout(Grouping.from_labels(kv), Grouping.from_labels(kv), Grouping.from_labels(q))
    layout = HeadLayout((layer,) * 3, 8, 8, 16)
    assert HeadLayout.from_json(layout.to_json()) == layout and layout.only_mean and layout.export_class == "ragged"
    export(folder, layout, tmp_path / "out")
    assert (logits(tmp_path / "out", prompt) - logits(folder, prompt)).abs().max() < 1e-4
    assert Checkpoint.open(tmp_path / "out").tensors["model.layers.1.self_attn.q_proj.weight"].shape[0] == 4 * 16


def test_gqkva_asks_for_a_multi_head_model(models, tmp_path):
    with pytest.raises(GrouperError, match="multi-head"):
        search(models("llama", heads=8, kv_heads=4), tmp_path / "run", SearchOptions(("gqkva",), "weight"))


def test_no_swap_betters_an_improved_grid():
    """Of both errors together: either alone would leave some."""
    queries, kv = random_pairs(2, 6, 60), random_pairs(3, 6, 60)
    places = np.random.default_rng(0).permuted(np.tile(np.arange(6), (12, 1)), axis=1)

    def cost(rows: np.ndarray) -> np.ndarray:
        return queries.errors(rows // 3) + kv.errors(rows % 3)

    better = improved_grids(queries, kv, 3, places)
    assert (cost(better) <= cost(places) + 1e-9).all() and (cost(better) < cost(places) - 1e-3).any()
    for row in better:
        for a in range(6):
            for b in range(a):
                swapped = row.copy()
                swapped[a], swapped[b] = row[b], row[a]
                assert cost(swapped[None])[0] >= cost(row[None])[0] - 1e-9


def test_crossover_keeps_places_and_takes_the_second_parents_order():
    rng = np.random.default_rng(1)
    first, second = (rng.permuted(np.tile(np.arange(8), (50, 1)), axis=1) for _ in range(2))
    children = grid_crossover(rng, first, second)
    assert (np.sort(children, axis=1) == np.arange(8)).all()
    for child, mother, father in zip(children, first, second):
        moved = np.flatnonzero(child != mother)
        assert (np.argsort(child[moved]) == np.argsort(father[moved])).all()
    assert 0.2 < (children != first).mean() < 0.5


def test_the_best_grid_of_all_generations_is_kept(monkeypatch):
    grids = np.array([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])

    def generations(*_):
        yield grids[:1], np.array([[2.0, 1.0]])
        yield grids[1:], np.array([[2.0, 3.0]])

    monkeypatch.setattr(gqkva, "evolve", generations)
    found = best_grid(random_pairs(0, 6), random_pairs(1, 6), 2, np.random.default_rng(0), GeneticOptions())
    assert found.tolist() == [0, 1, 2, 3, 4, 5]
