"""Texts read from any place on."""

import io
import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grouper import GrouperError
from grouper.calibration import documents as reading
from grouper.calibration.documents import DatasetRows, JsonLines, PlainText
from grouper.calibration.source import TextSource

WORDS = "".join(f"word{i} —\r\n" if i % 7 == 0 else f"wörd{i} " for i in range(900))


class Template:
    chat_template = "yes"

    def apply_chat_template(self, messages, tokenize):
        assert tokenize is False
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
    pieces = [text for place in pairwise(places) for text, _ in documents.pieces(*place, most)]
    assert all(piece.startswith((" ", "row")) for piece in pieces if piece), "no word is halved"
    ends = [text for text, ends in documents.pieces(0, documents.size, most) if ends]
    assert len(ends) == 12 and all(whole.endswith(part) for whole, part in zip(texts, ends))


def test_rows_are_found_from_any_place(tmp_path, monkeypatch):
    """Blank lines first and between them; blocks of four bytes, so that lines begin within blocks and at their ends."""
    monkeypatch.setattr(reading, "BLOCK", 4)
    texts = ["one two", "three", "four five six"]
    (tmp_path / "a.jsonl").write_text("\n" + "\n\n".join(json.dumps({"text": text}) for text in texts) + "\n")
    size = JsonLines(tmp_path / "a.jsonl", Template).size
    for place in range(size + 1):
        opened = [
            JsonLines(tmp_path / "a.jsonl", Template) for _ in range(2)
        ]  # which know nothing of one another's rows
        parts = [joined(one, pair)[0] for one, pair in zip(opened, ([0, place], [place, size]))]
        assert "".join(parts) == "".join(texts), place


def test_a_stretch_of_a_rows_bytes_is_that_share_of_its_text(tmp_path):
    """Of 4,000 characters behind another row those from three quarters on, at the next gap between words."""
    texts = ["first " * 100, "word " * 800]
    first = rows_of(tmp_path, texts[:1], "file").size + 2
    documents = rows_of(tmp_path, texts, "file")
    place = first + 3 * (documents.size - first) // 4
    (text,) = joined(documents, [place, documents.size])
    assert texts[1].endswith(text) and text.startswith(" ") and abs(len(text) - 1000) <= 5


def dataset(rows: list[dict], nbytes: int | None) -> DatasetRows:
    """nbytes: of all rows, None where the dataset does not say."""

    class Rows(list):
        data = None if nbytes is None else SimpleNamespace(nbytes=nbytes)

    return DatasetRows("data", Rows(rows), Template)


def test_rows_of_a_dataset_are_taken_to_be_of_one_length():
    rows = [{"text": word} for word in "abcd"]
    documents = dataset(rows, 1003)
    assert documents.size == 1000 and documents.row(1000) is None and documents.row(1100) is None
    assert [documents.row(place) for place in (0, 249, 250, 999)] == [
        (0, 250, rows[0]), (0, 250, rows[0]), (250, 500, rows[1]), (750, 1000, rows[3]),
    ]  # fmt: skip
    assert documents.called(500) == "row 2 of data"
    assert dataset(rows, None).size == dataset(rows, 3).size == 4 and dataset([], None).size == 0
    assert dataset(rows[:1], 7).size == 7


def test_chats_of_a_dataset_are_written_by_the_template_each_once(monkeypatch):
    chats = [[{"role": "user", "content": f"Hello {i}"}] for i in range(2)]
    documents = dataset([{"messages": chat} for chat in chats], None)
    assert documents.chats() == chats and joined(documents, [0, 2]) == ["<user>Hello 0<user>Hello 1"]
    calls, write = [], Template.apply_chat_template
    monkeypatch.setattr(Template, "apply_chat_template", lambda *a, **more: calls.append(1) or write(*a, **more))
    assert joined(dataset([{"messages": chats[0]}], 14), [0, 7, 10, 14]) == ["<user>Hello", "", " 0"]
    assert len(calls) == 1, "for all stretches of the row"


def test_a_template_that_fails_is_said_with_the_row():
    class Fails(Template):
        def apply_chat_template(self, messages, tokenize):
            raise ValueError("roles must alternate")

    documents = DatasetRows("data", [{"text": "a"}, {"messages": [{"role": "user"}]}], Fails)
    with pytest.raises(GrouperError, match="row 1 of data is not a conversation: roles must alternate"):
        list(documents.pieces(0, documents.size))


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
        ('{"messages": ["hello"]}', "line 1 .*`messages` is not a list of objects"),
        ('{"text": "a"}\n{"text": 3}\n{"text": "b"}\n', "line 2 .*neither a `text`"),
        ('\n{"text": 3}', "line 2 .*neither a `text`"),
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
    with pytest.raises(
        GrouperError, match=r"a\.jsonl has chats .*'s tokenizer has no chat template .*: give rows with a `text`"
    ):
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
