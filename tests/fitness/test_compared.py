"""Two models' answers compared, by hand."""

import math

import numpy as np
import pytest
import torch

from grouper.evaluation.closeness import columns, compared, mean_of
from grouper.running.answers import pooled
from grouper.running.batch import NOT_ASKED, Batch


def batch(labels: torch.Tensor | None = None, read: torch.Tensor | None = None) -> Batch:
    """Of an encoder, as far as its answers go."""
    mask = {} if read is None else {"attention_mask": read}
    return Batch({"pixels": torch.zeros(2), **mask}, labels)


class Outputs(dict):
    """As those of transformers."""

    def __getattr__(self, name: str):
        return self[name]

    def __getitem__(self, key):
        return next(iter(self.values())) if key == 0 else super().__getitem__(key)


def outputs(**tensors: torch.Tensor) -> Outputs:
    return Outputs(tensors)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q))


FAIR, LEFT, RIGHT = [0.5, 0.5], [0.8, 0.2], [0.3, 0.7]
LOGITS = {name: torch.tensor(p).log() for name, p in (("fair", FAIR), ("left", LEFT), ("right", RIGHT))}


def logits(*names: str) -> torch.Tensor:
    return torch.stack([LOGITS[n] for n in names])


def test_classes_are_compared_by_example():
    ours, theirs = outputs(logits=logits("left", "right")), outputs(logits=logits("right", "right"))
    found = compared(ours, theirs, batch(torch.tensor([0, 0])))
    assert found["nll"].tolist() == pytest.approx([-math.log(0.8), -math.log(0.3)])
    assert found["kl"].tolist() == pytest.approx([kl(RIGHT, LEFT), 0], abs=1e-6), "of the original's to ours"
    assert found["agreement"].tolist() == [0, 1] and found["accuracy"].tolist() == [1, 0]
    assert compared(ours, theirs, batch(read=torch.ones(2, 3))).keys() == {"kl", "agreement"}


def test_of_tokens_those_that_were_asked_for_count():
    ours = outputs(logits=torch.stack([logits("left", "fair", "right"), logits("left", "left", "left")]))
    theirs = outputs(logits=torch.stack([logits("right", "right", "right"), logits("left", "left", "left")]))
    labels = torch.tensor([[1, 0, NOT_ASKED], [NOT_ASKED] * 3])
    found = compared(ours, theirs, batch(labels))
    assert found["nll"][0].item() == pytest.approx(-(math.log(0.2) + math.log(0.5)) / 2) and found["nll"][1].isnan()
    assert found["kl"][0].item() == pytest.approx((kl(RIGHT, LEFT) + kl(RIGHT, FAIR)) / 2)
    assert found["agreement"].tolist()[0] == 0 and found["kl"][1].isnan() and "accuracy" not in found
    read = torch.tensor([[True, False, True], [True, True, True]])
    found = compared(ours, theirs, batch(read=read))
    assert found["kl"].tolist() == pytest.approx([kl(RIGHT, LEFT) / 2, 0], abs=1e-6), "without labels, what is read"
    assert found["agreement"].tolist() == [0.5, 1]


def test_beginnings_and_ends_of_answers_weigh_the_same():
    ours = outputs(start_logits=logits("left"), end_logits=logits("right"))
    theirs = outputs(start_logits=logits("right"), end_logits=logits("right"))
    found = compared(ours, theirs, batch())
    assert found["kl"].item() == pytest.approx(kl(RIGHT, LEFT) / 2) and found["agreement"].item() == 0.5


def test_vectors_are_means_over_what_is_read():
    hidden = torch.tensor([[[1.0, 0.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, 3.0]]])
    read = torch.tensor([[True, False], [True, True]])
    assert pooled(hidden, read).tolist() == [[1.0, 0.0], [1.0, 2.0]] and pooled(hidden, None).tolist()[0] == [2.0, 2.0]
    other = torch.tensor([[[0.0, 1.0], [9.0, 9.0]], [[1.0, 1.0], [1.0, 3.0]]])
    ours, theirs = outputs(last_hidden_state=hidden), outputs(last_hidden_state=other)
    assert compared(ours, theirs, batch(read=read))["cosine"].tolist() == pytest.approx([0, 1])


def test_errors_are_over_examples_that_were_asked_for():
    found = {"nll": np.array([1.0, 2.0, np.nan, 4.0]), "kl": np.array([0.1, 0.2, np.nan, 0.6])}
    original = {"nll": np.array([1.0, 1.5, np.nan, 2.0]), "kl": np.zeros(4)}
    values = columns(found, original)
    assert values["nll"] == pytest.approx(7 / 3) and values["perplexity"] == pytest.approx(math.exp(7 / 3))
    differences = [0.0, 0.5, 2.0]
    deviation = math.sqrt(sum((x - 2.5 / 3) ** 2 for x in differences) / 2)
    assert values["nll_se"] == pytest.approx(deviation / math.sqrt(3)), "of the difference to the original"
    assert values["kl_se"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2) / math.sqrt(3))
    alone = columns({"kl": np.array([0.1])}, {"kl": np.array([0.0])})
    assert alone["kl"] == 0.1 and math.isnan(alone["kl_se"]) and "perplexity" not in alone
    assert math.isnan(columns({"nll": np.array([np.nan])}, original)["nll"])


def test_windows_are_asked_for_each_next_token():
    """Three tokens: the last one's answer is compared with nothing."""
    ours = outputs(logits=logits("left", "fair", "left")[None])
    theirs = outputs(logits=logits("right", "left", "right")[None])
    found = compared(ours, theirs, Batch.of(torch.tensor([[0, 1, 0]])))
    assert found["nll"].item() == pytest.approx(-(math.log(0.2) + math.log(0.5)) / 2)
    assert found["kl"].item() == pytest.approx((kl(RIGHT, LEFT) + kl(LEFT, FAIR)) / 2)
    assert found["agreement"].item() == 0.5 and found.keys() == {"nll", "kl", "agreement"}


def test_means_of_several_texts():
    """All weigh the same, errors are independent, also of bands; perplexity is that of the mean."""
    one = {"nll": 2.0, "nll_se": 0.3, "perplexity": math.exp(2), "nll@0-8": 1.0, "nll_se@0-8": 0.3}
    two = {"nll": 4.0, "nll_se": 0.4, "perplexity": math.exp(4), "nll@0-8": 3.0, "nll_se@0-8": 0.4}
    wanted = {"nll": 3.0, "nll_se": 0.25, "perplexity": math.exp(3), "nll@0-8": 2.0, "nll_se@0-8": 0.25}
    assert mean_of({"a": one, "b": two}) == pytest.approx(wanted)


def test_the_original_beside_itself_has_no_errors_but_of_what_is_right():
    found = {"nll": np.array([1.0]), "kl": np.array([0.0]), "accuracy": np.array([1.0])}
    values = columns(found, found)
    assert (values["nll_se"], values["kl_se"]) == (0, 0) and math.isnan(values["accuracy_se"])
    assert math.isnan(columns(found, dict(found))["nll_se"]), "another model's of one example is not known"
