"""Division of a long text into a part to learn from and stretches held out from the start, to judge training by.

Calibration, refinement and training skip the held-out stretches. Positions are bytes, so all of them divide the text in
the same way, whatever their windows.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from grouper.calibration.documents import DatasetRows, JsonLines, Piece, PlainText

Part = Literal["learnt", "judged", "whole"]
Span = tuple[int, int]  # begin and end, in bytes

LONG = 2**21  # bytes: a shorter text is not divided, because refinement on a GPU takes nearly two million
STRETCHES = 8  # spread evenly over the text
SHARE = 16  # one byte in 16 is held out,
MOST = 2**17  # up to this many per stretch
GAP = 2**11  # bytes on both sides of a stretch, about a window, that belong to neither part


def spans_of(size: int, part: Part) -> list[Span]:
    """Spans of a part of a text of `size` bytes, in order."""
    if part == "whole" or size < LONG:
        return [] if part == "judged" else [(0, size)]
    length = min(size // SHARE // STRETCHES, MOST)
    begins = [(2 * k + 1) * size // (2 * STRETCHES) - length // 2 for k in range(STRETCHES)]
    if part == "judged":
        return [(begin, begin + length) for begin in begins]
    edges = [0, *(edge for begin in begins for edge in (begin - GAP, begin + length + GAP)), size]
    return [span for i, span in enumerate(pairwise(edges)) if i % 2 == 0]


class PartOfText:
    """Documents within some spans of a text, one after the other. Positions count only the bytes of these spans."""

    def __init__(self, documents: PlainText | JsonLines | DatasetRows, spans: list[Span]):
        self._documents, self._spans = documents, spans
        self.size = sum(end - begin for begin, end in spans)

    def pieces(self, start: int, stop: int, most: int | None = None) -> Iterator[Piece]:
        """Pieces between two positions, as for whole documents. A document ends at the end of its span."""
        before = 0
        for begin, end in self._spans:
            first, last = begin + max(0, start - before), min(end, begin + stop - before)
            before += end - begin
            if first >= last:
                continue
            held: Piece | None = None
            for piece in self._documents.pieces(first, last, most):
                if held:
                    yield held
                held = piece
            if held:
                yield held[0], held[1] or last == end

    def chats(self) -> list[list[dict]] | None:
        """Conversations that lie entirely within one span, if the text consists of chats; else None."""
        return None if isinstance(self._documents, PlainText) else self._documents.chats(self._spans)
