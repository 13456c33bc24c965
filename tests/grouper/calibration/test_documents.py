"""Texts read from any place on."""

import io
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grouper import GrouperError
from grouper.calibration.documents import DatasetRows, JsonLines, PlainText
from grouper.calibration.source import TextSource

WORDS = "".join(f"word{i} —\r\n" if i % 7 == 0 else f"wörd{i} " for i in range(900))


class Template:
    chat_template = "yes"

    def apply_chat_template(self, messages, tokenize):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)


def plain(text: str) -> PlainText:
    return PlainText("text", lambda: io.BytesIO(text.encode()))


def joined(documents, places: list[int], most: int | None = None) -> list[str]:
    """The text between each place and the next."""
    return ["".join(t for t, _ in documents.pieces(*pair, most)) for pair in pairwise(places)]


@given(st.lists(st.integers(1, len(WORDS.encode())), max_size=6), st.sampled_from([None, 1, 37, 500]))
@settings(deadline=None, max_examples=40)
def test_stretches_of_a_text_are_the_text_and_halve_no_word(places, most):
    documents = plain(WORDS)
    found = joined(documents, [0, *sorted(places), documents.size], most)
    assert "".join(found) == WORDS.replace("\r\n", "\n")
    assert all(not part or not part[0].strip() for part in found[1:]), "the blanks before a word come with it"


def test_a_text_without_blanks_is_cut_between_characters():
    text = "漢字" * 4000
    documents = plain(text)
    found = joined(documents, [0, 7001, 14002, documents.size], 1000)
    assert "".join(found) == text and [len(part) for part in found] == [2334, 2334, 3332]


def test_a_stretch_is_read_and_no_more():
    class Counted(io.BytesIO):
        taken = 0

        def read(self, size=-1):
            data = super().read(size)
            Counted.taken += len(data)
            return data

    documents = PlainText("text", lambda: Counted(b"many words " * 1_000_000))
    Counted.taken = 0
    next(documents.pieces(5_000_000, documents.size, 1000))
    assert Counted.taken < 20_000


def rows_of(tmp_path, texts: list[str], kind: str):
    if kind == "dataset":
        return DatasetRows("data", [{"text": text} for text in texts], Template)
    lines = [json.dumps({"id": "x" * 50, "text": text}) for text in texts]
    (tmp_path / "rows.jsonl").write_text("\n\n".join(lines))
    return JsonLines(tmp_path / "rows.jsonl", Template)


@pytest.mark.parametrize("kind", ["file", "dataset"])
@pytest.mark.parametrize("most", [None, 60])
def test_stretches_of_rows_are_the_rows(tmp_path, kind, most):
    texts = [f"row{i} " + "of some words " * (40 if i == 5 else i % 3) for i in range(12)]
    documents = rows_of(tmp_path, texts, kind)
    places = [round(documents.size * i / 7) for i in range(8)]
    assert "".join(joined(documents, places, most)) == "".join(texts)
    ends = [text for text, ends in documents.pieces(0, documents.size, most) if ends]
    assert len(ends) == 12 and all(whole.endswith(part) for whole, part in zip(texts, ends))


def test_rows_with_a_text_and_no_messages_are_texts(tmp_path):
    rows = [{"text": "one", "messages": None}, {"messages": [{"role": "user", "content": "two"}], "text": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    documents = JsonLines(tmp_path / "a.jsonl", Template)
    assert joined(documents, [0, documents.size]) == ["one<user>two"] and documents.chats() is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a"}\n\n{"text": null, "messages": null}', "line 3 .*neither a `text` nor chat `messages`"),
        ('{"text": 3}', "line 1 .*neither a `text`"),
        ('{"text": "a"}\n["b"]', "line 2 .*is not an object"),
        ('{"text": "a"}\nplain', r"line 2 .*is not JSON \(.*: expected an object a line"),
        ('\n [{"text": "a"}]', r"one JSON list, .*: convert it \(jq -c '.\[\]' a.jsonl > a.jsonl\)"),
        ('{"text": "a"}\n{"messages": []}', "line 2 .*is not a conversation: `messages` is empty; remove the row"),
        ('{"messages": "hello"}', "line 1 .*`messages` is not a list of objects"),
    ],
)
def test_rows_that_are_neither_are_said_with_their_line(tmp_path, content, said):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(GrouperError, match=said):
        documents = JsonLines(tmp_path / "a.jsonl", Template)
        list(documents.pieces(0, documents.size))


def test_chats_need_a_chat_template(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Hello"}]}))
    documents = JsonLines(tmp_path / "a.jsonl", lambda: None)
    with pytest.raises(GrouperError, match=r"the model's tokenizer has no chat template .*: give rows with a `text`"):
        list(documents.pieces(0, documents.size))


def test_conversations_where_there_is_nothing_else(tmp_path):
    chat = [{"role": "user", "content": "Hello"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": chat}) + "\n" + json.dumps({"messages": chat, "text": 1}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": chat}) + '\n{"messages": []}')
    (tmp_path / "c.txt").write_text("words")
    assert TextSource(str(tmp_path / "a.jsonl")).chats() == [chat, chat]
    assert TextSource(str(tmp_path / "c.txt")).chats() is None
    with pytest.raises(GrouperError, match=r"line 2 .*`messages` is empty"):
        TextSource(str(tmp_path / "b.jsonl")).chats()
