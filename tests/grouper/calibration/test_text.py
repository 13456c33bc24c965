"""Windows of text, spread and held out."""

import json
from types import SimpleNamespace

import pytest
import torch

from grouper import Checkpoint, GrouperError
from grouper.calibration import text as reading
from grouper.calibration.calibration import Calibration
from grouper.calibration.seen import Seen
from grouper.calibration.source import TextSource
from grouper.calibration.text import WindowedText, load_tokenizer, spread, windows
from grouper.regroup import Regrouper


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
    regrouper.architecture = SimpleNamespace(encodes=False)
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
