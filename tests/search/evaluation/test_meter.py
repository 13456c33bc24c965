"""Columns of measurements, and what a row lacks."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from grouper import GrouperError
from grouper.calibration.source import TextSource
from grouper.calibration.text import digest
from grouper.evaluation.tasks import TaskOptions
from search.evaluation.layouts import measuring_of
from search.evaluation.meter import Meter, in_memory, on_texts
from search.options import COMPUTING

A = {"nll": 2.0, "perplexity": math.exp(2), "nll_se": 0.3, "kl": 0.5, "kl_se": 0.03, "agreement": 0.9,
     "agreement_se": 0.003}  # fmt: skip
B = {"nll": 4.0, "perplexity": math.exp(4), "nll_se": 0.4, "kl": 1.5, "kl_se": 0.04, "agreement": 0.5,
     "agreement_se": 0.004}  # fmt: skip


def test_columns_of_texts():
    """One alone needs no name unless it was given one; of several the mean, their errors independent."""
    assert on_texts({}) == {} and on_texts({"": A})["nll"] == 2 and ":" not in "".join(on_texts({"": A}))
    assert on_texts({"": A})["perplexity"] == pytest.approx(math.exp(2))
    assert on_texts({"wiki": A})["nll:wiki"] == on_texts({"wiki": A})["nll"] == 2
    both = on_texts({"wiki": A, "code": B})
    wanted = {"nll": 3, "nll_se": 0.25, "kl": 1, "kl_se": 0.025, "agreement": 0.7, "agreement_se": 0.0025}
    assert {n: both[n] for n in wanted} == pytest.approx(wanted) and both["perplexity"] == pytest.approx(math.exp(3))
    assert (both["kl:code"], both["agreement_se:wiki"], both["perplexity:code"]) == (1.5, 0.003, math.exp(4))


def test_columns_of_encoders():
    one, two = {"nll": 2.0, "perplexity": 1.0, "accuracy": 0.5}, {"nll": 4.0, "perplexity": 1.0, "accuracy": 0.25}
    both = on_texts({"a": one, "b": two})
    assert (both["accuracy"], both["accuracy:b"], both["nll:b"]) == (0.375, 0.25, 4.0)
    assert "perplexity" not in on_texts({"a": {"cosine": 1.0}, "b": {"cosine": 0.5}})


@pytest.mark.parametrize(
    ("row", "texts", "tasks", "missing"),
    [
        ({"nll": 1.0, "kl": 0.1}, {"": None}, (), False), ({"nll": 1.0}, {"": None}, (), True),
        ({"nll": 1.0, "kl": np.nan}, {"": None}, (), True), ({"nll": np.nan}, {}, (), False),
        ({"cosine": 0.9}, {"": None}, (), False), ({"cosine": np.nan, "accuracy": 0.5}, {"": None}, (), True),
        ({"piqa,acc": np.nan, "piqa,acc_norm": 0.5, "boolq,acc": 0.5}, {}, ("piqa", "boolq"), False),
        ({"piqa,acc": 0.5, "boolq,acc": np.nan}, {}, ("piqa", "boolq"), True),
        ({"piqa,acc": 0.5}, {}, ("piqa", "boolq"), True), ({"piqa2,acc": 0.5}, {}, ("piqa",), True),
    ],
)  # fmt: skip
def test_what_a_row_lacks(row, texts, tasks, missing):
    meter = Meter(None, texts, TaskOptions(tasks) if tasks else None, COMPUTING)
    assert meter.is_missing(row) == missing


def test_a_model_that_is_streamed_is_told_to_need_its_size_in_float32():
    streamed = SimpleNamespace(checkpoint=SimpleNamespace(parameters=7_000_000_000))
    with pytest.raises(GrouperError, match=r"in memory, 28\.0 GB"):
        in_memory(streamed)


def test_what_was_measured_on_is_told_by_name_tokens_and_shape():
    a, b = torch.arange(128).view(2, 64), torch.arange(96).view(3, 32)
    one = measuring_of(TextSource("a.txt", purpose="evaluation"), {"": a}, None, COMPUTING, ("mean.x=1",))
    assert (one.digest, one.windows, one.dtype, one.set) == (digest(a), (2, 64), "float32", ("mean.x=1",))
    sources = {"x": TextSource("a.txt"), "y": TextSource("b.txt")}
    two = measuring_of(sources, {"x": a, "y": b}, TaskOptions(("piqa",), limit=5), COMPUTING, ())
    assert (two.digest, two.windows) == (f"x={digest(a)} y={digest(b)}", ([2, 64], [3, 32]))
    assert two.tasks == {"limit": 5, "few_shot": TaskOptions(("piqa",)).few_shot} and two.text.startswith("x=")
    none = measuring_of(None, {}, TaskOptions(("piqa",)), COMPUTING, ())
    assert (none.text, none.digest, none.windows) == (None, None, None) and none.tasks["limit"] is None
