"""Which windows a refinement has seen."""

import pytest
import torch

from grouper.calibration.seen import Seen, SeenRows
from grouper.calibration.text import digest


@pytest.fixture
def tokens():
    return torch.randint(1000, (4096,), generator=torch.Generator().manual_seed(0))


def test_windows_that_share_a_token_with_what_was_seen(tokens):
    """8 windows of 512 tokens, two of them seen: the first and the last, tokens 0-511 and 3584-4095."""
    windows = tokens.view(8, 512)
    seen = Seen.of(windows[[0, 7]])
    assert seen.touches(windows).tolist() == [True, *[False] * 6, True] and seen.used == 2
    assert seen.touches(tokens.view(4, 1024)).tolist() == [True, False, False, True], "longer windows"
    assert seen.touches(tokens[:4080].view(34, 120)).tolist() == [*[True] * 5, *[False] * 24, *[True] * 5], "shorter"
    assert Seen.of(windows).touches(windows).all()
    assert not seen.touches(windows + 1).any(), "another text"
    assert not seen.touches(tokens[:20].view(2, 10)).any(), "too short to tell"


def test_what_was_seen_is_found_wherever_it_stands(tokens):
    """Window 3, tokens 1536-2047, in a text that has 100 more tokens at its begin: 1636-2147; its first tokens are
    others because the text was cut there."""
    seen = Seen.of(torch.cat([tokens[1:9] + 1, tokens[1544:2048]])[None])
    moved = torch.cat([tokens[:100], tokens[:3996]]).view(8, 512)
    assert seen.touches(moved).tolist() == [False, False, False, True, True, False, False, False]
    assert seen.touches(tokens[1500:2100].view(6, 100)).all()


def test_windows_of_a_few_tokens():
    tokens = torch.arange(32)
    seen = Seen.of(tokens.view(8, 4)[[0, 7]])
    assert seen.touches(tokens.view(8, 4)).tolist() == [True, *[False] * 6, True]


def test_what_older_versions_wrote_is_read():
    """8 windows of 4 tokens, two of them seen, spread over the text: tokens 0-3 and 28-31."""
    tokens = torch.arange(1024 * 8)
    old = {"head": digest(tokens[:1024]), "windows": 8, "window": 1024, "used": 2}
    seen = Seen.from_data(old)
    assert isinstance(seen, SeenRows)
    assert seen.touches(tokens.view(8, 1024)).tolist() == [True, *[False] * 6, True]
    assert seen.touches(tokens.view(4, 2048)).tolist() == [True, False, False, True], "longer windows"
    assert seen.touches(tokens[:-92].view(10, 810)).tolist() == [True, True, *[False] * 6, True, True], "shorter ones"
    other = seen.touches(tokens.view(8, 1024) + 1)
    assert other.dtype == seen.touches(tokens.view(8, 1024)).dtype == torch.bool and not other.any(), "another text"
    assert Seen.from_data({**old, "used": 8}).touches(tokens.view(8, 1024)).all()
    assert Seen.from_data({**old, "used": 1}).touches(tokens.view(8, 1024)).tolist() == [True, *[False] * 7]
    for odd in (
        {"used": 0},
        {"windows": 2**60},
        {"window": 4.5},
        {"used": 99},
        {"used": True},
        {"used": "x"},
        {"more": 1},
    ):
        assert Seen.from_data({**old, **odd}) is None


def test_what_is_written_is_read_and_nonsense_is_nothing(tokens):
    seen = Seen.of(tokens.view(8, 512)[:3])
    assert Seen.from_data(seen.to_data()) == seen
    odd = [{"window": 4.5}, {"window": 0}, {"x": 1}, *({"anchors": bad} for bad in (3, "", "é", "AAAA"))]
    for data in (None, 3, [], {}, {"head": "a"}, *({**seen.to_data(), **one} for one in odd)):
        assert Seen.from_data(data) is None
