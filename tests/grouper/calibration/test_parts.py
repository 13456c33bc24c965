"""What is learnt from a long text, what judges, and that no byte is in both."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grouper.calibration import parts
from grouper.calibration.documents import JsonLines, PlainText
from grouper.calibration.parts import PartOfText, spans_of
from grouper.calibration.source import TextSource


@pytest.fixture
def small(monkeypatch):
    """Texts of 1,600 bytes are long, two of which in eight stretches of 200 are a gap's."""
    for name, value in {"LONG": 1600, "GAP": 2}.items():
        monkeypatch.setattr(parts, name, value)


def test_a_short_text_is_learnt_whole():
    assert spans_of(parts.LONG - 1, "learnt") == spans_of(parts.LONG - 1, "whole") == [(0, parts.LONG - 1)]
    assert spans_of(parts.LONG - 1, "judged") == [] and spans_of(parts.LONG, "whole") == [(0, parts.LONG)]


def test_of_a_long_text_a_sixteenth_judges_in_the_middle_of_eight_stretches():
    """2 MiB: stretches of 256 KiB, each with 16 KiB around its middle; 2 KiB on both sides are left out."""
    kib = 1024
    judged = spans_of(2048 * kib, "judged")
    assert judged[0] == (120 * kib, 136 * kib) and judged[7] == ((7 * 256 + 120) * kib, (7 * 256 + 136) * kib)
    learnt = spans_of(2048 * kib, "learnt")
    assert learnt[:2] == [(0, 118 * kib), (138 * kib, (256 + 118) * kib)] and learnt[8][1] == 2048 * kib
    assert len(judged) == 8 and len(learnt) == 9
    assert [end - begin for begin, end in spans_of(10**9, "judged")] == [parts.MOST] * 8


@given(st.integers(parts.LONG, 2**40))
@settings(max_examples=50)
def test_parts_of_any_size_lie_a_gap_apart(size):
    edges = sorted(edge for part in ("learnt", "judged") for span in spans_of(size, part) for edge in span)
    assert edges[0] == 0 and edges[-1] == size
    gaps = [b - a for a, b in zip(edges[1::2], edges[2::2])]
    assert gaps == [parts.GAP] * 16


WORDS = [f"w{i:03}" for i in range(400)]  # with the blank before it, each takes five bytes
TEXT = " ".join(WORDS)


def words_of(documents) -> list[str]:
    return [word for text, _ in documents.pieces(0, documents.size, 64) for word in text.split()]


def test_no_word_is_learnt_and_judged(small, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    learnt, judged, whole = (
        words_of(TextSource(str(tmp_path / "text.txt"), part=part).documents(lambda: None))
        for part in ("learnt", "judged", "whole")
    )
    assert whole == WORDS and not set(learnt) & set(judged)
    assert set(learnt) | set(judged) <= set(WORDS) and learnt == sorted(learnt) and judged == sorted(judged)
    assert len(judged) == pytest.approx(400 / 16, abs=8) and len(learnt) > 350


def test_calibration_learns_and_evaluation_takes_all(small, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    name = str(tmp_path / "text.txt")
    assert TextSource(name) == TextSource(name, part="learnt")
    assert words_of(TextSource(name, purpose="evaluation").documents(lambda: None)) == WORDS


@pytest.mark.parametrize("most", [None, 7, 40])
def test_pieces_of_a_part_fit_together_and_documents_end_where_spans_do(most):
    """Places move on to the next gap between words, as in all documents: here by four bytes."""
    whole = PlainText("text", lambda: io.BytesIO(TEXT.encode()))
    part = PartOfText(whole, [(0, 100), (500, 600), (1000, whole.size)])
    assert part.size == 200 + whole.size - 1000
    pieces = list(part.pieces(0, part.size, most))
    assert "".join(text for text, _ in pieces) == TEXT[:104] + TEXT[504:604] + TEXT[1004:]
    assert sum(ends for _, ends in pieces) == 3 and pieces[-1][1]
    halves = ["".join(t for t, _ in part.pieces(*span, most)) for span in ((0, 150), (150, part.size))]
    assert halves == [TEXT[:104] + TEXT[504:554], TEXT[554:604] + TEXT[1004:]]
    assert [ends for _, ends in part.pieces(0, 150)] == [True, False], "the second goes on behind the place"


def test_a_chat_is_in_a_part_if_all_of_it_is(tmp_path):
    rows = [json.dumps({"messages": [{"role": "user", "content": f"{i}" * 20}]}) for i in range(10)]
    (tmp_path / "chats.jsonl").write_text("\n".join(rows) + "\n")
    documents, length = JsonLines(tmp_path / "chats.jsonl", lambda: None), len(rows[0]) + 1
    spans = [(0, 2 * length), (5 * length - 1, 7 * length + 1)]
    found = PartOfText(documents, spans).chats()
    assert [chat[0]["content"][0] for chat in found] == ["0", "1", "5", "6"]
    assert PartOfText(documents, [(1, length)]).chats() == [], "chats, though none of them is in it"
    assert PartOfText(PlainText("text", lambda: io.BytesIO(b"word")), [(0, 4)]).chats() is None
