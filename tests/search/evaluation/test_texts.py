"""How much of a text is measured on, and how long that takes."""

import re
import time
from types import SimpleNamespace

import pytest
import torch

from grouper import Checkpoint
from grouper.calibration.source import TextSource
from grouper.evaluation.closeness import Original
from grouper.machine import Machine
from grouper.running.opening import open_model
from search.evaluation import texts
from search.evaluation.models import evaluate_model
from search.evaluation.texts import amount, seconds_of, texts_of


def test_64_windows_of_a_text_are_measured_unless_told_otherwise(reader, text):
    checkpoint, source = Checkpoint.open(reader), TextSource(str(text))
    assert len(texts_of(checkpoint, source, None, 16, None)[""]) == 64
    assert len(texts_of(checkpoint, source, None, 16, 70)[""]) == 70


@pytest.mark.parametrize(
    ("reads", "limit"), [("windows", 64), ("text", 64), ("pairs", None), ("pictures", None), ("sounds", None)]
)
def test_all_pairs_pictures_and_sounds_are_measured(reads, limit, monkeypatch):
    kind = SimpleNamespace(family=SimpleNamespace(reads=reads))
    monkeypatch.setattr(texts, "Architecture", SimpleNamespace(of=lambda config: kind))
    monkeypatch.setattr(texts, "read_examples", lambda checkpoint, source, window, limit, kept: limit)
    checkpoint = SimpleNamespace(config={})
    assert texts_of(checkpoint, TextSource("a"), None, 16, None) == {"": limit}
    assert texts_of(checkpoint, TextSource("a"), None, 16, 5) == {"": 5}


def test_time_is_estimated_from_a_few_windows(reader, monkeypatch):
    """A window takes 0.1 s: 60 of them 6 s."""
    walked = []

    def of(model, batch):
        walked.append(len(batch))
        time.sleep(0.1 * len(batch))

    monkeypatch.setattr(texts, "get_num_threads", lambda: 2)
    monkeypatch.setattr(Original, "of", of)
    given = {"": torch.zeros(60, 512, dtype=torch.long)}
    assert seconds_of(open_model(Checkpoint.open(reader), "cpu"), given) == pytest.approx(6, rel=0.3)
    assert walked == [1, 2] and amount(given) == "60 windows of 512 tokens"
    assert seconds_of(open_model(Checkpoint.open(reader), "cpu", 1), given) is None, "streamed"


def test_a_model_is_measured_after_its_time_was_said(reader, text):
    told = []
    machine = Machine(tell=told.append, progress=lambda done, total, note: told.append(note))
    evaluate_model(reader, TextSource(str(text)), window=64, limit=4, machine=machine)
    assert re.fullmatch(r"measuring on 4 windows of 64 tokens: about \d+ s", told[0])
    assert told[1:] == [f"measuring, layer {i}" for i in range(3)]
