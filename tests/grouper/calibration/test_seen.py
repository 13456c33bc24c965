"""Which windows a refinement has seen."""

import torch

from grouper.calibration.seen import Seen


def test_windows_that_share_a_token_with_what_was_seen(monkeypatch):
    """8 windows of 4 tokens, two of them seen: the first and the last, tokens 0-3 and 28-31."""
    monkeypatch.setattr("grouper.calibration.seen.HEAD", 16)
    tokens = torch.arange(32)
    seen = Seen.of(tokens.view(8, 4), 2)
    assert seen.touches(tokens.view(8, 4)).tolist() == [True, *[False] * 6, True]
    assert seen.touches(tokens.view(4, 8)).tolist() == [True, False, False, True], "longer windows"
    assert seen.touches(tokens[:30].view(10, 3)).tolist() == [True, True, *[False] * 7, True], "shorter ones"
    assert Seen.of(tokens.view(8, 4), 99).touches(tokens.view(8, 4)).all()
    assert not seen.touches(tokens.view(8, 4) + 1).any(), "another text"


def test_what_is_written_is_read_and_nonsense_is_nothing():
    seen = Seen.of(torch.arange(32).view(8, 4), 2)
    assert Seen.from_data(seen.to_data()) == seen
    known = seen.to_data()
    odd = [{"windows": 2**60}, {"window": 4.5}, {"used": 99}, {"used": True}, {"used": "x"}]
    for data in (None, 3, [], {}, {"head": "a"}, *({**known, **one} for one in odd)):
        assert Seen.from_data(data) is None
