"""From layouts to weights: what is kept, and what refinement starts from."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from grouper import Checkpoint, HeadLayout, compress
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.calibration.text import WindowedText
from grouper.merging import MERGES
from grouper.merging.spectral import Spectral
from grouper.refinement.options import RefineOptions

LAYOUT = HeadLayout.from_labels([np.arange(8) % 4] * 3, 8, 16)


def test_a_merged_layer_is_kept_until_another_merge_is_asked_for(reader):
    regrouper = compress.Regrouper(Checkpoint.open(reader))
    mean, first = (regrouper.merged(LAYOUT, MERGES[name])(0) for name in ("mean", "first"))
    assert not torch.equal(mean.attention.k, first.attention.k)
    assert regrouper.merged(LAYOUT, MERGES["first"])(0) is first
    regrouper.release()
    assert regrouper.merged(LAYOUT, MERGES["first"])(0) is not first


def test_refinement_starts_from_the_merge_without_rescaling_and_keeps_none(reader, text, monkeypatch):
    monkeypatch.setattr(compress, "refine_layers", lambda model, layout, start, *_args, **_more: start)
    regrouper = compress.Regrouper(Checkpoint.open(reader), Calibration(TextSource(str(text)), 2048, 128))
    q = regrouper.refined(LAYOUT, MERGES["spectral"])(0).attention.q
    assert not regrouper._kept
    assert torch.equal(q, regrouper.merged(LAYOUT, Spectral(rescale=False))(0).attention.q)
    assert not torch.equal(q, regrouper.merged(LAYOUT, Spectral())(0).attention.q)


def numbered(tokens: int, context: int = 1000) -> compress.Regrouper:
    """On a text of the tokens 0, 1, 2, ..., calibrated on windows of 4."""
    regrouper = compress.Regrouper.__new__(compress.Regrouper)
    regrouper.calibration, regrouper.device = Calibration(TextSource("demo"), 8, 4), "cpu"
    regrouper.architecture = SimpleNamespace(family=SimpleNamespace(reads="windows"), context=context)

    regrouper.text, regrouper._texts = WindowedText(TextSource("demo"), lambda: None, 4), {}
    regrouper.text._whole = range(tokens)
    return regrouper


OF_64 = {"tokens": 64, "batch_tokens": 16, "long_share": 0.5}


def test_half_of_the_tokens_come_in_long_windows_both_spread_over_the_text():
    """Of 120 tokens, 30 short windows and 7 long ones, 32 tokens in each length: windows 0, 4, 8, 12, 17, ... of the
    short, the first and the last of the long."""
    short, long = numbered(120).texts(RefineOptions(**OF_64))
    assert short.shape == (8, 4) and short[:, 0].tolist() == [0, 16, 32, 48, 68, 84, 100, 116]
    assert long.shape == (2, 16) and long[:, 0].tolist() == [0, 96]


@pytest.mark.parametrize(
    ("text", "context", "options", "shapes"),
    [(1000, 12, {}, [(7, 4), (3, 12)]), (1000, 10, {}, [(8, 4), (4, 8)]), (1000, 7, {}, [(16, 4)]),
     (1000, 0, {}, [(8, 4), (2, 16)]), (1000, 99, {"long_share": 0.25}, [(12, 4), (1, 16)]),
     (1000, 99, {"long_share": 0.0}, [(16, 4)]), (1000, 99, {"long_share": 0.1}, [(16, 4)]),
     (1000, 99, {"long_share": None}, [(8, 4), (2, 16)]), (15, 99, {}, [(3, 4)]), (16, 99, {}, [(4, 4), (1, 16)]),
     (40, 99, {"batch_tokens": 48}, [(10, 4)])],
)  # fmt: skip
def test_one_length_where_there_is_no_room_for_two(text, context, options, shapes):
    """No longer one within the context or the text, or a share of less than half a long window: then all tokens come in
    short windows. A context that is not known is as long as a step."""
    found = numbered(text, context).texts(RefineOptions(**{**OF_64, **options}))
    assert [tuple(windows.shape) for windows in found] == shapes


def test_what_refinement_has_seen_are_windows_of_both_lengths():
    """Short windows 0, 4, 8, ... by themselves, and those within the long ones, at tokens 0-15 and 96-111."""
    seen = numbered(120).seen(RefineOptions(**OF_64))
    touched = seen.touches(torch.arange(120).view(30, 4)).nonzero().flatten().tolist()
    assert touched == [0, 1, 2, 3, 4, 8, 12, 17, 21, 24, 25, 26, 27, 29]
