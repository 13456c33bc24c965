"""Names of columns."""

import pytest

from search.runs.columns import JUDGES, SE, called, error_of


@pytest.mark.parametrize(
    ("column", "error"),
    [
        ("nll", "nll_se"), ("kl:wiki", "kl_se:wiki"), ("piqa,acc", "piqa,acc_stderr"),
        ("gsm8k,exact_match,strict-match", "gsm8k,exact_match_stderr,strict-match"),
    ],
)  # fmt: skip
def test_errors_are_told_from_what_they_are_of(column, error):
    assert error_of(column) == error and SE.search(error) and not SE.search(column)


def test_people_read_words():
    assert called("kl") == "KL to the original" and called("nll:wiki") == "nats per token, wiki"
    assert called("piqa,acc") == "piqa,acc" and called("nll_stderrs") == "nll_stderrs"
    assert list(JUDGES.items()) == [("nll", 1), ("cosine", -1), ("kl", 1)], "the first that was measured"
