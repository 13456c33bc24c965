"""What a copy of weights in training brings back: parameters, what a method remembers, the layout."""

from types import SimpleNamespace

import torch

from grouper import HeadLayout
from grouper.uptraining.copies import Copy


def test_a_copy_brings_back_what_was_there():
    before, after = (HeadLayout.from_labels([labels] * 2, 4, 2) for labels in ([0, 0, 1, 1], [0, 1, 0, 1]))
    attentions = [SimpleNamespace(layout=one) for one in before.layers]
    buffer, parameter = torch.tensor([1.0, 2.0]), torch.nn.Parameter(torch.tensor([3.0]))
    student = SimpleNamespace(attentions=attentions, buffers=lambda: {"norms": buffer}, layout=before)
    kept = Copy(student, [parameter])
    with torch.no_grad():
        buffer.zero_()
        parameter.zero_()
    for attention, one in zip(attentions, after.layers):
        attention.layout = one
    kept.put_back(student, [parameter])
    assert buffer.tolist() == [1, 2] and parameter.tolist() == [3]
    assert [attention.layout for attention in attentions] == list(before.layers)
