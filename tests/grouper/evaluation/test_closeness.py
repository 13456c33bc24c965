"""Standard errors and means of several texts, by hand. That values are right in every family, in memory and streamed,
is tested in tests/grouper/running/test_streamed.py."""

import math

import numpy as np
import pytest
import torch
from rank_threads import side_by_side

from grouper import Checkpoint, HeadLayout
from grouper.compress import Regrouper
from grouper.evaluation import closeness
from grouper.evaluation.closeness import Original, closeness_of
from grouper.evaluation.perplexity import nll
from grouper.merging import MEAN
from grouper.ranks import ALONE, Ranks
from grouper.running.in_memory import InMemoryModel
from grouper.running.walk import Step

WINDOWS = torch.randint(3, 190, (6, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def measured(models):
    checkpoint = Checkpoint.open(models("llama"))
    model = InMemoryModel(checkpoint)
    layout = HeadLayout.from_labels([[0, 0, 1, 1, 2, 2, 3, 3]] * 3, 8, 16)
    return model, layout, Regrouper(checkpoint).merged(layout, MEAN), Original.of(model, WINDOWS)


def test_errors_are_over_windows_and_of_the_difference_to_the_original(measured):
    model, layout, merged, original = measured
    found = closeness_of(model, original, layout, merged)
    with model.installed(layout, merged) as installed:
        each = np.array([nll(installed, window[None]) for window in WINDOWS])
    before = np.array([nll(model.model, window[None]) for window in WINDOWS])
    assert original.found["nll"] == pytest.approx(before, rel=1e-4)
    over = each - before
    assert found["nll"] == pytest.approx(each.mean(), rel=1e-5)
    assert found["nll_se"] == pytest.approx(math.sqrt(((over - over.mean()) ** 2).sum() / 5 / 6), rel=1e-3)
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]))
    assert 0 < found["kl_se"] < found["kl"] and 0 < found["agreement"] < 1


def test_the_original_is_itself(measured):
    model, _, _, original = measured
    alone = HeadLayout.ungrouped(3, 8, 8, 16)
    found = closeness_of(model, original, alone, Regrouper(model.checkpoint).merged(alone, MEAN))
    assert found["kl"] == pytest.approx(0, abs=1e-6) and found["agreement"] == 1 and found["nll_se"] < 1e-6
    itself = original.columns
    assert (itself["kl"], itself["agreement"], itself["nll_se"]) == (0, 1, 0)
    assert itself["nll"] == pytest.approx(found["nll"], rel=1e-6)


def test_batches_change_nothing(measured, monkeypatch):
    model, layout, merged, original = measured
    one = closeness_of(model, original, layout, merged)
    monkeypatch.setattr("grouper.evaluation.perplexity.BATCH_TOKENS", (24, 24))
    other = closeness_of(model, Original.of(model, WINDOWS), layout, merged)
    assert (one["nll"], one["kl"], one["kl_se"]) == pytest.approx((other["nll"], other["kl"], other["kl_se"]), rel=1e-4)


@pytest.mark.parametrize("size", [2, 4, 7], ids="{} ranks".format)
def test_ranks_find_what_one_finds(models, monkeypatch, size):
    """To the bit, each on its share of six parts; of seven ranks one has none."""
    monkeypatch.setattr("grouper.evaluation.perplexity.BATCH_TOKENS", (24, 24))
    layout = HeadLayout.from_labels([[0, 0, 1, 1, 2, 2, 3, 3]] * 3, 8, 16)
    checkpoint, walked, through = Checkpoint.open(models("llama")), [], Step.through
    # one each, made one by one: transformers changes its classes while it loads, which no threads may do at once
    each = [InMemoryModel(checkpoint) for _ in range(size)]

    def counted(self, module, number, dtype=torch.float32):
        walked.append(number)
        return through(self, module, number, dtype)

    monkeypatch.setattr(Step, "through", counted)

    def work(ranks: Ranks = ALONE):
        model, merged = each[ranks.rank], Regrouper(checkpoint).merged(layout, MEAN)
        original = Original.of(model, WINDOWS, ranks=ranks)
        return original.columns, closeness_of(model, original, layout, merged, ranks=ranks), original.stream

    columns, found, stream = work()
    alone = len(walked)
    walked.clear()
    for of_rank in side_by_side(size, work):
        assert of_rank[:2] == (columns, found) and torch.equal(of_rank[2], stream)
    assert len(walked) == alone, "nothing is computed twice"


def test_a_single_window_has_no_error(measured):
    model, layout, merged, _ = measured
    found = closeness_of(model, Original.of(model, WINDOWS[:1]), layout, merged)
    assert math.isnan(found["nll_se"]) and math.isnan(found["kl_se"]) and found["kl"] > 0


def test_long_windows_are_told_band_by_band(measured, monkeypatch):
    """By another way: losses of every position of every window, one window at a time."""
    monkeypatch.setattr(closeness, "bands", lambda window: [(0, 8), (8, 16), (16, window)])
    model, layout, merged, _ = measured
    original = Original.of(model, WINDOWS)
    found = closeness_of(model, original, layout, merged)

    def losses(of) -> np.ndarray:
        with torch.no_grad():
            logits = of(input_ids=WINDOWS).logits[:, :-1].log_softmax(-1)
        return -logits.gather(-1, WINDOWS[:, 1:, None])[..., 0].double().numpy()  # [6, 23]

    before = losses(model.model)
    with model.installed(layout, merged) as installed:
        after = losses(installed)
    for name, part in {"0-8": slice(0, 8), "8-16": slice(8, 16), "16-24": slice(16, 23)}.items():
        over = (after - before)[:, part].mean(1)
        error = math.sqrt(((over - over.mean()) ** 2).sum() / 5 / 6)
        assert found[f"nll@{name}"] == pytest.approx(after[:, part].mean(), rel=1e-3)
        assert found[f"nll_se@{name}"] == pytest.approx(error, rel=1e-3)
        assert original.columns[f"nll@{name}"] == pytest.approx(before[:, part].mean(), rel=1e-4)
        assert original.columns[f"nll_se@{name}"] == 0
