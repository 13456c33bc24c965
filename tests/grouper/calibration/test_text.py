"""Windows of text, spread and held out."""

from types import SimpleNamespace

import pytest
import torch

from grouper import Checkpoint, GrouperError
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.calibration.text import WindowedText, spread
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
