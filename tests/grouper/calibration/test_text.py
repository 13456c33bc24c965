"""Windows of text, spread and held out."""

import hashlib
import json
import struct
from types import SimpleNamespace

import pytest
import torch

from grouper import Checkpoint, GrouperError
from grouper.calibration import text as reading
from grouper.calibration.calibration import Calibration
from grouper.calibration.seen import Seen
from grouper.calibration.source import TextSource
from grouper.calibration.text import (
    WindowedText,
    check_known,
    digest,
    load_tokenizer,
    shuffled_passes,
    spread,
    windows,
)
from grouper.compress import Regrouper
from grouper.running.batch import Batch


def test_windows_are_spread_over_the_whole_text():
    every = torch.arange(10)[:, None]
    assert spread(every, 4).flatten().tolist() == [0, 3, 6, 9] and spread(every, 1).flatten().tolist() == [0]
    assert spread(every, 10) is every and spread(every, 99) is every


def test_what_is_held_out_was_not_calibrated_on(reader, text):
    regrouper = Regrouper(Checkpoint.open(reader), Calibration(TextSource(str(text)), 2048, 128))
    seen = {tuple(row) for row in regrouper.windows(2048).tolist()}
    held_out = [tuple(row) for row in regrouper.held_out(1024).tolist()]
    every = {tuple(row) for row in regrouper.text.spread().tolist()}
    assert len(seen) == 16 and len(held_out) == 8 and not seen & set(held_out) and set(held_out) <= every
    greedy = Regrouper(Checkpoint.open(reader), Calibration(TextSource(str(text)), 10**9, 128))
    with pytest.raises(GrouperError, match="no text left to judge merges on"):
        greedy.held_out(1024)


def test_what_is_held_out_is_spread_over_the_rest():
    """Moments see windows 0 and 9; of the eight others, two: the first and the last."""
    regrouper = Regrouper.__new__(Regrouper)
    regrouper.calibration = Calibration(TextSource("demo"), 8, 4)
    regrouper.architecture = SimpleNamespace(family=SimpleNamespace(reads="windows"))
    text = WindowedText(TextSource("demo"), lambda: None, 4)
    text._every = torch.arange(40).view(10, 4)
    regrouper.text = text
    assert regrouper.held_out(8)[:, 0].tolist() == [4, 32]


@pytest.fixture
def long(tmp_path, monkeypatch):
    """600,000 bytes of numbered words, taken for a long text; the same as JSON lines."""
    monkeypatch.setattr(reading, "WHOLE", 100_000)
    words = "".join(f" the {i}th word" + "." * (i % 9 == 0) for i in range(40_000))[:600_000]
    (tmp_path / "long.txt").write_text(words)
    parts = [words[i : i + 3000] for i in range(0, len(words), 3000)]
    (tmp_path / "long.jsonl").write_text("\n".join(json.dumps({"text": part}) for part in parts))
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": words}))
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Checkpoint.open("demo"))


@pytest.mark.parametrize("name", ["long.txt", "long.jsonl", "one.jsonl"])
def test_of_a_long_text_stretches_are_read(long, tokenizer, name):
    """Window k begins at the k-th eighth of the text, and is what the whole text has there."""
    asked = []

    def spied(text, **options):
        asked.append(len(text))
        return tokenizer(text, **options)

    spied.eos_token_id = tokenizer.eos_token_id
    source = TextSource(str(long / name))
    found = WindowedText(source, lambda: spied, 64).spread(8)
    assert found.shape == (8, 64) and sum(asked) < 8 * 64 * 16, "the rest is not tokenised"
    whole = (long / "long.txt").read_text()
    for k, window in enumerate(found):
        words = tokenizer.decode(window, skip_special_tokens=True).strip()
        at = whole.find(words)
        assert abs(at / len(whole) - k / 8) < 0.01
    every = WindowedText(source, lambda: tokenizer, 64).spread()
    assert every.numel() > 64 * 8 * 20 and torch.equal(found[0], every[0])
    assert Seen.of(found).touches(every).sum() in range(12, 17), "each in one window of the whole text, or in two"


def test_a_text_of_which_most_is_asked_for_is_tokenised_whole(long, tokenizer):
    text = WindowedText(TextSource(str(long / "long.txt")), lambda: tokenizer, 64)
    assert torch.equal(text.spread(2000), spread(text.spread(), 2000)) and not text.is_long(2000) and text.is_long(500)


