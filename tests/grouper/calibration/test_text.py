"""Windows of text, spread and held out."""

from types import SimpleNamespace

import pytest
import torch

from grouper import Checkpoint, GrouperError
from grouper.calibration.calibration import Calibration
from grouper.calibration.examples import Examples
from grouper.calibration.source import TextSource
from grouper.calibration.text import check_known, digest, shuffled_passes, spread, windows
from grouper.regroup import Regrouper


def test_windows_are_spread_over_the_whole_text():
    every = torch.arange(10)[:, None]
    assert spread(every, 4).flatten().tolist() == [0, 3, 6, 9] and spread(every, 1).flatten().tolist() == [0]
    assert spread(every, 10) is every and spread(every, 99) is every


def test_what_is_held_out_was_not_calibrated_on(reader, text):
    regrouper = Regrouper(Checkpoint.open(reader), Calibration(TextSource(str(text)), 2048, 128))
    seen = {tuple(row) for row in regrouper.windows(2048).tolist()}
    held_out = [tuple(row) for row in regrouper.held_out(1024).tolist()]
    every = {tuple(row) for row in regrouper.every_window.tolist()}
    assert len(seen) == 16 and len(held_out) == 8 and not seen & set(held_out) and set(held_out) <= every
    greedy = Regrouper(Checkpoint.open(reader), Calibration(TextSource(str(text)), 10**9, 128))
    with pytest.raises(GrouperError, match="no text left to judge merges on"):
        greedy.held_out(1024)


def test_what_is_held_out_is_spread_over_the_rest():
    """Moments see windows 0 and 9; of the eight others, two: the first and the last."""
    regrouper = Regrouper.__new__(Regrouper)
    regrouper.calibration = Calibration(TextSource("demo"), 8, 4)
    vars(regrouper)["every_window"] = torch.arange(40).view(10, 4)
    assert regrouper.held_out(8)[:, 0].tolist() == [4, 32]


class Words:
    """A tokenizer that numbers letters; 0 begins what is tokenized with special tokens, 9 ends a document."""

    eos_token_id: int | None = 9

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict:
        return {"input_ids": [0] * add_special_tokens + [ord(c) - 96 for c in text]}


def documents(*texts: str):
    return SimpleNamespace(documents=lambda tokenizer: list(texts), name="text.txt")


def test_documents_stand_end_to_end():
    """Begun once, an end behind each; the last half of a window is left out."""
    source, words = documents("abc", "de", "f"), Words()
    assert windows(source, words, 3).tolist() == [[0, 1, 2], [3, 9, 4], [5, 9, 6]]
    assert windows(source, words, 3, 2).tolist() == [[0, 1, 2], [5, 9, 6]], "spread"
    words.eos_token_id = None
    assert windows(source, words, 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(GrouperError, match="text.txt has 7 tokens, too few for one window of 8"):
        windows(source, words, 8)
    for size, limit in ((1, None), (3, 0)):
        with pytest.raises(GrouperError, match="expected at least 2 tokens and 1 window"):
            windows(source, words, size, limit)


def test_a_token_just_beyond_the_vocabulary_is_refused():
    checkpoint = SimpleNamespace(config={"model_type": "llama", "vocab_size": 5}, name="model")
    check_known(checkpoint, torch.tensor([[0, 4]]))
    with pytest.raises(GrouperError, match="gives token 5, and the model knows 5"):
        check_known(checkpoint, torch.tensor([[0, 5]]))


def test_passes_follow_one_another_each_over_all_windows():
    order = shuffled_passes(5, 3, 4, 0).flatten().tolist()
    assert len(order) == 12 and sorted(order[:5]) == sorted(order[5:10]) == list(range(5)) and len(set(order[10:])) == 2
    assert order[:5] != order[5:10]


def test_texts_and_examples_have_names_by_what_they_hold():
    tokens = torch.arange(6)
    assert digest(tokens) == digest(tokens.int()) != digest(tokens + 1)
    assert digest(Examples({"x": tokens})) != digest(Examples({"y": tokens}))
