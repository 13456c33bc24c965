"""What proxies are worth, by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_up_runs import OWN, made_up_run, of_encoder, scored
from random_layers import random_attention, random_moments
from scipy.stats import kendalltau, spearmanr

from fitness import FITNESSES
from grouper import GrouperError, Grouping, HeadLayout, LayerLayout
from search.evaluation import proxies


class OneLayer:
    """As much of a Regrouper as proxies ask of one."""

    device, checkpoint = "cpu", None

    def __init__(self, layers: int):
        self.layers, self.architecture = layers, self
        self.each = [random_attention(seed) for seed in range(layers)]
        self.each = [
            replace(a, q=a.q[: len(a.k)], q_bias=a.q_bias[: len(a.k)], o=a.o[:, : len(a.k)]) for a in self.each
        ]

    def read(self, checkpoint, layer: int):
        return self.each[layer]

    def moments_of(self, layer: int):
        return random_moments(layer)


def test_a_proxy_is_the_error_of_k_plus_that_of_v_over_all_layers():
    """By tables of one part each; where readers move, as the fitness scores any layout."""
    regrouper = OneLayer(2)
    k, v = Grouping.from_labels([0, 0, 1, 1]), Grouping.from_labels([0, 1, 1, 1])
    moved = Grouping(((0,), (1, 2, 3)), ((0, 1), (2, 3)))
    kinds = {0: LayerLayout.shared(k), 1: LayerLayout(k, v), 2: LayerLayout.shared(moved)}
    layouts = {number: HeadLayout((one, kinds[0]), 4, 4, 6) for number, one in kinds.items()}
    found = proxies.fitness_errors(layouts, regrouper, FITNESSES)
    assert set(found) == set(FITNESSES)
    for name, fitness in FITNESSES.items():

        def error(layer: int, part: str, labels: list[int], fitness=fitness) -> float:
            tables = fitness.tables(regrouper.read(None, layer), random_moments(layer), part=part)
            return float(tables.errors(np.array([labels]))[0])

        second = error(1, "k", [0, 0, 1, 1]) + error(1, "v", [0, 0, 1, 1])
        first = error(0, "k", [0, 0, 1, 1])
        wanted = {
            0: first + error(0, "v", [0, 0, 1, 1]), 1: first + error(0, "v", [0, 1, 1, 1]),
            2: fitness.error_of_any_layout(regrouper.read(None, 0), kinds[2], random_moments(0)),
        }  # fmt: skip
        assert found[name] == pytest.approx({n: value + second for n, value in wanted.items()}, rel=1e-6), name


def test_ranks_are_compared_at_one_size_and_merge(tmp_path, monkeypatch):
    """Five at a half under the mean, five at a quarter, four refined; the original and what was not measured do not
    count, and a layout that stands twice counts once."""
    generator = np.random.default_rng(0)
    layouts = [
        ("qcqa-ac", float(i), generator.permutation([0, 0, 0, 0, 1, 1, 1, 1] if i < 7 else [0] * 7 + [1]))
        for i in range(12)
    ]
    eight = [("original", 0.0, range(8)), *layouts]
    rows = scored(*[(m, e, g if i < 8 else np.zeros(8, int)) for i, (m, e, g) in enumerate(eight)], query_heads=8)
    nll = [2.0, 3.0, 5.0, 4.0, 7.0, 6.0, np.nan, np.nan, 9.0, 8.0, 7.5, 7.0, 6.5]
    folder = made_up_run(tmp_path / "run", rows, nll=nll)
    front = folder.front()
    front.table.loc[8:12, "kv_ratio"] = 1.0  # as where nothing of a cache is grouped: the original's own
    again = front.table.iloc[[1]]
    refined = front.table.iloc[1:5].assign(merge="mean+refine")
    front.table = pd.concat([front.table, again, refined], ignore_index=True)
    proxy = {n: float((7 * n) % 5 + n / 100) for n in range(13)}
    monkeypatch.setattr(proxies, "fitness_errors", lambda layouts, *given: {"weight": {n: proxy[n] for n in layouts}})
    found = proxies.judge_proxies(folder, front, None, ())
    assert found[["merge", "kv_ratio", "layouts"]].to_numpy().tolist() == [["mean", 1.0, 5], ["mean", 0.25, 5]]
    for row, numbers in zip(found.itertuples(), (range(8, 13), range(1, 6))):
        given = [proxy[n] for n in numbers], [nll[n] for n in numbers]
        assert row.spearman == pytest.approx(spearmanr(*given).statistic)
        assert row.kendall == pytest.approx(kendalltau(*given).statistic)
    proxies.write_proxies(folder, found)
    assert proxies.read_proxies(folder.path)["layouts"].tolist() == [5, 5]
    (folder.path / "proxies.csv").write_text((folder.path / "proxies.csv").read_text().replace("weight", "spectral"))
    with pytest.raises(GrouperError, match=r"proxies.csv is damaged \(it is not .*: delete it and evaluate"):
        proxies.read_proxies(folder.path)
    proxies.write_proxies(folder, found.iloc[:0])
    assert proxies.read_proxies(folder.path) is None, "an older one would be of other rows"


def test_where_an_encoder_was_grouped_a_size_is_one_of_weights(tmp_path, monkeypatch):
    """All of these keep the whole cache; five have weights of 9 of 12 heads, one of 10."""
    two, most = [0, 0, 1, 1], [0, 0, 0, 0]
    rows = of_encoder((0.0, OWN, OWN, OWN), *[(float(i), most, OWN, OWN) for i in range(1, 6)], (6.0, two, OWN, OWN))
    folder = made_up_run(tmp_path / "run", rows, nll=[2.0, 3.0, 5.0, 4.0, 7.0, 6.0, 2.5])
    monkeypatch.setattr(proxies, "fitness_errors", lambda layouts, *given: {"weight": {n: float(n) for n in layouts}})
    found = proxies.judge_proxies(folder, folder.front(), None, ())
    assert found[["layouts", "kv_ratio"]].to_numpy().tolist() == [[5, 0.75]]