def test_stretches_with_too_few_tokens_make_the_text_a_whole(long):
    """Here a token is a word, and between the words is a long stretch of blanks."""

    def by_words(text, **_options):
        return {"input_ids": [len(word) for word in text.split()]}

    by_words.eos_token_id = None
    (long / "sparse.txt").write_text("some words " * 20_000 + " " * 200_000 + "some words " * 20_000)
    text = WindowedText(TextSource(str(long / "sparse.txt")), lambda: by_words, 128)
    assert text.is_long(64) and torch.equal(text.spread(64), spread(text.spread(), 64))


def test_what_is_held_out_of_a_long_text_was_not_calibrated_on(long, tokenizer):
    regrouper = Regrouper(Checkpoint.open("demo"), Calibration(TextSource(str(long / "long.txt")), 1024, 64))
    used, held_out = regrouper.windows(1024), regrouper.held_out(2048)
    assert len(used) == 16 and len(held_out) == 32
    every = regrouper.text.spread()
    mine, theirs = (Seen.of(windows).touches(every) for windows in (used, held_out))
    assert mine.sum() > 16 and theirs.sum() > 32 and not (mine & theirs).any()


def test_whole_texts_are_read_in_pieces_to_the_same_tokens(long, tokenizer, monkeypatch):
    text = WindowedText(TextSource(str(long / "long.txt")), lambda: tokenizer, 64).spread()
    monkeypatch.setattr(reading, "WHOLE", 10**6)
    assert torch.equal(text, WindowedText(TextSource(str(long / "long.txt")), lambda: tokenizer, 64).spread())


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", ""), ("a.txt", " \n\t\n"), ("a.jsonl", "\n \n"), ("a.jsonl", '{"text": " "}')]
)
def test_texts_of_nothing_are_said_to_be(tmp_path, tokenizer, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(GrouperError, match=r"a.* holds no text: it is empty, or nothing but blanks"):
        windows(TextSource(str(tmp_path / name)), tokenizer, 64)


class Words:
    """A tokenizer that numbers letters; 0 begins what is tokenized with special tokens, 9 ends a document."""

    eos_token_id: int | None = 9

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict:
        return {"input_ids": [0] * add_special_tokens + [ord(c) - 96 for c in text]}


def test_documents_stand_end_to_end(tmp_path):
    """Begun once, an end behind each; the last half of a window is left out."""
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in ("abc", "de", "f")))
    source, words = TextSource(str(tmp_path / "text.jsonl")), Words()
    assert windows(source, words, 3).tolist() == [[0, 1, 2], [3, 9, 4], [5, 9, 6]]
    assert windows(source, words, 3, 2).tolist() == [[0, 1, 2], [5, 9, 6]], "spread"
    words.eos_token_id = None
    assert windows(source, words, 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(GrouperError, match=r"text\.jsonl has 7 tokens, too few for one window of 8"):
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
    again, other = (shuffled_passes(5, 3, 4, seed).flatten().tolist() for seed in (0, 1))
    assert again == order != other, "a seed's order is always the same"


def test_texts_and_examples_have_names_by_what_they_hold():
    tokens = torch.arange(6)
    assert digest(tokens) == digest(tokens.int()) != digest(tokens + 1)
    assert digest(tokens) == hashlib.sha256(struct.pack("<6q", *range(6))).hexdigest()[:16], "as older exports have it"
    assert digest(Batch({"x": tokens})) != digest(Batch({"y": tokens}))


def test_the_same_text_in_longer_windows_is_not_tokenised_again(monkeypatch):
    asked = []
    monkeypatch.setattr(WindowedText, "_ids", lambda self, *places: asked.append(places) or list(range(30)))
    short = WindowedText(TextSource("demo"), lambda: None, 4)
    assert short.spread(2).tolist() == [[0, 1, 2, 3], [24, 25, 26, 27]]
    long = short.resized(10)
    assert long.spread(2)[:, 0].tolist() == [0, 20] and short.spread().shape == (7, 4) and len(asked) == 1
    with pytest.raises(GrouperError, match="at least 2 tokens"):
        short.resized(1)


def test_a_text_without_tokens_is_refused(reader):
    with pytest.raises(GrouperError, match="gives no tokens"):
        reading.check_known(Checkpoint.open(reader), torch.empty(0, 4, dtype=torch.long))
