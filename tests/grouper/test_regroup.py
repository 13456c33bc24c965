"""From layouts to weights: what is kept, and what refinement starts from."""

import numpy as np
import torch

from grouper import Checkpoint, HeadLayout, regroup
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource
from grouper.merging import MERGES
from grouper.merging.spectral import Spectral

LAYOUT = HeadLayout.from_labels([np.arange(8) % 4] * 3, 8, 16)


def test_a_merged_layer_is_kept_until_another_merge_is_asked_for(reader):
    regrouper = regroup.Regrouper(Checkpoint.open(reader))
    mean, first = (regrouper.merged(LAYOUT, MERGES[name])(0) for name in ("mean", "first"))
    assert not torch.equal(mean.attention.k, first.attention.k)
    assert regrouper.merged(LAYOUT, MERGES["first"])(0) is first
    regrouper.release()
    assert regrouper.merged(LAYOUT, MERGES["first"])(0) is not first


def test_refinement_starts_from_the_merge_without_rescaling_and_keeps_none(reader, monkeypatch):
    monkeypatch.setattr(regroup, "refine_layers", lambda model, layout, start, *_args, **_more: start)
    regrouper = regroup.Regrouper(Checkpoint.open(reader), Calibration(TextSource("demo"), 2048, 128))
    q = regrouper.refined(LAYOUT, MERGES["spectral"])(0).attention.q
    assert not regrouper._kept
    assert torch.equal(q, regrouper.merged(LAYOUT, Spectral(rescale=False))(0).attention.q)
    assert not torch.equal(q, regrouper.merged(LAYOUT, Spectral())(0).attention.q)
