"""What the merged model loses, with the layers before as they were found."""

import numpy as np
import pytest

from grouper import Checkpoint, LayerLayout
from grouper.attention import MergedLayer
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.compress import Regrouper
from grouper.evaluation.perplexity import nll
from grouper.merging import MEAN
from search.methods.candidate import Candidate
from search.methods.loss_oracle import MergedLoss


def test_a_step_is_judged_with_the_layers_before_it_in_their_groups_of_the_same_count(reader, text, monkeypatch):
    monkeypatch.setattr("search.methods.loss_oracle.HELD_OUT", 512)
    regrouper = Regrouper(Checkpoint.open(reader), Calibration(TextSource(str(text)), 2048, 128))
    before = {2: LayerLayout.from_labels([0, 1] * 4), 4: LayerLayout.from_labels([0, 1, 2, 3] * 2)}
    rows = np.array([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 1, 1, 1, 1, 1, 1]])

    def merged(layer: int, layout: LayerLayout) -> MergedLayer:
        return MergedLayer(MEAN.merge(regrouper.architecture.read(regrouper.checkpoint, layer), layout))

    windows = regrouper.held_out(512)
    expected, without = [], []
    for row in rows:
        layouts = {0: before[len(set(row.tolist()))], 1: LayerLayout.from_labels(row.tolist())}
        with regrouper.model.installed(layouts, lambda i, at=layouts: merged(i, at[i])) as model:
            expected.append(nll(model, windows))
        with regrouper.model.installed({1: layouts[1]}, lambda i, at=layouts: merged(i, at[i])) as model:
            without.append(nll(model, windows))
    original = nll(regrouper.model.model, windows)
    with MergedLoss(regrouper) as loss:
        judge = loss.judge(1, [[Candidate(layout, 0.0) for layout in before.values()]])
        other = loss.judge(0, [])
        assert judge(rows) == pytest.approx(expected, rel=1e-6) and judge(rows) != pytest.approx(without, rel=1e-4)
        alone = other(rows[:1])[0]
        assert judge(rows[:1]) == pytest.approx(expected[:1], rel=1e-6), "judges may take turns"
    assert nll(regrouper.model.model, windows) == original, "and leave the model as it was"
    with regrouper.model.installed(
        {0: LayerLayout.from_labels(rows[0].tolist())}, lambda i: merged(i, LayerLayout.from_labels(rows[0].tolist()))
    ) as model:
        assert alone == pytest.approx(nll(model, windows), rel=1e-6)
