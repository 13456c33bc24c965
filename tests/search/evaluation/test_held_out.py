"""Text to measure on, beside the text that is learnt from."""

from dataclasses import replace

import pytest

from grouper import GrouperError, TextSource
from search import SearchOptions
from search.evaluation.held_out import HeldOut, text_held_out
from search.options import HeldOutOptions

NOT = HeldOutOptions()


@pytest.fixture
def learnt(tmp_path) -> SearchOptions:
    """On a text that is just long enough for stretches to be set aside."""
    (tmp_path / "long.txt").write_text("words " * (2**21 // 6 + 1))
    return SearchOptions(text=str(tmp_path / "long.txt"), window=32)


def test_stretches_of_a_long_text_that_reads_as_one(learnt, tmp_path):
    found = text_held_out(NOT, learnt, "windows")
    assert found == HeldOut(TextSource(learnt.text, part="judged"), 32, 64)
    assert found.told == f"measured before and after on stretches of {learnt.text} that nothing is learnt from, " + (
        "64 windows at most"
    )
    assert "below 2 MiB" in text_held_out(NOT, learnt, "windows", set_aside=False), "an older run learnt from all"
    assert "of pairs none are set aside" in text_held_out(NOT, learnt, "pairs")
    (tmp_path / "long.txt").write_text("words " * (2**21 // 6))
    why = f"nothing is measured: {learnt.text} is below 2 MiB, so that none of it is set aside; give --evaluation FILE"
    assert text_held_out(NOT, learnt, "text") == why
    assert "there is no text" in text_held_out(NOT, SearchOptions(), "windows")


def test_texts_with_a_name_have_another_one_for_this():
    found = text_held_out(HeldOutOptions(limit=3), SearchOptions(text="demo"), "windows")
    assert found == HeldOut(TextSource("demo", purpose="evaluation"), 512, 3)
    assert found.told == "measured before and after on the evaluation text of demo, 3 windows at most"


def test_the_text_that_is_named_comes_first(learnt, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("others")
    for options in (learnt, SearchOptions(), SearchOptions(text="demo")):
        found = text_held_out(HeldOutOptions(str(other)), options, "windows")
        assert found.source == TextSource(str(other), purpose="evaluation") and found.source.part == "whole"
    pictures = text_held_out(HeldOutOptions("others"), SearchOptions(images="some"), "pictures")
    assert pictures.source == TextSource(images="others", purpose="evaluation")
    with pytest.raises(GrouperError, match=r"cannot read the text nowhere\.txt"):
        text_held_out(HeldOutOptions("nowhere.txt"), learnt, "windows")
    (tmp_path / "link.txt").symlink_to(learnt.text)
    for name in (learnt.text, str(tmp_path / "link.txt")):
        with pytest.raises(GrouperError, match="is the text to learn from"):
            text_held_out(HeldOutOptions(name), replace(learnt, window=64), "windows")
